"""λ per row in the objective: against METHOD.md §4 row by row, against a constant λ, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from distill_dist.objectives.alignment import unit_rows
from distill_dist.objectives.objective import ALIGNED, METHODS, LossTerms, Objective, Terms
from distill_dist.records import Batch, BatchCounts, SignalSpec, StudentOutput, TeacherSignal

LENGTHS = (4, 2, 3, 1)
REAL = (True, True, True, False)
# Multiples of 1/8, λ_max = ½: λ, 1 − λ and λ/λ_max are exact in fp32, so that float64 terms are held to float64.
RELIANCE = (0.125, 0.375, 0.0, 1.0)
B, L, C, K, H, DRAWS = 4, 4, 3, 2, 5, 2
COUNTS = BatchCounts(sequences=50, tokens=700)
LARGEST = 0.5
DISTILS = tuple(name for name in METHODS if name != "finetune")


def batch(reliance: tuple[float, ...] | None = RELIANCE, **changed: Any) -> Batch:
    mask_BL = (torch.arange(L) < torch.tensor(LENGTHS)[:, None]).long()
    zeros_BL = torch.zeros(B, L, dtype=torch.long)
    labels_B, real_B = torch.tensor([0, 2, 1, 1]), torch.tensor(REAL)
    found = Batch(torch.arange(B), zeros_BL, mask_BL, zeros_BL, labels_B, real_B)
    return replace(found, reliance_B=None if reliance is None else torch.tensor(reliance), **changed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_BLXX() -> Tensor:
    return batch().attention_mask_BL[..., None, None]


def student() -> StudentOutput:
    found = (
        normal(B, C, seed=0),
        normal(B, K, H, seed=1),
        normal(B, K, 1, H, seed=2),
        normal(B, L, 1, H, seed=3) * mask_BLXX(),
        normal(B, L, C, seed=4),
        normal(B, DRAWS, C, seed=5),
    )
    return StudentOutput(*(tensor.requires_grad_(True) for tensor in found))


def teacher() -> TeacherSignal:
    embedding, norms = unit_rows(normal(B, L, 1, H, seed=13) * mask_BLXX())
    return TeacherSignal(
        normal(B, C, seed=10),
        cls_states_BKH=unit_rows(normal(B, K, H, seed=11))[0],
        cls_gradients_BKVH=unit_rows(normal(B, K, 1, H, seed=12))[0],
        embedding_gradient_BLVH=embedding,
        embedding_gradient_norm_BLV=norms,
        attribution_BLC=normal(B, L, C, seed=14),
        noisy_logits_BDC=normal(B, DRAWS, C, seed=15),
    )


def objective(method: str = "gkd_cls", *, scaled: bool = True, **changed: Any) -> Objective:
    found = Objective(METHODS[method], kd=0.25, patience=7.0, gradient=0.3, temperature=2.0)
    return replace(found, **{"per_row": True, "scale_alignment": LARGEST if scaled else None, **changed})


def everything(**changed: Any) -> Objective:
    return objective(attribution=0.6, noise=0.8, **changed)


def reference(method: str, *, scaled: bool) -> Tensor:
    """METHOD.md §1 and §4, row by row; divided by the counts of a larger global batch."""
    ours, theirs, rows = student(), teacher(), batch()
    total = torch.zeros((), dtype=torch.float64)
    for i in (i for i in range(B) if REAL[i]):
        reliance = RELIANCE[i]
        scale = reliance / LARGEST if scaled else 1.0
        ce = -ours.logits_BC[i].softmax(0)[rows.labels_B[i]].log()
        p, q = (theirs.logits_BC[i] / 2).softmax(0), (ours.logits_BC[i] / 2).softmax(0)
        total = total + ((1 - reliance) * ce + reliance * 4 * (p * (p / q).log()).sum()) / 50
        pairs = [
            (ours.cls_states_BKH, theirs.cls_states_BKH, 7.0 / (K * H * 50), METHODS[method].patience),
            (ours.cls_gradients_BKVH, theirs.cls_gradients_BKVH, 0.3 / 50, METHODS[method].cls_gradients),
            (
                ours.embedding_gradient_BLVH,
                theirs.embedding_gradient_BLVH,
                0.3 / 700,
                METHODS[method].embedding_gradient,
            ),
        ]
        for s, t, weight, there in pairs:
            assert s is not None
            assert t is not None
            if there:  # padding is zero in both and adds nothing
                total = total + scale * weight * (normalize(s[i], dim=-1, eps=1e-99) - t[i]).square().sum()
    return total


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("method", DISTILS)
def test_every_row_has_its_own_weights(method: str, scaled: bool) -> None:
    """Value: 1e-13 of some hundred float64 operations."""
    found = objective(method, scaled=scaled)(student(), teacher(), batch())
    assert found.total(COUNTS).item() == pytest.approx(reference(method, scaled=scaled).item(), rel=1e-13)


def test_scaling_is_seen_where_there_is_something_to_scale() -> None:
    """Else the comparison above could not tell."""
    values = {(m, scaled): reference(m, scaled=scaled).item() for m in DISTILS for scaled in (False, True)}
    assert values["kd", False] == values["kd", True]
    assert len({round(value, 12) for value in values.values()}) == 2 * len(DISTILS) - 1


def sums(terms: LossTerms) -> dict[str, float]:
    return {name: value.item() for name, value in terms.sums.items()}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("alignment", [1.0, 2.5])
def test_plain_sums_stay_plain(scaled: bool, alignment: float) -> None:
    """What is logged can be compared with any other run's; what is trained on differs."""
    constant = everything(per_row=False, scale_alignment=None)
    plain = constant(student(), teacher(), batch(None, alignment=alignment))
    found = everything(scaled=scaled)(student(), teacher(), batch(alignment=alignment))
    assert plain.row_weighted == {}
    assert sums(found) == sums(plain)
    by_row = {"cross_entropy", "distillation"}
    if scaled:
        by_row |= {"patience", "gradient_embedding", "gradient_cls"}
    assert found.row_weighted.keys() == by_row
    for name, value in found.row_weighted.items():
        assert value.item() != pytest.approx(found.sums[name].item(), rel=1e-3)
    assert torch.equal(found.zero_rows, plain.zero_rows)


