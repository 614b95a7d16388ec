from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_encoders import ragged_batch, take_rows, tiny_encoder
from torch import Tensor

from distill_dist.models.encoder import encoder_parts
from distill_dist.models.hooks import gradients_at, watch_points
from distill_dist.objectives.signal import (
    all_classes_BV,
    differentiated_BV,
    margins_BV,
    pick_views,
    signal_classes_BV,
)
from distill_dist.records import Batch

LENGTHS = (9, 3, 7, 12, 5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own_class_BV(logits_BC: Tensor) -> Tensor:
    return signal_classes_BV("own_max", logits_BC, teacher_logits_BC=None, labels_B=None)


# ------------------------------------------------------------------ which classes


def test_classes_of_every_signal() -> None:
    ours = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    theirs = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 5.0]])
    labels = torch.tensor([0, 1])
    found = {
        name: signal_classes_BV(name, ours, teacher_logits_BC=theirs, labels_B=labels).tolist()
        for name in ("own_max", "teacher_max", "label", "all_classes")
    }
    assert found == {
        "own_max": [[1], [0]],
        "teacher_max": [[2], [2]],
        "label": [[0], [1]],
        "all_classes": [[0, 1, 2], [0, 1, 2]],
    }


def test_a_teacher_has_no_teacher() -> None:
    theirs = torch.tensor([[0.0, 1.0, 2.0], [9.0, 1.0, 5.0]])
    found = signal_classes_BV("teacher_max", theirs, teacher_logits_BC=None, labels_B=None)
    assert found.tolist() == [[2], [0]]


def test_what_a_signal_needs_is_asked_for_and_nothing_is_guessed() -> None:
    with pytest.raises(AssertionError):
        signal_classes_BV("label", torch.zeros(2, 3), teacher_logits_BC=None, labels_B=None)
    with pytest.raises(AssertionError, match="own_mx"):
        signal_classes_BV("own_mx", torch.zeros(2, 3), teacher_logits_BC=None, labels_B=None)


def test_two_classes_are_one_view() -> None:
    assert all_classes_BV(torch.zeros(4, 2)).tolist() == [[0]] * 4
    assert all_classes_BV(torch.zeros(2, 4)).tolist() == [[0, 1, 2, 3]] * 2


# ------------------------------------------------------------------ margins


def test_margin_by_hand() -> None:
    logits_BC = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, -1.0]], dtype=torch.float64)
    found = margins_BV(logits_BC, torch.tensor([[1, 2], [0, 1]]))
    expected = [
        [2 - math.log(math.exp(1) + math.exp(4)), 4 - math.log(math.exp(1) + math.exp(2))],
        [3 - math.log(1 + math.exp(-1)), 0 - math.log(math.exp(3) + math.exp(-1))],
    ]
    for row, wanted in zip(found.tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-14)
    assert own_class_BV(logits_BC).tolist() == [[2], [0]]


def test_sigmoid_of_the_margin_is_the_probability() -> None:
    logits_BC = 3 * normal(20, 4)
    found = margins_BV(logits_BC, all_classes_BV(logits_BC)).sigmoid()
    assert torch.allclose(found, logits_BC.softmax(-1), rtol=1e-13, atol=0)


def test_two_classes_give_the_difference_whatever_the_view() -> None:
    logits_BC = torch.tensor([[0.5, -1.5], [2.0, 7.0]])
    assert margins_BV(logits_BC, torch.tensor([[0, 1], [1, 0]])).tolist() == [[2.0, -2.0], [5.0, -5.0]]


def test_half_precision_logits() -> None:
    logits_BC = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.bfloat16)
    assert margins_BV(logits_BC, own_class_BV(logits_BC)).dtype == torch.float32


def test_twice_differentiable() -> None:
    logits_BC = normal(3, 4).requires_grad_(True)
    classes_BV = torch.tensor([[0, 1], [3, 0], [1, 1]])
    assert torch.autograd.gradcheck(lambda z: margins_BV(z, classes_BV), (logits_BC,))
    assert torch.autograd.gradgradcheck(lambda z: margins_BV(z, classes_BV), (logits_BC,))


# ------------------------------------------------------------------ views


def gradients_by_hand(logits: Callable[[Tensor], Tensor], x_BLH: Tensor, classes_BV: Tensor) -> Tensor:
    """[B, L, V, H] of the margins of ``classes_BV``, one scalar after the other."""
    views = []
    for view in range(classes_BV.shape[1]):
        x = x_BLH.clone().requires_grad_(True)
        margins = margins_BV(logits(x), classes_BV[:, view : view + 1])
        views.append(torch.autograd.grad(margins.sum(), x)[0])
    return torch.stack(views, dim=2)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("signal", ["own_max", "label", "all_classes"])
def test_what_is_picked_is_what_would_have_been_differentiated(classes: int, signal: str) -> None:
    """A backward per class, where attribution wants them all, holds those of the signal too."""
    x_BLH, weight = normal(6, 2, 4), normal(8, classes, seed=1)

    def logits(x: Tensor) -> Tensor:
        return torch.tanh(x).flatten(1) @ weight

    labels_B = torch.arange(6) % classes
    logits_BC = logits(x_BLH)
    classes_BV = signal_classes_BV(signal, logits_BC, teacher_logits_BC=None, labels_B=labels_B)
    if signal != "all_classes":
        assert len(set(classes_BV[:, 0].tolist())) > 1  # both signs occur
    views_BV = differentiated_BV(classes_BV, logits_BC, every_class=True)
    assert views_BV.shape[1] == (1 if classes == 2 else classes)
    found = pick_views(gradients_by_hand(logits, x_BLH, views_BV), classes_BV, views_BV)
    expected = gradients_by_hand(logits, x_BLH, classes_BV)
    assert found.shape == expected.shape
    assert expected.norm() > 1
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)


