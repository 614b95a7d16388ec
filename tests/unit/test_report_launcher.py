"""What `launcher/report.py` refuses before it reads a run, with exit code 2 and one message."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from launchers import load_launcher

from distill_dist.command_line import launch_plain


@pytest.fixture(scope="module")
def launcher() -> ModuleType:
    return load_launcher("report")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that would be read, if it came to that: its summary is damaged."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{", encoding="utf-8")
    return tmp_path / "run"


def said(launcher: ModuleType, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Its one message."""
    with pytest.raises(SystemExit) as ended:
        launch_plain(launcher.main, description="", flags=launcher.add_flags, argv=words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--resamples", "3"), "--resamples 3: must be 100 to 1000000"),
        (("--seed", "-1"), "--seed -1: must be 0 or more"),
        (("--rows", "a"), "--rows a: must be row numbers"),
        (("--rows", "1", "--saliency", "2"), "give it or --rows"),
    ],
)
def test_wrong_words(
    launcher: ModuleType, run: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert message in said(launcher, capsys, str(run), *words)


def test_a_place_that_cannot_be_written(
    launcher: ModuleType, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.parent.rglob("*"))
    file = run / "summary.json"
    for out, message in (
        (run, f"--out {run} is a folder: give the name of a file, say {run / 'report.html'}"),
        (file / "page.html", f"cannot be written: File exists ({file}): give another place with --out FILE"),
        (run / ("x" * 300), "cannot be written: File name too long ("),
    ):
        assert message in said(launcher, capsys, str(run), "--out", str(out))
    assert sorted(run.parent.rglob("*")) == before
