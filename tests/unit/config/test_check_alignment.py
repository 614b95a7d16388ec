"""Rules on matched gradients: what is refused, in whose name, with which remedy; and what must stay allowed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from config.trees import good_with, problems
from distill_dist.config.check import RANGES
from distill_dist.config.load import load_config
from distill_dist.config.methods import aligned_positions, is_aligned, is_gradient_method, matches_states
from distill_dist.errors import UserError

REPOSITORY = Path(__file__).parents[3]
METHODS = ("finetune", "kd", "pkd", "gkd", "gkd_cls")
ROUTES = ("auto", "double_backward", "central_difference")


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def lines_of(values: dict[str, Any], key: str) -> list[str]:
    return [line for line in problems(values) if line.startswith(f"{key} = ")]


# (what is set, the key whose line must appear, words of reason and remedy, mended neighbours)
REFUSED: list[tuple[dict[str, Any], str, tuple[str, ...], list[dict[str, Any]]]] = [
    (
        {"method": "finetune", "weight.attribution": 0.5},
        "weight.attribution",
        ("finetune", "take kd"),
        [{"method": "kd"}, {"weight.attribution": 0.0}],
    ),
    (
        {"method": "finetune", "weight.noise": 0.5},
        "weight.noise",
        ("finetune", "take kd"),
        [{"method": "kd"}, {"weight.noise": 0.0}],
    ),
    *(
        (
            {"method": method, "alignment.positions": positions},
            "alignment.positions",
            ("gkd or gkd_cls",),
            [{"method": "gkd"}, {"method": "gkd_cls"}, {"alignment.positions": "auto"}],
        )
        for method in ("finetune", "kd", "pkd")
        for positions in ("embedding", "cls", "both")
    ),
    (
        {"student.dropout": 0.1},
        "student.dropout",
        ("must be 0", "method: gkd_cls", "biased", "METHOD.md"),
        [{"method": "pkd"}, {"student.dropout": 0.0}, {"student.dropout": None}],
    ),
    (
        {"method": "kd", "weight.attribution": 0.5, "student.dropout": 0.1},
        "student.dropout",
        ("must be 0", "weight.attribution", "biased"),
        [{"weight.attribution": 0.0}, {"student.dropout": 0.0}],
    ),
    (
        {"alignment.route": "double_backward", "student.attention": "sdpa"},
        "alignment.route",
        ("sdpa has no second derivative", "eager or math", "central_difference"),
        [
            {"student.attention": "eager"},
            {"student.attention": "math"},
            {"student.attention": "auto"},
            {"alignment.route": "central_difference"},
            {"alignment.route": "auto"},
            {"method": "kd"},
        ],
    ),
    (
        {"alignment.route": "double_backward", "student.compile": True, "student.attention": "eager"},
        "alignment.route",
        ("student.compile: true gives no second derivative", "central_difference"),
        [{"student.compile": False}, {"alignment.route": "central_difference"}, {"alignment.route": "auto"}],
    ),
    (
        {"alignment.route": "central_difference", "train.precision": "bf16"},
        "train.precision",
        ("15 %", "fp32 or bf16_autocast", "double_backward"),
        [
            {"train.precision": "fp32"},
            {"train.precision": "bf16_autocast"},
            {"alignment.route": "double_backward"},
            {"alignment.route": "auto"},
            {"method": "kd"},
        ],
    ),
    (
        {"student.attention": "sdpa", "train.precision": "bf16"},
        "train.precision",
        ("15 %", "fp32 or bf16_autocast", "eager or math"),
        [
            {"train.precision": "bf16_autocast"},
            {"student.attention": "eager"},
            {"student.attention": "math"},
            {"method": "pkd"},
        ],
    ),
    (
        {"student.compile": True, "student.attention": "eager", "train.precision": "bf16"},
        "train.precision",
        ("15 %", "student.compile"),
        [{"student.compile": False}, {"train.precision": "fp32"}],
    ),
    (
        {"method": "kd", "weight.attribution": 1.0, "student.attention": "sdpa", "train.precision": "bf16"},
        "train.precision",
        ("15 %",),
        [{"weight.attribution": 0.0}, {"student.attention": "auto"}],
    ),
]


@pytest.mark.parametrize(("values", "key", "words", "mended"), REFUSED)
def test_refused_with_the_reason_and_what_would_work(
    values: dict[str, Any], key: str, words: tuple[str, ...], mended: list[dict[str, Any]]
) -> None:
    (line,) = lines_of(values, key)
    for word in words:
        assert word in line
    for change in mended:
        assert lines_of({**values, **change}, key) == [], change


def test_a_route_that_cannot_be_is_named_for_each_reason() -> None:
    values = {"alignment.route": "double_backward", "student.attention": "sdpa", "student.compile": True}
    assert len(lines_of(values, "alignment.route")) == 2


@pytest.mark.parametrize(
    ("method", "route", "compile_", "precision"),
    list(itertools.product(METHODS, ROUTES, (False, True), ("fp32", "bf16", "bf16_autocast"))),
)
def test_what_is_derived_is_never_at_fault(method: str, route: str, compile_: bool, precision: str) -> None:
    """With attention and dropout left to their defaults only two things are wrong, for gradient methods alone."""
    values = {
        "method": method,
        "alignment.route": route,
        "student.compile": compile_,
        "train.precision": precision,
    }
    found = problems(values)
    aligned = method in ("gkd", "gkd_cls")
    expected = set()
    if aligned and compile_ and route == "double_backward":
        expected.add("alignment.route")
    if aligned and precision == "bf16" and (route == "central_difference" or (route == "auto" and compile_)):
        expected.add("train.precision")
    assert {line.split(" = ")[0] for line in found} == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("attribution", [0.0, 0.5])
def test_defaults_follow_from_whether_gradients_are_matched(method: str, attribution: float) -> None:
    """METHOD.md §2: dropout is off where the student's own gradients are trained, whichever term trains them."""
    if method == "finetune" and attribution:
        return
    values = {"method": method, "weight.attribution": attribution}
    config = good_with(values)
    aligned = method in ("gkd", "gkd_cls") or attribution > 0
    assert is_aligned(config) == aligned
    assert config.student.dropout == (0.0 if aligned else 0.1)
    # attribution needs no equal embedding: the method alone freezes it
    assert config.student.freeze_embeddings == (method in ("gkd", "gkd_cls"))
    assert problems(values) == []


