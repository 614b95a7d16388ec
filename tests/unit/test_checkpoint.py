from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_dist import checkpoint, durable
from distill_dist.errors import UserError


def save(
    root: Path, step: int, *, keep: int = 9, keep_best: int = 0, previous: int = 10**6, **progress: Any
) -> Path:
    tensors = {"weights/a": torch.full((3, 2), float(step)), "step": torch.tensor(float(step))}
    return checkpoint.save(
        root,
        step=step,
        previous=previous,
        tensors=tensors,
        progress={"step": step, **progress},
        keep=checkpoint.Keep(keep, keep_best),
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


def names(root: Path) -> list[str]:
    return sorted(path.name.removeprefix("step-000000") for path in root.iterdir())


def test_the_best_epochs_stay_beside_the_newest(tmp_path: Path) -> None:
    scores = {10: None, 20: 0.5, 30: 0.9, 35: None, 40: 0.7, 50: 0.9, 60: 0.6, 65: None}
    for step, score in scores.items():
        save(tmp_path, step, keep=2, keep_best=2, score=score)
    assert names(tmp_path) == ["30", "50", "60", "65"]
    save(tmp_path, 70, keep=1, keep_best=1, score=0.1)
    assert names(tmp_path) == ["30", "70"], "of equal ones the earlier"
    save(tmp_path, 80, keep=1, keep_best=1, score=1.0)
    assert names(tmp_path) == ["80"]


def test_a_best_epoch_that_cannot_be_read_or_is_older_than_the_field_counts_nothing(tmp_path: Path) -> None:
    save(tmp_path, 10, score=0.9)
    (tmp_path / "step-00000010" / "progress.json").write_bytes(b"torn")
    save(tmp_path, 20)
    save(tmp_path, 30, score=0.1)
    save(tmp_path, 40, keep=1, keep_best=1, score=None)
    assert names(tmp_path) == ["30", "40"]


@pytest.mark.parametrize("what", ["a weight", "a NaN", "a sign", "the progress"])
def test_what_the_disk_garbled_is_never_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its checksums would be those of the garbled file."""
    save(tmp_path, 20, keep=1)
    tensors = {"weights/a": torch.tensor([1.0, float("nan"), 0.0]), "step": torch.tensor(3.0)}

    def write(path: Path) -> None:
        checkpoint.save(
            path, step=40, previous=20, tensors=tensors, progress={"text": "ab"}, keep=checkpoint.Keep(9)
        )

    write(tmp_path / "good")
    place = {"a weight": b"\x3f", "a NaN": b"\x7f", "a sign": b"\x00\x00\x00\x00", "the progress": b"ab"}[
        what
    ]

    def garble(path: Path) -> None:
        if (path.suffix == ".json") == (what == "the progress"):
            content = bytearray(path.read_bytes())
            content[content.rindex(place) + len(place) - 1] ^= 0x80 if what != "the progress" else 1
            path.write_bytes(bytes(content))

    monkeypatch.setattr(checkpoint, "read_anew", garble)
    with pytest.raises(OSError, match="what was read back is not what was written"):
        write(tmp_path)
    monkeypatch.undo()
    assert names(tmp_path / "good") == ["40"]
    assert [folder.name for folder in checkpoint.complete_folders(tmp_path)] == ["step-00000020"]
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_crash_while_pruning_leaves_nothing_that_looks_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 20)

    def crash(path: Path, **more: object) -> None:
        if "step-00000020" in path.name:  # it had begun, with the largest file
            (path / "tensors.safetensors").unlink(missing_ok=True)
            raise KeyboardInterrupt

    monkeypatch.setattr(durable.shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 40, keep=1)
    monkeypatch.undo()
    assert [folder.name for folder in checkpoint.complete_folders(tmp_path)] == ["step-00000040"]
    flip_a_byte(tmp_path / "step-00000040" / "tensors.safetensors")
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoint.newest(tmp_path)
    assert "step-00000020" not in caplog.text


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


def test_a_run_whose_markers_are_all_gone_does_not_begin_anew(tmp_path: Path) -> None:
    for step in (10, 20):
        (save(tmp_path, step) / checkpoint.MARKER).unlink()
    with pytest.raises(UserError, match=r"every checkpoint below .* is damaged"):
        checkpoint.newest(tmp_path)
