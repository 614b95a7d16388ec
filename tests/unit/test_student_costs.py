"""What a step runs: forwards by their rows, and backwards to inner points. Nothing for a weight of zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from student_cases import (
    ALIGNED,
    CASES,
    LENGTHS,
    NOISE,
    counts_of,
    difference,
    models,
    objective_of,
    signal_of,
)
from tiny_encoders import ragged_batch

from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.objectives.objective import Objective
from distill_dist.student import Route, StudentStep

B = len(LENGTHS)


@dataclass
class Seen:
    """Rows of every forward, and for every call of autograd.grad whether it made a graph of its own."""

    forwards: list[int] = field(default_factory=list)
    backwards: list[bool] = field(default_factory=list)


@contextmanager
def counting(parts: EncoderParts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    seen = Seen()
    real: Any = torch.autograd.grad

    def grad(*arguments: Any, create_graph: bool = False, **named: Any) -> Any:
        seen.backwards.append(create_graph)
        return real(*arguments, create_graph=create_graph, **named)

    handle = parts.embeddings.register_forward_hook(lambda *call: seen.forwards.append(len(call[2])))
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", grad)
        yield seen
    handle.remove()


def run(
    objective: Objective, route: Route, monkeypatch: pytest.MonkeyPatch, *, classes: int = 3
) -> tuple[Seen, Seen]:
    """(the student's, the teacher's) of one micro-batch."""
    student, teacher = models(classes=classes)
    batch = ragged_batch(LENGTHS, classes=classes)
    with counting(encoder_parts(teacher), monkeypatch) as of_teacher:
        signal = signal_of(teacher, objective, batch)
    parts = encoder_parts(student)
    with counting(parts, monkeypatch) as of_student:
        StudentStep(parts, objective, route).loss_terms(batch, signal, counts_of(batch))
    return of_student, of_teacher


ROUTES = (Route(), difference(True), difference(False))
NOISY = NOISE.draws


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_terms_without_gradients_run_one_forward_and_no_backward(
    name: str, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kd and pkd must not pay for what only gradient methods need; a draw of noise is a forward."""
    objective = objective_of(name)
    noisy = [B] * (NOISY if "noisy_distillation" in objective.weights else 0)
    student, teacher = run(objective, route, monkeypatch)
    if name in ALIGNED:
        assert student.backwards
        assert teacher.backwards
        return
    assert student == Seen([B, *noisy], [])
    assert teacher == Seen([] if name == "finetune" else [B, *noisy], [])


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize(
    ("name", "zero", "like"),
    [
        ("gkd", {"gradient": 0.0}, "kd"),
        ("gkd_cls", {"gradient": 0.0}, "pkd"),
        ("gkd_cls", {"gradient": 0.0, "patience": 0.0}, "kd"),
        ("kd + attribution", {"attribution": 0.0}, "kd"),
        ("kd + noise", {"noise": 0.0}, "kd"),
        ("everything", {"gradient": 0.0, "attribution": 0.0, "noise": 0.0}, "pkd"),
        ("everything", {"attribution": 0.0, "noise": 0.0}, "gkd_cls"),
    ],
)
def test_a_weight_of_zero_computes_nothing(
    name: str, zero: dict[str, float], like: str, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_it = run(objective_of(name), route, monkeypatch)
    without = run(replace(objective_of(name), **zero), route, monkeypatch)  # type: ignore[arg-type]
    assert without == run(objective_of(like), route, monkeypatch)
    assert without != with_it


def test_a_weight_of_zero_hooks_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = models()
    batch = ragged_batch(LENGTHS)
    layers: list[tuple[int, ...]] = []
    real = StudentStep._run

    def run_(self: StudentStep, *arguments: Any, **named: Any) -> Any:
        layers.append(self._layers)
        return real(self, *arguments, **named)

    monkeypatch.setattr(StudentStep, "_run", run_)
    for zero in ({}, {"gradient": 0.0}, {"gradient": 0.0, "patience": 0.0}):
        objective = replace(objective_of("gkd_cls"), **zero)  # type: ignore[arg-type]
        signal = signal_of(teacher, objective, batch)
        terms = StudentStep(encoder_parts(student), objective).loss_terms(batch, signal)
        assert ("patience" in terms.sums) == bool(layers[-1])
    assert layers == [(1, 2), (1, 2), ()]


@pytest.mark.parametrize(
    ("name", "signal", "classes", "views"),
    [
        ("gkd", "own_max", 3, 1),
        ("gkd_cls", "own_max", 3, 1),
        ("gkd_cls", "label", 3, 1),
        ("gkd_cls", "all_classes", 3, 3),
        ("gkd_cls", "all_classes", 2, 1),
        ("kd + attribution", "own_max", 3, 3),
        ("kd + attribution", "own_max", 2, 1),
        ("everything", "teacher_max", 3, 3),
        ("everything", "all_classes", 3, 3),
    ],
)
def test_one_backward_per_view_gives_all_positions(
    name: str, signal: str, classes: int, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Double backward: one forward, one graph-making backward a view. A difference: two rows a view beside them,
    x again where its graph is not kept, and one more backward to v, which stops at the gradients."""
    objective = objective_of(name, signal=signal)
    noisy = [B] * (NOISY if "noisy_distillation" in objective.weights else 0)
    for route, forwards, backwards in (
        (Route(), [B], [True] * views),
        (difference(True), [B, *noisy, 2 * views * B], [False] * (views + 1)),
        (difference(False), [B, (1 + 2 * views) * B], [False] * (views + 1)),
    ):
        student, teacher = run(objective, route, monkeypatch, classes=classes)
        if route.keeps_graph and route.name == "central_difference":
            assert student == Seen(forwards, backwards)
        else:
            assert student == Seen([*forwards, *noisy], backwards)
        assert teacher == Seen([B, *noisy], [False] * views)


def test_v_is_found_without_a_backward_through_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """∂G/∂g is a function of the gradients alone: the backward to it must not run the model's."""
    student, teacher = models()
    batch, objective = ragged_batch(LENGTHS), objective_of("gkd_cls")
    passed: list[int] = []
    parts = encoder_parts(student)
    parts.layers[0].register_full_backward_hook(lambda *_: passed.append(1))
    signal = signal_of(teacher, objective, batch)
    for route in ROUTES[1:]:
        passed.clear()
        found = StudentStep(parts, objective, route).loss_terms(batch, signal, counts_of(batch))
        assert len(passed) == 1  # the signal's own
        found.total(counts_of(batch)).backward()
        # and of the loss: x with its own graph and the rows beside it, or all in one
        assert len(passed) == (3 if route.keeps_graph else 2)
