"""Files that survive a crash: written beside their place, synced, then moved in one step."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
LOCK_POLL_S = 0.1
_FLOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, process
_TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.tmp")


def is_disk_full(error: OSError) -> bool:
    """Whether there is no room, or no quota, for what was written."""
    return error.errno in _DISK_FULL


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: without it a crash can forget a finished rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durable(path: Path, write: Callable[[Path], object]) -> None:
    """``write(temporary)`` fills a temporary file; it then takes the place of ``path`` in one step.

    An OSError names ``path``.
    """
    write_all_durable({path: write})


def write_all_durable(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """``write_durable`` of several files: none takes its place before all are written, then one after another.

    What fails for want of room, or of a right to write, so leaves all as they were.
    """
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writes}
    try:
        for path, write in writes.items():
            with _naming(path, temporaries[path]):
                write(temporaries[path])
                with temporaries[path].open("rb+") as file:
                    os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            with _naming(path, temporary):
                temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    for folder in {path.parent for path in writes}:
        sync_folder(folder)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """An OSError that names no file (a full disk), or ``temporary``, which nobody knows, names ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, durably."""
    text = json.dumps(value, indent=2, sort_keys=False) + "\n"
    write_durable(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def durable_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    A folder already at ``path`` is replaced: moved aside first, removed after, so that a crash leaves the
    old one or the new one, at worst under the moved-aside name ``.NAME.old``: see ``recover_folder``.
    """
    recover_folder(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # safetensors makes its files for their owner alone, whatever the umask says; a folder of ours follows it
    mode = temporary.stat().st_mode & 0o666
    try:
        yield temporary
        for each in (temporary, *temporary.rglob("*")):
            if each.is_dir():
                sync_folder(each)
            elif each.is_file() and each.stat().st_nlink == 1:  # a link was synced under its first name
                each.chmod(mode)
                with each.open("rb+") as handle:
                    os.fsync(handle.fileno())
        old = _moved_aside(path)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Put back what a crash between the two moves of ``durable_folder`` left aside. One process only."""
    if not path.exists() and _moved_aside(path).exists():
        _moved_aside(path).replace(path)


def recover_folders(root: Path, pattern: str) -> None:
    """``recover_folder`` for every folder in ``root`` whose name matches the glob ``pattern``, present or not."""
    for old in root.glob(f".{pattern}.old"):
        recover_folder(root / old.name.removeprefix(".").removesuffix(".old"))


def remove_folder(path: Path) -> None:
    """Remove the folder ``path`` in one step: a crash leaves it whole, or hidden for ``remove_stale`` to find."""
    gone = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.replace(gone)
    shutil.rmtree(gone, ignore_errors=True)  # NFS keeps a file, and so its folder, that somebody still reads


def read_anew(path: Path) -> None:
    """Make what ``path`` holds durable, and let the next reader take it from the disk where the system can do that."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # advice: not every file system takes it
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remove_stale(root: Path, pattern: str) -> None:
    """Remove what dead processes of this host were writing: temporaries of names that match the glob ``pattern``."""
    for temporary in root.glob(f".{pattern}.*.tmp"):
        match = _TEMPORARY.fullmatch(temporary.name)
        # the name between the dot and the process must be the pattern's in full: NAME.notes is not NAME
        if match is None or not fnmatch.fnmatchcase(match[1], pattern) or _alive(int(match[2])):
            continue
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def hold_lock(path: Path) -> str | None:
    """Hold the file ``path`` as a lock until this process ends, however it ends; else who holds it.

    A POSIX record lock: a forked child does not inherit it, unlike flock's. Closing any descriptor of the file
    would release it, so nobody else opens it. Where the file system has no locks, a warning is all there is.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            os.close(descriptor)
            return holder or "another process"
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning("no lock %s (%s): nothing keeps a second run out", path, error.strerror)
        if _is_file(descriptor, path):
            break
        os.close(descriptor)  # whoever held it removed it just now
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return None


@contextmanager
def hold_while(path: Path, *, wait_s: float = 0.0) -> Iterator[str | None]:
    """``hold_lock`` inside the block, waiting for it as long as ``wait_s``; its value: who holds it still."""
    deadline = time.monotonic() + wait_s
    while (holder := hold_lock(path)) is not None and time.monotonic() < deadline:
        time.sleep(LOCK_POLL_S)
    try:
        yield holder
    finally:
        if holder is None:
            with contextlib.suppress(OSError):
                path.unlink()


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock ``path``. It only asks: taking the lock would keep its owner-to-be out."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    finally:
        os.close(descriptor)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False


def _moved_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def sha256_file(path: Path) -> str:
    """Hex digest of the file's bytes, read in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
