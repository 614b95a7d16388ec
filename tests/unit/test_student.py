"""Every method's value and gradient, through the student's own step, against METHOD.md §1 written a second time.

Tolerance: both sides are float64 (2⁻⁵³ ≈ 1e-16 per operation). A gradient passes through about 1e4 additions, and
the probability form of the reference loses 1/(1 − p) ≤ 1e2 against the margin: 1e-10 relative.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from reference import Weights, reference_loss
from tiny_encoders import ragged_batch, take_rows, tiny_encoder
from torch import Tensor

from distill_dist.models.encoder import encoder_parts
from distill_dist.objectives.objective import METHODS, LossTerms, Objective
from distill_dist.records import Batch, BatchCounts
from distill_dist.student import StudentStep
from distill_dist.teacher.compute import compute_signal

TOLERANCE = 1e-10
LENGTHS = (9, 3, 7, 12, 5)
TEACHER_LAYERS, STUDENT_LAYERS = (2, 4), (1, 2)
CASES = [(method, per_class) for method in METHODS for per_class in (False, True)]

Gradients = dict[str, Tensor]


def objective_of(method: str, per_class: bool) -> Objective:
    """Weights under which no term hides behind another."""
    found = Objective(
        METHODS[method], kd=0.3, patience=20.0, gradient=0.7, temperature=2.5, kd_per_class=per_class
    )
    if method in ("pkd", "gkd_cls"):
        found = replace(found, teacher_layers=TEACHER_LAYERS, student_layers=STUDENT_LAYERS)
    return found


def weights_of(method: str, per_class: bool) -> Weights:
    """The same in the reference's words, from the table of METHOD.md §1."""
    found = Weights(temperature=2.5, per_class=per_class)
    if method != "finetune":
        found = replace(found, alpha=0.3)
    if method in ("pkd", "gkd_cls"):
        found = replace(found, patience=20.0, teacher_layers=TEACHER_LAYERS, student_layers=STUDENT_LAYERS)
    if method in ("gkd", "gkd_cls"):
        found = replace(found, embedding=0.7)
    return replace(found, cls=0.7) if method == "gkd_cls" else found


