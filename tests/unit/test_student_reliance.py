"""λ per row through the student's own step: the formula, micro-batches, and both routes (METHOD.md §4)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import reference_loss
from student_cases import (
    ALIGNED,
    CASES,
    LENGTHS,
    Gradients,
    assert_second_order,
    counts_of,
    difference,
    gradients,
    models,
    objective_of,
    relative_error,
    signal_of,
    step,
    weights_of,
)
from tiny_encoders import ragged_batch, take_rows

from distill_dist.models.encoder import encoder_parts
from distill_dist.objectives.objective import Objective
from distill_dist.student import Route, StudentStep

# Multiples of 1/8, λ_max = ½: λ, 1 − λ and λ/λ_max are exact in fp32, so that float64 is held to float64.
RELIANCE = (0.125, 0.5, 0.0, 0.25, 1.0)
LARGEST = 0.5
BATCH = replace(ragged_batch(LENGTHS), reliance_B=torch.tensor(RELIANCE))
DISTILS = tuple(name for name in CASES if name != "finetune")
ROUTES = (Route(), difference(True), difference(False))


def by_row(name: str, *, scaled: bool = True) -> Objective:
    return objective_of(name, per_row=True, scale_alignment=LARGEST if scaled else None)


def reference(name: str, *, scaled: bool) -> tuple[float, Gradients]:
    """METHOD.md §1 of every row alone, with the row's own constants; G(E) is a mean over the whole batch's tokens."""
    student, teacher = models()
    teacher.requires_grad_(True)  # the reference differentiates at its embedding output without hooks
    usual, losses = weights_of(name), []
    for place, reliance in enumerate(RELIANCE):
        scale = reliance / LARGEST if scaled else 1.0
        weights = replace(
            usual,
            alpha=reliance,
            patience=usual.patience * scale,
            cls=usual.cls * scale,
            embedding=usual.embedding * scale * LENGTHS[place] * len(LENGTHS) / sum(LENGTHS),
        )
        losses.append(reference_loss(student, teacher, take_rows(BATCH, [place]), weights))
    loss = torch.stack(losses).mean()
    return loss.item(), gradients(student, loss)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", DISTILS)
def test_value_and_gradient_follow_the_formula(name: str, scaled: bool) -> None:
    """1e-10 as in test_student.py."""
    value, expected = reference(name, scaled=scaled)
    student, teacher = models()
    loss = step(student, teacher, by_row(name, scaled=scaled), BATCH).total(counts_of(BATCH))
    found = gradients(student, loss)
    assert loss.item() == pytest.approx(value, rel=1e-10)
    assert relative_error(found, expected) < 1e-10
    constant = step(student, teacher, objective_of(name), ragged_batch(LENGTHS)).total(counts_of(BATCH))
    assert relative_error(gradients(student, constant), expected) > 1e-2


@pytest.mark.parametrize("name", ALIGNED)
def test_central_difference_agrees_with_double_backward(name: str) -> None:
    """The difference's direction holds λ/λ_max of its row, or its error would not shrink with the step."""
    student, teacher = models()
    assert_second_order(student, teacher, by_row(name), BATCH)


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("name", ["pkd", "gkd_cls", "everything"])
def test_ragged_micro_batches_and_fillers_add_up_to_the_batch(name: str, route: Route) -> None:
    """Fillers have the λ of the row that they repeat."""
    student, teacher = models()
    counts, objective = counts_of(BATCH), by_row(name)
    loss = step(student, teacher, objective, BATCH, route=route).total(counts)
    whole = gradients(student, loss)
    pieces = [take_rows(BATCH, [3]), take_rows(BATCH, [1, 4], fillers=2), take_rows(BATCH, [2, 0], fillers=1)]
    losses = [
        step(student, teacher, objective, piece, route=route, counts=counts).total(counts) for piece in pieces
    ]
    each = [gradients(student, part) for part in losses]
    assert sum(part.item() for part in losses) == pytest.approx(loss.item(), rel=1e-12)
    summed = {name: torch.stack([g[name] for g in each]).sum(dim=0) for name in whole}
    assert relative_error(summed, whole) < 1e-10  # rounding over the step of a difference
    swapped = [replace(pieces[1], reliance_B=pieces[1].reliance_B.flip(0)), *pieces[::2]]  # type: ignore[union-attr]
    wrong = [
        step(student, teacher, objective, piece, route=route, counts=counts).total(counts).item()
        for piece in swapped
    ]
    assert sum(wrong) != pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("route", ROUTES[1:], ids=str)
def test_rows_that_rely_on_nobody_stand_still(route: Route) -> None:
    """λ of 0 on every row and alignment scaled by it: v is zero, and what is left is cross-entropy's gradient."""
    student, teacher = models()
    alone = replace(BATCH, reliance_B=torch.zeros(len(LENGTHS)))
    counts = counts_of(alone)
    terms = step(student, teacher, by_row("gkd_cls"), alone, route=route)
    expected = step(student, teacher, objective_of("finetune"), ragged_batch(LENGTHS))
    assert terms.sums["gradient_embedding"].item() > 0.1
    found = gradients(student, terms.total(counts))
    assert relative_error(found, gradients(student, expected.total(counts))) < 1e-12


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("name", ["kd", "pkd", "gkd", "gkd_cls", "everything"])
def test_one_lambda_for_all_rows_is_the_constant_run(name: str, route: Route) -> None:
    """In fp32 0.3 is off by 2⁻²⁶ and 1 − λ by 2⁻²⁵ more, so that no term is by more than 1e-7 of itself.

    No term's gradient is ten times as large as the whole: 1e-6.
    """
    student, teacher = models()
    counts = counts_of(BATCH)
    alike = replace(BATCH, reliance_B=torch.full((len(LENGTHS),), 0.3))
    constant = step(student, teacher, objective_of(name), ragged_batch(LENGTHS), route=route)
    found = step(student, teacher, by_row(name, scaled=False), alike, route=route)
    assert found.total(counts).item() == pytest.approx(constant.total(counts).item(), rel=1e-6)
    expected = gradients(student, constant.total(counts))
    assert relative_error(gradients(student, found.total(counts)), expected) < 1e-6


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_logits_are_those_of_the_rows_without_a_graph(route: Route) -> None:
    """On every route: a difference in one forward has the rows beside them too."""
    student, teacher = models()
    objective = by_row("gkd_cls")
    found = StudentStep(encoder_parts(student), objective, route).loss_terms(
        BATCH, signal_of(teacher, objective, BATCH), counts_of(BATCH)
    )
    assert found.logits_BC is not None
    assert found.logits_BC.shape == (len(LENGTHS), 3)
    assert not found.logits_BC.requires_grad
    expected = encoder_parts(student).logits_BC(*BATCH.inputs)
    assert torch.allclose(found.logits_BC, expected, rtol=0, atol=1e-12)
