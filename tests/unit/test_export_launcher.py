"""What `launcher/export.py` refuses before torch is imported, and with which exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from launchers import load_launcher

from distill_dist.command_line import launch
from distill_dist.extras import EXTRAS


@pytest.fixture(scope="module")
def launcher() -> ModuleType:
    return load_launcher("export")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as far as it is looked at, and one of a run that was refused."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "refused").mkdir()
    refusal = {"state": "failed", "refused": True, "reason": "UserError: no rows"}
    (tmp_path / "refused" / "state.json").write_text(json.dumps(refusal), encoding="utf-8")
    (tmp_path / "run" / "config.yaml").write_text("data: {prepared: p}\n", encoding="utf-8")
    return tmp_path / "run"


def said(launcher: ModuleType, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Its one message, with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        launch(
            launcher.main,
            description="",
            flags=launcher.add_flags,
            need="evaluate",
            config_path=launcher.config_of_run,
            folder="the run's folder",
            argv=words,
        )
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err


def test_wrong_words(launcher: ModuleType, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --out FOLDER" in said(launcher, capsys, str(run))
    assert "--rounds 0: must be 1 to 1000" in said(launcher, capsys, str(run), "--out", "x", "--rounds", "0")
    for place, message in (
        (run.parent / "nowhere", "nowhere: no such folder: give the run_dir"),
        (run.parent, "has no config.yaml: give the run_dir"),
        (run / "model", f"model lies inside a run: give {run}"),
        (run.parent / "refused", "is of a run that never began (UserError: no rows): mend that"),
    ):
        assert message in said(launcher, capsys, str(place), "--out", "x")
    assert "is not done, its state is `unknown`" in said(launcher, capsys, str(run), "--out", "x")
    assert "the following arguments are required: DIR (see" in said(launcher, capsys)


@pytest.mark.parametrize("word", ["seed=5", "method=kd", "weight.kd=0.25", "data.max_length=8"])
def test_a_run_is_taken_as_it_was(
    launcher: ModuleType, run: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    key, _, value = word.partition("=")
    told = said(launcher, capsys, str(run), "--out", "x", word)
    assert re.search(rf"{re.escape(key)}='?{value}'?: the run has .*an export takes it as it was", told)
    # where it is done, and where the rows lie, may be others
    ways = ("cluster.threads=3", "data.prepared=elsewhere")
    assert "is not done" in said(launcher, capsys, str(run), "--out", "x", *ways)


def test_without_the_extra(
    launcher: ModuleType, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTRAS, "onnx", ("onnx", "oonxruntime"))
    told = said(launcher, capsys, str(run), "--out", "x", "--onnx")
    assert "--onnx needs oonxruntime: pip install 'distill-dist[onnx]'" in told
