"""The table: sorted and chosen by dev alone, over seeds, and never by what is missing."""

from __future__ import annotations

import csv
import functools
import io
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from distill_dist.sweep.plan import Plan
from distill_dist.sweep.table import Table
from distill_dist.sweep.verdict import Verdict
from sweep.cases import plan_of

DEV = {("0.3", "1"): 0.90, ("0.3", "2"): 0.70, ("0.5", "1"): 0.82, ("0.5", "2"): 0.84}


def done(accuracy: float, **more: Any) -> Verdict:
    dev = {"accuracy": accuracy, "loss": 0.5, **more}
    test = {"accuracy": 1 - accuracy}
    return Verdict(
        "done",
        summary={
            "splits": {"dev_mismatched": test, "dev": dev},
            "loyalty": {"ll": 0.9, "sl_spearman_norm": None},
            "throughput": {"samples_per_s": 12.5},
            "signals": {"rows": 520, "computed": 100},
        },
    )


@functools.cache
def two_by_two() -> Plan:
    """Two weights and two seeds."""
    return plan_of(Path("sweep"), "weight.kd=0.3,0.5", "seed=1,2")


def table_of(**changed: Verdict) -> Table:
    """``changed``: `t2` is trial 2's verdict."""
    plan = two_by_two()
    found = [
        changed.get(f"t{trial.number}", done(DEV[trial.overrides["weight.kd"], trial.overrides["seed"]]))
        for trial in plan.trials
    ]
    return Table(plan.trials, found, plan.space.fields)


def test_the_best_has_the_highest_mean_over_seeds_not_the_luckiest_seed() -> None:
    table = table_of()
    best = table.best()
    assert best is not None
    assert best["overrides"] == {"weight.kd": "0.5"}
    assert best["mean"] == statistics.fmean((0.82, 0.84))
    assert best["deviation"] == statistics.stdev((0.82, 0.84))
    assert best["trials"] == [2, 3]
    assert best["run_dir"] == "sweep/003-kd=0.5,seed=2"
    assert [row["trial"] for row in table.rows()] == [3, 2, 0, 1]


def test_csv_and_markdown_hold_every_trial() -> None:
    table = table_of(t1=Verdict("failed", "the loss, | is not finite"))
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["trial"] for row in rows] == ["3", "2", "0", "1"]
    assert list(rows[0])[:4] == ["trial", "weight.kd", "seed", "state"]
    assert (rows[0]["dev.accuracy"], rows[0]["dev_mismatched.accuracy"]) == ("0.84", str(1 - 0.84))
    assert (rows[0]["dev.ll"], rows[0]["samples_per_s"], rows[0]["teacher.computed"]) == (
        "0.9",
        "12.5",
        "100",
    )
    assert (rows[3]["state"], rows[3]["dev.accuracy"], rows[3]["reason"]) == (
        "failed", "", "the loss, | is not finite",
    )  # fmt: skip
    lines = table.markdown().splitlines()
    assert len(lines) == 2 + 4
    assert lines[0].startswith("| trial | weight.kd | seed | dev.accuracy | dev.loss | dev.ll |")
    assert "0.8300 ± 0.0141" in lines[2]
    assert lines[5].endswith("| failed |")
    assert len({line.count("|") for line in lines}) == 1
    assert table.computed() == 300
    assert table.counts() == {"done": 3, "failed": 1}


def test_a_group_that_lacks_a_seed_is_not_chosen() -> None:
    best = table_of(t2=Verdict("failed", "x")).best()
    assert best is not None
    assert best["overrides"] == {"weight.kd": "0.3"}, "0.84 is one seed of two"
    assert table_of(t0=Verdict("waiting"), t2=Verdict("stopped")).best() is None


def test_a_figure_that_is_no_number_is_not_compared() -> None:
    table = table_of(t3=done(math.nan))
    best = table.best()
    assert best is not None
    assert best["overrides"] == {"weight.kd": "0.3"}
    assert "nan" not in table.csv()


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_the_tasks_own_metric_decides_where_it_has_one(metric: str) -> None:
    found = {f"t{number}": done(0.5, **{metric: value}) for number, value in enumerate((0.6, 0.6, 0.5, 0.5))}
    table = table_of(**found)
    assert table.metric == metric
    best = table.best()
    assert best is not None
    assert (best["overrides"], best["mean"], best["deviation"]) == ({"weight.kd": "0.3"}, 0.6, 0.0)
    assert metric in table.markdown()


def test_without_seeds_every_trial_is_a_group(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "weight.kd=0.3,0.5")
    table = Table(plan.trials, [done(0.8), done(0.9)], plan.space.fields)
    best = table.best()
    assert best is not None
    assert (best["trials"], best["mean"], best["deviation"]) == ([1], 0.9, None)
    assert "mean" not in table.markdown()
    assert "±" not in table.markdown()


def test_between_equal_scores_the_lower_loss_decides() -> None:
    better = {f"t{number}": done(0.8, loss=0.4) for number in (2, 3)}
    worse = {f"t{number}": done(0.8, loss=0.6) for number in (0, 1)}
    best = table_of(**better, **worse).best()
    assert best is not None
    assert best["trials"] == [2, 3]
    other = table_of(**{key: done(0.8, loss=0.9) for key in better}, **worse).best()
    assert other is not None
    assert other["trials"] == [0, 1]
