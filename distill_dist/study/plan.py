"""The runs of a study: teachers, points of tuning, every arm with every seed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dist.config.fields import schema_fields, value_at
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import MANIFEST
from distill_dist.durable import write_json
from distill_dist.errors import UserError
from distill_dist.study.evaluations import digest_of
from distill_dist.study.study_file import Block, Study
from distill_dist.sweep.plan import CACHE, Trial, result_digest, write_trial
from distill_dist.sweep.questions import group_by_questions
from distill_dist.sweep.verdict import read_verdict

TAUGHT_BY = "taught_by.json"
Chosen = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Block -> arm -> field -> the value that tuning chose."""


@dataclass(frozen=True)
class StudyTrial(Trial):
    """One run of the study in ``out``."""

    out: Path

    @property
    def name(self) -> str:
        """Block, arm and seed."""
        return str(self.folder.relative_to(self.out))


@dataclass(frozen=True)
class Planned:
    """One run that has no number yet: where it lies and what it is made of."""

    folder: Path
    base: Path
    overrides: tuple[str, ...]
    varied: Mapping[str, str]  # what tells it from the others of its arm

    def load(self) -> RunConfig:
        """Its configuration. Raises UserError that names the run."""
        try:
            return load_config(self.base, [*self.overrides, f"run_dir={json.dumps(str(self.folder))}"])
        except UserError as error:
            raise UserError(f"{self.folder}: {error}") from None


def teacher_runs(study: Study) -> list[Planned]:
    """The fine-tuned teachers."""
    return [
        Planned(_teacher_folder(study, name), base, (f"label={name}_teacher",), {})
        for name, base in study.teachers.items()
    ]


def tuning_runs(study: Study, block: Block, number: int, chosen: Chosen) -> list[Planned]:
    """Every point of the grid of the block's step ``number`` with every seed of it."""
    tune = block.tune[number]
    keys = [key for key, _ in tune.grid]
    found = []
    for point in itertools.product(*(values for _, values in tune.grid)):
        values = dict(zip(keys, point, strict=True))
        name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
        for seed in tune.seeds:
            folder = study.out / block.name / f"tune{number + 1}-{tune.arm}" / f"{name}-seed{seed}"
            fixed = _fixed(study, block, tune.arm, chosen)
            overrides = (*fixed, *(f"{key}={value}" for key, value in values.items()), f"seed={seed}")
            found.append(Planned(folder, block.config, overrides, {**values, "seed": str(seed)}))
    return found


def arm_runs(study: Study, block: Block, chosen: Chosen) -> list[Planned]:
    """Every arm with every seed, seed by seed: what is cut short can be compared."""
    return [
        Planned(
            study.out / block.name / arm / f"seed{seed}",
            block.config,
            (*_fixed(study, block, arm, chosen), f"label={arm}", f"seed={seed}"),
            {"arm": arm, "seed": str(seed)},
        )
        for seed in block.seeds
        for arm in block.arms
    ]


def all_runs(study: Study) -> Iterator[Planned]:
    """Every run, with nothing chosen yet: for checking before anything starts."""
    yield from teacher_runs(study)
    for block in study.blocks:
        for number in range(len(block.tune)):
            yield from tuning_runs(study, block, number, {})
        yield from arm_runs(study, block, {})


def make_trials(
    planned: Sequence[Planned],
    out: Path,
    *,
    before: Sequence[RunConfig] = (),
    numbers: Sequence[int] | None = None,
) -> list[Trial]:
    """Trials, their configurations written; ``before`` are those of earlier ones, with which they share groups.

    ``numbers``: theirs, else counted from 0. Raises UserError for one that ran with other settings.
    """
    configs = [each.load() for each in planned]
    groups, _ = group_by_questions([*before, *configs])
    numbers = range(len(planned)) if numbers is None else numbers
    own = groups[len(before) :]
    trials: list[Trial] = [
        StudyTrial(number, each.varied, config, result_digest(config, out), group, out)
        for number, each, config, group in zip(numbers, planned, configs, own, strict=True)
    ]
    for trial in trials:
        _refuse_changes(trial, out)
        _refuse_another_teacher(trial)
        write_trial(trial)
    return trials


def _refuse_another_teacher(trial: Trial) -> None:
    """What a run that began was taught by, and on which rows, is what lies there now; noted where none began."""
    path = trial.folder / TAUGHT_BY
    teacher = trial.config.teacher.path
    manifest = (Path(trial.config.data.prepared) / MANIFEST).read_bytes()
    now = {
        "teacher": digest_of(teacher) if teacher else None,
        "prepared": hashlib.sha256(manifest).hexdigest(),
    }
    if read_verdict(trial.folder).state == "waiting" or not path.is_file():
        trial.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, now)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    names = {"teacher": teacher, "prepared": trial.config.data.prepared}
    if changed := [names[key] for key in now if before.get(key) != now[key]]:
        raise UserError(
            f"{trial.folder} ran with another {' and another '.join(changed)} than lies there now: remove that run's "
            "folder to run it anew, or choose another out"
        )


def _refuse_changes(trial: Trial, out: Path) -> None:
    file = trial.config_file
    if not file.is_file():
        return
    before = load_config(file, [])
    if result_digest(before, out) == trial.sha256:
        return
    if read_verdict(trial.folder).state == "waiting":
        file.unlink()  # nothing ran with it
        return
    pairs = [(key, value_at(before, key), value_at(trial.config, key)) for key in schema_fields()]
    changes = "; ".join(f"{key} = {old}, now {new}" for key, old, new in pairs if old != new)
    raise UserError(
        f"{trial.folder} was run with other settings ({changes or 'the DeepSpeed JSON has changed'}): choose another "
        "out, remove that folder to run it anew, or set them back"
    )


def _fixed(study: Study, block: Block, arm: str, chosen: Chosen) -> list[str]:
    teacher = (
        [f"teacher.path={json.dumps(str(_teacher_folder(study, block.teacher) / 'model'))}"]
        if block.teacher
        else []
    )
    values = chosen.get(block.tuned_as or block.name, {}).get(arm, {})
    cache = f"teacher.cache_dir={json.dumps(str(study.out / CACHE))}"
    return [*teacher, cache, *study.arms[arm], *(f"{key}={value}" for key, value in values.items())]


def _teacher_folder(study: Study, name: str) -> Path:
    return study.out / "teachers" / name
