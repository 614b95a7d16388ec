"""`base: other.yaml`: read first, relative to the file that names it, and once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from config.test_load import REPOSITORY, SMALLEST, message_of
from distill_dist.config.load import dump_config, load_config


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes several YAMLs by name, in folders as named; the path of the last."""
    monkeypatch.chdir(REPOSITORY)

    def write_all(**texts: str) -> Path:
        path = tmp_path
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return path

    return write_all


def test_a_base_is_read_first_and_its_own_base_before(files: Callable[..., Path]) -> None:
    path = files(
        lowest=SMALLEST + "seed: 1\nbatch: {size: 64, length_window: 3}\ntrain: {epochs: 9}\n",
        middle="base: lowest.yaml\nseed: 2\nbatch: {size: 16}\n",
        top="base: middle.yaml\nseed: 3\n",
    )
    config = load_config(path, ["train.epochs=7"])
    assert (config.seed, config.batch.size, config.batch.length_window) == (3, 16, 3)
    assert config.train.epochs == 7
    assert config.run_dir == "runs/x"
    assert load_config(path, []).train.epochs == 9
    assert load_config(path.with_name("middle.yaml"), []).seed == 2


def test_a_base_is_relative_to_the_file_that_names_it(files: Callable[..., Path], tmp_path: Path) -> None:
    path = files(below__base=SMALLEST + "seed: 5\n", beside__top="base: ../below/base.yaml\n")
    assert load_config(path, []).seed == 5
    absolute = files(other=f"base: {tmp_path}/below/base.yaml\n")
    assert load_config(absolute, []).seed == 5


def test_a_mapping_replaces_the_bases_as_it_does_the_default(files: Callable[..., Path]) -> None:
    base = SMALLEST.replace("prepared/x}", "prepared/x, splits: {train: a, dev: b, extra: c}}")
    kept = files(base=base, top="base: base.yaml\nseed: 1\n")
    assert load_config(kept, []).data.splits == {"train": "a", "dev": "b", "extra": "c"}
    replaced = files(base=base, top="base: base.yaml\ndata: {splits: {train: d, dev: e}}\n")
    assert load_config(replaced, []).data.splits == {"train": "d", "dev": "e"}
    assert load_config(replaced, ["data.splits.more=f"]).data.splits == {
        "train": "d",
        "dev": "e",
        "more": "f",
    }


def test_interpolations_see_the_whole_tree(files: Callable[..., Path]) -> None:
    path = files(
        base=SMALLEST + "teacher: {path: old}\nstudent: {path: '${teacher.path}'}\n",
        top="base: base.yaml\nteacher: {path: new}\n",
    )
    assert load_config(path, []).student.path == "new"


def test_a_dump_names_no_base(files: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(files(base=SMALLEST, top="base: base.yaml\nseed: 4\n"), [])
    alone = tmp_path / "elsewhere.yaml"
    alone.write_text(dump_config(config), encoding="utf-8")
    files(base="seed: 9\n")
    assert load_config(alone, []) == config


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        ({"top": "base: absent.yaml"}, ["absent.yaml", "no such file"]),
        ({"top": "base: top.yaml"}, ["top.yaml", "its own base"]),
        ({"one": "base: top.yaml", "top": "base: one.yaml"}, ["top.yaml", "its own base", "one.yaml"]),
        ({"top": "base: ''"}, ["base = ''", "the name of another YAML file"]),
        ({"top": "base: 3"}, ["base = 3", "the name of another YAML file"]),
        ({"top": "base: [a.yaml]"}, ["base = ['a.yaml']", "the name of another YAML file"]),
        ({"one": "batch: {sze: 3}", "top": "base: one.yaml"}, ["batch.sze = 3", "batch.size"]),
        ({"one": "a: [1", "top": "base: one.yaml"}, ["one.yaml", "not valid YAML"]),
        ({"one": "- a", "top": "base: one.yaml"}, ["one.yaml", "a mapping"]),
        ({"top": "batch: {base: one.yaml}"}, ["batch.base = 'one.yaml'", "no such field"]),
    ],
)
def test_wrong_bases(files: Callable[..., Path], texts: dict[str, str], parts: list[str]) -> None:
    message = message_of(files(**texts))
    for part in parts:
        assert part in message


def test_base_is_no_override(files: Callable[..., Path]) -> None:
    assert "base = 'x.yaml'" in message_of(files(top=SMALLEST), "base=x.yaml")