def models(dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    student = tiny_encoder("bert", layers=3, seed=1)
    return student.to(dtype), tiny_encoder("bert", layers=6, seed=2).requires_grad_(False).to(dtype)


def counts_of(batch: Batch) -> BatchCounts:
    real = batch.is_real_B
    return BatchCounts(sequences=int(real.sum()), tokens=int(batch.attention_mask_BL[real].sum()))


def step(student: Any, teacher: Any, objective: Objective, batch: Batch) -> LossTerms:
    spec = objective.signal_spec
    signal = None
    if spec is not None:
        inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
        signal = compute_signal(encoder_parts(teacher), *inputs, spec)
    return StudentStep(encoder_parts(student), objective).loss_terms(batch, signal)


def gradients(student: Any, loss: Tensor) -> Gradients:
    names, parameters = zip(*student.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(names, found, parameters, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for name, g, p in pairs}


def reference(method: str, per_class: bool, batch: Batch) -> tuple[float, Gradients]:
    student, teacher = models()
    teacher.requires_grad_(True)  # the reference differentiates at its embedding output without hooks
    loss = reference_loss(student, teacher, batch, weights_of(method, per_class))
    return loss.item(), gradients(student, loss)


def assert_close(found: Gradients, expected: Gradients, tolerance: float) -> None:
    """Every parameter, relative to the whole gradient: a key's bias has exactly zero in theory."""
    scale = torch.cat([g.flatten() for g in expected.values()]).norm().item()
    assert scale > 0.1
    errors = {name: ((found[name] - g).norm()).item() / scale for name, g in expected.items()}
    assert max(errors.values()) < tolerance, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize(("method", "per_class"), CASES)
def test_value_and_gradient_follow_the_formula(method: str, per_class: bool) -> None:
    student, teacher = models()
    batch = ragged_batch(LENGTHS)
    value, expected = reference(method, per_class, batch)
    loss = step(student, teacher, objective_of(method, per_class), batch).total(counts_of(batch))
    assert loss.item() == pytest.approx(value, rel=TOLERANCE)
    assert_close(gradients(student, loss), expected, TOLERANCE)


def test_methods_and_scales_are_different_objectives() -> None:
    """The comparison above could not tell methods apart if their numbers were the same."""
    batch = ragged_batch(LENGTHS)
    found = {case: reference(*case, batch)[0] for case in CASES if case != ("finetune", True)}
    values = sorted(found.values())
    assert min(b - a for a, b in pairwise(values)) > 1e-3


@pytest.mark.parametrize(("method", "per_class"), CASES)
def test_fp32_as_it_runs_agrees_with_the_formula(method: str, per_class: bool) -> None:
    """fp32: 6e-8 an operation, growing like √1e4 over the additions and again in the second backward: 1e-4."""
    student, teacher = models(torch.float32)
    batch = ragged_batch(LENGTHS)
    value, expected = reference(method, per_class, batch)
    loss = step(student, teacher, objective_of(method, per_class), batch).total(counts_of(batch))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert_close({n: g.double() for n, g in gradients(student, loss).items()}, expected, 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_ragged_micro_batches_and_fillers_add_up_to_the_batch(method: str) -> None:
    student, teacher = models()
    batch = ragged_batch(LENGTHS)
    value, expected = reference(method, False, batch)
    objective, counts = objective_of(method, False), counts_of(batch)
    pieces = [take_rows(batch, [3]), take_rows(batch, [1, 4], fillers=2), take_rows(batch, [2, 0], fillers=1)]
    assert len({piece.input_ids_BL.shape for piece in pieces}) == 3
    shares = [step(student, teacher, objective, piece).total(counts) for piece in pieces]
    means = [step(student, teacher, objective, p).total(counts_of(p)) for p in pieces]
    assert abs(torch.stack(means).mean().item() - value) > 1e-3 * abs(value), (
        "a mean of means would pass as well"
    )
    assert torch.stack(shares).sum().item() == pytest.approx(value, rel=TOLERANCE)
    found = [gradients(student, share) for share in shares]
    summed = {name: torch.stack([f[name] for f in found]).sum(dim=0) for name in expected}
    assert_close(summed, expected, TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_real_gives_exact_zeros(method: str) -> None:
    student, teacher = models(torch.float32)
    batch = replace(ragged_batch(LENGTHS), is_real_B=torch.zeros(len(LENGTHS), dtype=torch.bool))
    terms = step(student, teacher, objective_of(method, False), batch)
    assert set(terms.sums) == set(objective_of(method, False).weights)
    assert all(value.item() == 0.0 for value in terms.sums.values())
    assert terms.zero_rows.item() == 0.0
    for name, gradient in gradients(student, terms.total(BatchCounts(8, 64))).items():
        assert (gradient == 0).all(), name  # false for NaN


@pytest.mark.parametrize("method", ["gkd", "gkd_cls"])
def test_frozen_embeddings_change_no_other_gradient(method: str) -> None:
    student, teacher = models()
    batch = ragged_batch(LENGTHS)
    _, expected = reference(method, False, batch)
    embeddings = encoder_parts(student).embeddings
    embeddings.requires_grad_(False)
    step(student, teacher, objective_of(method, False), batch).total(counts_of(batch)).backward()
    assert all(parameter.grad is None for parameter in embeddings.parameters())
    found = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert len(found) == len(expected) - len(list(embeddings.parameters()))
    assert_close(found, {name: expected[name] for name in found}, TOLERANCE)


def test_the_margin_stays_right_where_the_model_is_sure() -> None:
    """At margin 30 in fp32 max softmax has no gradient left; the step agrees with float64 all the same."""
    batch, objective = ragged_batch(LENGTHS), objective_of("gkd", False)
    losses = {}
    for dtype in (torch.float32, torch.float64):
        student, teacher = models(dtype)
        with torch.no_grad():
            student.classifier.bias.add_(torch.tensor([30.0, 0.0, 0.0], dtype=dtype))
        if dtype == torch.float32:
            embedded = student.bert.embeddings(batch.input_ids_BL).detach().requires_grad_(True)
            logits_BC = student(inputs_embeds=embedded, attention_mask=batch.attention_mask_BL).logits
            signal = logits_BC.softmax(-1).max(-1).values.sum()
            assert torch.autograd.grad(signal, embedded)[0].norm().item() < 1e-6
        losses[dtype] = step(student, teacher, objective, batch)
    assert losses[torch.float32].zero_rows.item() == 0.0
    expected = losses[torch.float64].sums["gradient_embedding"].item()
    assert expected > 1.0
    assert losses[torch.float32].sums["gradient_embedding"].item() == pytest.approx(expected, rel=1e-4)


def test_terms_without_gradients_run_no_second_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """kd and pkd must not pay for what only gradient methods need."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr("distill_dist.student.gradients_at", refuse)
    student, teacher = models()
    batch = ragged_batch(LENGTHS)
    for method in ("finetune", "kd", "pkd"):
        objective = objective_of(method, False)
        signal = None
        if (spec := objective.signal_spec) is not None:
            assert not spec.gradients
            signal = compute_signal(
                encoder_parts(teacher),
                batch.input_ids_BL,
                batch.attention_mask_BL,
                batch.token_type_ids_BL,
                spec,
            )
        StudentStep(encoder_parts(student), objective).loss_terms(batch, signal)
    with pytest.raises(AssertionError, match="was asked for"):
        step(student, teacher, objective_of("gkd", False), batch)
