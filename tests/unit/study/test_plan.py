from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_dist.errors import UserError
from distill_dist.study.choose import measured_points
from distill_dist.study.evaluations import digest_of
from distill_dist.study.plan import arm_runs, make_trials, teacher_runs, tuning_runs
from distill_dist.study.study_file import Study, read_study
from study.study_cases import STUDY, write_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(write_study(tmp_path))


def finish(folder: Path, accuracy: float, loss: float | None) -> None:
    splits = {"tune": {"accuracy": accuracy, "loss": loss}, "dev": {"accuracy": 1 - accuracy, "loss": 0.0}}
    (folder / "state.json").write_text(json.dumps({"state": "done", "time": 1.0}))
    (folder / "summary.json").write_text(json.dumps({"splits": splits}))


def test_what_is_chosen_goes_to_those_that_use_it_and_over_the_arms_own(study: Study) -> None:
    large, small = study.blocks
    chosen = {"large": {"kd": {"weight.kd": "0.6"}, "gkd": {"weight.kd": "0.6", "weight.gradient": "1"}}}
    configs = {
        each.folder: each.load() for block in (large, small) for each in arm_runs(study, block, chosen)
    }
    out = study.out
    assert configs[out / "large/kd/seed2"].weight.kd == 0.6
    assert configs[out / "large/kd_cl/seed1"].weight.kd == 0.5, "nothing was chosen for it"
    assert (configs[out / "small/gkd/seed1"].weight.kd, configs[out / "small/gkd/seed1"].weight.gradient) == (
        0.6,
        1.0,
    )
    first = configs[out / "large/kd/seed2"]
    assert (first.seed, first.label, first.teacher.cache_dir) == (2, "kd", str(out / "cache"))
    assert first.teacher.path == first.student.path == str(teacher_runs(study)[0].folder / "model")


def test_arms_come_seed_by_seed(study: Study) -> None:
    names = [str(each.folder.relative_to(study.out)) for each in arm_runs(study, study.blocks[0], {})]
    assert names[:4] == ["large/kd/seed1", "large/gkd/seed1", "large/kd_cl/seed1", "large/kd/seed2"]


def test_the_best_point_is_that_of_the_split_that_selects(study: Study) -> None:
    block = study.blocks[0]
    trials = make_trials(tuning_runs(study, block, 0, {}), study.out)
    assert len({trial.folder for trial in trials}) == len(trials) == 8
    means = {("0.3", "2"): 0.7, ("0.3", "5"): 0.8, ("0.6", "2"): 0.8, ("0.6", "5"): 0.6}
    for trial in trials:
        assert trial.config_file.is_file()
        point = trial.overrides["weight.kd"], trial.overrides["objective.temperature"]
        loss = 0.5 if point == ("0.6", "2") else 0.6
        finish(trial.folder, means[point] + (0.05 if trial.overrides["seed"] == "7" else -0.05), loss)
    best, second, *_, last = measured_points(trials)
    assert best.values == {"weight.kd": "0.6", "objective.temperature": "2"}, "of equal scores the lower loss"
    assert (best.split, best.metric, best.score) == ("tune", "accuracy", pytest.approx(0.8))
    assert second.values == {"weight.kd": "0.3", "objective.temperature": "5"}
    assert last.score == pytest.approx(0.6)
    finish(trials[0].folder, 0.9, None)  # JSON's NaN
    (trials[-1].folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"weight|kd=0.6,temperature=5-seed8 .*cannot choose"):
        measured_points(trials)


def test_a_run_with_other_settings_is_not_taken_for_this_one(study: Study, tmp_path: Path) -> None:
    planned = arm_runs(study, study.blocks[1], {})
    trials = make_trials(planned, study.out)
    changed = read_study(write_study(tmp_path, STUDY.replace("weight.kd: 0.4", "weight.kd: 0.8")))
    again = make_trials(arm_runs(changed, changed.blocks[1], {}), study.out)  # nothing had run: written anew
    assert again[1].config.weight.kd == 0.8
    assert "kd: 0.8" in again[1].config_file.read_text()
    finish(trials[1].folder, 0.5, 0.5)
    with pytest.raises(
        UserError, match=r"small/gkd/seed1 was run with other settings \(weight.kd = 0.8, now 0.4;"
    ):
        make_trials(planned, study.out)


def test_a_run_of_another_teacher_or_other_rows_is_not_taken_for_this_one(
    study: Study, tmp_path: Path
) -> None:
    model = study.out / "teachers" / "t" / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "model.safetensors").write_bytes(b"one")
    planned = arm_runs(study, study.blocks[1], {})
    first, _ = make_trials(planned, study.out)
    assert first.name == "small/kd/seed1"
    finish(first.folder, 0.5, 0.5)
    make_trials(planned, study.out)
    (tmp_path / "p" / "manifest.json").write_text('{"rows": 2}')
    with pytest.raises(UserError, match=r"small/kd/seed1 ran with another .*/p than lies there now"):
        make_trials(planned, study.out)
    (tmp_path / "p" / "manifest.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"two")
    digest_of.cache_clear()
    with pytest.raises(
        UserError, match=r"small/kd/seed1 ran with another .*teachers/t/model than lies there"
    ):
        make_trials(planned, study.out)
