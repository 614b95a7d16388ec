"""Tables of run folders: means over seeds, differences, and what keeps them from being tested."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distill_dist.report.comparison import Against, TaskTable, compare_task
from distill_dist.report.groups import group_runs
from distill_dist.report.run_record import read_run
from report.run_cases import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    root = tmp_path_factory.mktemp("runs")
    accuracy = {"kd": 0.80, "gkd": 0.87, "pkd": 0.805}
    return {
        method: [
            write_run(root / f"{method}-{seed}", method=method, seed=seed, accuracy=value, points=False)
            for seed in range(3)
        ]
        for method, value in accuracy.items()
    }


def table(*paths: Path, baseline: str = "kd", split: str = "dev") -> TaskTable:
    groups = group_runs([read_run(path) for path in paths])
    chosen = next((group for group in groups if group.method == baseline), None)
    return compare_task(groups, split=split, baseline=chosen, resamples=2000, seed=0)


def against(found: TaskTable, method: str) -> Against:
    (line,) = [line for line in found.lines if line.group.method == method]
    assert line.against is not None
    return line.against


def accuracy_of(path: Path) -> float:
    value = json.loads((path / "summary.json").read_text())["splits"]["dev"]["accuracy"]
    assert isinstance(value, float)
    return value


def test_means_over_seeds_and_the_verdict(runs: dict[str, list[Path]]) -> None:
    found = table(*runs["kd"], *runs["gkd"], *runs["pkd"])
    assert [line.group.method for line in found.lines] == ["gkd", "pkd", "kd"]
    values = [accuracy_of(path) for path in runs["gkd"]]
    cell = found.lines[0].cells["dev", "accuracy"]
    assert (cell.mean, cell.deviation) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
    )
    better = against(found, "gkd")
    theirs = [accuracy_of(path) for path in runs["kd"]]
    assert better.difference == pytest.approx(np.mean(values) - np.mean(theirs))
    assert better.rows is not None
    assert better.seeds is not None
    assert better.rows.value == pytest.approx(better.difference)
    assert better.rows.low < better.difference < better.rows.high
    assert better.rows_p is not None
    assert better.rows_p > better.rows.p  # adjusted for two lines
    assert (better.seeds.kind, better.seeds.seeds) == ("paired", 3)
    assert (better.verdict, better.basis) == ("better", "rows, seeds")
    unclear = against(found, "pkd")
    assert unclear.verdict == "not shown"
    silent = [name for name, p in (("rows", unclear.rows_p), ("seeds", unclear.seeds_p)) if p and p >= 0.05]
    assert silent
    assert unclear.basis == ", ".join(silent)
    assert found.notes == []
    assert ("method", "gkd", "kd") in better.fields
    assert {"seed", "run_dir", "label"}.isdisjoint(name for name, _, _ in better.fields)


def test_other_code_is_noted(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", method="gkd", points=False)
    versions = json.loads((path / "versions.json").read_text())
    (path / "versions.json").write_text(json.dumps({**versions, "commit": "d0d0", "torch": "3.0"}))
    assert table(*runs["kd"], path).notes == [
        "its runs were made with several versions of torch: 2.13.0 (3), 3.0 (1)",
        "its runs were made with several commits of the code: c0ffee (3), d0d0 (1)",
    ]


def test_the_other_way_round(runs: dict[str, list[Path]]) -> None:
    found = against(table(*runs["kd"], *runs["gkd"], baseline="gkd"), "kd")
    assert found.verdict == "worse"


def test_one_seed_is_tested_over_rows_alone(runs: dict[str, list[Path]]) -> None:
    found = against(table(runs["kd"][0], runs["gkd"][0]), "gkd")
    assert (found.seeds, found.verdict, found.basis) == (None, "better", "rows")


def test_without_predictions_only_seeds_are_tested_and_the_command_is_named(
    runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    bare = write_run(tmp_path / "bare", method="kd", seed=5, accuracy=0.8, predictions=False, points=False)
    found = table(*runs["kd"], bare, *runs["gkd"])
    assert found.notes == [
        f"no comparison row by row: {bare} has no predictions on dev: python launcher/evaluate.py {bare}"
    ]
    better = against(found, "gkd")
    assert (better.rows, better.basis) == (None, "seeds")


def test_all_runs_without_predictions_are_told_at_once(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / method, method=method, predictions=False, points=False)
        for method in ("kd", "gkd")
    ]
    note = table(*paths).notes[-1]
    assert note.startswith("2 runs have no predictions on dev: ")
    assert all(f"python launcher/evaluate.py {path}" in note for path in paths)


def harm_rows(path: Path) -> None:
    file = path / "predictions" / "dev.tsv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-9]) + "\n")


def harm_labels(path: Path) -> None:
    record = json.loads((path / "evaluation.json").read_text())
    record["data"]["manifest"] = "another"
    (path / "evaluation.json").write_text(json.dumps(record))


def harm_model(path: Path) -> None:
    record = json.loads((path / "summary.json").read_text())
    record["splits"]["dev"]["accuracy"] += 0.02
    (path / "summary.json").write_text(json.dumps(record))


def test_damaged_predictions_are_noted_once(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", method="gkd", points=False)
    harm_file(path)
    found = table(runs["kd"][0], path)
    (damaged,) = [run for line in found.lines for run in line.group.runs if run.path == path]
    assert len(damaged.problems) == 1


def harm_file(path: Path) -> None:
    (path / "predictions" / "dev.tsv").write_bytes(b"\xff\xfe\x00row\tlabel")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (harm_rows, "other rows than the baseline"),
        (harm_labels, "other rows than the baseline"),
        (harm_model, "predictions of .* are of another model"),
        (harm_file, "has no predictions on dev"),
    ],
)
def test_rows_that_do_not_match_are_not_compared(
    runs: dict[str, list[Path]], tmp_path: Path, harm: Callable[[Path], None], said: str
) -> None:
    path = write_run(tmp_path / "r", method="gkd", accuracy=0.87, points=False)
    assert against(table(runs["kd"][0], path), "gkd").rows is not None
    harm(path)
    found = against(table(runs["kd"][0], path), "gkd")
    assert found.rows is None
    assert found.verdict == "untested"
    assert re.search(said, found.rows_missing)


def test_runs_that_have_not_ended_are_counted_and_not_compared(
    runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    path = write_run(tmp_path / "r", method="gkd", points=False)
    for name in ("summary.json", "evaluation.json"):
        (path / name).unlink()
    found = table(*runs["kd"], path)
    assert found.unfinished == 1
    assert [line.group.method for line in found.lines] == ["kd", "gkd"]
    assert found.lines[1].cells == {}
    turned = table(*runs["kd"], path, baseline="gkd")
    assert turned.notes == ["the baseline gkd has no accuracy on dev yet"]


def test_a_split_that_only_the_evaluation_knows(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", method="gkd", points=False)
    record = json.loads((path / "evaluation.json").read_text())
    record["splits"]["test"] = {"student": {"accuracy": 0.5}, "loyalty": {"ll": 0.6}}
    (path / "evaluation.json").write_text(json.dumps(record))
    found = table(path, split="test")
    assert found.lines[0].cells["test", "accuracy"].mean == 0.5
    assert found.lines[0].cells["test", "ll"].mean == 0.6
    assert ("dev", "accuracy") in found.columns


def test_a_seed_that_was_run_twice_counts_once_in_both_comparisons(
    runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    again = write_run(tmp_path / "gkd-again", method="gkd", seed=0, accuracy=0.7, points=False)
    found = against(table(*runs["kd"], *runs["gkd"], again), "gkd")
    assert found.rows is not None
    assert found.rows.value == pytest.approx(found.difference)
