"""The plan: names, one cache, what is refused before anything starts, what a second call may change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_dist.config.load import load_config
from distill_dist.errors import UserError
from distill_dist.sweep.plan import make_plan, save_plan
from distill_dist.sweep.questions import group_by_questions
from distill_dist.sweep.space import build_space
from sweep.cases import BASE, plan_of


def test_trials_have_their_own_folder_and_one_cache(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "weight.kd=0.3,0.5", "seed=1,2")
    assert [trial.name for trial in plan.trials] == [
        "000-kd=0.3,seed=1", "001-kd=0.3,seed=2", "002-kd=0.5,seed=1", "003-kd=0.5,seed=2",
    ]  # fmt: skip
    assert [trial.config.weight.kd for trial in plan.trials] == [0.3, 0.3, 0.5, 0.5]
    assert {trial.config.teacher.cache_dir for trial in plan.trials} == {str(tmp_path / "cache")}
    assert [Path(trial.config.run_dir).parent for trial in plan.trials] == [tmp_path] * 4
    assert not list(tmp_path.iterdir()), "planning writes nothing"


def test_a_cache_that_the_base_names_is_kept(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "seed=1,2", base=(*BASE, "teacher.cache_dir=elsewhere"))
    assert {trial.config.teacher.cache_dir for trial in plan.trials} == {"elsewhere"}


def test_names_are_whole_where_the_last_part_is_ambiguous_and_fit_a_file_system(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "student.path=a/b,/c d", "teacher.path=t")
    assert [trial.name for trial in plan.trials] == [
        "000-student.path=a-b,teacher.path=t", "001-student.path=-c-d,teacher.path=t",
    ]  # fmt: skip
    long = plan_of(tmp_path, f"student.path={'x' * 400},b")
    assert len(long.trials[0].name) < 150


def test_the_method_s_own_defaults_are_each_trial_s(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "method=kd,gkd")
    assert [trial.config.student.dropout for trial in plan.trials] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (("weight.kd=0.3,2",), "trial 1 (weight.kd=2): configuration: 3 problems\n  weight.kd = 2.0"),
        (("weight.kd=0.3,0.30",), "trials 0 (weight.kd=0.3) and 1 (weight.kd=0.30) are the same run"),
        (("method=kd,gdk",), "trial 1 (method=gdk): configuration: method = 'gdk'"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_written(
    tmp_path: Path, grid: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path / "out", *grid)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_field_cannot_be_both_fixed_and_varied(tmp_path: Path) -> None:
    space = build_space([("seed", "1,2")], [], trials=None, seed=0)
    for fixed, message in (
        ("seed=3", "seed is varied by the sweep"),
        ("run_dir=x", "a folder of its own"),
        ("train.resume=never", "a sweep resumes"),
    ):
        texts = [*BASE, fixed]
        with pytest.raises(UserError, match=message):
            make_plan(None, load_config(None, texts, need="prepare"), texts, space, tmp_path)


def test_the_same_plan_may_be_saved_again_and_no_other(tmp_path: Path) -> None:
    save_plan(plan_of(tmp_path, "seed=1,2"))
    record = json.loads((tmp_path / "trials.json").read_text())
    assert [trial["overrides"] for trial in record["trials"]] == [{"seed": "1"}, {"seed": "2"}]
    for trial in plan_of(tmp_path, "seed=1,2").trials:
        assert load_config(trial.config_file, []) == trial.config
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    save_plan(plan_of(tmp_path, "seed=1,2"))
    for grid, base, message in (
        (("seed=1,3",), BASE, "another sweep, 2 trials over seed"),
        (("seed=1,2,3",), BASE, "another sweep, 2 trials over seed"),
        (("seed=1,2",), (*BASE, "batch.size=16"), "batch.size = 32, now 16"),
    ):
        with pytest.raises(UserError) as caught:
            save_plan(plan_of(tmp_path, *grid, base=base))
        assert message in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_another_deepspeed_json_is_another_plan(tmp_path: Path) -> None:
    own = tmp_path / "zero.json"
    own.write_text('{"zero_optimization": {"stage": 1}}')
    base = (*BASE, f"deepspeed_config={own}")
    save_plan(plan_of(tmp_path / "out", "seed=1,2", base=base))
    own.write_text('{"zero_optimization": {"stage": 2}}')
    with pytest.raises(UserError, match="the DeepSpeed JSON has changed"):
        save_plan(plan_of(tmp_path / "out", "seed=1,2", base=base))


def test_a_crash_between_the_plan_and_its_files_is_mended(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "seed=1,2")
    save_plan(plan)
    plan.trials[1].config_file.unlink()
    plan.trials[1].folder.rmdir()
    save_plan(plan)
    assert load_config(plan.trials[1].config_file, []).seed == 2


def test_a_sweep_may_be_moved(tmp_path: Path) -> None:
    save_plan(plan_of(tmp_path / "old", "seed=1,2"))
    (tmp_path / "old").rename(tmp_path / "new")
    moved = plan_of(tmp_path / "new", "seed=1,2")
    save_plan(moved)
    for trial in moved.trials:
        assert load_config(trial.config_file, []) == trial.config
    with pytest.raises(UserError, match=r"teacher\.cache_dir = .*now elsewhere"):
        save_plan(plan_of(tmp_path / "new", "seed=1,2", base=(*BASE, "teacher.cache_dir=elsewhere")))


@pytest.mark.parametrize(
    ("grid", "groups", "differing"),
    [
        (("weight.kd=0.3,0.5", "seed=1,2", "train.epochs=1,2"), 1, ()),
        (("method=gkd,gkd_cls",), 2, ("method",)),
        (("alignment.signal=own_max,label",), 2, ("alignment.signal",)),
        (("teacher.wire.states=fp32,int8",), 2, ("teacher.wire.states",)),
        (("teacher.path=a,b", "seed=1,2"), 2, ("teacher.path",)),
        (("weight.attribution=0,1,2",), 2, ("weight.attribution",)),
        (("weight.noise=1,2",), 1, ()),
        (("weight.noise=1,2", "seed=1,2"), 2, ("seed",)),
    ],
)
def test_trials_that_ask_the_same_of_their_teacher_share(
    tmp_path: Path, grid: tuple[str, ...], groups: int, differing: tuple[str, ...]
) -> None:
    plan = plan_of(tmp_path, *grid)
    assert (plan.num_groups, plan.differing) == (groups, differing)
    assert ("the first one pays" in plan.sharing()) == (groups == 1)
    assert all(key in plan.sharing() for key in differing)


def test_without_a_teacher_nothing_is_shared(tmp_path: Path) -> None:
    alone = ("method=finetune", "data.source=synthetic_nli", "data.prepared=p")
    plan = plan_of(tmp_path, "seed=1,2", base=alone)
    assert plan.num_groups == 0
    assert group_by_questions([trial.config for trial in plan.trials]) == ([None, None], ())
