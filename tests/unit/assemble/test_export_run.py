"""A run's model as a folder to take away: what is in it, what is said, and what is refused with nothing written."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, pipeline

from assemble.export_cases import LABELS, contents, prepare_pairs, prepare_texts, write_run
from distill_dist.assemble.evaluation_files import evaluated_folder, write_evaluation
from distill_dist.assemble.export_run import ExportAsked, export_run
from distill_dist.assemble.score import Asked, Scored, score
from distill_dist.config.schema import RunConfig
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return prepare_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def run(pairs: list[str], tmp_path: Path) -> tuple[Path, RunConfig]:
    """A run folder, and its configuration."""
    return tmp_path / "run", write_run(tmp_path / "run", pairs)


@pytest.fixture(autouse=True)
def talkative() -> Iterator[None]:
    """The library's own switches and torch's threads are as before."""
    level, threads = transformers.logging.get_verbosity(), torch.get_num_threads()
    yield
    transformers.logging.set_verbosity(level)
    torch.set_num_threads(threads)


def keep_evaluation(folder: Path, scored: Scored) -> None:
    with evaluated_folder(folder):
        write_evaluation(folder, scored)


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def test_what_is_exported(
    run: tuple[Path, RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = run
    before = contents(tmp_path)
    found = export_run(config, ExportAsked(folder, tmp_path / "out" / "small"))
    assert {
        name: digest for name, digest in contents(tmp_path).items() if not name.startswith("out/")
    } == before
    assert "scoring now" in capsys.readouterr().err
    out = tmp_path / "out" / "small"
    names = {
        "README.md",
        "config.json",
        "export.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_config.yaml",
    }
    assert {path.name for path in out.iterdir()} == found["files"].keys() == names
    record = json.loads((out / "export.json").read_text())
    assert record["files"].keys() == names - {"export.json"}
    assert {key: record[key] for key in record if key not in ("format", "files")} == json.loads(
        json.dumps({key: found[key] for key in found if key not in ("export", "files")})
    )
    card = card_of(out)
    (result,) = card.data.eval_results
    assert result.metric_args["interval_95"][0] <= result.metric_value <= result.metric_args["interval_95"][1]
    assert result.metric_value == found["splits"]["dev"]["student"]["accuracy"]["value"]
    assert {"ll", "pl", "sl_spearman_norm"} <= found["splits"]["dev"]["loyalty"].keys()
    assert "`teacher/model`" in card.text
    assert "4,321 parameters" in card.text
    assert "python launcher/train.py --config kd.yaml" in card.text
    assert "10 rows of `dev`" in card.text
    assert "(`bert, 1 layer of width 16`)" in card.text
    assert "2 students, 1 teacher, ZeRO 1" in card.text
    settings = yaml.safe_load((out / "training_config.yaml").read_text(encoding="utf-8"))
    assert settings["student"]["path"] == "teacher/model"
    run_config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert settings["train"] == run_config["train"]
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
        assert path.stat().st_mode & 0o044, f"{path} is for its owner alone"


def test_single_texts_and_hostile_names(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    config = write_run(tmp_path / "run", prepare_texts(tmp_path / "rows"))
    out = tmp_path / "x"
    found = export_run(config, ExportAsked(tmp_path / "run", out))
    assert found["labels"] == list(LABELS)
    card = card_of(out)
    assert 'classify("the said", truncation=True)' in card.text
    assert yaml.safe_load(card.content.split("---\n")[1])["model-index"]
    assert re.findall(r"^## (.*)$", card.text, re.M)[-1] == "Limits"
    loaded = AutoModelForSequenceClassification.from_pretrained(out)
    assert tuple(loaded.config.id2label.values()) == LABELS
    said = pipeline("text-classification", model=str(out))("anna " * 99, truncation=True, top_k=None)
    assert {each["label"] for each in said} == set(LABELS)


def test_an_evaluation_of_this_model_is_taken_and_another_is_not(
    run: tuple[Path, RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = run
    keep_evaluation(folder, score(config, Asked(str(folder / "model"), resamples=123)))
    export_run(config, ExportAsked(folder, tmp_path / "out"))
    assert "123 draws" in card_of(tmp_path / "out").text
    assert "scoring" not in capsys.readouterr().err
    # the run measured saliency itself; the evaluation was not asked to
    assert re.search(r"Spearman, norm of gradients \| 0\.500 \|", card_of(tmp_path / "out").text)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["models"]["student"]["sha256"] = "0" * 64
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    export_run(config, ExportAsked(folder, tmp_path / "out"))
    assert "1000 draws" in card_of(tmp_path / "out").text
    assert "is of another model than the run's own: scoring now" in capsys.readouterr().err
    keep_evaluation(folder, score(config, Asked(str(folder / "model"), str(folder / "model"), resamples=123)))
    export_run(config, ExportAsked(folder, tmp_path / "out"))
    assert "1000 draws" in card_of(tmp_path / "out").text, "against itself, and not its teacher"


def test_with_a_teacher_that_is_gone_its_figures_are_the_runs_own(
    run: tuple[Path, RunConfig], tmp_path: Path
) -> None:
    folder, config = run
    shutil.rmtree(tmp_path / "teacher")
    dev = export_run(config, ExportAsked(folder, tmp_path / "out"))["splits"]["dev"]
    assert dev["student"]["accuracy"]["interval"] is not None
    assert dev["teacher"]["accuracy"] == {"value": 0.75, "interval": None}
    assert dev["loyalty"]["sl_spearman_norm"] == {"value": 0.5, "interval": None}


def test_in_a_hurry_there_are_no_intervals(
    run: tuple[Path, RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = run
    shutil.rmtree(tmp_path / "teacher")
    found = export_run(config, ExportAsked(folder, tmp_path / "out", evaluate=False))
    assert found["splits"]["dev"]["student"]["accuracy"] == {"value": 0.5, "interval": None}
    card = card_of(tmp_path / "out")
    assert "without intervals" in card.text
    assert "not at hand when this was exported" in card.text
    told = capsys.readouterr().err
    assert f"python launcher/evaluate.py {folder} --saliency makes them" in told
    assert "the run's teacher is not there any more" in told
    assert "there is no such folder" in told


def test_rows_that_are_gone(pairs: list[str], tmp_path: Path) -> None:
    """They are asked for where something is computed on them, and only there."""
    config = write_run(tmp_path / "run", pairs)
    gone = replace(config, data=replace(config.data, prepared=str(tmp_path / "nowhere")))
    asked = ExportAsked(tmp_path / "run", tmp_path / "out")
    with pytest.raises(
        UserError,
        match=r"no prepared data in .*needed for scoring, since evaluation.json is not there "
        r"\(--no-evaluate leaves it out\): give",
    ):
        export_run(gone, asked)
    evaluation = tmp_path / "run" / "evaluation.json"
    evaluation.write_text("{")
    with pytest.raises(UserError, match=r"since evaluation\.json cannot be read: .* \(--no-evaluate"):
        export_run(gone, asked)
    evaluation.unlink()
    with pytest.raises(UserError, match="needed for --onnx and --latency"):
        export_run(gone, ExportAsked(asked.run, asked.out, evaluate=False, onnx=True, latency=True))
    assert not asked.out.exists()
    export_run(gone, ExportAsked(asked.run, asked.out, evaluate=False))
    assert "The prepared rows were not at hand" in card_of(asked.out).text


def test_rows_that_lie_in_the_place_of_the_runs_own(run: tuple[Path, RunConfig], tmp_path: Path) -> None:
    """Prepared again into the same folder, say: what is held out now may have taught the model."""
    folder, config = run
    keep_evaluation(folder, score(config, Asked(student=str(folder / "model"))))
    summary = json.loads((folder / "summary.json").read_text())
    summary["data"] = {"manifest": "0" * 64}
    (folder / "summary.json").write_text(json.dumps(summary))
    asked = ExportAsked(folder, tmp_path / "out")
    with pytest.raises(
        UserError, match=r"holds other rows than .* was trained on .*evaluation.json is of other rows"
    ):
        export_run(config, asked)
    assert not asked.out.exists()
    export_run(config, replace(asked, evaluate=False))
    text = card_of(asked.out).text
    assert "Trained on the rows of" in text, "how many there were, nobody knows any more"
    assert "The prepared rows were not at hand" in text


def test_onnx_and_latency(
    run: tuple[Path, RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = run
    found = export_run(config, ExportAsked(folder, tmp_path / "out", onnx=True, latency=True, rounds=1))
    onnx, latency = found["onnx"], found["latency"]
    assert onnx["largest_difference"] <= onnx["tolerance"] < 1e-3
    assert (onnx["checked_rows"], onnx["dev_rows"], onnx["agreement"]) == (10, 10, 1.0)
    assert onnx["dev"]["accuracy"] == found["splits"]["dev"]["student"]["accuracy"]["value"]
    lines = {each["name"]: each for each in latency["contenders"]}
    assert list(lines) == ["teacher", "student", "student, ONNX", "student, int8"]
    assert (
        lines["teacher"]["parameters"]
        > lines["student"]["parameters"]
        == lines["student, int8"]["parameters"]
    )
    assert lines["teacher"]["bytes"] == (tmp_path / "teacher" / "model" / "model.safetensors").stat().st_size
    assert lines["student, int8"]["bytes"] == found["files"]["onnx/model_int8.onnx"]
    assert lines["teacher"]["accuracy"] == found["splits"]["dev"]["teacher"]["accuracy"]["value"]
    assert latency["rows"] == {1: 10, 32: 32}, "a small split's rows come again"
    assert all(timing["median_ms"] > 0 for each in lines.values() for timing in each["timings"].values())
    assert latency["threads"] == 1
    text = card_of(tmp_path / "out").text
    assert "## Speed and size" in text
    assert "## ONNX" in text
    assert "student, int8" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "teacher")
    alone = export_run(config, ExportAsked(folder, tmp_path / "out", latency=True, rounds=1))
    assert [each["name"] for each in alone["latency"]["contenders"]] == ["student"]
    assert "The teacher was not at hand." in capsys.readouterr().err
    assert not (tmp_path / "out" / "onnx").exists(), "a file of the export before"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (
            {"state": "stopped", "reason": "SIGTERM"},
            r"state is `stopped` \(SIGTERM\): the command that started it goes on",
        ),
        ({"state": "failed", "reason": "no rows"}, r"state is `failed` \(no rows\): see its logs"),
        ({"state": "running"}, "state is `lost`: its process is gone"),
        (None, "state is `unknown`: give the run_dir"),
    ],
)
def test_a_run_that_is_not_done(
    run: tuple[Path, RunConfig], tmp_path: Path, state: dict[str, str] | None, expected: str
) -> None:
    folder, config = run
    (folder / "state.json").unlink()
    if state is not None:
        (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=expected):
        export_run(config, ExportAsked(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_the_runs(run: tuple[Path, RunConfig], tmp_path: Path) -> None:
    folder, config = run
    asked = ExportAsked(folder, tmp_path / "out")
    weights = folder / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors does not match the checksum"):
        export_run(config, asked)
    (folder / "model" / "best_epoch.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not the model that a run exported"):
        export_run(config, asked)
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"has no summary\.json"):
        export_run(config, asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"]
)
@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_file_of_the_model_that_the_run_did_not_write(
    run: tuple[Path, RunConfig], tmp_path: Path, name: str, harm: str
) -> None:
    """It is named before rows that are missing as well."""
    folder, config = run
    path = folder / "model" / name
    if harm == "changed":
        path.write_bytes(path.read_bytes() + b" ")
    else:
        path.unlink()
    gone = replace(config, data=replace(config.data, prepared=str(tmp_path / "nowhere")))
    said = "does not match the checksum that the run noted" if harm == "changed" else "cannot be read"
    with pytest.raises(UserError, match=f"{re.escape(name)} {said}.*put"):
        export_run(gone, ExportAsked(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_evaluation_that_says_something_else_is_not_taken(
    run: tuple[Path, RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of train alone, of other rows, by another teacher in the same place; or of no types of ours."""
    folder, config = run
    asked = ExportAsked(folder, tmp_path / "out")
    model = str(folder / "model")

    def reason() -> str:
        capsys.readouterr()
        found = export_run(config, asked)
        assert found["splits"].keys() == {"dev"}
        assert found["splits"]["dev"]["rows"] == 10
        return capsys.readouterr().err.partition("evaluation.json ")[2].partition(": scoring now")[0]

    keep_evaluation(folder, score(config, Asked(model, splits=("train",))))
    assert reason() == "says nothing of dev"
    keep_evaluation(folder, score(config, Asked(model, splits=("train", "dev"))))
    assert reason() == "", "and what it taught is not among the results"
    (tmp_path / "more").mkdir()
    other = replace(
        config, data=replace(config.data, prepared=prepare_pairs(tmp_path / "more", dev_rows=13)[-1][14:])
    )
    keep_evaluation(folder, score(other, Asked(model)))
    assert reason() == "is of other rows"
    keep_evaluation(folder, score(config, Asked(model)))
    assert reason() == ""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for path, value in (("splits", 3), ("settings", {}), ("models", {"student": {}, "teachers": 3})):
        (folder / "evaluation.json").write_text(json.dumps({**evaluation, path: value}))
        assert reason() == "is not what launcher/evaluate.py writes", path
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    teacher = tmp_path / "teacher" / "model"
    weights = load_file(teacher / "model.safetensors")
    save_file(
        {name: -value for name, value in weights.items()}, teacher / "model.safetensors", {"format": "pt"}
    )
    assert reason() == "is of another model or teacher"


def test_a_model_that_diverged_is_not_exported(run: tuple[Path, RunConfig], tmp_path: Path) -> None:
    folder, config = run
    weights = load_file(folder / "model" / "model.safetensors")
    weights["classifier.weight"][0] = math.nan
    save_file(weights, folder / "model" / "model.safetensors", {"format": "pt"})
    noted = json.loads((folder / "model" / "best_epoch.json").read_text())
    noted["sha256"] = sha256_file(folder / "model" / "model.safetensors")
    (folder / "model" / "best_epoch.json").write_text(json.dumps(noted))
    for evaluate in (True, False):
        with pytest.raises(UserError, match=r"classifier\.weight are not all finite"):
            export_run(config, ExportAsked(folder, tmp_path / "out", evaluate=evaluate, onnx=True))
    assert not (tmp_path / "out").exists()