def test_only_the_signals_classes_are_differentiated_without_attribution() -> None:
    logits_BC = normal(6, 3)
    classes_BV = own_class_BV(logits_BC)
    views_BV = differentiated_BV(classes_BV, logits_BC, every_class=False)
    assert views_BV is classes_BV
    gradients = normal(6, 2, 1, 4)
    assert pick_views(gradients, classes_BV, views_BV) is gradients


# ------------------------------------------------------------------ a model that is sure


def probabilities_BV(logits_BC: Tensor, classes_BV: Tensor) -> Tensor:
    """The paper's own form of the signal."""
    return logits_BC.softmax(dim=-1).gather(1, classes_BV)


Form = Callable[[Tensor, Tensor], Tensor]


def at_embedding(model: Any, row: Batch, form: Form) -> tuple[Tensor, Tensor]:
    """(the signal of a row [1, 1], its gradient at every token [L, H])."""
    parts = encoder_parts(model)
    with watch_points(parts, layers=(), embedding_gradient=True, cls_gradients=False) as points:
        logits_BC = parts.logits_BC(*row.inputs)
        signal_BV = form(logits_BC, own_class_BV(logits_BC))
        found, _ = gradients_at(
            signal_BV.sum(dim=0), points, layers=(), create_graph=False, retain_graph=False
        )
    assert found is not None
    return signal_BV.detach(), found[0, :, 0]


def sure_model(row: Batch, *, classes: int, margin: float) -> Any:
    """An encoder whose classifier is scaled until the ``row`` has this margin."""
    model = tiny_encoder("bert", seed=3 if classes == 2 else 2, classes=classes)
    for _ in range(6):  # the margin is nearly linear in the scale
        found, _ = at_embedding(model, row, margins_BV)
        with torch.no_grad():
            model.classifier.weight *= margin / found.item()
            model.classifier.bias *= margin / found.item()
    return model


def cosines_L(found_LH: Tensor, exact_LH: Tensor) -> Tensor:
    """Per token; 0 where nothing is left. (torch's own takes every norm below 1e-8 for nothing.)"""
    first, second = (
        rows.double() / rows.double().norm(dim=-1, keepdim=True) for rows in (found_LH, exact_LH)
    )
    return (first * second).sum(dim=-1).nan_to_num(0.0)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_only_the_margin_survives_saturation(dtype: torch.dtype, tolerance: float, classes: int) -> None:
    """At margin 30, p(1 − p) = 9e-14, and 1 − p is 0 in fp32 and in bf16.

    A relative error e of a gradient turns it by at most e, and 1 − cos ≤ e²/2: 1e-4 allows e = 1.4 %, 1e-2 allows
    14 %. A rounding is 2⁻²⁴ or 2⁻⁹, about 100 of them follow one another and the three layers amplify them some
    ten times: √100 · 10 · 2⁻²⁴ = 6e-6 and · 2⁻⁹ = 20 % if nothing averaged out; 2e-6 and 7 % were the largest
    seen. The reference is the same model, weights rounded alike, in float64.
    """
    margins, probabilities = [], []
    for place in range(len(LENGTHS)):
        row = take_rows(ragged_batch(LENGTHS), [place])
        model = sure_model(row, classes=classes, margin=30.0)
        rounded = copy.deepcopy(model).to(dtype)
        margin, exact_LH = at_embedding(copy.deepcopy(rounded).double(), row, margins_BV)
        assert margin.item() == pytest.approx(30.0, rel=0.1)  # weights rounded to bf16
        margins.append(cosines_L(at_embedding(rounded, row, margins_BV)[1], exact_LH))
        probabilities.append(cosines_L(at_embedding(rounded, row, probabilities_BV)[1], exact_LH))
    assert torch.cat(margins).min() > 1 - tolerance
    # what is left of it is turned by 18 degrees at least, by more than 40 on half of the tokens
    assert torch.cat(probabilities).max() < 0.95
    assert torch.cat(probabilities).median() < 0.75


@pytest.mark.parametrize("margin", [1.0, 3.0])
def test_both_forms_have_one_direction_where_the_model_is_not_sure(margin: float) -> None:
    """∇p = p(1 − p)·∇m: other lengths, the same direction. Float64: 1e-16 over some 1e3 operations."""
    row = take_rows(ragged_batch(LENGTHS), [0])
    model = sure_model(row, classes=3, margin=margin)
    found, by_margin_LH = at_embedding(model, row, margins_BV)
    p, by_probability_LH = at_embedding(model, row, probabilities_BV)
    assert found.item() == pytest.approx(margin, rel=0.01)
    assert (by_margin_LH.norm(dim=-1) / by_probability_LH.norm(dim=-1) > 2).all()
    assert torch.allclose(p * (1 - p) * by_margin_LH, by_probability_LH, rtol=1e-9, atol=1e-13)


def test_the_probability_form_is_right_in_float64_at_that_margin() -> None:
    """So that what fails above is the precision and nothing else; 1 − p = 9e-14 keeps 3 digits there."""
    row = take_rows(ragged_batch(LENGTHS), [0])
    model = sure_model(row, classes=2, margin=30.0)
    _, exact_LH = at_embedding(model, row, margins_BV)
    _, found_LH = at_embedding(model, row, probabilities_BV)
    assert found_LH.norm() < 1e-10 * exact_LH.norm()
    assert cosines_L(found_LH, exact_LH).min() > 1 - 1e-4