@pytest.mark.parametrize(
    ("method", "positions", "expected"),
    [
        ("gkd", "auto", (True, False)),
        ("gkd", "cls", (False, True)),
        ("gkd", "both", (True, True)),
        ("gkd_cls", "auto", (True, True)),
        ("gkd_cls", "embedding", (True, False)),
        ("gkd_cls", "cls", (False, True)),
        ("kd", "auto", (False, False)),
        ("pkd", "auto", (False, False)),
        ("finetune", "auto", (False, False)),
    ],
)
def test_positions(method: str, positions: str, expected: tuple[bool, bool]) -> None:
    config = good_with({"method": method, "alignment.positions": positions})
    assert aligned_positions(config) == expected
    assert is_gradient_method(method) == any(expected)


def test_attribution_alone_matches_no_positions() -> None:
    config = good_with({"method": "kd", "weight.attribution": 1.0})
    assert is_aligned(config)
    assert aligned_positions(config) == (False, False)


def test_methods_that_match_states() -> None:
    assert [method for method in METHODS if matches_states(method)] == ["pkd", "gkd_cls"]


def test_fp16_is_refused_with_the_reason() -> None:
    arguments = [
        "method=gkd", "run_dir=r", "data.source=synthetic_nli", "data.prepared=p", "teacher.path=t", "student.path=t",
    ]  # fmt: skip
    load_config(None, [*arguments, "train.precision=bf16"])
    with pytest.raises(UserError) as caught:
        load_config(None, [*arguments, "train.precision=fp16"])
    for part in ("train.precision = 'fp16'", "fp32, bf16, bf16_autocast", "underflow"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("weight.attribution", (0, 1e3), (-1e-9,)),
        ("weight.noise", (0, 1e3), (-1e-9,)),
        ("objective.attribution_top_k", (0, 1, 768), (-1,)),
        ("objective.noise_std", (1e-6, 10.0), (0, -0.1)),
        ("objective.noise_draws", (1, 64), (0, 65)),
        ("alignment.step", (1e-6, 0.1), (0, 0.11)),
        ("alignment.tolerance", (1e-9, 1.0), (0, -1.0)),
    ],
)
def test_numbers(key: str, good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    for number in good:
        assert number in RANGES[key]
        assert lines_of({"method": "gkd", key: number}, key) == []
    for number in bad:
        assert number not in RANGES[key]
        assert len(lines_of({"method": "gkd", key: number}, key)) == 1


def test_all_rules_speak_at_once() -> None:
    values = {
        "student.dropout": 0.1,
        "student.attention": "sdpa",
        "alignment.route": "double_backward",
        "alignment.step": 0.5,
    }
    found = {line.split(" = ")[0] for line in problems(values)}
    assert found == {"student.dropout", "alignment.route", "alignment.step"}
