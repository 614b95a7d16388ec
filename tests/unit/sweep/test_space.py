"""The points of a sweep: every combination once, draws that depend on nothing but their seed, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from distill_dist.errors import UserError
from distill_dist.sweep.space import Space, build_space, split_values
from distill_dist.sweep.sweep_file import read_sweep_file


def drawn(*random: tuple[str, str], trials: int, seed: int = 0) -> list[dict[str, str]]:
    return build_space([], random, trials=trials, seed=seed).points()


def test_a_grid_has_every_combination_once_and_seeds_stand_together() -> None:
    space = build_space([("seed", "1,2,3"), ("weight.kd", "0.3, 0.5")], [], trials=None, seed=0)
    assert space.fields == ("weight.kd", "seed")
    points = [(point["weight.kd"], point["seed"]) for point in space.points()]
    assert points == [(kd, seed) for kd in ("0.3", "0.5") for seed in ("1", "2", "3")]


def test_every_draw_goes_through_the_whole_grid() -> None:
    space = build_space([("seed", "1,2")], [("weight.kd", "uniform(0,1)")], trials=3, seed=0)
    points = space.points()
    assert [point["seed"] for point in points] == ["1", "2"] * 3
    assert len({point["weight.kd"] for point in points}) == 3


def test_draws_are_a_function_of_seed_number_and_field() -> None:
    learning_rate = ("train.learning_rate", "loguniform(1e-5,1e-3)")
    first = drawn(learning_rate, trials=20)
    assert first != drawn(learning_rate, trials=20, seed=1)
    assert first == drawn(learning_rate, trials=20)
    assert first[:5] == drawn(learning_rate, trials=5)
    with_another = drawn(("weight.kd", "uniform(0,1)"), learning_rate, trials=20)
    assert [point["train.learning_rate"] for point in with_another] == [
        point["train.learning_rate"] for point in first
    ]


def test_distributions_cover_their_range() -> None:
    found = drawn(
        ("train.learning_rate", "loguniform(1e-5,1e-3)"), ("weight.kd", "uniform(0.2,0.4)"),
        ("batch.size", "int(3,5)"), ("method", "choice(kd,gkd)"), trials=400,
    )  # fmt: skip
    rates = [float(point["train.learning_rate"]) for point in found]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    # the median of 400 is 1e-4 give or take 1.25 · ln(100)/√12 / √400 in the logarithm: 0.083; six of these
    assert abs(math.log(sorted(rates)[200] / 1e-4)) < 0.5
    shares = [float(point["weight.kd"]) for point in found]
    assert 0.2 <= min(shares) < 0.22 < 0.38 < max(shares) <= 0.4
    assert {point["batch.size"] for point in found} == {"3", "4", "5"}
    assert {point["method"] for point in found} == {"kd", "gkd"}


def test_a_draw_is_never_repeated() -> None:
    few = ("batch.size", "int(1,6)")
    assert sorted(point["batch.size"] for point in drawn(few, trials=6)) == list("123456")
    with pytest.raises(UserError, match=r"trials=7, but the distributions of batch\.size gave only 6"):
        drawn(few, trials=7)


def test_values_are_cut_at_commas_outside_of_brackets_and_quotes() -> None:
    assert split_values('[1,2],[3,4],{a: 1, b: 2},"x,y"') == ["[1,2]", "[3,4]", "{a: 1, b: 2}", '"x,y"']


@pytest.mark.parametrize(
    ("grid", "random", "trials", "message"),
    [
        ("weight.kdd=1", "", None, "weight.kdd: no such field; nearest valid name: weight.kd"),
        ("run_dir=a,b", "", None, "run_dir cannot be varied"),
        ("teacher.cache_dir=a", "", None, "teacher.cache_dir cannot be varied"),
        ("weight.kd=0.3,", "", None, "a value is missing"),
        ("weight.kd=0.3", "weight.kd=uniform(0,1)", 2, "weight.kd is varied twice"),
        ("", "", None, "nothing is varied"),
        ("", "weight.kd=uniform(0,1)", None, "--trials N"),
        ("seed=1,2", "", 4, "trials=4 counts random draws"),
        ("", "weight.kd=normal(0,1)", 2, "write uniform"),
        ("", "weight.kd=0.3", 2, "write uniform"),
        ("", "weight.kd=uniform(1)", 2, "uniform takes two numbers"),
        ("", "weight.kd=uniform(1,0)", 2, "the first number must be below the second"),
        ("", "weight.kd=uniform(nan,1)", 2, "the first number must be below the second"),
        ("", "weight.kd=loguniform(0,1)", 2, "must be above 0"),
        ("", "batch.size=int(1.5,3)", 2, "int takes two whole numbers"),
    ],
)
def test_what_makes_no_space_is_told(grid: str, random: str, trials: int | None, message: str) -> None:
    pairs = [[(text.partition("=")[0], text.partition("=")[2])] if text else [] for text in (grid, random)]
    with pytest.raises(UserError) as caught:
        build_space(pairs[0], pairs[1], trials=trials, seed=0)
    assert message in str(caught.value)


def test_a_file_says_what_a_command_line_says(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "config: ../base.yaml\nout: runs/x\ngrid: {student.layer_list: [[1, 2], [3, 4]], seed: [1, 2]}\n"
        "random:\n  train.learning_rate: loguniform(1e-5, 1e-3)\ntrials: 3\ndraw_seed: 7\n"
    )
    file = read_sweep_file(path)
    assert (file.config, file.out) == (tmp_path / "../base.yaml", Path("runs/x"))
    assert (file.trials, file.draw_seed) == (3, 7)
    found = build_space(file.grid, file.random, trials=file.trials, seed=7)
    assert found == build_space(
        [("student.layer_list", "[1, 2],[3, 4]"), ("seed", "1,2")],
        [("train.learning_rate", "loguniform(1e-5,1e-3)")], trials=3, seed=7,
    )  # fmt: skip
    assert isinstance(found, Space)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gird: {}", "gird: no such key"),
        ("grid: [1]", "grid: it takes fields by their dotted names"),
        ("grid: {seed: 1}", "grid: seed: a list of values is needed"),
        ("trials: many", "trials: 'many' is no whole number"),
        ("grid: {", "not valid YAML"),
        ("- 1", "it takes config, out"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_sweep_file(tmp_path / "s.yaml")
    assert message in str(caught.value)
    with pytest.raises(UserError, match="No such file"):
        read_sweep_file(tmp_path / "absent.yaml")
