"""A study from its rows to its report; whatever is done stays done."""

from __future__ import annotations

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
from distill_dist.study.plan import Planned, all_runs, arm_runs, make_trials
from distill_dist.study.report import write_report
from distill_dist.study.schedule import Schedule, Step
from distill_dist.study.study_file import Study
from distill_dist.sweep.plan import Trial
from distill_dist.sweep.run import hold_folder
from distill_dist.sweep.runner import Runner
from distill_dist.sweep.trial_process import trial_command
from distill_dist.sweep.verdict import Verdict, read_verdict

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
    for block in study.blocks:
        for planned in arm_runs(study, block, {})[: len(block.arms)] if block.tune or block.tuned_as else ():
            if planned.load().evaluate.select_on == study.split:
                raise UserError(
                    f"study {study.path}: blocks.{block.name} is tuned on {study.split} (evaluate.select_on), and "
                    f"report.split={study.split} would report the best of what was tried: draw rows out of train "
                    "(data.hold_out) to choose on, or report another split"
                )
    return configs


def claim(study: Study) -> None:
    """The study's folder is this process's own. Raises UserError."""
    hold_folder(study.out, name="out", kind="study")
    for pattern in ("*.json", "report.*"):
        remove_stale(study.out, pattern)


@dataclass
class Running:
    """The study on its way."""

    study: Study
    launch: str
    parallel: int
    retry_failed: bool
    should_stop: Callable[[], bool]
    say: Callable[[str], None]
    _failed: dict[str, list[str]] = field(default_factory=dict)  # by block

    def __post_init__(self) -> None:
        """Nothing is chosen, nothing tried."""
        self.schedule = Schedule(self.study)
        self._trials: dict[Path, Trial] = {}
        self._measured: dict[tuple[str, int], dict[str, Any]] = {}  # block and step: its points

    def run(self, configs: Sequence[RunConfig]) -> dict[str, Any]:
        """All of it; returns the summary. Raises Interrupted, and UserError where it cannot go on."""
        self._prepare(configs)
        self._train()
        write_json(self.study.out / CHOSEN, self._record())  # also where nothing is tuned
        runs: dict[str, list[Path]] = {}
        for block in self.study.blocks:
            trials = [self._trials[each.folder] for each in arm_runs(self.study, block, self.chosen)]
            done = [trial.folder for trial in trials if read_verdict(trial.folder).state == "done"]
            self._failed[block.name] = [str(trial.folder) for trial in trials if trial.folder not in done]
            runs[block.name] = done
        if not any(runs.values()):
            raise UserError(
                f"no run of {self.study.out} is done: {read_verdict(Path(self.failed[0])).reason}"
            )
        self._evaluate(runs)
        return self._report({name: paths for name, paths in runs.items() if paths})

    @property
    def failed(self) -> list[str]:
        """Folders of the runs that are not done, when all have ended."""
        return [folder for each in self._failed.values() for folder in each]

    @property
    def chosen(self) -> dict[str, dict[str, dict[str, str]]]:
        """Block -> arm -> field -> value."""
        return self.schedule.chosen

    def _prepare(self, configs: Sequence[RunConfig]) -> None:
        for config in {config.data.prepared: config for config in configs}.values():
            prepare(config.data, progress=sys.stderr.isatty())

    def _make(self, planned: Sequence[Planned]) -> list[Trial]:
        before = [trial.config for trial in self._trials.values()]
        numbers = [self.schedule.number(each.folder) for each in planned]
        trials = make_trials(planned, self.study.out, before=before, numbers=numbers)
        self._trials |= {trial.folder: trial for trial in trials}
        return trials

    def _follow(self, trial: Trial, verdict: Verdict) -> list[Trial]:
        """What can start now that a run has ended. Raises UserError where others waited for it and it failed."""
        if self.schedule.is_needed(trial.folder):
            _check_done(trial, verdict)
        step = self.schedule.note_done(trial.folder)
        if step is not None:
            self._decide(step)
        return self._make(self.schedule.ready())

    def _decide(self, step: Step) -> None:
        points = measured_points([self._trials[run] for run in step.runs])
        best, (block, arm) = points[0], (step.block.name, step.tune.arm)
        self.schedule.decide(step, dict(best.values))
        tried = [point.to_json() for point in points]
        self._measured[block, step.number] = {"block": block, "arm": arm, "points": tried}
        write_json(self.study.out / CHOSEN, self._record())
        said = ", ".join(f"{key}={value}" for key, value in best.values.items())
        self.say(f"{block}, {arm}: {said} ({best.metric} {best.score:.4f} on {best.split})")

    def _record(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "measured": [self._measured[key] for key in sorted(self._measured)]}

    def _train(self) -> None:
        """Every run, each as soon as it can start. Raises Interrupted and UserError, as Runner does."""
        started = time.monotonic()
        try:
            runner = Runner(
                self._make(self.schedule.ready()),
                lambda trial, slot: trial_command(self.launch, trial, slot=slot),
                parallel=self.parallel, restarts=3, retry_failed=self.retry_failed,
                should_stop=self.should_stop, say=self.say, follow=self._follow, total=len(self.schedule),
            )  # fmt: skip
            runner.run()
        finally:
            self._spend("runs", time.monotonic() - started)

    def _evaluate(self, runs: dict[str, list[Path]]) -> None:
        started = time.monotonic()
        asked = Asked(self.study.splits, self.study.saliency_rows)
        paths = [path for each in runs.values() for path in each]
        try:
            evaluate_runs(paths, asked, parallel=self.parallel, should_stop=self.should_stop, say=self.say)
        finally:
            self._spend("evaluation", time.monotonic() - started)

    def _report(self, runs: dict[str, list[Path]]) -> dict[str, Any]:
        arms = {path.parent.name for paths in runs.values() for path in paths}
        baseline = self.study.baseline if self.study.baseline in arms else ""
        notes = {
            block: f"{len(failed)} of its runs failed and are left out: {', '.join(failed)}"
            for block, failed in self._failed.items()
            if failed
        }
        choice = Choice(baseline=baseline, split=self.study.split, details=DETAILED)
        more = {
            "chosen": self.chosen,
            "failed": self.failed,
            "hours": {part: round(seconds / 3600, 2) for part, seconds in self._spent().items()},
            "parallel": self.parallel,
        }
        command = shlex.join(["python", *sys.argv])
        return write_report(
            runs, self.study.out, choice, command=command, more=more, notes=notes, progress=lambda _: None
        )

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


def _check_done(trial: Trial, verdict: Verdict) -> None:
    if verdict.state != "done":
        raise UserError(
            f"{trial.folder} {verdict.state}: {verdict.reason}. The study needs it: mend it, and add --retry-failed"
        )
