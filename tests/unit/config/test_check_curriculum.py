"""Rules on the curriculum and on reliance: what is refused, in whose name, with which remedy; what stays allowed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from config.trees import good_with, problems
from distill_dist.config.check import RANGES
from distill_dist.config.methods import has_curriculum, reads_scores, relies_selectively
from distill_dist.config.schema import CurriculumConfig, RelianceConfig

REPOSITORY = Path(__file__).parents[3]
METHODS = ("kd", "pkd", "gkd", "gkd_cls")


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def lines_of(values: dict[str, Any], key: str) -> list[str]:
    return [line for line in problems(values) if line.startswith(f"{key} = ")]


# (what is set, the key whose line must appear, words of reason and remedy, mended neighbours)
REFUSED: list[tuple[dict[str, Any], str, tuple[str, ...], list[dict[str, Any]]]] = [
    (
        {"curriculum.source": "file", "curriculum.order": "easy_to_hard"},
        "curriculum.file",
        ("required", "curriculum.source: file"),
        [{"curriculum.file": "scores.npy"}, {"curriculum.source": "student"}],
    ),
    (
        {"curriculum.file": "scores.npy"},
        "curriculum.file",
        ("'scores.npy'", "needs curriculum.source: file"),
        [{"curriculum.source": "file"}, {"curriculum.file": ""}],
    ),
    (
        {"curriculum.source": "teacher", "teacher.path": "", "method": "finetune"},
        "curriculum.source",
        ("'teacher'", "needs teacher.path"),
        [{"teacher.path": "t"}, {"curriculum.source": "student"}],
    ),
    (
        {"curriculum.score": "served", "curriculum.source": "teacher"},
        "curriculum.score",
        ("needs curriculum.source: student", "teacher's scores do not change"),
        [{"curriculum.source": "student"}, {"curriculum.score": "pass"}],
    ),
    (
        {"curriculum.score": "served", "curriculum.source": "file", "curriculum.file": "f"},
        "curriculum.score",
        ("needs curriculum.source: student", "file's scores do not change"),
        [{"curriculum.score": "pass"}],
    ),
    (
        {"curriculum.stratify": "source", "curriculum.order": "easy_to_hard"},
        "curriculum.stratify",
        ("needs data.source_column",),
        [{"data.source_column": "genre"}, {"curriculum.stratify": "label"}, {"curriculum.stratify": "none"}],
    ),
    (
        {"curriculum.stratify": "label"},
        "curriculum.stratify",
        ("needs a curriculum.order other than none",),
        [{"curriculum.order": order} for order in ("easy_to_hard", "hard_to_easy", "random", "frozen")],
    ),
    (
        {"alignment.choose": "hardest", "method": "kd", "alignment.share": 0.5},
        "alignment.choose",
        ("needs matched gradients",),
        [
            {"method": "gkd"},
            {"weight.attribution": 0.5, "student.dropout": 0.0},
            {"alignment.choose": "random"},
        ],
    ),
    (
        {"alignment.choose": "hardest", "method": "gkd"},
        "alignment.choose",
        ("alignment.share below 1",),
        [{"alignment.share": 0.9}, {"alignment.choose": "random"}],
    ),
    (
        {
            "curriculum.source": "teacher",
            "curriculum.final_snapshot": True,
            "curriculum.order": "easy_to_hard",
        },
        "curriculum.final_snapshot",
        ("is of the student",),
        [{"curriculum.source": "student"}, {"curriculum.final_snapshot": False}],
    ),
    (
        {"reliance.rule": "gate", "method": "finetune"},
        "reliance.rule",
        ("'gate'", "relies on no teacher", "take kd"),
        [{"method": "kd"}, {"reliance.rule": "constant"}],
    ),
    (
        {"reliance.control": "permuted"},
        "reliance.control",
        ("needs a reliance.rule other than constant",),
        [{"reliance.rule": "ramp"}, {"reliance.control": "none"}],
    ),
    (
        {"reliance.scale_alignment": True},
        "reliance.scale_alignment",
        ("needs a reliance.rule other than constant",),
        [{"reliance.rule": "gate"}, {"reliance.scale_alignment": False}],
    ),
    (
        {"reliance.rule": "gate", "reliance.scale_alignment": True, "method": "kd"},
        "reliance.scale_alignment",
        ("kd matches neither states nor gradients",),
        [{"method": "pkd"}, {"method": "gkd"}, {"method": "gkd_cls"}],
    ),
    (
        {"reliance.rule": "gate", "weight.kd": 0.0},
        "reliance.maximum",
        ("null means weight.kd, and that is 0", "give a number"),
        [{"reliance.maximum": 0.7}, {"weight.kd": 0.3}, {"reliance.rule": "constant"}],
    ),
    (
        {"reliance.rule": "ramp", "reliance.minimum": 0.6},
        "reliance.minimum",
        ("must not be above reliance.maximum = 0.5", "weight.kd"),
        [
            {"reliance.minimum": 0.5},
            {"reliance.maximum": 0.6},
            {"weight.kd": 0.6},
            {"reliance.rule": "constant"},
        ],
    ),
    (
        {"reliance.rule": "weighted", "curriculum.score": "served"},
        "reliance.rule",
        ("the teacher's loss", "take curriculum.score: pass"),
        [{"reliance.rule": rule} for rule in ("gate", "ramp", "bell")] + [{"curriculum.score": "pass"}],
    ),
    *(
        (
            {"reliance.rule": rule, "curriculum.source": "file", "curriculum.file": "f"},
            "reliance.rule",
            ("reads probabilities", "take gate or ramp"),
            [
                {"reliance.rule": "gate"},
                {"reliance.rule": "ramp"},
                {"curriculum.source": "student", "curriculum.file": ""},
            ],
        )
        for rule in ("bell", "weighted")
    ),
]


@pytest.mark.parametrize(("values", "key", "words", "mended"), REFUSED)
def test_refused_with_reason_and_remedy(
    values: dict[str, Any], key: str, words: tuple[str, ...], mended: list[dict[str, Any]]
) -> None:
    (line,) = lines_of(values, key)
    for word in words:
        assert word in line
    for change in mended:
        assert lines_of(values | change, key) == [], change


def allowed(section: type, name: str) -> tuple[Any, ...]:
    return get_args(get_type_hints(section)[name])


def test_everything_else_goes_together() -> None:
    """Orders × sources × methods, measures × pacings, rules × controls × orders."""
    for order, source, method in itertools.product(
        allowed(CurriculumConfig, "order"), allowed(CurriculumConfig, "source"), METHODS
    ):
        file = "scores.npy" if source == "file" else ""
        values = {
            "curriculum.order": order,
            "curriculum.source": source,
            "curriculum.file": file,
            "method": method,
        }
        assert problems(values) == []
    for measure, pacing in itertools.product(
        allowed(CurriculumConfig, "measure"), allowed(CurriculumConfig, "pacing")
    ):
        for score in ("pass", "served"):
            values = {"curriculum.measure": measure, "curriculum.pacing": pacing, "curriculum.score": score}
            assert problems(values | {"curriculum.order": "easy_to_hard"}) == []
    for rule, control in itertools.product(
        allowed(RelianceConfig, "rule"), allowed(RelianceConfig, "control")
    ):
        expected = rule == "constant" and control != "none"
        assert bool(problems({"reliance.rule": rule, "reliance.control": control})) == expected
    # without teaching too: the order is the student's own
    assert problems({"method": "finetune", "curriculum.order": "easy_to_hard", "teacher.path": ""}) == []


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("curriculum.smoothing", (0, 0.5, 0.999), (-0.1, 1.0)),
        ("curriculum.start", (1e-6, 1.0), (0.0, 1.1)),
        ("curriculum.full_at", (1e-3, 1.0, 2.0), (0.0, -1.0)),
        ("curriculum.power", (0.1, 2.0), (0.0,)),
        ("curriculum.increase", (1.001, 1.9), (1.0, 0.5)),
        ("curriculum.increase_every", (1, 100), (0,)),
        ("curriculum.buckets", (1, 256), (0, 257)),
        ("curriculum.memory_mib", (16, 4096), (15,)),
        ("curriculum.keep_snapshots", (1, 10), (0,)),
        ("reliance.initial", (0.0, 1.0), (-0.1, 1.1)),
        ("reliance.minimum", (0.0, 0.5), (-0.1, 1.1)),
        ("reliance.maximum", (1e-6, 1.0), (0.0, 1.1)),
        ("reliance.threshold", (0.0, 1.0), (-0.1, 1.1)),
    ],
)
def test_numbers(key: str, good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    ordered = {"curriculum.order": "easy_to_hard"}
    for number in good:
        assert number in RANGES[key]
        assert lines_of({**ordered, key: number}, key) == []
    for number in bad:
        assert number not in RANGES[key]
        assert len(lines_of({**ordered, key: number}, key)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pacing", "competence"),
        ("full_at", 0.5),
        ("once_per_pass", False),
        ("buckets", 8),
        ("stratify", "label"),
    ],
)
def test_what_nothing_reads_is_refused(key: str, value: Any) -> None:
    (line,) = lines_of({f"curriculum.{key}": value}, f"curriculum.{key}")
    assert "needs a curriculum.order" in line


def test_who_reads_scores() -> None:
    none = good_with({})
    assert [asks(none) for asks in (has_curriculum, relies_selectively, reads_scores)] == [False] * 3
    for order in ("easy_to_hard", "hard_to_easy", "frozen"):
        config = good_with({"curriculum.order": order})
        assert has_curriculum(config)
        assert reads_scores(config)
    hashed = good_with({"curriculum.order": "random"})
    assert has_curriculum(hashed)
    assert not reads_scores(hashed), "ranked by a seeded hash"
    gate = good_with({"reliance.rule": "gate"})
    assert relies_selectively(gate)
    assert reads_scores(gate)
    assert not has_curriculum(gate)
    assert reads_scores(good_with({"alignment.choose": "hardest"}))
    assert not reads_scores(good_with({"alignment.choose": "hardest", "method": "kd"}))


def test_all_rules_speak_at_once() -> None:
    values = {
        "curriculum.source": "file",
        "curriculum.score": "served",
        "curriculum.stratify": "source",
        "curriculum.buckets": 0,
        "reliance.control": "permuted",
        "reliance.scale_alignment": True,
    }
    found = [line.split(" = ")[0] for line in problems(values)]
    # a source column and an order are both missing, the order for two fields
    assert sorted(found) == sorted(
        [
            "curriculum.buckets",
            "curriculum.buckets",
            "curriculum.file",
            "curriculum.score",
            "curriculum.stratify",
            "curriculum.stratify",
            "reliance.control",
            "reliance.scale_alignment",
        ]
    )
