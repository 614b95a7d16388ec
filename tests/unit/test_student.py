"""Every objective's value and gradient, through the student's own step, against METHOD.md written a second time.

Tolerance: both sides are float64 (2⁻⁵³ ≈ 1e-16 per operation). A gradient passes through about 1e4 additions, and
the probability form of the reference loses 1/(1 − p) ≤ 1e2 against the margin: 1e-10 relative.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from reference import reference_loss
from student_cases import (
    ALIGNED,
    CASES,
    LENGTHS,
    MATCH_DIRECTIONS,
    SIGNALS,
    Gradients,
    counts_of,
    gradients,
    models,
    norm_of,
    objective_of,
    step,
    weights_of,
)
from tiny_encoders import ragged_batch, take_rows

from distill_dist.models.encoder import encoder_parts
from distill_dist.objectives.objective import METHODS
from distill_dist.records import BatchCounts

TOLERANCE = 1e-10


def reference(name: str, *, classes: int = 3, **more: Any) -> tuple[float, Gradients]:
    defaults = {"per_class": False, "signal": "own_max", "top_k": 0, "norm": "l2"}
    return _reference(name, classes, **{**defaults, **more})


@functools.cache
def _reference(name: str, classes: int, **more: Any) -> tuple[float, Gradients]:
    student, teacher = models(classes=classes)
    teacher.requires_grad_(True)  # the reference differentiates at its embedding output without hooks
    loss = reference_loss(student, teacher, ragged_batch(LENGTHS, classes=classes), weights_of(name, **more))
    return loss.item(), gradients(student, loss)


def assert_close(found: Gradients, expected: Gradients, tolerance: float) -> None:
    """Every parameter, relative to the whole gradient: a key's bias has exactly zero in theory."""
    scale = norm_of(expected.values())
    assert scale > 0.1
    errors = {name: ((found[name] - g).norm()).item() / scale for name, g in expected.items()}
    assert max(errors.values()) < tolerance, max(errors.items(), key=lambda item: item[1])


def assert_follows_the_formula(name: str, *, classes: int = 3, **more: Any) -> None:
    student, teacher = models(classes=classes)
    batch = ragged_batch(LENGTHS, classes=classes)
    value, expected = reference(name, classes=classes, **more)
    if "top_k" in more:
        more["attribution_top_k"] = more.pop("top_k")
    if "norm" in more:
        more["attribution_norm"] = more.pop("norm")
    loss = step(student, teacher, objective_of(name, **more), batch).total(counts_of(batch))
    assert loss.item() == pytest.approx(value, rel=TOLERANCE)
    assert_close(gradients(student, loss), expected, TOLERANCE)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_follow_the_formula(name: str, per_class: bool) -> None:
    assert_follows_the_formula(name, per_class=per_class)


@pytest.mark.parametrize("signal", SIGNALS[1:])
@pytest.mark.parametrize("name", MATCH_DIRECTIONS)
def test_every_signal_follows_the_formula(name: str, signal: str) -> None:
    assert_follows_the_formula(name, signal=signal)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", ["gkd_cls", "everything"])
def test_two_classes_follow_the_formula(name: str, signal: str) -> None:
    """One view stands for both, with its sign."""
    assert_follows_the_formula(name, signal=signal, classes=2)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("top_k", [0, 3])
def test_every_attribution_follows_the_formula(top_k: int, norm: str) -> None:
    assert_follows_the_formula("kd + attribution", top_k=top_k, norm=norm)


def test_all_these_are_different_objectives() -> None:
    """The comparisons above could not tell them apart if their numbers were the same."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        (name, {"per_class": per_class})
        for name in CASES
        for per_class in (False, True)
        if (name, per_class) != ("finetune", True)
    ]
    kinds += [(name, {"signal": signal}) for name in MATCH_DIRECTIONS for signal in SIGNALS[1:]]
    kinds += [("kd + attribution", {"top_k": k, "norm": n}) for k, n in ((3, "l1"), (3, "l2"), (0, "l1"))]
    values = sorted(reference(name, **more)[0] for name, more in kinds)
    assert len(values) > 45
    assert min(b - a for a, b in pairwise(values)) > 1e-5


def test_attribution_takes_every_class_whatever_the_signal() -> None:
    student, teacher = models()
    batch = ragged_batch(LENGTHS)
    for name in ("kd + attribution", "everything"):
        found = {
            step(student, teacher, objective_of(name, signal=signal), batch).sums["attribution"].item()
            for signal in SIGNALS
        }
        assert max(found) - min(found) < 1e-12 * max(found)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("name", [*METHODS, "everything"])
def test_fp32_as_it_runs_agrees_with_the_formula(name: str, per_class: bool) -> None:
    """fp32: 6e-8 an operation, growing like √1e4 over the additions and again in the second backward: 1e-4."""
    student, teacher = models(torch.float32)
    batch = ragged_batch(LENGTHS)
    value, expected = reference(name, per_class=per_class)
    loss = step(student, teacher, objective_of(name, per_class=per_class), batch).total(counts_of(batch))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert_close({n: g.double() for n, g in gradients(student, loss).items()}, expected, 1e-4)


@pytest.mark.parametrize("name", [*METHODS, "everything"])
def test_ragged_micro_batches_and_fillers_add_up_to_the_batch(name: str) -> None:
    student, teacher = models()
    batch = ragged_batch(LENGTHS)
    value, expected = reference(name)
    objective, counts = objective_of(name), counts_of(batch)
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


@pytest.mark.parametrize("name", [*METHODS, "everything"])
def test_nothing_real_gives_exact_zeros(name: str) -> None:
    student, teacher = models(torch.float32)
    batch = replace(ragged_batch(LENGTHS), is_real_B=torch.zeros(len(LENGTHS), dtype=torch.bool))
    terms = step(student, teacher, objective_of(name), batch)
    assert set(terms.sums) == set(objective_of(name).weights)
    assert all(value.item() == 0.0 for value in terms.sums.values())
    assert terms.zero_rows.item() == 0.0
    for parameter, gradient in gradients(student, terms.total(BatchCounts(8, 64))).items():
        assert (gradient == 0).all(), parameter  # false for NaN


@pytest.mark.parametrize("name", ALIGNED)
def test_frozen_embeddings_change_no_other_gradient(name: str) -> None:
    student, teacher = models()
    batch = ragged_batch(LENGTHS)
    _, expected = reference(name)
    embeddings = encoder_parts(student).embeddings
    embeddings.requires_grad_(False)
    step(student, teacher, objective_of(name), batch).total(counts_of(batch)).backward()
    assert all(parameter.grad is None for parameter in embeddings.parameters())
    found = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert len(found) == len(expected) - len(list(embeddings.parameters()))
    assert_close(found, {name: expected[name] for name in found}, TOLERANCE)


def test_the_margin_stays_right_where_the_model_is_sure() -> None:
    """At margin 30 in fp32 max softmax has no gradient left; the step agrees with float64 all the same."""
    batch, objective = ragged_batch(LENGTHS), objective_of("gkd")
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
