"""The list of runs: columns, orders, and names that would steer a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_dist.report.listing import age, as_json, list_runs, table
from distill_dist.report.run_record import find_runs


def write_runs(root: Path) -> None:
    for name, state, dev, time in (
        ("run-9", "done", 0.91, 1000.0),
        ("run-10", "failed", None, 5000.0),
        ("run-2", "done", 0.95, 3000.0),
    ):
        folder = root / name
        folder.mkdir(parents=True)
        said = {
            "state": state,
            "time": time,
            "reason": "UserError: no\x1b[31m rows\nat all" if dev is None else "",
        }
        (folder / "state.json").write_text(json.dumps(said))
        summary = {"method": "kd", "task": "sst2", "seed": 1, "steps": 1200, "student": {"accuracy": dev}}
        if dev is not None:
            (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("name", ["run-2", "run-9", "run-10"]),
        ("age", ["run-10", "run-2", "run-9"]),
        ("dev", ["run-10", "run-2", "run-9"]),
    ],
)
def test_orders(tmp_path: Path, sort: str, names: list[str]) -> None:
    write_runs(tmp_path)
    found = list_runs(find_runs([tmp_path]), sort=sort)
    assert [Path(entry["run"]).name for entry in found] == names


def test_the_table(tmp_path: Path) -> None:
    write_runs(tmp_path)
    (tmp_path / "run-2" / "versions.json").write_text("[")  # not read here
    summary = json.loads((tmp_path / "run-2" / "summary.json").read_text())
    (tmp_path / "run-2" / "summary.json").write_text(json.dumps({**summary, "label": "kd_cl"}))
    (tmp_path / "run-9" / "summary.json").write_text("{")
    lines = table(list_runs(find_runs([tmp_path])), now=5000.0 + 3 * 86400).splitlines()
    assert lines[0].split() == [
        "run",
        "state",
        "method",
        "label",
        "task",
        "seed",
        "best",
        "dev",
        "steps",
        "age",
    ]
    assert lines[1].split()[1:] == ["done", "kd", "kd_cl", "sst2", "1", "0.9500", "1,200", "3", "d"]
    assert lines[2].split()[1:] == ["done", "?", "?", "–", "–", "–", "3", "d"]
    assert "summary.json cannot be read" in lines[4]
    assert lines[5].endswith("run-10: UserError: no�[31m rows at all")
    assert len(lines) == 6
    (tmp_path / "run-2" / "summary.json").write_text(json.dumps(summary))
    lines = table(list_runs(find_runs([tmp_path])), now=5000.0).splitlines()
    assert lines[0].split()[:4] == ["run", "state", "method", "task"]
    assert lines[1].split()[1:4] == ["done", "kd", "sst2"]


def test_the_line_is_json_whatever_a_summary_holds(tmp_path: Path) -> None:
    write_runs(tmp_path)
    (tmp_path / "run-9" / "summary.json").write_text('{"method": "kd", "student": {"accuracy": NaN}}')
    found = as_json(list_runs(find_runs([tmp_path])))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["states"], found["broken"]) == ({"done": 2, "failed": 1}, 0)
    assert [entry["best_dev"] for entry in found["runs"]] == [0.95, None, None]


def test_ages() -> None:
    assert [age(value) for value in (-3, 40, 700, 12_600, 800_000)] == [
        "0 s",
        "40 s",
        "12 min",
        "3.5 h",
        "9 d",
    ]
