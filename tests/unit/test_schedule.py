from __future__ import annotations

from itertools import pairwise

import pytest

from distill_dist.schedule import learning_rate


def rates(total: int, share: float, peak: float = 1.0) -> list[float]:
    return [learning_rate(s, total_steps=total, peak=peak, warmup_share=share) for s in range(total)]


def test_known_values() -> None:
    assert rates(10, 0.4, peak=8.0) == [2, 4, 6, 8, 8, *(8 * left / 6 for left in (5, 4, 3, 2, 1))]
    assert rates(4, 0.0) == [1.0, 0.75, 0.5, 0.25]
    assert rates(4, 1.0) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("total", [1, 2, 7, 100, 1001])
@pytest.mark.parametrize("share", [0.0, 0.06, 0.5, 1.0])
def test_it_rises_to_the_peak_and_falls_without_a_jump(total: int, share: float) -> None:
    found, warmup = rates(total, share), round(total * share)
    assert max(found) == pytest.approx(1.0)
    assert all(0 < rate <= 1 for rate in found)  # no step without an update
    jumps = [b - a for a, b in pairwise(found)]
    assert all(jump > 0 for jump in jumps[: max(0, warmup - 1)])
    assert all(jump < 0 for jump in jumps[warmup:])
    largest = max(1 / max(1, warmup), 1 / max(1, total - warmup))
    assert all(abs(jump) <= largest + 1e-12 for jump in jumps)


def test_a_run_cut_short_keeps_the_schedule_of_its_epochs() -> None:
    """`train.max_steps` ends a run early; the rate is a function of the step alone."""
    assert learning_rate(3, total_steps=100, peak=1.0, warmup_share=0.1) == rates(100, 0.1)[3]
    assert learning_rate(100, total_steps=100, peak=1.0, warmup_share=0.1) == 0.0
