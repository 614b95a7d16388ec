from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_dist import checkpoint
from distill_dist.errors import UserError


def save(root: Path, step: int, *, keep: int = 9, previous: int = 10**6, **progress: Any) -> Path:
    tensors = {"weights/a": torch.full((3, 2), float(step)), "step": torch.tensor(float(step))}
    return checkpoint.save(
        root, step=step, previous=previous, tensors=tensors, progress={"step": step, **progress}, keep=keep
    )


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_it_comes_back(tmp_path: Path) -> None:
    folder = save(tmp_path, 40, best={"step": 20, "value": 0.75}, identity={"seed": 0})
    assert folder.name == "step-00000040"
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.folder == folder
    assert torch.equal(found.tensors["weights/a"], torch.full((3, 2), 40.0))
    assert found.tensors.keys() == {"weights/a", "step"}
    assert found.progress == {
        "format": checkpoint.FORMAT,
        "step": 40,
        "best": {"step": 20, "value": 0.75},
        "identity": {"seed": 0},
    }


def test_none_at_all(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere") is None
    assert checkpoint.newest(tmp_path) is None


def test_the_newest_by_step_and_no_more_than_keep(tmp_path: Path) -> None:
    for step in (20, 100, 3):
        save(tmp_path, step)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress["step"] == 100
    save(tmp_path, 120, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00000120"]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 20, note="first")
    save(tmp_path, 20, note="second")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress["note"] == "second"


@pytest.mark.parametrize("name", ["tensors.safetensors", "progress.json", checkpoint.MARKER])
@pytest.mark.parametrize("how", ["flip", "empty", "delete"])
def test_a_damaged_newest_is_passed_over_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    save(tmp_path, 20)
    folder = save(tmp_path, 40)
    if how == "flip":
        flip_a_byte(folder / name)
    elif how == "empty":
        (folder / name).write_bytes(b"")
    else:
        (folder / name).unlink()
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress["step"] == 20
    if (name, how) != (checkpoint.MARKER, "delete"):  # without its marker it never was a checkpoint
        assert str(folder) in caplog.text
        assert "damaged" in caplog.text


def test_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    for step in (20, 40):
        flip_a_byte(save(tmp_path, step) / "tensors.safetensors")
    with pytest.raises(UserError, match=f"every checkpoint below {tmp_path} is damaged"):
        checkpoint.newest(tmp_path)


def test_a_half_written_folder_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 20)
    half = tmp_path / "step-00000040"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert [folder.name for folder in checkpoint.complete_folders(tmp_path)] == ["step-00000020"]

    def crash(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "sha256_file", crash)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, 60)
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000020", "step-00000040"}
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress["step"] == 20


def test_what_was_passed_over_goes_and_pushes_nothing_good_out(tmp_path: Path) -> None:
    """Resumed from 20, because 40 and 60 are damaged; the next is written at 50."""
    for step in (10, 20, 40, 60):
        save(tmp_path, step)
    for step in (40, 60):
        flip_a_byte(tmp_path / f"step-{step:08d}" / "tensors.safetensors")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress["step"] == 20
    save(tmp_path, 50, previous=20, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000050"]
    save(tmp_path, 70, previous=50, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000050", "step-00000070"]


@pytest.mark.parametrize("marker", ["[]", "{}", '{"progress.json": "0"}', '"x"', "null"])
def test_a_marker_that_lists_nothing_is_damage(tmp_path: Path, marker: str) -> None:
    save(tmp_path, 20)
    folder = save(tmp_path, 40)
    (folder / checkpoint.MARKER).write_text(marker, encoding="utf-8")
    (folder / "progress.json").unlink()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress["step"] == 20


def test_pruning_never_takes_the_one_just_written(tmp_path: Path) -> None:
    """A run that went back in time writes smaller steps than those that lie there."""
    save(tmp_path, 40)
    folder = save(tmp_path, 60, keep=1)
    assert checkpoint.complete_folders(tmp_path) == [folder]


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    folder = save(tmp_path, 20)
    monkeypatch.undo()
    with pytest.raises(UserError, match=rf"{folder} has checkpoint format 2, this version reads 1"):
        checkpoint.newest(tmp_path)


def test_nothing_in_it_is_a_pickle(tmp_path: Path) -> None:
    folder = save(tmp_path, 20)
    assert {path.name for path in folder.iterdir()} == {"tensors.safetensors", "progress.json", "COMPLETE"}
    checksums = json.loads((folder / "COMPLETE").read_text(encoding="utf-8"))
    assert set(checksums) == {"tensors.safetensors", "progress.json"}
