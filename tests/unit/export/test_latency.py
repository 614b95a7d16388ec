"""Timings of several models: fair turns, the numbers of a clock that is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from tiny_encoders import ragged_batch

from distill_dist.export.latency import Contender, LatencyTable, Timing, as_text, conditions, time_models
from distill_dist.records import Batch


class Slow:
    """A clock that models move."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, []

    def model(self, name: str, *seconds: float):
        calls = count()

        def run(batch: Batch) -> None:
            self.order.append((name, len(batch.ids_B)))
            self.now += seconds[next(calls) % len(seconds)]

        return run


def test_the_first_round_does_not_count_and_turns_change() -> None:
    clock = Slow()
    batches = {1: [ragged_batch((3,)), ragged_batch((4,))], 2: [ragged_batch((3, 5))]}
    # the first three calls of each are the round that does not count
    models = {"a": clock.model("a", 9.0, 9.0, 9.0, *[0.1] * 6), "b": clock.model("b", *[0.2] * 9)}
    found = time_models(models, batches, rounds=2, clock=lambda: clock.now)
    assert found["a"][1] == Timing(pytest.approx(100), pytest.approx(100), pytest.approx(10))
    assert found["b"][2] == Timing(pytest.approx(200), pytest.approx(200), pytest.approx(10))
    assert len(clock.order) == 2 * 3 * 3
    firsts = [clock.order[at][0] for at in range(0, len(clock.order), 2)]
    assert set(firsts) == {"a", "b"}, "the same model is always first"
    assert all({clock.order[at][0], clock.order[at + 1][0]} == {"a", "b"} for at in range(0, 18, 2))


def test_median_and_p95() -> None:
    clock = Slow()
    times = [0.0, *[0.001 * n for n in range(1, 101)]]
    found = time_models(
        {"a": clock.model("a", *times)}, {4: [ragged_batch((3,) * 4)]}, rounds=100, clock=lambda: clock.now
    )
    timing = found["a"][4]
    assert timing.median_ms == pytest.approx(50.5)
    assert timing.p95_ms == pytest.approx(95.05)
    assert timing.rows_per_s == pytest.approx(4 / 0.0505)


def test_the_table_says_under_which_conditions() -> None:
    timing = Timing(1.5, 2.0, 666.0)
    line = Contender("student", {1: timing, 32: timing}, 2_000_000, 1234567, 0.9)
    table = LatencyTable(
        (line, replace(line, name="teacher", accuracy=None)), 2, 5, {1: 64, 32: 256}, 14.2, "A CPU"
    )
    text = as_text(table)
    assert "1,234,567" in text
    assert "2.00" in text
    assert "0.9000" in text
    said = conditions(table)
    assert "A CPU" in said
    assert "2 threads for every model" in said
    assert "5 interleaved rounds over 64 rows in batches of 1 and 256 rows in batches of 32" in said
    assert conditions(replace(table, threads=1, missing="No teacher.")).endswith("of a batch. No teacher.")
