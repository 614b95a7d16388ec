"""launcher/snapshot.py: the rows it lists, as text; and what it says where there is nothing to list."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from distill_dist.assemble.show_snapshot import find_snapshot, show_snapshot, tables
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.scores import Columns, fresh_from_logits, given
from distill_dist.curriculum.scores import advance as advance_columns
from distill_dist.curriculum.snapshot_record import Origin
from distill_dist.curriculum.snapshot_writer import SnapshotWriter
from distill_dist.data.manifest import load_manifest, manifest_hash
from distill_dist.data.prepare import prepare
from distill_dist.data.shards import open_split
from distill_dist.errors import UserError

LAUNCHER = Path(__file__).resolve().parents[3] / "launcher" / "snapshot.py"
ROWS = 40
WRONG, HARD, FORGOTTEN, NAN = 3, 17, 25, 30  # numbers of rows, in both shards


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Forty rows in three shards."""
    folder = tmp_path_factory.mktemp("world")
    sizes = [f"data.synthetic.train_rows={ROWS}", "data.synthetic.dev_rows=10", "data.synthetic.max_steps=1"]
    arguments = [
        "data.source=synthetic_nli", f"data.prepared={folder}/prepared", "data.rows_per_shard=16",
        f"run_dir={folder}/run", *sizes,
    ]  # fmt: skip
    found = load_config(None, arguments, need="prepare")
    prepare(found.data, progress=False)
    return found


