"""`curriculum.final_snapshot`: scores for study, after which a run goes on in the order that it would have had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import World

from distill_dist.curriculum.order import RandomOrder
from distill_dist.curriculum.snapshot import Snapshot
from e2e.curriculum_sampler import Sampler
from e2e.test_curriculum_job import KD, SIZE, STEPS, arguments_of, batches, finish, sampler
from e2e.test_curriculum_killed import shards, snapshot_hashes

__all__ = ["sampler", "shards"]  # fixtures

pytestmark = pytest.mark.timeout(600)  # the first test of a session also waits for its fixtures


def test_a_frozen_order_is_the_same_after_a_final_snapshot(sampler: Sampler, tmp_path: Path) -> None:
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    assert sampler.run(whole, "frozen") == 0
    for epochs in (2, 4):  # the sampler takes one whenever a run ends with an epoch
        settings = ("curriculum.keep_snapshots=1", f"train.max_steps={epochs * STEPS}")
        assert sampler.run(run_dir, "frozen", *settings) == 0
        assert list(snapshot_hashes(run_dir)) == ["snapshot-00001", f"snapshot-{epochs:05d}"]
    assert snapshot_hashes(run_dir) == snapshot_hashes(whole)
    assert batches(run_dir) == batches(whole)


def test_a_plain_run_is_scored_at_its_end_and_stays_plain(world: World, shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    more = (*KD, "curriculum.final_snapshot=true", "batch.length_window=1")
    arguments = arguments_of(world, shards, run_dir, *more)
    for end in (STEPS, STEPS + 20):  # after an epoch, and inside one
        finish([*arguments, f"train.max_steps={end}"], size=2, logs=tmp_path / f"logs-{end}")
        assert list(snapshot_hashes(run_dir)) == ["snapshot-00001"]
    snapshot = Snapshot.open(run_dir / "snapshots" / "snapshot-00001")
    assert (snapshot.record.origin.step, snapshot.record.num_unscored) == (STEPS, 0)
    assert len(np.unique(snapshot.scores_at(np.arange(400)))) > 50
    order, positions = RandomOrder(400, seed=0), np.arange(400).reshape(STEPS, SIZE)
    expected = [np.sort(rows).tolist() for epoch in (0, 1) for rows in order.rows_at(epoch, positions)]
    assert batches(run_dir, 2) == expected[: STEPS + 20]
