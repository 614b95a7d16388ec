"""Terms of several teachers that stay separate (METHOD.md §7): Σ_i w_i of the term against teacher i."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from distill_dist.objectives.join_signals import mean_logits
from distill_dist.objectives.objective import METHODS, Objective
from distill_dist.records import BatchCounts, JoinedSignal, StudentOutput, TeacherSignal
from objectives.test_reliance_terms import (
    COUNTS,
    DISTILS,
    B,
    H,
    L,
    batch,
    everything,
    mask_BLXX,
    normal,
    objective,
    student,
    teacher,
)

WEIGHTS = (0.625, 0.375)


def teachers() -> tuple[TeacherSignal, TeacherSignal]:
    """Two that differ in everything."""
    one = teacher()

    def turned(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.flip(-1)

    other = replace(
        one,
        logits_BC=one.logits_BC.flip(-1),
        cls_states_BKH=turned(one.cls_states_BKH),
        cls_gradients_BKVH=turned(one.cls_gradients_BKVH),
        embedding_gradient_BLVH=turned(one.embedding_gradient_BLVH),
        attribution_BLC=turned(one.attribution_BLC),
        noisy_logits_BDC=turned(one.noisy_logits_BDC),
    )
    return one, other


def joined(members: tuple[TeacherSignal, ...] | None = None) -> JoinedSignal:
    """No term may read its own logits or rows where its members are separate."""
    nothing = torch.full_like(teacher().logits_BC, torch.nan)
    return JoinedSignal(nothing, members=teachers() if members is None else members)


def separate(which: Objective) -> Objective:
    return replace(which, teacher_weights=WEIGHTS)


def reference(method: str) -> Tensor:
    """Row by row, teacher by teacher, without λ per row."""
    ours, rows = student(), batch(None)
    total = torch.zeros((), dtype=torch.float64)
    for i in (i for i in range(B) if rows.is_real_B[i]):
        total = total - 0.75 * ours.logits_BC[i].softmax(0)[rows.labels_B[i]].log() / 50
        for w, theirs in zip(WEIGHTS, teachers(), strict=True):
            p, q = (theirs.logits_BC[i] / 2).softmax(0), (ours.logits_BC[i] / 2).softmax(0)
            total = total + w * 0.25 * 4 * (p * (p / q).log()).sum() / 50
            terms = METHODS[method]
            pairs = (
                (ours.cls_states_BKH, theirs.cls_states_BKH, 7.0 / (2 * H * 50) * terms.patience),
                (ours.cls_gradients_BKVH, theirs.cls_gradients_BKVH, 0.3 / 50 * terms.cls_gradients),
                (
                    ours.embedding_gradient_BLVH,
                    theirs.embedding_gradient_BLVH,
                    0.3 / 700 * terms.embedding_gradient,
                ),
            )
            for s, t, weight in pairs:
                assert s is not None
                assert t is not None
                total = total + w * weight * (normalize(s[i], dim=-1, eps=1e-99) - t[i]).square().sum()
    return total


@pytest.mark.parametrize("method", DISTILS)
def test_every_term_is_the_weighted_sum_over_teachers(method: str) -> None:
    """Value: 1e-13 of some hundred float64 operations."""
    found = separate(objective(method, per_row=False, scale_alignment=None))(student(), joined(), batch(None))
    assert found.total(COUNTS).item() == pytest.approx(reference(method).item(), rel=1e-13)


@pytest.mark.parametrize("scaled", [False, True])
def test_every_term_by_its_name(scaled: bool) -> None:
    """Attribution and noise too, and with λ per row; against the objective with one teacher."""
    which = everything(scaled=scaled)
    found = separate(which)(student(), joined(), batch())
    alone = [which(student(), each, batch()) for each in teachers()]
    assert found.sums.keys() == alone[0].sums.keys() == which.weights.keys()
    for name, value in found.sums.items():
        one, other = (each.sums[name].item() for each in alone)
        assert one != other or name == "cross_entropy"
        assert value.item() == pytest.approx(WEIGHTS[0] * one + WEIGHTS[1] * other, rel=1e-13), name
    # each one's own part, of the sequences or tokens that count, to be looked at
    assert found.of_teachers.keys() == set(separate(which).teacher_tags)
    counts = {name: int(batch().is_real_B.sum()) for name in which.weights}
    counts["gradient_embedding"] = int((batch().attention_mask_BL * batch().is_real_B[:, None]).sum())
    for n, each in enumerate(alone):
        for name in which.weights.keys() - {"cross_entropy"}:
            value, count = found.of_teachers[f"loss/{name}/teacher_{n}"]
            assert (value.item(), count.item()) == (
                pytest.approx(each.sums[name].item(), rel=1e-13),
                counts[name],
            )
            assert not value.requires_grad
    assert alone[0].of_teachers == {}
    assert which.teacher_tags == ()
    for name, value in found.row_weighted.items():
        one, other = (each.row_weighted[name].item() for each in alone)
        assert value.item() == pytest.approx(WEIGHTS[0] * one + WEIGHTS[1] * other, rel=1e-13), name


def test_gradcheck() -> None:
    outputs = student()
    filled = normal(B, L, 1, H, seed=3).requires_grad_(True)  # zeros of padding have no derivative
    given = (outputs.logits_BC, outputs.cls_states_BKH, outputs.cls_gradients_BKVH, filled)

    def total(logits: Tensor, states: Tensor, cls: Tensor, embedding: Tensor) -> Tensor:
        output = StudentOutput(logits, states, cls, embedding * mask_BLXX())
        return separate(objective())(output, joined(), batch()).total(BatchCounts(3, 9))

    assert torch.autograd.gradcheck(total, given)


def test_rows_add_up() -> None:
    """One batch = its rows one by one: any micro-batching, any number of students."""
    which = separate(everything())
    whole = which(student(), joined(), batch()).total(COUNTS).item()
    parts = [
        which(student(), joined(), batch(is_real_B=torch.arange(B) == i)).total(COUNTS) for i in range(3)
    ]
    assert whole == pytest.approx(sum(part.item() for part in parts), rel=1e-13)


def test_nothing_real_gives_zero() -> None:
    outputs = student()
    nobody = batch(is_real_B=torch.zeros(B, dtype=torch.bool))
    total = separate(everything())(outputs, joined(), nobody).total(COUNTS)
    total.backward()
    assert total.item() == 0.0
    assert outputs.logits_BC.grad is not None
    assert not outputs.logits_BC.grad.any()


def test_a_row_without_direction_in_one_teacher_is_an_error_once() -> None:
    one, other = teachers()
    assert one.embedding_gradient_BLVH is not None
    assert other.embedding_gradient_BLVH is not None
    which = separate(objective())
    assert which(student(), joined((one, other)), batch()).zero_rows.item() == 0
    first, second = one.embedding_gradient_BLVH.clone(), other.embedding_gradient_BLVH.clone()
    first[0, 1] = 0.0
    second[0, 1] = second[1, 0] = 0.0
    members = (replace(one, embedding_gradient_BLVH=first), replace(other, embedding_gradient_BLVH=second))
    assert which(student(), joined(members), batch()).zero_rows.item() == 2


@pytest.mark.parametrize("method", ["kd", "gkd"])
def test_separate_distillation_trains_as_the_average_does(method: str) -> None:
    """KL to each and KL to their mean differ by a number; matched gradients do not."""
    one, other = teachers()
    mean = replace(one, logits_BC=mean_logits([one.logits_BC, other.logits_BC], WEIGHTS, 2.0))
    which = objective(method, per_row=False, scale_alignment=None)
    outputs = student(), student()
    totals = (
        separate(which)(outputs[0], joined(), batch(None)).total(COUNTS),
        which(outputs[1], mean, batch(None)).total(COUNTS),
    )
    assert abs(totals[0].item() - totals[1].item()) > 1e-4
    for total in totals:
        total.backward()
    logits = [each.logits_BC.grad for each in outputs]
    assert torch.allclose(logits[0], logits[1], rtol=0, atol=1e-15)  # type: ignore[arg-type]
    if method == "gkd":
        directions = [each.embedding_gradient_BLVH.grad for each in outputs]  # type: ignore[union-attr]
        assert not torch.allclose(directions[0], directions[1], rtol=1e-3)  # type: ignore[arg-type]
