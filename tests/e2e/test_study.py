"""A study through its launcher: teacher, tuning, arms, evaluation and report; stopped on the way, it goes on."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny import (
    REPOSITORY,
    RUN_LIMIT_S,
    Started,
    World,
    environment,
    last_json,
    running,
    start,
    state,
    teacher_arguments,
    wait_until,
)

from distill_dist.config.load import load_config

pytestmark = pytest.mark.timeout(900)
HELD_OUT = ("data.hold_out={tune: 50, held_out: 60}", "evaluate.select_on=tune")
SCORED = {"teacher": "evaluate.at_end=[held_out]", "student": "evaluate.skip=[held_out]"}
STUDY = """\
teachers: {tiny: teacher.yaml}
arms:
  kd: {method: kd}
  gkd: {method: gkd}
blocks:
  block:
    config: student.yaml
    teacher: tiny
    seeds: [1]
    tune:
      - {arm: kd, grid: {weight.kd: [0.2, 0.8]}, used_by: [gkd]}
evaluate: {splits: [dev, held_out], saliency_rows: 20}
report: {baseline: kd, split: held_out}
"""


def write_study(world: World, folder: Path) -> Path:
    prepared = folder / "prepared"
    student = [*world.student(folder / "unused"), "method=kd", "train.max_steps=4", "evaluate.saliency=false"]
    teacher = [*teacher_arguments(prepared, folder / "unused"), "train.max_steps=30"]
    own = [
        text for text in student if not text.startswith("teacher.path=")
    ]  # the study's, from which it is cut
    for name, arguments in (("student", own), ("teacher", teacher)):
        tree = OmegaConf.from_dotlist([*arguments, *HELD_OUT, SCORED[name], f"data.prepared={prepared}"])
        OmegaConf.save(tree, folder / f"{name}.yaml")
    path = folder / "study.yaml"
    path.write_text(f"out: {folder}/study\n{STUDY}", encoding="utf-8")
    return path


def begin(path: Path, logs: Path) -> Started:
    command = [sys.executable, str(REPOSITORY / "launcher" / "study.py"), str(path), "--parallel", "2"]
    return start([command], [environment()], logs=logs, port=0)


def test_a_study_from_rows_to_report(world: World, tmp_path: Path) -> None:
    path, out = write_study(world, tmp_path), tmp_path / "study"
    with running(begin(path, tmp_path / "logs-1")) as started:
        first = out / "block" / "tune1-kd" / "kd=0.2-seed0"
        wait_until(
            lambda: (first / "state.json").exists() or not started.alive(), what="the first tuning run",
            timeout_s=2 * RUN_LIMIT_S, every_s=0.05,
        )  # fmt: skip
        started.processes[0].send_signal(signal.SIGTERM)
        assert started.wait() == [75], started.text()
        assert started.alive() == []
        assert "Traceback" not in started.text()
    assert state(out / "teachers" / "tiny")["state"] == "done"
    before = (out / "teachers" / "tiny" / "summary.json").read_bytes()
    with running(begin(path, tmp_path / "logs-2")) as started:
        assert started.wait(3 * RUN_LIMIT_S) == [0], started.text()
        found = last_json(started.stdout())
    assert (out / "teachers" / "tiny" / "summary.json").read_bytes() == before, "what is done is not repeated"
    table = found["tasks"]["block"]
    assert (table["split"], table["baseline"]) == ("held_out", "kd")
    assert {line["label"] for line in table["lines"]} == {"kd", "gkd"}
    (gkd,) = [line for line in table["lines"] if line["label"] == "gkd"]
    assert gkd["interval"] is not None, "compared row by row"
    chosen = json.loads((out / "chosen.json").read_text())
    (step,) = chosen["measured"]
    best = max(step["points"], key=lambda point: (point["accuracy"], -point["loss"]))["values"]
    assert chosen["chosen"] == {"block": {"kd": best, "gkd": best}} == {"block": found["chosen"]["block"]}
    for arm in ("kd", "gkd"):
        evaluation = json.loads((out / "block" / arm / "seed1" / "evaluation.json").read_text())
        assert evaluation["splits"].keys() == {"dev", "held_out"}
        assert evaluation["splits"]["held_out"]["rows"] == 60
        own = json.loads((out / "block" / arm / "seed1" / "summary.json").read_text())
        assert own["splits"].keys() == {"dev", "tune"}, "held_out was left to the evaluation"
        config = load_config(out / "block" / arm / "seed1" / "config.yaml", [])
        assert config.weight.kd == float(best["weight.kd"])
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    assert "| gkd | 1 |" in (out / "report.md").read_text(encoding="utf-8")
    with running(begin(path, tmp_path / "logs-3")) as started:
        assert started.wait() == [0], started.text()
        assert last_json(started.stdout())["tasks"] == found["tasks"]
        assert "started" not in started.text()
