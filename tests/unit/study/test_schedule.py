"""What of a study can start when."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_dist.study.plan import Planned
from distill_dist.study.schedule import Schedule, Step
from distill_dist.study.study_file import Study, read_study
from study.study_cases import write_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(write_study(tmp_path))


def names(study: Study, runs: list[Planned]) -> list[str]:
    return [str(run.folder.relative_to(study.out)) for run in runs]


def finish(schedule: Schedule, runs: list[Planned]) -> Step:
    """Only the last of a step's runs lets it be decided."""
    found = [schedule.note_done(run.folder) for run in runs]
    assert found[:-1] == [None] * (len(runs) - 1)
    assert found[-1] is not None
    return found[-1]


def taught(schedule: Schedule) -> int:
    """All teachers are done; returns how many."""
    teachers = schedule.ready()
    for run in teachers:
        assert schedule.is_needed(run.folder)
        assert schedule.note_done(run.folder) is None
    return len(teachers)


def test_a_block_waits_for_its_own_teacher_alone(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    text = path.read_text(encoding="utf-8").replace(
        "teachers: {t: teacher.yaml}", "teachers: {t: teacher.yaml, slow: teacher.yaml}"
    )
    start = text.index("  small:")
    path.write_text(text[:start] + text[start:].replace("teacher: t", "teacher: slow", 1), encoding="utf-8")
    study = read_study(path)
    schedule = Schedule(study)
    teachers = schedule.ready()
    assert names(study, teachers) == ["teachers/t", "teachers/slow"]
    schedule.note_done(teachers[0].folder)
    step = finish(schedule, schedule.ready())
    schedule.decide(step, {"weight.kd": "0.6"})
    assert {name.split("/")[0] for name in names(study, schedule.ready())} == {"large"}
    schedule.note_done(teachers[1].folder)
    assert names(study, schedule.ready()) == ["small/kd/seed1"]


def test_arms_wait_for_the_steps_that_choose_for_them_and_for_no_others(study: Study) -> None:
    """kd and kd_cl wait for the first step of `large`, gkd for both; so does `small`, which is tuned as it is."""
    schedule = Schedule(study)
    teachers = taught(schedule)
    first = schedule.ready()
    assert {name.split("/")[1] for name in names(study, first)} == {"tune1-kd"}
    assert len(first) == 8
    step = finish(schedule, first)
    assert (step.block.name, step.number, step.tune.arm) == ("large", 0, "kd")
    assert schedule.ready() == [], "everything was given, nothing is decided"
    schedule.decide(step, {"weight.kd": "0.6", "objective.temperature": "5"})
    second = schedule.ready()
    tuned = [run for run in second if "tune2-gkd" in str(run.folder)]
    assert second[: len(tuned)] == tuned, "what others wait for comes first"
    assert names(study, second[len(tuned) :]) == [
        "large/kd/seed1", "small/kd/seed1", "large/kd_cl/seed1", "large/kd/seed2", "large/kd_cl/seed2",
    ]  # fmt: skip
    assert second[-1].load().objective.temperature == 5
    step = finish(schedule, tuned)
    schedule.decide(step, {"weight.gradient": "1"})
    last = schedule.ready()
    assert names(study, last) == ["large/gkd/seed1", "small/gkd/seed1", "large/gkd/seed2"]
    config = last[0].load()
    assert (config.weight.kd, config.weight.gradient) == (0.6, 1)
    assert schedule.ready() == []
    assert len(schedule) == teachers + len(first) + len(second) + len(last)


def test_an_arm_is_no_point_of_a_step(study: Study) -> None:
    schedule = Schedule(study)
    taught(schedule)
    point = schedule.ready()[0].folder
    found = schedule.step_of(point)
    assert found is not None
    assert found.tune.arm == "kd"
    arm = study.out / "large" / "kd" / "seed1"
    assert schedule.step_of(arm) is None
    assert schedule.note_done(arm) is None


def test_numbers_put_tuning_before_arms_and_blocks_in_turn(study: Study) -> None:
    schedule, out = Schedule(study), study.out
    taught(schedule)
    points = [schedule.number(run.folder) for run in schedule.ready()]
    arms = [schedule.number(out / name / "kd" / "seed1") for name in ("large", "small")]
    assert max(points) < arms[0]
    assert arms[1] == arms[0] + 1
