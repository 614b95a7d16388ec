"""A study from its rows to its report; whatever is done stays done."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_dist.config.schema import RunConfig
from distill_dist.data.prepare import prepare
from distill_dist.durable import remove_stale, write_json
from distill_dist.errors import UserError
from distill_dist.report.collect import Choice
from distill_dist.study.choose import measured_points
from distill_dist.study.evaluations import Asked, evaluate_runs
from distill_dist.study.plan import (
    Planned,
    all_runs,
    arm_runs,
    make_trials,
    num_rounds,
    teacher_runs,
    tuning_runs,
)
from distill_dist.study.report import write_report
from distill_dist.study.study_file import Block, Study, Tune
from distill_dist.sweep.plan import Trial
from distill_dist.sweep.run import hold_folder
from distill_dist.sweep.runner import Runner
from distill_dist.sweep.trial_process import trial_command
from distill_dist.sweep.verdict import read_verdict

CHOSEN, SPENT = "chosen.json", "spent.json"
DETAILED = 40  # runs with pictures of their own: more make a page that phones open slowly


def check_study(study: Study) -> list[RunConfig]:
    """The configuration of every run, nothing chosen yet. Raises UserError for the first that cannot work."""
    configs = []
    for planned in all_runs(study):
        config = planned.load()
        if missing := sorted({*study.splits, study.split} - {*config.data.splits, *config.data.hold_out}):
            raise UserError(
                f"{planned.folder}: study {study.path} scores {missing[0]}, which is no split of its data"
            )
        configs.append(config)
    folders = [Path(config.run_dir) for config in configs]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(f"study {study.path}: {twice} would be two runs: leave one of them away")
    if study.split not in study.splits:
        raise UserError(
            f"study {study.path}: report.split={study.split} is not among evaluate.splits "
            f"({', '.join(study.splits)}): add it there"
        )
    return configs


def claim(study: Study) -> None:
    """The study's folder is this process's own. Raises UserError."""
    hold_folder(study.out, name="out", kind="study")
    for pattern in ("*.json", "report.*"):
        remove_stale(study.out, pattern)


@dataclass
class Running:
    """The study on its way. ``chosen``: block -> arm -> field -> value; ``points``: what was tried for it."""

    study: Study
    launch: str
    parallel: int
    retry_failed: bool
    should_stop: Callable[[], bool]
    say: Callable[[str], None]
    chosen: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def run(self, configs: Sequence[RunConfig]) -> dict[str, Any]:
        """All of it; returns the summary. Raises Interrupted, and UserError where it cannot go on."""
        self._prepare(configs)
        self._train(teacher_runs(self.study), "teachers", all_needed=True)
        for number in range(num_rounds(self.study)):
            self._tune(number)
        blocks = {block.name: arm_runs(self.study, block, self.chosen) for block in self.study.blocks}
        trials = self._train(_by_turns(list(blocks.values())), "arms", all_needed=False)
        done = {trial.folder for trial in trials if read_verdict(trial.folder).state == "done"}
        self.failed = [str(trial.folder) for trial in trials if trial.folder not in done]
        runs = {
            name: [each.folder for each in planned if each.folder in done] for name, planned in blocks.items()
        }
        if not done:
            raise UserError(f"no run of {self.study.out} is done: {read_verdict(trials[0].folder).reason}")
        self._evaluate(runs)
        return self._report({name: paths for name, paths in runs.items() if paths})

    def _prepare(self, configs: Sequence[RunConfig]) -> None:
        for config in {config.data.prepared: config for config in configs}.values():
            prepare(config.data, progress=sys.stderr.isatty())

    def _tune(self, number: int) -> None:
        """The ``number``-th step of every block that has one, all together; then each chooses."""
        steps = [(block, block.tune[number]) for block in self.study.blocks if number < len(block.tune)]
        planned = [tuning_runs(self.study, block, number, self.chosen) for block, _ in steps]
        folders = {each.folder: place for place, runs in enumerate(planned) for each in runs}
        trials = self._train(_by_turns(planned), f"tuning {number + 1}", all_needed=True)
        for place, (block, tune) in enumerate(steps):
            self._choose(block, tune, [trial for trial in trials if folders[trial.folder] == place])
        write_json(self.study.out / CHOSEN, {"chosen": self.chosen, "measured": self.points})

    def _choose(self, block: Block, tune: Tune, trials: Sequence[Trial]) -> None:
        points = measured_points(trials)
        best = points[0]
        for arm in tune.used_by:
            self.chosen.setdefault(block.name, {}).setdefault(arm, {}).update(best.values)
        self.points.append(
            {"block": block.name, "arm": tune.arm, "points": [point.to_json() for point in points]}
        )
        said = ", ".join(f"{key}={value}" for key, value in best.values.items())
        self.say(f"{block.name}, {tune.arm}: {said} ({best.metric} {best.score:.4f} on {best.split})")

    def _train(self, planned: Sequence[Planned], what: str, *, all_needed: bool) -> list[Trial]:
        """Run what is not done. Raises Interrupted; UserError where ``all_needed`` and one failed."""
        if not planned:
            return []
        trials = make_trials(planned, self.study.out)
        open_ = [trial for trial in trials if read_verdict(trial.folder).state != "done"]
        self.say(f"{what}: {len(trials)} runs, {len(open_)} to do")
        started = time.monotonic()
        runner = Runner(
            trials, lambda trial, slot: trial_command(self.launch, trial, slot=slot),
            parallel=self.parallel, restarts=3, retry_failed=self.retry_failed,
            should_stop=self.should_stop, say=lambda text: self.say(f"{what}: {text}"),
        )  # fmt: skip
        try:
            runner.run()
        finally:
            self._spend(what, time.monotonic() - started)
        for trial in trials:
            if all_needed and (verdict := read_verdict(trial.folder)).state != "done":
                raise UserError(
                    f"{trial.folder} {verdict.state}: {verdict.reason}. The study needs it: mend it, and add "
                    "--retry-failed"
                )
        return trials

    def _evaluate(self, runs: dict[str, list[Path]]) -> None:
        started = time.monotonic()
        asked = Asked(self.study.splits, self.study.saliency_rows)
        paths = [path for each in runs.values() for path in each]
        try:
            evaluate_runs(paths, asked, parallel=self.parallel, should_stop=self.should_stop, say=self.say)
        finally:
            self._spend("evaluation", time.monotonic() - started)

    def _report(self, runs: dict[str, list[Path]]) -> dict[str, Any]:
        choice = Choice(baseline=self.study.baseline, split=self.study.split, details=DETAILED)
        more = {
            "chosen": self.chosen,
            "failed": self.failed,
            "hours": {part: round(seconds / 3600, 2) for part, seconds in self._spent().items()},
            "parallel": self.parallel,
        }
        command = shlex.join(["python", *sys.argv])
        return write_report(runs, self.study.out, choice, command=command, more=more, progress=lambda _: None)

    def _spent(self) -> dict[str, float]:
        """Seconds by part, of all calls; what a killed call spent is not known."""
        try:
            found = json.loads((self.study.out / SPENT).read_text(encoding="utf-8"))
            return {str(part): float(seconds) for part, seconds in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _spend(self, part: str, seconds: float) -> None:
        spent = self._spent()
        write_json(self.study.out / SPENT, {**spent, part: spent.get(part, 0.0) + seconds})


def _by_turns(lists: Sequence[Sequence[Planned]]) -> list[Planned]:
    """One of each in turn: blocks that take long do not wait for those before them."""
    return [each for group in itertools.zip_longest(*lists) for each in group if each is not None]
