"""The trials of a sweep, all checked before any starts, and the file that says so: trials.json, written first."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from distill_dist.config.fields import schema_fields, value_at
from distill_dist.config.load import dump_config, load_config
from distill_dist.config.schema import RunConfig
from distill_dist.durable import remove_stale, sha256_file, write_durable, write_json
from distill_dist.errors import UserError
from distill_dist.sweep.questions import group_by_questions
from distill_dist.sweep.space import Space

PLAN, CONFIG, CACHE = "trials.json", "trial.yaml", "cache"
_VERSION = 1
_LONGEST_NAME = 120  # file systems take 255 bytes


@dataclass(frozen=True)
class Trial:
    """One run of the sweep. ``group``: trials of the same number ask the same of their teacher; None: of none."""

    number: int
    overrides: Mapping[str, str]  # what is varied, as written on a command line
    config: RunConfig
    sha256: str  # of all that determines its result
    group: int | None

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.run_dir)

    @property
    def name(self) -> str:
        """Its number and what it varies."""
        return self.folder.name

    @property
    def config_file(self) -> Path:
        """Its whole configuration, by which its processes are known as well."""
        return self.folder.absolute() / CONFIG


@dataclass(frozen=True)
class Plan:
    """``base``: where all trials come from, for people. ``differing``: the fields in which groups of trials differ."""

    out: Path
    base: str
    base_sha256: str
    space: Space
    trials: tuple[Trial, ...]
    differing: tuple[str, ...]

    @property
    def num_groups(self) -> int:
        """How many different things are asked of teachers."""
        return len({trial.group for trial in self.trials} - {None})

    def record(self) -> dict[str, Any]:
        """What trials.json holds."""
        return {
            "version": _VERSION,
            "base": {"config": self.base, "sha256": self.base_sha256},
            "varied": list(self.space.fields),
            "trials": [
                {
                    "number": trial.number,
                    "name": trial.name,
                    "overrides": dict(trial.overrides),
                    "sha256": trial.sha256,
                }
                for trial in self.trials
            ],
        }

    def describe(self) -> str:
        """For people: one line per trial, and what the teachers are asked."""
        lines = [f"{len(self.trials)} trials of {self.base or 'the command line'} in {self.out}"]
        lines += [f"  {trial.name}" for trial in self.trials]
        return "\n".join([*lines, self.sharing()])

    def sharing(self) -> str:
        """What of the teacher's work is shared."""
        if not self.num_groups:
            return "no trial has a teacher"
        if self.num_groups == 1:
            return "all trials ask the same of their teacher: the first one pays, the others read its signals"
        return (
            f"the trials ask {self.num_groups} different things of their teachers (they differ in "
            f"{', '.join(self.differing)}): the first trial of each pays, and only those that ask the same read its "
            "signals"
        )


def make_plan(
    base: Path | None, config: RunConfig, fixed: Sequence[str], space: Space, out: Path
) -> Plan:  # fmt: skip
    """Every trial of ``space``: ``base``, then ``fixed``, then its own values. Writes nothing.

    ``config`` is what ``base`` and ``fixed`` give. Raises UserError for a trial that cannot work, and for two that
    are the same run.
    """
    _check_fixed(fixed, space)
    if config.train.resume == "never":
        raise UserError("train.resume=never: a sweep resumes the trials that stopped; leave it away")
    points = space.points()
    cache = [] if config.teacher.cache_dir else [f"teacher.cache_dir={out / CACHE}"]
    configs = [
        _load(base, [*fixed, *cache], point, out / _name(number, point, len(points)), number)
        for number, point in enumerate(points)
    ]
    digests = [result_digest(one, out) for one in configs]
    _refuse_twins(points, digests)
    groups, differing = group_by_questions(configs)
    trials = tuple(
        Trial(number, *parts)
        for number, parts in enumerate(zip(points, configs, digests, groups, strict=True))
    )
    return Plan(out, str(base or ""), result_digest(config, out), space, trials, differing)


def _check_fixed(fixed: Sequence[str], space: Space) -> None:
    for text in fixed:
        key = text.partition("=")[0]
        if key in space.fields:
            raise UserError(f"{text}: {key} is varied by the sweep: leave one of them away")
        if key == "run_dir":
            raise UserError(f"{text}: every trial has a folder of its own below --out")


