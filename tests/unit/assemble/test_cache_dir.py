"""A folder of signals that a run could not write to is refused when it begins."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from config.trees import good_with

from distill_dist.assemble import loading
from distill_dist.assemble.signal_cache_of_run import check_cache_dir
from distill_dist.assemble.teacher_rank import serve_teacher
from distill_dist.config.schema import RunConfig
from distill_dist.config.schema_teacher import TeacherConfig
from distill_dist.errors import UserError


def check(folder: Path | str) -> None:
    check_cache_dir(TeacherConfig(cache_dir=str(folder)))


def test_a_folder_is_made_and_stays_empty(tmp_path: Path) -> None:
    for _ in range(2):
        check(tmp_path / "new" / "cache")
    assert list((tmp_path / "new" / "cache").iterdir()) == []
    check("")


def test_what_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"teacher.cache_dir=.*file is no folder: name another, or leave it away"
    ):
        check(tmp_path / "file")
    with pytest.raises(UserError, match=r"cache cannot be written \(Not a directory\): name another"):
        check(tmp_path / "file" / "cache")
    # a folder in which nobody makes files, not even root
    with pytest.raises(UserError, match=r"teacher.cache_dir=/proc cannot be written"):
        check("/proc")


def test_a_full_disk_is_read_and_warned_of_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: int) -> None:
        def fail(**_: Any) -> None:
            raise OSError(code, "no")

        monkeypatch.setattr(tempfile, "TemporaryFile", fail)

    refuse(errno.ENOSPC)
    check(tmp_path)
    refuse(errno.EROFS)
    with pytest.raises(UserError, match="cannot be written"):
        check(tmp_path)


def test_who_writes_to_it_looks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher rank before it starts its host; a student where it is its own teacher, and not where others are."""
    (tmp_path / "file").write_text("")
    config, unused = good_with({"teacher.cache_dir": str(tmp_path / "file")}), cast(Any, None)

    def place(teachers: tuple[int, ...]) -> Any:
        roles = SimpleNamespace(leaders=(1,), teachers=teachers)
        return SimpleNamespace(rank=1, roles=roles, loading=lambda **_: contextlib.nullcontext())

    with pytest.raises(UserError, match="is no folder"):
        serve_teacher(config, place((1,)), cast(Any, SimpleNamespace(why=None)), unused)

    def went_on(config: RunConfig) -> None:
        raise AssertionError("the student went on")

    for name in ("load_manifest", "check_prepared"):
        monkeypatch.setattr(loading, name, lambda *_: None)
    monkeypatch.setattr(loading, "teacher_shapes", went_on)
    with pytest.raises(UserError, match="is no folder"):
        loading.load(config, place(()), unused)
    with pytest.raises(AssertionError, match="the student went on"):
        loading.load(config, place((1,)), unused)