@pytest.mark.parametrize("alignment", [1.0, 2.5])
def test_the_share_of_some_terms_is_the_weighted_one(alignment: float) -> None:
    """A central difference takes its direction from it: β, the row's λ/λ_max and the aligned share, all of them."""
    found = everything()(student(), teacher(), batch(alignment=alignment))
    scale_B = [reliance / LARGEST for reliance in RELIANCE]
    rows = []
    for i in range(B):
        alone = batch(alignment=alignment, is_real_B=torch.arange(B) == i)
        rows.append(everything()(student(), teacher(), alone).sums)
    at_e = sum(s * row["gradient_embedding"].item() for s, row in zip(scale_B[:3], rows[:3], strict=True))
    at_cls = sum(s * row["gradient_cls"].item() for s, row in zip(scale_B[:3], rows[:3], strict=True))
    saliency = sum(row["attribution"].item() for row in rows[:3])
    expected = 0.3 * at_e / 700 + 0.3 * at_cls / 50 + 0.6 * saliency / 50
    assert found.share_of(ALIGNED, COUNTS).item() == pytest.approx(expected, rel=1e-12)
    named = everything()(student(), teacher(), batch(alignment=alignment), names=ALIGNED)
    assert torch.equal(named.share_of(ALIGNED, COUNTS), found.share_of(ALIGNED, COUNTS))
    others = tuple(name for name in found.sums if name not in ALIGNED)
    both = found.share_of(ALIGNED, COUNTS) + found.share_of(others, COUNTS)
    assert both.item() == pytest.approx(found.total(COUNTS).item(), rel=1e-13)


