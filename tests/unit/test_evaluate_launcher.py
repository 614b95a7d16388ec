"""What `launcher/evaluate.py` scores, and what it refuses before torch is imported."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
from assemble.export_cases import contents, prepare_pairs, write_run
from launchers import load_launcher

from distill_dist.command_line import build_parser
from distill_dist.config.load import load_config
from distill_dist.errors import UserError


@pytest.fixture(scope="module")
def launcher() -> ModuleType:
    return load_launcher("evaluate")


def parsed(launcher: ModuleType, *words: str, folder: Path | None = None) -> Namespace:
    args = build_parser("", launcher.add_flags).parse_args(words)
    args.folder = folder
    return args


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as far as it is looked at, with its model."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "run" / "model" / "config.json").touch()
    return tmp_path / "run"


def test_a_run_its_model_and_any_other_model(launcher: ModuleType, run: Path, tmp_path: Path) -> None:
    model = run / "model"
    find = launcher.find
    assert find(parsed(launcher, folder=run)) == (run, str(model))
    assert find(parsed(launcher, "--run", str(run))) == (run, str(model))
    assert find(parsed(launcher, folder=model)) == (run, str(model))
    assert find(parsed(launcher, "--student", "other", folder=run)) == (run, "other")
    assert find(parsed(launcher, "--student", "other")) == (None, "other")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").touch()
    assert find(parsed(launcher, folder=copy)) == (None, str(copy))
    assert launcher.config_of_run(parsed(launcher, folder=copy)) is None
    assert launcher.config_of_run(parsed(launcher, folder=model)) == run / "config.yaml"
    with pytest.raises(UserError, match=r"nowhere: no such folder: give the run_dir"):
        find(parsed(launcher, folder=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="give one of them"):
        find(parsed(launcher, "--run", str(run), folder=run))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "nothing to score: give the run's folder or --student FOLDER"),
        (["--student", "x", "--saliency"], "--saliency compares with a teacher: give --teacher FOLDER"),
        (
            ["--student", "x", "--saliency-rows", "9"],
            "--saliency-rows 9 says of how many rows: add --saliency",
        ),
        (["--student", "x", "--rate", "0"], "--rate 0.0: must be above 0, to 1"),
        (["--student", "x", "--rate", "nan"], "--rate nan: must be above 0, to 1"),
        (["--student", "x", "--resamples", "0"], "--resamples 0: must be 1 to 1000000"),
        (["--student", "x", "--seed", "-1"], "--seed -1: must be 0 to 4294967295"),
        (["--student", "x", "--test", "AX=f"], "--test says where test rows are for --submission ZIP"),
        (["--student", "x", "--submission", "z", "--test", "AX"], "--test AX: must be NAME=FILE"),
        (
            ["--student", "x", "--submission", "z", "--test", "AX=a", "--test", "AX=b"],
            "--test AX=…: given twice",
        ),
    ],
)
def test_wrong_words_are_told_at_once(launcher: ModuleType, words: list[str], expected: str) -> None:
    config = load_config(None, ["data.prepared=p"], need="evaluate")
    with pytest.raises(UserError) as caught:
        launcher.main(config, parsed(launcher, *words))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("name", ["--out", "--run", "--submission"])
def test_an_empty_name_is_no_place(launcher: ModuleType, name: str) -> None:
    with pytest.raises(UserError, match=f"argument {name}: an empty name: is a variable not set"):
        parsed(launcher, name, "")


def test_what_scoring_does_not_read_is_refused(launcher: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, prepare_pairs(tmp_path))
    args = parsed(launcher, "--resamples", "10", folder=run)
    before = contents(run)
    for word in ("seed=5", "method=finetune", "evaluate.select_on=loss"):
        config = load_config(run / "config.yaml", [word], need="evaluate")
        key, _, value = word.partition("=")
        with pytest.raises(UserError, match=f"{key}='?{value}'?: the run has .*, and scoring reads nothing"):
            launcher.main(config, args)
    assert contents(run) == before
    ways = ["batch.micro_tokens=256", "cluster.threads=1"]
    launcher.main(load_config(run / "config.yaml", ways, need="evaluate"), args)
    assert contents(run) != before


def test_weights_that_the_run_did_not_write_are_not_its_own(launcher: ModuleType, tmp_path: Path) -> None:
    """And what is wrong with a split is said before test rows are predicted."""
    run = tmp_path / "run"
    config = write_run(run, prepare_pairs(tmp_path))
    zipped = tmp_path / "glue.zip"
    words = ("--submission", str(zipped), "--split", "nope")
    with pytest.raises(UserError, match="nope"):
        launcher.main(config, parsed(launcher, *words, folder=run))
    assert not zipped.exists()
    weights = run / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    before = contents(run)
    with pytest.raises(UserError, match=r"model\.safetensors does not match the checksum that the run noted"):
        launcher.main(config, parsed(launcher, folder=run))
    assert contents(run) == before
    launcher.main(config, parsed(launcher, "--student", str(run / "model"), folder=run))
    assert contents(run) == before, "another student's figures are not the run's"