def _load(
    base: Path | None, fixed: Sequence[str], point: Mapping[str, str], folder: Path, number: int
) -> RunConfig:
    texts = [f"{key}={value}" for key, value in point.items()]
    try:
        return load_config(base, [*fixed, *texts, f"run_dir={json.dumps(str(folder))}"])
    except UserError as error:
        raise UserError(f"trial {number} ({', '.join(texts)}): {error}") from None


def _name(number: int, point: Mapping[str, str], count: int) -> str:
    """`007-kd=0.3,seed=1`: fields by their last name where that is enough."""
    last = [key.rpartition(".")[2] for key in point]
    names = [key if last.count(short) > 1 else short for key, short in zip(point, last, strict=True)]
    values = (f"{name}={value}" for name, value in zip(names, point.values(), strict=True))
    text = re.sub(r"[^A-Za-z0-9.,=+_-]+", "-", ",".join(values))[:_LONGEST_NAME].rstrip(".,=-")
    return f"{number:0{max(3, len(str(count - 1)))}}-{text}"


def result_digest(config: RunConfig, out: Path) -> str:
    """sha256 of what determines the trial's result, wherever the sweep's folder lies."""
    shared = "" if config.teacher.cache_dir == str(out / CACHE) else config.teacher.cache_dir
    own = replace(config, run_dir="", teacher=replace(config.teacher, cache_dir=shared))
    deepspeed = sha256_file(Path(config.deepspeed_config)) if Path(config.deepspeed_config).is_file() else ""
    content = json.dumps([asdict(own), deepspeed], sort_keys=True)  # dump_config takes 0.1 s
    return hashlib.sha256(content.encode()).hexdigest()


def _refuse_twins(points: Sequence[Mapping[str, str]], digests: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for number, digest in enumerate(digests):
        if (other := first.setdefault(digest, number)) != number:
            texts = [", ".join(f"{key}={value}" for key, value in points[n].items()) for n in (other, number)]
            raise UserError(
                f"trials {other} ({texts[0]}) and {number} ({texts[1]}) are the same run: leave one of them away"
            )


def save_plan(plan: Plan) -> None:
    """trials.json, then every trial's configuration. The folder is this process's own (hold_lock).

    Raises UserError where the folder holds another plan.
    """
    path = plan.out / PLAN
    if path.exists():
        _check_same(plan, path)
    else:
        plan.out.mkdir(parents=True, exist_ok=True)
        write_json(path, plan.record())
    for trial in plan.trials:
        write_trial(trial)


def write_trial(trial: Trial) -> None:
    """Its configuration, unless it lies there."""
    remove_stale(trial.folder, CONFIG)
    if not _lies_there(trial):
        trial.folder.mkdir(parents=True, exist_ok=True)
        text = dump_config(trial.config)
        write_durable(trial.config_file, lambda file: file.write_text(text, "utf-8"))


def _lies_there(trial: Trial) -> bool:
    """Whether the trial's configuration is written, and its folder was not moved since."""
    try:
        lines = trial.config_file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return any(
        yaml.safe_load(line)["run_dir"] == str(trial.folder) for line in lines if line.startswith("run_dir:")
    )


def _check_same(plan: Plan, path: Path) -> None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        before = {one["number"]: (one["overrides"], one["sha256"]) for one in known["trials"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another --out") from None
    if known.get("version") != _VERSION:
        raise UserError(f"{path} was written by another version: choose another --out")
    now = {trial.number: (dict(trial.overrides), trial.sha256) for trial in plan.trials}
    if now == before:
        return
    changed = [trial for trial in plan.trials if before.get(trial.number) != now[trial.number]]
    if len(before) != len(now) or changed[0].overrides != before[changed[0].number][0]:
        what = f"{len(before)} trials over {', '.join(known['varied'])}"
    else:
        what = f"the same trials with other settings{_changes(changed[0], path.parent)}"
    raise UserError(f"{plan.out} holds another sweep, {what}: choose another --out, or set everything back")


def _changes(trial: Trial, out: Path) -> str:
    """` (batch.size = 8, now 16)`; empty where the trial's file does not say."""
    file = out / trial.name / CONFIG
    if not file.is_file():
        return ""
    before = load_config(file, [])
    pairs = [(key, value_at(before, key), value_at(trial.config, key)) for key in schema_fields()]
    found = [f"{key} = {old}, now {new}" for key, old, new in pairs if old != new and key != "run_dir"]
    return f" ({'; '.join(found)})" if found else " (the DeepSpeed JSON has changed)"
