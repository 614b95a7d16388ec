"""Signals that were computed before the run, kept on disk, some of them damaged since: the same weights come out."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from tiny import World, last_json, launch, running, start_ranks

from e2e.conftest import Reference
from e2e.test_interrupted import arguments_of, assert_same_run

pytestmark = pytest.mark.timeout(600)


def counters_of(run_dir: Path, rank: int) -> Counter[str]:
    """What the host of that rank says of itself when it leaves."""
    return counters_in((run_dir / "logs" / f"rank-{rank:05d}.log").read_text(encoding="utf-8"))


def counters_in(log: str) -> Counter[str]:
    """What a teacher's log says of its host; what it does not say is 0."""
    (found,) = re.findall(r"taught: (.*)", log)
    pairs = re.findall(r"([a-z ]+) (\d+)(?:, |$)", found)
    assert pairs, found
    return Counter({name.replace(" ", "_"): int(count) for name, count in pairs})


def test_a_filled_cache_teaches_and_what_is_damaged_is_computed_again(
    world: World, reference: Reference, tmp_path: Path
) -> None:
    cached = (f"teacher.cache_dir={tmp_path}/cache", "cluster.teachers=1")
    fill = arguments_of(world, tmp_path / "run", *cached)
    makes_no_run = [argument for argument in fill if not argument.startswith("run_dir=")]
    for already in (False, True):
        done = launch("cache_teacher.py", makes_no_run, logs=tmp_path / f"logs-fill-{already}")
        assert done.processes[0].returncode == 0, done.text()
        found = last_json(done.stdout())
        # 400 rows of train, 60 of dev for logits and for saliency
        assert found["rows"] == 520
        assert found["cached"] == (520 if already else 0)
        assert found["bytes"] > 520 * 100
    segments = sorted((tmp_path / "cache").rglob("*.seg"))
    content = bytearray(segments[0].read_bytes())
    content[len(content) // 2] ^= 1
    segments[0].write_bytes(content)
    with running(start_ranks(fill, size=3, logs=tmp_path / "logs")) as ranks:
        assert ranks.wait() == [0, 0, 0], ranks.text()
    assert_same_run(tmp_path / "run", reference.run_dir)
    counters = counters_of(tmp_path / "run", 2)
    assert counters["damaged"] == 1
    assert counters["computed_rows"] == 1
    assert counters["disk_hits"] == 519
    assert counters["memory_hits"] > 400, "the second epoch"
    alone = arguments_of(world, tmp_path / "alone", cached[0], "cluster.teachers=0")
    with running(start_ranks(alone, size=2, logs=tmp_path / "logs-alone")) as ranks:
        assert ranks.wait() == [0, 0], ranks.text()
        log = ranks.text()
    assert_same_run(tmp_path / "alone", reference.run_dir)
    assert re.findall(r"teachers: \d+ rows, (\d+)% cached", log) == ["100", "100"]


def test_without_a_folder_there_is_nothing_to_fill(world: World, tmp_path: Path) -> None:
    done = launch("cache_teacher.py", arguments_of(world, tmp_path / "run"), logs=tmp_path / "logs")
    assert done.processes[0].returncode == 2
    assert "teacher.cache_dir is empty: name the folder" in done.stderr()
    assert "Traceback" not in done.stderr()
