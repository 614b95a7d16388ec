"""A step of the student with two teachers: separate terms are the weighted sum of what each one gives alone."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from student_cases import (
    CASES,
    LENGTHS,
    TEACHER_LAYERS,
    Gradients,
    counts_of,
    difference,
    gradients,
    models,
    norm_of,
    objective_of,
    relative_error,
)
from tiny_encoders import ragged_batch, tiny_encoder, undecided
from torch import nn

from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.models.width_maps import WidthMaps
from distill_dist.objectives.join_signals import Joining
from distill_dist.objectives.objective import Objective
from distill_dist.probe import first_rows
from distill_dist.records import JoinedSignal, TeacherSignal
from distill_dist.student import Route, StudentStep
from distill_dist.teacher.compute import compute_signal

BATCH = ragged_batch(LENGTHS)
WEIGHTS = (0.625, 0.375)
DISTILS = tuple(name for name, case in CASES.items() if case.method != "finetune")


def teachers(hidden: int = 16) -> list[EncoderParts]:
    """Two of 6 layers that differ in all weights."""
    found = [undecided(tiny_encoder(layers=6, seed=seed, hidden=hidden), BATCH) for seed in (2, 5)]
    return [encoder_parts(model.requires_grad_(False)) for model in found]


def signals_of(
    objective: Objective, *, how: str, hidden: int = 16
) -> tuple[JoinedSignal, list[TeacherSignal]]:
    """(of both together, each one's alone)."""
    spec = objective.signal_spec
    assert spec is not None
    joining = Joining(how, WEIGHTS, objective.temperature)

    def asked(what: Any) -> list[TeacherSignal]:
        return [
            compute_signal(each, *BATCH.inputs, what, labels_B=BATCH.labels_B) for each in teachers(hidden)
        ]

    return joining(asked(joining.asked(spec)), spec, BATCH), asked(spec)


def taken(
    student: Any, objective: Objective, signal: TeacherSignal, route: Route, maps: WidthMaps | None = None
) -> tuple[float, Gradients]:
    counts = counts_of(BATCH)
    terms = StudentStep(encoder_parts(student), objective, route, maps).loss_terms(BATCH, signal, counts)
    total = terms.total(counts)
    trained = nn.ModuleList([student] if maps is None else [student, maps])
    return total.item(), gradients(trained, total)


@pytest.mark.parametrize(
    "route", [Route(), difference(True), difference(False)], ids=lambda route: route.name
)
@pytest.mark.parametrize("signal", ["own_max", "label"])
@pytest.mark.parametrize("name", DISTILS)
def test_separate_terms_are_the_weighted_sum(name: str, signal: str, route: Route) -> None:
    """Double backward: float64 to 1e-10. A difference moves along v, which is of the sum: second order apart."""
    student, _ = models()
    objective = objective_of(name, signal=signal)
    together, alone = signals_of(objective, how="separate")
    value, found = taken(student, replace(objective, teacher_weights=WEIGHTS), together, route)
    parts = [taken(student, objective, each, route) for each in alone]
    assert parts[0][0] != pytest.approx(parts[1][0], rel=1e-3)
    assert value == pytest.approx(
        sum(w * part for w, (part, _) in zip(WEIGHTS, parts, strict=True)), rel=1e-10
    )
    expected = {
        parameter: sum(w * part[parameter] for w, (_, part) in zip(WEIGHTS, parts, strict=True))
        for parameter in found
    }
    assert norm_of(found.values()) > 0.1
    assert relative_error(found, expected) < (1e-10 if route.name == "double_backward" else 1e-3)  # type: ignore[arg-type]


def test_separate_terms_through_the_maps_to_a_wider_teacher() -> None:
    student, _ = models()
    objective = objective_of("gkd_cls at cls")
    together, alone = signals_of(objective, how="separate", hidden=32)
    torch.manual_seed(0)
    maps = WidthMaps(len(TEACHER_LAYERS), teacher_width=32, student_width=16).double()
    value, found = taken(student, replace(objective, teacher_weights=WEIGHTS), together, Route(), maps)
    parts = [taken(student, objective, each, Route(), maps) for each in alone]
    assert value == pytest.approx(
        sum(w * part for w, (part, _) in zip(WEIGHTS, parts, strict=True)), rel=1e-10
    )
    expected = {
        parameter: sum(w * part[parameter] for w, (_, part) in zip(WEIGHTS, parts, strict=True))
        for parameter in found
    }
    assert relative_error(found, expected) < 1e-10  # type: ignore[arg-type]


def test_teacher_max_is_the_class_of_all_together() -> None:
    """The student differentiates the class that the teachers predict together, as each of them does."""
    student, _ = models()
    objective = objective_of("gkd", signal="teacher_max")
    together, _ = signals_of(objective, how="average")
    labelled = replace(BATCH, labels_B=together.logits_BC.argmax(dim=-1))
    by_label = replace(objective, signal="label", kd=0.0)
    spec = by_label.signal_spec
    assert spec is not None
    given = [compute_signal(each, *BATCH.inputs, spec, labels_B=labelled.labels_B) for each in teachers()]
    joined = Joining("average", WEIGHTS, objective.temperature)(given, spec, labelled)
    step = StudentStep(encoder_parts(student), objective)
    found = step.loss_terms(BATCH, together).sums["gradient_embedding"]
    expected = replace(step, objective=by_label).loss_terms(labelled, joined).sums["gradient_embedding"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_probes_rows_are_cut_from_every_member() -> None:
    together, _ = signals_of(objective_of("everything"), how="separate")
    cut = first_rows(together, 2)
    assert [len(member.logits_BC) for member in cut.members] == [2, 2]  # type: ignore[attr-defined]
    for field in fields(TeacherSignal):
        for member, whole in zip(cut.members, together.members, strict=True):  # type: ignore[attr-defined]
            assert torch.equal(getattr(member, field.name), getattr(whole, field.name)[:2]), field.name
