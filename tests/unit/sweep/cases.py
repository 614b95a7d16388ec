"""Sweeps of the tests: a configuration that needs nothing on disk, and trials of fake_trial.py."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from distill_dist.config.load import load_config
from distill_dist.sweep.plan import Plan, make_plan
from distill_dist.sweep.space import build_space

ROOT = Path(__file__).resolve().parents[3]
BASE = (
    "method=gkd_cls",
    "data.source=synthetic_nli",
    "data.prepared=p",
    "teacher.path=t",
    "student.path=t",
    "cluster.device=cpu",
)
FAKE = f"{shlex.quote(sys.executable)} {Path(__file__).with_name('fake_trial.py')}"


def plan_of(out: Path, *grid: str, base: Sequence[str] = BASE) -> Plan:
    """``grid``: `field=a,b`; it stands in for the field of ``base``."""
    space = build_space(
        [(text.partition("=")[0], text.partition("=")[2]) for text in grid], [], trials=None, seed=0
    )
    base = [text for text in base if text.partition("=")[0] not in space.fields]
    return make_plan(None, load_config(None, base, need="prepare"), base, space, out)


def write_plan(plans: Path, number: int, *what: str) -> None:
    """What trial ``number`` does at each of its starts."""
    plans.mkdir(exist_ok=True)
    (plans / f"{number}.json").write_text(json.dumps(what), encoding="utf-8")


def starts(plans: Path, number: int) -> list[tuple[float, int]]:
    """(time, process) of every start of trial ``number``."""
    path = plans / f"{number}.starts"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(float(line.split()[0]), int(line.split()[1])) for line in lines]