@pytest.mark.parametrize("method", DISTILS)
@pytest.mark.parametrize(("alpha", "tolerance"), [(0.25, 1e-13), (0.3, 3e-7), (0.0, 1e-13), (1.0, 1e-13)])
def test_one_lambda_for_all_rows_is_the_constant(method: str, alpha: float, tolerance: float) -> None:
    """In fp32 α = 0.3 is off by 2⁻²⁶ and 1 − λ by 2⁻²⁵ more: less than 1e-7 of either term; the others are exact.

    Gradients of the two may cancel to a third of the larger one: 3e-7.
    """
    constant = objective(method, kd=alpha, per_row=False, scale_alignment=None)
    outputs = student(), student()
    expected = constant(outputs[0], teacher(), batch(None)).total(COUNTS)
    found = objective(method, scaled=False)(outputs[1], teacher(), batch((alpha,) * B)).total(COUNTS)
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    leaves = [[out.logits_BC, out.cls_states_BKH] for out in outputs]
    gradients = [
        torch.autograd.grad(total, its, allow_unused=True)  # type: ignore[arg-type]
        for total, its in zip((expected, found), leaves, strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.allclose(one, other, rtol=0, atol=tolerance * float(one.abs().max()))


def test_lambda_at_its_largest_leaves_alignment_as_it_is() -> None:
    found = objective()(student(), teacher(), batch((LARGEST,) * B))
    plain = objective(scaled=False)(student(), teacher(), batch((LARGEST,) * B))
    assert found.total(COUNTS).item() == pytest.approx(plain.total(COUNTS).item(), rel=1e-15)


def test_without_lambda_nothing_changes() -> None:
    """Bit for bit, whatever the objective would do with one; so does the gradient."""
    constant = everything(per_row=False, scale_alignment=None)
    outputs = [student(), student()]
    totals = [
        which(out, teacher(), batch(None)).total(COUNTS)
        for which, out in zip((constant, everything()), outputs, strict=True)
    ]
    assert torch.equal(*totals)
    for total in totals:
        total.backward()
    assert outputs[0].logits_BC.grad is not None
    assert torch.equal(outputs[0].logits_BC.grad, outputs[1].logits_BC.grad)  # type: ignore[arg-type]


def test_fillers_and_rows_without_reliance_get_nothing() -> None:
    """λ = 0: no distillation and no alignment; λ = 1: no cross-entropy; a filler: nothing, whatever its λ."""
    outputs = student()
    objective()(outputs, teacher(), batch((0.0, 0.5, 0.5, 1.0))).total(COUNTS).backward()
    for leaf in (outputs.cls_states_BKH, outputs.cls_gradients_BKVH, outputs.embedding_gradient_BLVH):
        assert leaf is not None
        assert leaf.grad is not None
        moved = leaf.grad.flatten(1).any(dim=-1)
        assert moved.tolist() == [False, True, True, False]
    assert outputs.logits_BC.grad is not None
    assert outputs.logits_BC.grad.any(dim=-1).tolist() == [True, True, True, False]
    kept = batch((1.0, 1.0, 1.0, 1.0), labels_B=torch.zeros(B, dtype=torch.long))
    moved_labels = replace(kept, labels_B=torch.full((B,), 2))
    values = [objective()(student(), teacher(), each).total(COUNTS) for each in (kept, moved_labels)]
    assert torch.equal(*values)


def test_nothing_real_gives_zero() -> None:
    outputs = student()
    nobody = batch(is_real_B=torch.zeros(B, dtype=torch.bool))
    total = everything()(outputs, teacher(), nobody).total(COUNTS)
    total.backward()
    assert total.item() == 0.0
    assert outputs.logits_BC.grad is not None
    assert not outputs.logits_BC.grad.any()


def test_rows_add_up() -> None:
    """One batch = its rows one by one, each with its own λ."""
    whole = everything()(student(), teacher(), batch()).total(COUNTS).item()
    parts = [
        everything()(student(), teacher(), batch(is_real_B=torch.arange(B) == i)).total(COUNTS).item()
        for i in range(3)
    ]
    assert whole == pytest.approx(sum(parts), rel=1e-13)


def test_gradcheck() -> None:
    outputs = student()
    filled = normal(B, L, 1, H, seed=3).requires_grad_(True)  # zeros of padding have no derivative

    def total(logits: Tensor, states: Tensor, cls: Tensor, embedding: Tensor) -> Tensor:
        output = replace(
            outputs,
            logits_BC=logits,
            cls_states_BKH=states,
            cls_gradients_BKVH=cls,
            embedding_gradient_BLVH=embedding * mask_BLXX(),
        )
        return objective()(output, teacher(), batch()).total(BatchCounts(3, 9))

    states, cls = outputs.cls_states_BKH, outputs.cls_gradients_BKVH
    assert states is not None
    assert cls is not None
    assert torch.autograd.gradcheck(total, (outputs.logits_BC, states, cls, filled))


@pytest.mark.parametrize("kd", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("method", DISTILS)
def test_both_terms_are_there_whatever_the_constant(method: str, kd: float) -> None:
    """What is asked of the teacher, cached and logged is settled before any batch."""
    found = objective(method, kd=kd)
    usual = objective(method, per_row=False, scale_alignment=None)
    assert found.weights == usual.weights | {"cross_entropy": 1 - kd, "distillation": kd}
    assert found.weights.keys() == usual.weights.keys()
    assert found.signal_spec == usual.signal_spec is not None
    assert found(student(), teacher(), batch()).sums.keys() == found.weights.keys()
    assert objective("kd", kd=0.0).signal_spec == SignalSpec()


def test_logits_come_without_their_graph() -> None:
    outputs = student()
    for found in (objective()(outputs, teacher(), batch()), Objective(Terms())(outputs, None, batch(None))):
        assert found.logits_BC is not None
        assert torch.equal(found.logits_BC, outputs.logits_BC)
        assert not found.logits_BC.requires_grad


def test_lambda_needs_an_objective_that_expects_it() -> None:
    with pytest.raises(AssertionError, match="per_row"):
        objective(per_row=False, scale_alignment=None)(student(), teacher(), batch())
    for refused in (
        {"terms": METHODS["finetune"]},
        {"per_row": False},
        {"scale_alignment": 0.0},
    ):
        with pytest.raises(AssertionError):
            objective(**refused)
