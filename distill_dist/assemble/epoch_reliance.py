"""How difficult each row is under a snapshot, and how far it relies on its teacher for that."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from distill_dist.comm.students import StudentGroup
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.keys import score_keys
from distill_dist.curriculum.percentiles import Percentiles, percentile_ranks
from distill_dist.curriculum.reliance import Reliance, fixed_point_sum, mean_from
from distill_dist.curriculum.selection import select
from distill_dist.curriculum.snapshot import Snapshot

_log = logging.getLogger(__name__)


def make_percentiles(config: RunConfig, snapshot: Snapshot, group: StudentGroup) -> Percentiles:
    """Difficulty percentiles under ``snapshot``; a collective."""
    unscored = config.curriculum.unscored
    ranks = percentile_ranks(snapshot.num_rows, config.reliance.threshold)

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        for block in range(group.rank, snapshot.num_blocks, group.size):
            keys = score_keys(snapshot.scores(block), direction="easy_to_hard", unscored=unscored)
            yield int(snapshot.starts[block]), keys

    levels = select(blocks, ranks, seed=config.seed, reduce=group.sum_integers)
    return Percentiles(levels, tuple(ranks), snapshot.num_rows, unscored, snapshot.scores_at)


def make_reliance(
    config: RunConfig,
    num_rows: int,
    snapshot: Snapshot | None,
    percentiles: Percentiles | None,
    group: StudentGroup,
) -> Reliance:
    """λ of every row; `reliance.initial` for all without a snapshot. A collective."""
    settings = config.reliance
    assert settings.initial is not None
    assert settings.maximum is not None
    assert settings.rule != "constant"
    found = Reliance(
        rule=settings.rule,
        initial=settings.initial,
        minimum=settings.minimum,
        maximum=settings.maximum,
        threshold=settings.threshold,
        num_rows=num_rows,
        seed=config.seed,
        control="none" if snapshot is None else settings.control,
        score_is_probability=config.curriculum.measure == "true_probability",
        percentile_at=None if percentiles is None else percentiles.at,
        column_at=None if snapshot is None else snapshot.column_at,
    )
    if found.control != "mean_matched" or snapshot is None:
        return found
    return replace(found, mean=_mean(found, snapshot, group))


def _mean(reliance: Reliance, snapshot: Snapshot, group: StudentGroup) -> float:
    total = unknown = 0
    for block in range(group.rank, snapshot.num_blocks, group.size):
        rows = np.arange(snapshot.starts[block], snapshot.starts[block + 1])
        found, lacking = reliance.ruled(rows)
        total += fixed_point_sum(found)
        unknown += lacking
    total, unknown = group.sum_integers(np.array([total, unknown])).tolist()
    if unknown:
        _log.warning("%d rows have no number for the rule: their λ is reliance.initial", unknown)
    return mean_from(total, snapshot.num_rows)
