"""A crash at any point leaves the old file or the new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny import environment

from distill_dist.durable import (
    durable_folder,
    hold_lock,
    hold_while,
    is_locked,
    recover_folder,
    recover_folders,
    remove_stale,
    sha256_file,
    sync_folder,
    write_all_durable,
    write_durable,
    write_json,
)


class Crash(RuntimeError):
    """The machine stops here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, *, call: int = 1) -> None:
    """The ``call``-th call of ``target.name`` crashes, earlier ones do their work."""
    original, calls = getattr(target, name), [0]

    def crash(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Crash(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, crash)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_json_comes_back_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for value in ({"state": "running"}, {"state": "done", "b": [1, 2.5, None], "a": "ü"}):
        write_json(path, value)
        assert json.loads(path.read_text(encoding="utf-8")) == value
    assert names(tmp_path) == {"state.json"}
    assert path.read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize(("target", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_crash_before_the_move_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, name: str
) -> None:
    path = tmp_path / "state.json"
    write_json(path, 1)
    crash_at(monkeypatch, target, name)
    with pytest.raises(Crash):
        write_json(path, 2)
    assert json.loads(path.read_text(encoding="utf-8")) == 1
    assert names(tmp_path) == {"state.json"}


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, 1)

    def half(temporary: Path) -> None:
        temporary.write_text("{", encoding="utf-8")
        raise Crash

    with pytest.raises(Crash):
        write_durable(path, half)
    assert json.loads(path.read_text(encoding="utf-8")) == 1
    assert names(tmp_path) == {"state.json"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_of_a_folder_can_be_read_by_whom_the_umask_lets(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with durable_folder(tmp_path / "model") as folder:
            (folder / "inner").mkdir()
            for path in (folder / "a", folder / "inner" / "b"):
                path.touch(mode=0o600)
    finally:
        os.umask(before)
    for name in ("a", "inner/b"):
        assert (tmp_path / "model" / name).stat().st_mode & 0o777 == mode


def test_the_bytes_are_synced_before_the_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other order can leave an empty file under the final name."""
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        order.append("sync")
        fsync(descriptor)

    def move(self: Path, target: Path) -> Path:
        order.append("move")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", move)
    write_json(tmp_path / "state.json", 1)
    assert order == ["sync", "move", "sync"]
    order.clear()
    with durable_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("a", encoding="utf-8")
        (folder / "deeper").mkdir()
        (folder / "deeper" / "b").write_text("b", encoding="utf-8")
    # both files, and the names in both folders
    assert order == ["sync"] * 4 + ["move", "sync"]


def write_folder(path: Path, text: str) -> None:
    with durable_folder(path) as folder:
        (folder / "file").write_text(text, encoding="utf-8")


def test_a_folder_replaces_the_one_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with durable_folder(path) as folder:
        (folder / "gone").write_text("old", encoding="utf-8")
        assert not path.exists()
    write_folder(path, "new")
    assert names(path) == {"file"}
    assert names(tmp_path) == {"model"}


def test_a_folder_whose_writing_fails_never_appears(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def fail() -> None:
        with durable_folder(path) as folder:
            (folder / "file").write_text("half", encoding="utf-8")
            raise Crash

    with pytest.raises(Crash):
        fail()
    assert names(tmp_path) == set()
    write_folder(path, "old")
    with pytest.raises(Crash):
        fail()
    assert (path / "file").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == {"model"}


@pytest.mark.parametrize(
    ("call", "left"),
    [(1, {"model": "old"}), (2, {".model.old": "old"})],
)
def test_a_crash_between_the_moves_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, left: dict[str, str]
) -> None:
    write_folder(tmp_path / "model", "old")
    with monkeypatch.context() as patch:
        crash_at(patch, Path, "replace", call=call)
        with pytest.raises(Crash):
            write_folder(tmp_path / "model", "new")
    found = {name: (tmp_path / name / "file").read_text(encoding="utf-8") for name in names(tmp_path)}
    assert found == left
    write_folder(tmp_path / "model", "newer")  # what a crash left is in nobody's way
    assert (tmp_path / "model" / "file").read_text(encoding="utf-8") == "newer"
    assert names(tmp_path) == {"model"}


def test_digest(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256_file(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_sync_folder_keeps_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        sync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_crash_between_the_moves_left_aside_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with durable_folder(folder) as temporary:
        (temporary / "weights").write_text("old")
    folder.replace(tmp_path / ".model.old")  # the crash: moved aside, the new one not yet in place
    recover_folder(folder)
    assert (folder / "weights").read_text() == "old"
    assert not (tmp_path / ".model.old").exists()

    folder.replace(tmp_path / ".model.old")
    with pytest.raises(RuntimeError, match="second crash"), durable_folder(folder) as temporary:
        raise RuntimeError("second crash")
    assert (folder / "weights").read_text() == "old", "a second crash in the same place lost both"


def test_recovering_leaves_a_whole_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("new")
    (tmp_path / ".model.old").mkdir()
    recover_folder(folder)
    assert (folder / "weights").read_text() == "new"


def test_every_folder_left_aside_comes_back(tmp_path: Path) -> None:
    for name in (".step-1.old", ".step-2.old", "step-2", ".other.old"):
        (tmp_path / name).mkdir()
    recover_folders(tmp_path, "step-*")
    assert names(tmp_path) == {"step-1", "step-2", ".step-2.old", ".other.old"}


def test_only_what_dead_processes_were_writing_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".model.{dead.pid}.tmp").mkdir()
    (tmp_path / f".model.{dead.pid}.tmp" / "half").write_text("", encoding="utf-8")
    kept = {
        f".model.{os.getpid()}.tmp",  # under way
        f".theirs.{dead.pid}.tmp",  # not our name
        ".model.notes.tmp",
        f".model.notes.{dead.pid}.tmp",  # a longer name than ours
        "model",
    }
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f".state.json.{dead.pid}.tmp").write_text("", encoding="utf-8")
    remove_stale(tmp_path, "model")
    remove_stale(tmp_path, "*.json")
    assert names(tmp_path) == kept


LOCKER = """
import sys, time
from pathlib import Path
from distill_dist.durable import hold_lock
print(hold_lock(Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "None\n"
        assert hold_lock(path) == f"process {holder.pid} on {socket.gethostname()}"
        holder.kill()
    assert hold_lock(path) is None


def test_one_may_ask_whether_a_lock_is_held_without_taking_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_locked(path)
    assert not path.exists()
    path.touch()
    assert not is_locked(path)
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "None\n", "asking had taken it"
        assert is_locked(path)
        assert is_locked(path), "asking had let it go"
        holder.kill()
    assert not is_locked(path)


def test_a_file_system_without_locks_gets_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("distill_dist.durable.fcntl.lockf", refuse)
    assert hold_lock(tmp_path / ".lock") is None
    assert "No locks available" in caplog.text


def test_several_files_take_their_places_when_all_are_written(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_all_durable({first: lambda path: path.write_text("1"), second: lambda path: path.write_text("1")})

    def fails(path: Path) -> None:
        path.write_text("2")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as full:
        write_all_durable({first: lambda path: path.write_text("2"), second: fails})
    assert full.value.filename == str(second), "what has no room is named"
    assert [path.read_text() for path in (first, second)] == ["1", "1"]
    assert names(tmp_path) == {"first", "second"}


def test_an_error_names_the_file_and_not_its_temporary(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "file", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError, match="director") as failed:
            write_durable(path, lambda temporary: temporary.write_text("x"))
        assert failed.value.filename == str(path)


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = "import sys, time; from pathlib import Path; from distill_dist.durable import hold_lock; "
    code += "hold_lock(Path(sys.argv[1])); print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        with hold_while(lock) as holder:
            assert holder is not None
            assert str(other.pid) in holder
        assert lock.exists(), "it is the other's"
        ending = threading.Timer(0.5, other.stdin.close)
        ending.start()
        with hold_while(lock, wait_s=60) as holder:
            assert holder is None
            assert lock.exists()
    assert not lock.exists()
