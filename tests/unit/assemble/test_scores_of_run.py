"""Which snapshot two students find, make again or refuse, from files that people and disks have changed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from config.trees import good_with

from assemble.students import on_each, said
from distill_dist.assemble.scores_of_run import ScoresOfRun
from distill_dist.assemble.snapshots import SnapshotMaker
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.snapshot import Snapshot, list_snapshots
from distill_dist.curriculum.snapshot_record import COLUMN_OFFSETS
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError

SIZES = np.array([5, 4, 8])  # the second shard is student 1's
ROWS, STEPS = int(SIZES.sum()), 50
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 3))


def scores_of(
    config: RunConfig,
    root: Path,
    group: Any,
    pinned: dict[str, Any] | None = None,
    taught_by: str = "a",
    teacher: Any = None,
) -> ScoresOfRun:
    edges = np.concatenate([[0], np.cumsum(SIZES)])

    def logits(source: np.ndarray, block: int, batches: object) -> np.ndarray:
        return source[edges[block] : edges[block + 1]]

    scoring: Any = SimpleNamespace(
        split=SimpleNamespace(block_sizes=SIZES), batches=lambda block: (), logits_NC=logits
    )
    maker = SnapshotMaker(
        root=root, group=group, scoring=scoring, labels=np.arange(ROWS) % 3, manifest="rows", run="this",
        measure=config.curriculum.measure, smoothing=0, keep=config.curriculum.keep_snapshots,
        with_teacher_loss=False, should_stop=lambda: False, evaluating=contextlib.nullcontext,
    )  # fmt: skip
    student: Any = LOGITS
    return ScoresOfRun(
        config=config, maker=maker, student=student, teacher=teacher, steps_per_epoch=STEPS, logs=list,
        taught_by=taught_by, pinned=pinned,
    )  # fmt: skip


def open_epoch(config: RunConfig, root: Path, epoch: int, pinned: dict[str, Any] | None = None) -> list[Any]:
    """How it ends on each of two students that have just started."""
    return on_each(2, lambda group: scores_of(config, root, group, pinned).of_epoch(epoch, epoch * STEPS))


def pin(snapshot: Snapshot) -> dict[str, Any]:
    return {"number": snapshot.record.number, "hash": snapshot.hash}


# ------------------------------------------------------------------ curriculum.source: teacher


def of_teacher(root: Path, taught_by: str, logits: np.ndarray, pinned: dict[str, Any] | None = None) -> Any:
    config = good_with({"curriculum.order": "easy_to_hard", "curriculum.source": "teacher"})
    first, second = on_each(
        2, lambda group: scores_of(config, root, group, pinned, taught_by, logits).of_epoch(0, 0)
    )
    assert first.hash == second.hash
    return first


def test_scores_of_a_teacher_that_was_replaced_before_the_first_checkpoint_are_made_again(
    tmp_path: Path,
) -> None:
    before = of_teacher(tmp_path, "a", LOGITS)
    made = (tmp_path / before.name).stat().st_ino
    assert of_teacher(tmp_path, "a", -LOGITS).hash == before.hash
    assert (tmp_path / before.name).stat().st_ino == made
    again = of_teacher(tmp_path, "b", -LOGITS)
    assert again.hash != before.hash
    # a checkpoint says itself who taught
    assert of_teacher(tmp_path, "c", LOGITS, pin(again)).hash == again.hash


# ------------------------------------------------------------------ curriculum.file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scores.npy"
    np.save(path, np.arange(ROWS, dtype=np.float32))
    return path


def given(file: Path) -> RunConfig:
    return good_with(
        {"curriculum.order": "easy_to_hard", "curriculum.source": "file", "curriculum.file": str(file)}
    )


def test_a_changed_file_is_read_again_before_the_first_checkpoint(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "snapshots"
    before, _ = open_epoch(given(file), root, 0)
    written = (root / before.name).stat().st_ino
    again, _ = open_epoch(given(file), root, 0)
    assert (root / again.name).stat().st_ino == written, "made again from the same file"
    np.save(file, -np.arange(ROWS, dtype=np.float32))
    for found in open_epoch(given(file), root, 0):
        assert found.scores_at(np.arange(ROWS)).tolist() == (-np.arange(ROWS)).tolist()
        assert found.record.origin.parent == sha256_file(file) != before.record.origin.parent


def test_a_changed_file_is_refused_after_a_checkpoint(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "snapshots"
    pinned = pin(open_epoch(given(file), root, 0)[0])
    np.save(file, -np.arange(ROWS, dtype=np.float32))
    (message,) = said(open_epoch(given(file), root, 1, pinned), UserError)
    assert f"curriculum.file={file} has changed" in message
    assert "put the old one back, or start in another run_dir" in message
    assert Snapshot.open(root / "snapshot-00000").hash == pinned["hash"]


def test_a_file_that_was_read_may_go(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "snapshots"
    pinned = pin(open_epoch(given(file), root, 0)[0])
    file.unlink()
    assert [pin(found) for found in open_epoch(given(file), root, 1, pinned)] == [pinned] * 2


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    ("rule", "measure", "column", "refused"),
    [
        ("weighted", "true_probability", "loss", True),
        ("bell", "margin", "loss", True),
        ("bell", "true_probability", "loss", False),
        ("gate", "margin", "loss", False),
        ("gate", "margin", "score", True),
    ],
)
def test_damage_to_what_a_rule_reads_is_refused(
    tmp_path: Path, rule: str, measure: str, column: str, refused: bool
) -> None:
    config = good_with({"reliance.rule": rule, "curriculum.measure": measure})
    before = pin(open_epoch(config, tmp_path, 1)[0])
    path = tmp_path / "snapshot-00001" / "shard-000001.bin"
    content = bytearray(path.read_bytes())
    content[int(SIZES[1]) * COLUMN_OFFSETS[column]] ^= 1
    path.write_bytes(content)
    ends = open_epoch(config, tmp_path, 1)
    if refused:
        (message,) = said(ends, UserError)
        assert "snapshot-00001 is missing or damaged (shard-000001.bin does not have its checksum)" in message
    else:
        assert [pin(found) for found in ends] == [before] * 2


# ------------------------------------------------------------------ curriculum.final_snapshot


def numbers(root: Path) -> list[str]:
    return [folder.name for folder in list_snapshots(root)]


def finish(config: RunConfig, root: Path, epochs: int) -> list[Any]:
    """How the end of a run of so many epochs goes on two students."""
    return on_each(2, lambda group: scores_of(config, root, group).final(epochs * STEPS))


def test_a_frozen_order_keeps_its_scores_beside_the_final_snapshot(tmp_path: Path) -> None:
    config = good_with({"curriculum.order": "frozen", "curriculum.keep_snapshots": 1})
    frozen = pin(open_epoch(config, tmp_path, 1)[0])
    for end in (2, 3):  # of a run that train.max_steps lets go on
        assert finish(config, tmp_path, end) == [None] * 2
        assert numbers(tmp_path) == ["snapshot-00001", f"snapshot-{end:05d}"]
        assert Snapshot.open(tmp_path / f"snapshot-{end:05d}").record.origin.step == end * STEPS
        assert [pin(found) for found in open_epoch(config, tmp_path, end)] == [frozen] * 2