def logits(labels: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """[N, 3]: the label's class ahead of the next by the margin, or behind it; NaN where that is."""
    found = np.zeros((len(labels), 3))
    found[np.arange(len(labels)), labels] = margins / 2
    found[np.arange(len(labels)), (labels + 1) % 3] = -margins / 2
    return found


def columns_of(labels: np.ndarray) -> Columns:
    """Three snapshots: most rows are learnt, each a little better than the one before it."""
    columns = None
    for turn in range(3):
        margins = 3 + np.arange(len(labels)) / 100
        margins[WRONG] = -8.0
        margins[HARD] = -8.5 if turn == 2 else 1.0  # the hardest of the newest, yet it was right before
        margins[FORGOTTEN] = [4.0, -0.5, 4.0][turn]
        margins[NAN] = math.nan
        columns = advance_columns(
            columns, fresh_from_logits("true_probability", logits(labels, margins), labels), smoothing=0
        )
    assert columns is not None
    return columns


def write_snapshot(
    root: Path,
    number: int,
    columns: Columns,
    sizes: np.ndarray,
    manifest: str,
    measure: str = "true_probability",
) -> Path:
    """The snapshot's folder."""
    writer = SnapshotWriter(root, number)
    writer.begin()
    entries, start = [], 0
    for index, size in enumerate(sizes.tolist()):
        part = Columns(**{name: column[start : start + size] for name, column in vars(columns).items()})
        entries.append(writer.write_block(index, part, num_nan=int(np.isnan(part.score).sum())))
        start += size
    origin = Origin(step=7, measure=measure, smoothing=0.0, manifest=manifest, parent="")
    return writer.commit(entries, origin, keep=2)


@pytest.fixture(scope="module")
def run_dir(config: RunConfig) -> Path:
    """A run's folder with the snapshots 2 and 3."""
    folder = Path(config.run_dir)
    split = open_split(Path(config.data.prepared), "train")
    manifest = manifest_hash(load_manifest(Path(config.data.prepared)))
    for number in (2, 3):
        write_snapshot(folder / "snapshots", number, columns_of(split.labels), split.block_sizes, manifest)
    # a run writes all of them; merging ninety fields takes a second
    own = f"run_dir: {folder}\ndata: {{source: synthetic_nli, prepared: {config.data.prepared}}}\n"
    (folder / "config.yaml").write_text(own, encoding="utf-8")
    return folder


def show(run_dir: Path, config: RunConfig, top: int = 3) -> dict[str, Any]:
    return show_snapshot(find_snapshot(run_dir, number=None), Path(config.data.prepared), top=top)


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [row["row"] for row in rows]


def test_the_lists_and_what_is_said_of_a_row(run_dir: Path, config: RunConfig) -> None:
    found = show(run_dir, config)
    assert (found["number"], found["step"], found["rows"]) == (3, 7, ROWS)
    assert (found["nan"], found["unscored"]) == (1, 1)
    assert numbers(found["hardest"]) == [HARD, WRONG, 0]
    assert numbers(found["easiest"]) == [FORGOTTEN, 39, 38]
    assert numbers(found["most_forgotten"]) == [HARD, FORGOTTEN]  # once each; the former is lower on average
    assert numbers(found["suspects"]) == [WRONG, HARD]
    assert sum(found["confidence"]["counts"]) == ROWS - 1
    wrong = found["suspects"][0]
    split = open_split(Path(config.data.prepared), "train")
    labels = load_manifest(Path(config.data.prepared)).labels
    assert wrong["label"] == labels[split.labels[WRONG]]
    assert wrong["predicted"] == labels[(split.labels[WRONG] + 1) % 3]
    # p of the label with logits −4, 4, 0; a loss in float32 has 24 bits
    p = math.exp(-4) / (math.exp(-4) + math.exp(4) + 1)
    assert wrong["p_true"] == pytest.approx(p, rel=1e-5)
    assert wrong["mean"] == pytest.approx(p, rel=1e-5)
    assert (wrong["snapshots"], wrong["forgotten"], wrong["teacher_p_true"]) == (3, 0, None)
    assert wrong["clean_label"] == wrong["label"]
    assert 0.5 < wrong["suspicion"] < 1
    json.dumps(found, allow_nan=False)


def test_a_row_reads_as_it_was_written(run_dir: Path, config: RunConfig) -> None:
    """Both texts, without the tokens that frame them."""
    prepared = Path(config.data.prepared)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(prepared / "tokenizer")
    for row in show(run_dir, config)["hardest"]:
        premise, hypothesis = row["text"].split(" | ")
        (example,) = open_split(prepared, "train").read(np.array([row["row"]]))
        assert tokenizer(premise, hypothesis)["input_ids"] == example.input_ids.tolist()


def test_lists_are_no_longer_than_the_rows(run_dir: Path, config: RunConfig) -> None:
    found = show(run_dir, config, top=1000)
    assert len(found["hardest"]) == len(found["easiest"]) == ROWS - 1
    assert numbers(found["hardest"]) == numbers(found["easiest"])[::-1]


def test_the_tables_have_every_row(run_dir: Path, config: RunConfig) -> None:
    found = show(run_dir, config)
    text = tables(found)
    for name in ("hardest", "easiest", "most_forgotten", "suspects"):
        for row in found[name]:
            assert f"{row['row']:>10} " in text
    wrong = found["suspects"][0]
    assert f"{wrong['label']} → {wrong['predicted']}" in text
    # a text from somebody's web page may hold what moves a terminal's cursor
    found["hardest"][0]["text"] = "red\x1b[31m\r\n" + "x" * 500
    assert "red\ufffd[31m\ufffd\ufffdxxx" in tables(found)
    assert "x" * 200 not in tables(found)


def test_scores_of_a_file_know_nothing_else(run_dir: Path, config: RunConfig, tmp_path: Path) -> None:
    split = open_split(Path(config.data.prepared), "train")
    scores = np.arange(ROWS, dtype=np.float32) - 20
    scores[0] = -np.inf
    manifest = manifest_hash(load_manifest(Path(config.data.prepared)))
    folder = write_snapshot(tmp_path, 0, given(scores), split.block_sizes, manifest, measure="file")
    found = show_snapshot(folder, Path(config.data.prepared), top=2)
    assert numbers(found["hardest"]) == [0, 1]
    assert numbers(found["easiest"]) == [39, 38]
    assert found["suspects"] == found["most_forgotten"] == []
    assert found["confidence"] is None
    for name in ("score", "predicted", "p_true", "mean", "deviation"):
        assert found["hardest"][0][name] is None
    json.dumps(found, allow_nan=False)
    assert "  none" in tables(found)


def test_which_snapshot(run_dir: Path, tmp_path: Path) -> None:
    second = run_dir / "snapshots" / "snapshot-00002"
    assert find_snapshot(run_dir, number=2) == second
    assert find_snapshot(run_dir, number=None) == run_dir / "snapshots" / "snapshot-00003"
    assert find_snapshot(second, number=None) == second
    with pytest.raises(UserError, match=r"--number 4: .* has the snapshots 2, 3 "):
        find_snapshot(run_dir, number=4)
    with pytest.raises(UserError, match="is one snapshot already"):
        find_snapshot(second, number=2)
    with pytest.raises(UserError, match="has no snapshots: "):
        find_snapshot(tmp_path, number=None)


def test_other_data_is_refused(run_dir: Path, config: RunConfig, tmp_path: Path) -> None:
    other = load_config(
        None,
        ["data.source=synthetic_nli", f"data.prepared={tmp_path}/other", "data.synthetic.train_rows=20",
         "data.synthetic.dev_rows=5", "data.synthetic.max_steps=1"],
        need="prepare",
    )  # fmt: skip
    prepare(other.data, progress=False)
    with pytest.raises(UserError, match=r"scored other rows than data\.prepared=.*: add data\.prepared="):
        show(run_dir, other)
    gone = replace(config, data=replace(config.data, prepared=str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"no prepared data in .*gone: run python launcher/prepare\.py"):
        show(run_dir, gone)


@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_lost_tokenizer_is_named(
    run_dir: Path, config: RunConfig, tmp_path: Path, content: str | None
) -> None:
    copy = tmp_path / "prepared"
    shutil.copytree(config.data.prepared, copy)
    path = copy / "tokenizer" / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"{path}.*: prepare again with "):
        show(run_dir, replace(config, data=replace(config.data, prepared=str(copy))))


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The launcher in this process; its exit code."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", [str(LAUNCHER), *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(LAUNCHER), run_name="__main__")
    return caught.value.code


def test_the_launcher(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second, newest = run_dir / "snapshots" / "snapshot-00002", run_dir / "snapshots" / "snapshot-00003"
    for arguments, shown in (
        ([str(run_dir)], newest),
        ([str(run_dir), "--number", "2"], second),
        ([str(run_dir), "--path", str(second)], second),
        ([str(second)], second),
    ):
        assert launch(monkeypatch, *arguments, "--top", "2") == 0
        out, err = capsys.readouterr()
        assert out.count("\n") == 1
        assert json.loads(out)["snapshot"] == str(shown)
        assert numbers(json.loads(out)["hardest"]) == [HARD, WRONG]
        assert "suspects of wrong labels" in err


def test_torch_is_not_needed(run_dir: Path) -> None:
    """It would take longer than all the rest."""
    script = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(LAUNCHER), str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == ROWS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--top", "0"], "--top 0: must be 1 to 10000"),
        (["{run}", "--top", "10001"], "--top 10001: must be 1 to 10000"),
        (["{run}", "--number", "9"], "--number 9: "),
        (["{run}", "--number", "2", "--path", "{run}"], "not allowed with"),
        (["{run}/absent"], "no such folder"),
        (["data.prepared=x", "{run}"], "data.prepared=x: no such folder"),
        (["{run}/.."], "has no config.yaml"),
        (["{run}", "data.prepared={run}"], "no prepared data in"),
        ([], "DIR"),
    ],
)
def test_mistakes_are_one_message(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert launch(monkeypatch, *(text.replace("{run}", str(run_dir)) for text in arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
