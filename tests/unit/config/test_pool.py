"""`teachers`: read from YAML and the command line, checked, and what the run is to each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from config.test_load import REPOSITORY, SMALLEST, message_of
from config.trees import good_with, problems
from distill_dist.assemble.resume import check_identity, run_identity
from distill_dist.config.load import dump_config, load_config
from distill_dist.config.pool import as_only_teacher, is_pool, model_served_by, teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.config.schema_teacher import PooledTeacher
from distill_dist.errors import UserError

TWO = (PooledTeacher("teacher", 3.0), PooledTeacher("other", 1.0))
DISTILS = SMALLEST.replace("method: finetune", "method: kd") + "student: {path: '${teacher.path}'}\n"


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("from_file", [True, False])
def test_entries_are_read_and_the_first_is_the_teacher(tmp_path: Path, from_file: bool) -> None:
    entries = "[{path: a, weight: 2}, {path: '${run_dir}/b'}]"
    path = written(tmp_path, DISTILS + (f"teachers: {entries}\n" if from_file else ""))
    config = load_config(path, [] if from_file else [f"teachers={entries}"])
    assert config.teachers == (PooledTeacher("a", 2.0), PooledTeacher("runs/x/b", 1.0))
    assert all(type(entry.weight) is float for entry in config.teachers)
    # `student.path: ${teacher.path}` cuts the student from the first
    assert (config.teacher.path, config.student.path) == ("a", "a")
    again = tmp_path / "dumped.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(again, []) == config


def test_a_list_replaces_the_one_below_it(tmp_path: Path) -> None:
    path = written(tmp_path, DISTILS + "teachers: [{path: a}, {path: b}]\n")
    assert load_config(path, ["teachers=[{path: c}]"]).teachers == (PooledTeacher("c"),)
    base = tmp_path / "top.yaml"
    base.write_text("base: run.yaml\nteachers: [{path: d}]\n", encoding="utf-8")
    assert load_config(base, []).teachers == (PooledTeacher("d"),)
    assert load_config(base, ["teachers=[]", "teacher.path=e"]).teachers == ()


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ("[{pth: a}]", ["no such field: pth", "a list of {path: a text, weight: a number}"]),
        ("[{path: a, weight: heavy}]", ["teachers = ", "a list of {path: a text, weight: a number}"]),
        ("[a, b]", ["teachers = ['a', 'b']", "a list of"]),
        ("{path: a}", ["teachers = ", "a list of"]),
        ("a", ["teachers = 'a'", "a list of"]),
        ("null", ["teachers = null", "null is not allowed"]),
        ("[{path: yes}]", ["path: YAML reads yes", "quotes"]),
        ("[{path: null}]", ["teachers = ", "a list of"]),
        ("[{path: [a]}]", ["teachers = ", "a list of"]),
        ("[{path: '???'}]", ["'???' is not a value"]),
        ("[{path: '${teacher.path}'}]", ["Recursive interpolation"]),
        ("[{path: '${nowhere}'}]", ["'nowhere' not found"]),
    ],
)
def test_wrong_entries(tmp_path: Path, entries: str, parts: list[str]) -> None:
    message = message_of(written(tmp_path, DISTILS), f"teachers={entries}")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("values", "start", "word", "mended"),
    [
        ({"teachers": (TWO[0], PooledTeacher())}, "teachers[1].path = ''", "required", {"teachers": TWO}),
        ({"teachers": (PooledTeacher("teacher", 0.0),)}, "teachers[0].weight = 0.0", "above 0", {"teachers": TWO}),
        ({"teachers": (PooledTeacher("teacher", float("nan")),)}, "teachers[0].weight", "above 0", {"teachers": TWO}),
        ({"teachers": TWO, "teacher.path": "b"}, "teacher.path = 'b'", "'teacher'", {"teacher.path": "teacher"}),
        ({"teacher.combine": "best"}, "teacher.combine", "two teachers", {"teachers": TWO}),
        ({"teachers": TWO[:1], "teacher.combine": "separate"}, "teacher.combine", "two", {"teachers": TWO}),
        ({"teachers": TWO, "cluster.teachers": 1}, "cluster.teachers = 1", "at least the 2", {"cluster.teachers": 2}),
        ({"teachers": TWO, "cluster.teachers": 1}, "cluster.teachers = 1", "or 0", {"cluster.teachers": 0}),
        (
            {"teachers": TWO, "cluster.teachers": 3, "teacher.shards": 3},
            "cluster.teachers = 3",
            "3 processes: at least the 2 of teachers times 3",
            {"cluster.teachers": 6},
        ),
        ({"teachers": (*TWO, PooledTeacher("a\0b"))}, "teachers = ", "NUL", {"teachers": TWO}),
        (
            {"teachers": (*TWO, PooledTeacher("teacher", 0.5))},
            "teachers[2].path = 'teacher': is the model of teachers[0]",
            "name it once, with weight 3.5",
            {"teachers": TWO},
        ),
    ],
)  # fmt: skip
def test_bad_pairs(values: dict[str, Any], start: str, word: str, mended: dict[str, Any]) -> None:
    assert [line for line in problems(values) if line.startswith(start) and word in line], problems(values)
    assert problems({**values, **mended}) == []


def test_a_run_does_not_overwrite_any_of_them(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    values = {"teachers": (TWO[0], PooledTeacher(str(tmp_path / "second"))), "run_dir": str(tmp_path)}
    (line,) = problems(values)
    assert line.startswith("teachers[1].path = ")
    assert problems({**values, "run_dir": str(tmp_path / "third")}) == []


def test_a_link_does_not_hide_that_two_are_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    values = {"teachers": (TWO[0], *(PooledTeacher(str(tmp_path / name)) for name in ("model", "link")))}
    (line,) = problems(values)
    assert line.startswith(f"teachers[2].path = '{tmp_path}/link': is the model of teachers[1]")


def test_weights_are_shares() -> None:
    config = good_with({"teachers": TWO})
    assert [entry.weight for entry in teachers_of(config)] == [0.75, 0.25]
    assert teachers_of(good_with({})) == (PooledTeacher("teacher"),)
    assert teachers_of(RunConfig()) == ()
    assert [is_pool(good_with({"teachers": TWO[:number]})) for number in (0, 1, 2)] == [False, False, True]


def test_each_model_sees_a_run_of_its_own(tmp_path: Path) -> None:
    config = good_with({"teachers": TWO, "teacher.combine": "best", "cluster.teachers": 2})
    alone = [as_only_teacher(config, number) for number in (0, 1)]
    assert [each.teacher.path for each in alone] == ["teacher", "other"]
    assert good_with({"teacher.path": "other", "cluster.teachers": 2}) == alone[1]
    # its host reads it from a file
    path = written(tmp_path, dump_config(alone[1]))
    assert load_config(path, []) == alone[1]
    single = good_with({})
    assert as_only_teacher(single, 0) == single


@pytest.mark.parametrize("models", range(1, 5))
def test_teachers_take_turns(models: int) -> None:
    for teachers in range(models, 12):
        served = [model_served_by(number, models) for number in range(teachers)]
        counts = [served.count(model) for model in range(models)]
        assert sum(counts) == teachers
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1
    assert model_served_by(3, 0) == 0  # nobody is named: there is nothing to share


@pytest.mark.parametrize(
    "changed",
    [
        {"teachers": (TWO[1], TWO[0]), "teacher.path": "other"},
        {"teachers": (TWO[0], PooledTeacher("other", 2.0))},
        {"teachers": ()},
        {"teacher.combine": "best"},
    ],
)
def test_a_checkpoint_of_other_teachers_is_refused(changed: dict[str, Any]) -> None:
    saved = json.loads(json.dumps(run_identity(good_with({"teachers": TWO}), "hash")))
    check_identity(saved, run_identity(good_with({"teachers": TWO}), "hash"), checkpoint="step-1")
    with pytest.raises(UserError, match="teacher"):
        check_identity(
            saved, run_identity(good_with({"teachers": TWO, **changed}), "hash"), checkpoint="step-1"
        )
