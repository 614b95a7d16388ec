"""Which runs stand for one configuration, how it is called, and what a baseline names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_dist.config.fields import schema_fields, schema_sections
from distill_dist.errors import UserError
from distill_dist.report.groups import NOT_COMPARED, differences, group_runs, pick_baselines
from distill_dist.report.run_record import RunRecord


def run(
    name: str, *, method: str = "kd", seed: int | None = 0, task: str = "sst2", **config: Any
) -> RunRecord:
    tree = {"method": method, "seed": seed, "run_dir": name, "data": {"task": task}, **config}
    return RunRecord(Path(name), "done", "", 0.0, {}, tree)


def labels(*runs: RunRecord) -> list[str]:
    return [group.label for group in group_runs(runs)]


def test_what_is_not_compared_exists() -> None:
    assert set(NOT_COMPARED) <= set(schema_fields()) | set(schema_sections())


def test_seeds_and_places_make_no_group() -> None:
    a = run("a", seed=1, cluster={"device": "cpu"}, teacher={"path": "t", "cache_dir": "x"})
    b = run("b", seed=2, cluster={"device": "cuda"}, teacher={"path": "t", "cache_dir": "y"})
    (group,) = group_runs([a, b])
    assert (group.label, group.runs) == ("kd", (a, b))


def test_a_label_tells_where_configurations_of_a_method_differ() -> None:
    runs = [
        run("a", weight={"kd": 0.5}, train={"epochs": 2}),
        run("b", weight={"kd": 0.9}, train={"epochs": 2}),
        run("c", method="pkd", weight={"kd": 0.9}),
        run("d", task="qnli", weight={"kd": 0.7}),
    ]
    assert labels(*runs) == ["kd · weight.kd=0.5", "kd · weight.kd=0.9", "pkd", "kd"]
    assert [group.task for group in group_runs(runs)] == ["sst2", "sst2", "sst2", "qnli"]


def test_a_run_is_called_by_its_label_and_stands_in_its_own_table() -> None:
    runs = [
        run("a", label="sr", reliance={"rule": "gate"}),
        run("b", reliance={"rule": "constant"}),
        run("c", label="sr", reliance={"rule": "ramp"}),
        run("d", label="sr", reliance={"rule": "ramp"}, student={"layers": 2}),
    ]
    runs[3].table = "small"
    found = group_runs(runs)
    assert [(group.task, group.label) for group in found] == [
        ("sst2", "sr · reliance.rule=gate"), ("sst2", "kd"), ("sst2", "sr · reliance.rule=ramp"), ("small", "sr"),
    ]  # fmt: skip


def test_another_split_that_selects_is_another_configuration() -> None:
    chosen = [run(name, evaluate={"select_on": name, "saliency": name == "dev"}) for name in ("dev", "tune")]
    assert len(group_runs(chosen)) == 2
    alike = [run(name, evaluate={"select_on": "dev", "at_end": [name]}) for name in ("a", "b")]
    assert len(group_runs(alike)) == 1


def test_what_follows_another_field_is_not_said_beside_it() -> None:
    runs = [run(f"{kd}", weight={"kd": kd}, reliance={"initial": kd, "maximum": kd}) for kd in (0.5, 0.9)]
    assert labels(*runs) == ["kd · weight.kd=0.5", "kd · weight.kd=0.9"]
    other = run("b", weight={"kd": 0.9}, reliance={"initial": 0.1, "maximum": 0.9})
    assert "reliance.initial=0.1" in labels(*runs, other)[2]


def test_a_label_that_two_lines_have_names_both() -> None:
    groups = group_runs([run(name, label="mine", student={"layers": n}) for n, name in enumerate("ab")])
    with pytest.raises(UserError, match=r"names 2 configurations .*'mine · student.layers=0'; 'mine · "):
        pick_baselines(groups, "mine")


def test_a_shape_that_is_not_read_makes_no_difference() -> None:
    """A student that is cut from a model has that one's sizes; an ELECTRA behind its embeddings has its own."""
    sizes: list[dict[str, Any]] = [{"path": "t", "architecture": "same", "shape": {"h": h}} for h in (1, 2)]
    assert len(group_runs([run(str(n), student=each) for n, each in enumerate(sizes)])) == 1
    own = [{**each, "architecture": "electra"} for each in sizes]
    assert labels(*(run(str(n), student=each) for n, each in enumerate(own))) == [
        "kd · student.shape.h=1", "kd · student.shape.h=2",
    ]  # fmt: skip


def test_in_what_two_groups_differ() -> None:
    base = run("a", student={"dropout": 0.1, "layers": 3})
    other = run("b", seed=4, label="no dropout", student={"dropout": 0.0}, weight={"kd": 0.5})
    ours, theirs = group_runs([other, base])
    assert differences(ours, theirs) == [
        ("student.dropout", "0.0", "0.1"), ("weight.kd", "0.5", "–"), ("student.layers", "–", "3"),
    ]  # fmt: skip
    assert differences(ours, ours) == []


def test_a_long_value_shows_its_end() -> None:
    found = labels(run("a", teacher={"path": "x" * 50 + "/one"}), run("b", teacher={"path": "two"}))
    assert found[0].startswith("kd · teacher.path=…x")
    assert found[0].endswith("/one")
    assert len(found[0]) < 70


def test_runs_without_a_configuration_stand_alone() -> None:
    bare = [RunRecord(Path(name), "done", "", 0.0, {"method": "kd", "task": "sst2"}, {}) for name in "ab"]
    assert labels(*bare) == ["kd · a", "kd · b"]


def test_a_seed_counts_once() -> None:
    runs = [run("a", seed=1), run("b", seed=1), run("c", seed=2), run("d", seed=None), run("e", seed=3)]
    (group,) = group_runs(runs)
    values = dict.fromkeys((Path(name) for name in "ad"), 0.6) | {Path("b"): 0.8, Path("c"): 0.5}
    assert group.by_seed(values) == {1: pytest.approx(0.7), 2: 0.5}


GROUPS = group_runs(
    [
        run("runs/a", weight={"kd": 0.5}),
        run("runs/b", weight={"kd": 0.9}),
        run("runs/c", method="pkd"),
        run("runs/d", method="pkd", task="qnli"),
    ]
)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("pkd", {"sst2": "pkd", "qnli": "pkd"}),
        ("kd · weight.kd=0.9", {"sst2": "kd · weight.kd=0.9"}),
        ("runs/a/", {"sst2": "kd · weight.kd=0.5"}),
        ("d", {"qnli": "pkd"}),
    ],
)
def test_baselines(wanted: str, expected: dict[str, str]) -> None:
    found = pick_baselines(GROUPS, wanted)
    assert {task: group.label for task, group in found.items()} == expected


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            "gkd",
            r"no such method \(kd, pkd\), line of the table \('kd · weight.kd=0.5'; 'kd · weight.kd=0.9'\)",
        ),
        ("kd", r"2 configurations of sst2: .*'kd · weight.kd=0.5'; 'kd · weight.kd=0.9'"),
        (".", "it is not among the runs of this report: name it beside them"),
    ],
)
def test_a_baseline_that_is_none_or_many_is_the_users_error(wanted: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        pick_baselines(GROUPS, wanted)
