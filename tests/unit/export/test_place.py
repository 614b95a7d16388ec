"""The folder of an export: complete or not there, and nobody else's."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_dist.errors import UserError
from distill_dist.export.place import RECORD, new_folder, write_record


def export(out: Path, text: str = "one") -> None:
    with new_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)
        write_record(folder, {"name": "x"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["out", "o [u]*t?", ".hidden"])
def test_our_own_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep" / name
    export(out)
    dead = out.with_name(f".{name}.99999999.tmp")  # of a process that was killed
    dead.mkdir()
    export(out, "two")
    assert (out / "sub" / "file").read_text() == "two"
    assert names(out.parent) == [name]
    assert json.loads((out / RECORD).read_text())["files"].keys() == {"sub/file"}


def test_an_empty_folder_and_a_link_to_one_will_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export(tmp_path / "link")
    assert (tmp_path / "empty" / RECORD).is_file()
    assert (tmp_path / "link").is_symlink()


def foreign(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("file", "folder", "list", "added", "changed", "broken")}
    found["file"].write_text("x")
    for name in ("folder", "list", "broken"):
        found[name].mkdir()
    (found["folder"] / "notes").write_text("x")
    (found["list"] / RECORD).write_text("[]")
    (found["broken"] / RECORD).write_text("{")
    for name in ("added", "changed"):
        export(found[name])
    (found["added"] / "sub" / "notes").write_text("x")
    (found["changed"] / "sub" / "file").write_text("edited")
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("file", "is a file"),
        ("folder", "is no export of ours"),
        ("list", "is no export of ours"),
        ("broken", "is no export of ours"),
        ("added", "sub/notes in it was added or changed"),
        ("changed", "sub/file in it was added or changed"),
    ],
)
def test_what_somebody_else_wrote_stays(tmp_path: Path, name: str, expected: str) -> None:
    out = foreign(tmp_path)[name]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=expected):
        export(out, "two")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", ["/proc/out", "/dev/null/out"])
def test_a_place_that_takes_no_files(place: str) -> None:
    with pytest.raises(UserError, match=r"--out \S+ cannot be written: .+: give another place"):
        export(Path(place))


class RustError(Exception):
    """As tokenizers raise."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RustError("No space left on device (os error 28)"),
        RuntimeError("while writing"),
    ],
)
def test_a_full_disk_is_one_message_and_the_old_export_stays(tmp_path: Path, error: Exception) -> None:
    export(tmp_path / "out")
    if isinstance(error, RuntimeError):
        error.__cause__ = OSError(errno.EDQUOT, "quota")
    with pytest.raises(UserError, match="the disk is full"), new_folder(tmp_path / "out"):
        raise error
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "file").read_text() == "one"
    with pytest.raises(ValueError, match="a bug"), new_folder(tmp_path / "out"):
        raise ValueError("a bug")
    assert names(tmp_path) == ["out"]


def test_two_at_once(tmp_path: Path) -> None:
    """Locks are of processes: the other one is another process."""
    code = (
        "import sys; from pathlib import Path; from distill_dist.export.place import new_folder\n"
        "try:\n  with new_folder(Path(sys.argv[1])): pass\nexcept ValueError as error: print(error)"
    )
    with new_folder(tmp_path / "out") as folder:
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "out")],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert f"is being written by another export (process {os.getpid()} on " in other.stdout
        write_record(folder, {})
    assert names(tmp_path) == ["out"]


def test_the_root_is_no_place() -> None:
    with pytest.raises(UserError, match="is no place for an export"):
        export(Path("/"))
