"""Which runs of a study can start: a block's tuning once its teacher is there, arms once no tuning of them is open."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dist.study.plan import Planned, arm_runs, teacher_runs, tuning_runs
from distill_dist.study.study_file import Block, Study, Tune


@dataclass(frozen=True)
class Step:
    """The ``number``-th tuning of a block; ``runs`` are the folders of its points."""

    block: Block
    number: int
    runs: tuple[Path, ...]

    @property
    def tune(self) -> Tune:
        """What is tuned."""
        return self.block.tune[self.number]


class Schedule:
    """Every run is given once. ``chosen``: block -> arm -> field -> value, of the steps that are decided."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.chosen: dict[str, dict[str, dict[str, str]]] = {}
        self._decided = dict.fromkeys((block.name for block in study.blocks), 0)
        self._steps: dict[str, Step] = {}  # of each block the one that is under way
        self._teachers = dict(zip((run.folder for run in teacher_runs(study)), study.teachers, strict=True))
        self._untaught = set(study.teachers)
        self._done: set[Path] = set()
        self._given: set[Path] = set()
        self._numbers = {each.folder: number for number, each in enumerate(_in_order(study))}

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self._numbers)

    def number(self, run: Path) -> int:
        """The place of a run among all: teachers, tuning, then arms seed by seed; blocks in turn."""
        return self._numbers[run]

    def ready(self) -> list[Planned]:
        """What can start and was not given before."""
        found = teacher_runs(self._study)
        for block in self._study.blocks:
            if block.teacher in self._untaught:
                continue
            number = self._decided[block.name]
            if number < len(block.tune):
                runs = tuning_runs(self._study, block, number, self.chosen)
                self._steps[block.name] = Step(block, number, tuple(run.folder for run in runs))
                found += runs
            arms = [arm for arm in block.arms if not self._is_open(block, arm)]
            found += [run for run in arm_runs(self._study, block, self.chosen) if run.varied["arm"] in arms]
        new = [run for run in found if run.folder not in self._given]
        self._given.update(run.folder for run in new)
        return sorted(new, key=lambda run: self.number(run.folder))

    def is_needed(self, run: Path) -> bool:
        """Whether other runs wait for it: a teacher, a point of the step under way."""
        return run in self._teachers or self.step_of(run) is not None

    def step_of(self, run: Path) -> Step | None:
        """The step under way that ``run`` is a point of; None for an arm's."""
        return next((step for step in self._steps.values() if run in step.runs), None)

    def note_done(self, run: Path) -> Step | None:
        """The step that can be decided now, since ``run`` was its last."""
        self._done.add(run)
        self._untaught.discard(self._teachers.get(run, ""))
        step = self.step_of(run)
        return step if step is not None and self._done.issuperset(step.runs) else None

    def decide(self, step: Step, values: dict[str, str]) -> None:
        """The best point of a step goes to the arms that use it; more may be ready."""
        for arm in step.tune.used_by:
            self.chosen.setdefault(step.block.name, {}).setdefault(arm, {}).update(values)
        self._decided[step.block.name] += 1
        del self._steps[step.block.name]

    def _is_open(self, block: Block, arm: str) -> bool:
        tuned = self._study.block(block.tuned_as) if block.tuned_as else block
        return any(arm in tune.used_by for tune in tuned.tune[self._decided[tuned.name] :])


def _in_order(study: Study) -> list[Planned]:
    rounds = range(max(len(block.tune) for block in study.blocks))
    tuning = [
        by_turns([tuning_runs(study, b, number, {}) for b in study.blocks if number < len(b.tune)])
        for number in rounds
    ]
    return [
        *teacher_runs(study),
        *itertools.chain(*tuning),
        *by_turns([arm_runs(study, block, {}) for block in study.blocks]),
    ]


def by_turns(lists: Sequence[Sequence[Planned]]) -> list[Planned]:
    """One of each in turn: blocks that take long do not wait for those before them."""
    return [each for group in itertools.zip_longest(*lists) for each in group if each is not None]
