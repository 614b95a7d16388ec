"""The bookkeeping of an objective: which terms, which weights, what each sum is divided by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill_dist.objectives.alignment import unit_rows
from distill_dist.objectives.objective import METHODS, Objective, Terms, count_of
from distill_dist.records import Batch, BatchCounts, SignalSpec, StudentOutput, TeacherSignal

LENGTHS = (4, 2, 3)


def batch() -> Batch:
    lengths_B = torch.tensor(LENGTHS)
    mask_BL = (torch.arange(4) < lengths_B[:, None]).long()
    zeros_BL = torch.zeros(3, 4, dtype=torch.long)
    real_B = torch.ones(3, dtype=torch.bool)
    return Batch(torch.arange(3), zeros_BL, mask_BL, zeros_BL, torch.tensor([0, 1, 1]), real_B)


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student() -> StudentOutput:
    mask_BL1 = batch().attention_mask_BL[..., None]
    found = (
        rows(3, 2, seed=0),
        rows(3, 2, 5, seed=1),
        rows(3, 2, 5, seed=2),
        rows(3, 4, 5, seed=3) * mask_BL1,
    )
    return StudentOutput(*(tensor.requires_grad_(True) for tensor in found))


def teacher() -> TeacherSignal:
    mask_BL1 = batch().attention_mask_BL[..., None]
    embedding, norms = unit_rows(rows(3, 4, 5, seed=13) * mask_BL1)
    cls_states, cls_gradients = (unit_rows(rows(3, 2, 5, seed=seed))[0] for seed in (11, 12))
    return TeacherSignal(rows(3, 2, seed=10), cls_states, cls_gradients, embedding, norms)


EVERYTHING = Objective(METHODS["gkd_cls"], kd=0.4, patience=7.0, gradient=0.3, temperature=2.0)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("finetune", {"cross_entropy": 1.0}),
        ("kd", {"cross_entropy": 0.6, "distillation": 0.4}),
        ("pkd", {"cross_entropy": 0.6, "distillation": 0.4, "patience": 7.0}),
        ("gkd", {"cross_entropy": 0.6, "distillation": 0.4, "gradient_embedding": 0.3}),
        (
            "gkd_cls",
            {"cross_entropy": 0.6, "distillation": 0.4, "patience": 7.0}
            | {"gradient_embedding": 0.3, "gradient_cls": 0.3},
        ),
    ],
)
def test_weights_by_method(method: str, names: dict[str, float]) -> None:
    objective = replace(EVERYTHING, terms=METHODS[method])
    assert objective.weights == pytest.approx(names)
    found = objective(student(), teacher() if method != "finetune" else None, batch())
    assert set(found.sums) == set(names)


@pytest.mark.parametrize(
    ("objective", "missing", "spec"),
    [
        (replace(EVERYTHING, gradient=0.0), {"gradient_embedding", "gradient_cls"}, SignalSpec((2, 4), True)),
        (replace(EVERYTHING, patience=0.0), {"patience"}, SignalSpec((2, 4), False, True, True)),
        (replace(EVERYTHING, kd=1.0), {"cross_entropy"}, SignalSpec((2, 4), True, True, True)),
        (replace(EVERYTHING, kd=0.0), {"distillation"}, SignalSpec((2, 4), True, True, True)),
    ],
)
def test_a_weight_of_zero_costs_nothing(objective: Objective, missing: set[str], spec: SignalSpec) -> None:
    objective = replace(objective, teacher_layers=(2, 4))
    assert EVERYTHING.weights.keys() - objective.weights.keys() == missing
    assert objective.signal_spec == spec
    assert set(objective(student(), teacher(), batch()).sums) == set(objective.weights)


def test_signal_spec_by_method() -> None:
    specs = {name: Objective(terms, teacher_layers=(2, 4)).signal_spec for name, terms in METHODS.items()}
    assert specs == {
        "finetune": None,
        "kd": SignalSpec(),
        "pkd": SignalSpec((2, 4), cls_states=True),
        "gkd": SignalSpec(embedding_gradient=True),
        "gkd_cls": SignalSpec((2, 4), True, True, True),
    }
    assert Objective(METHODS["kd"], kd=0.0).signal_spec is None  # nothing to ask, no teacher


def test_total_divides_each_sum_by_its_own_count() -> None:
    found = EVERYTHING(student(), teacher(), batch())
    counts = BatchCounts(sequences=50, tokens=700)
    expected = sum(
        EVERYTHING.weights[name] * value.item() / (700 if name == "gradient_embedding" else 50)
        for name, value in found.sums.items()
    )
    assert found.total(counts).item() == pytest.approx(expected, rel=1e-13)
    assert [count_of(name, counts) for name in ("cross_entropy", "gradient_cls", "gradient_embedding")] == [
        50,
        50,
        700,
    ]


def test_rows_add_up() -> None:
    """One batch = its rows one by one, for the sums and for the gradient."""
    outputs = student()
    whole = EVERYTHING(outputs, teacher(), batch())
    for name, value in whole.sums.items():
        assert value.item() != 0, name
        parts = []
        for row in range(3):
            real_B = torch.arange(3) == row
            parts.append(
                EVERYTHING(student(), teacher(), replace(batch(), is_real_B=real_B)).sums[name].item()
            )
        assert all(part != 0 for part in parts)
        assert value.item() == pytest.approx(sum(parts), rel=1e-13)


def test_padding_and_fillers_have_no_gradient() -> None:
    outputs = student()
    real_B = torch.tensor([True, False, True])
    EVERYTHING(outputs, teacher(), replace(batch(), is_real_B=real_B)).total(BatchCounts(2, 7)).backward()
    for field in (outputs.logits_BC, outputs.cls_states_BKH, outputs.cls_gradients_BKH):
        assert field is not None
        assert field.grad is not None
        assert (field.grad[1] == 0).all()
        assert (field.grad[[0, 2]] != 0).any(-1).all()
    embedding = outputs.embedding_gradient_BLH
    assert embedding is not None
    assert embedding.grad is not None
    moved_BL = (embedding.grad != 0).any(-1)
    assert moved_BL.tolist() == [[True] * 4, [False] * 4, [True, True, True, False]]


def test_zero_rows_count_real_positions_only() -> None:
    """Padding has no direction and is no error; a real token without one is."""
    signal = teacher()
    assert EVERYTHING(student(), signal, batch()).zero_rows.item() == 0
    assert signal.embedding_gradient_BLH is not None
    assert signal.cls_gradients_BKH is not None
    signal.embedding_gradient_BLH[0, 1] = 0.0
    signal.cls_gradients_BKH[2, 0] = 0.0
    assert EVERYTHING(student(), signal, batch()).zero_rows.item() == 2
    filler = replace(batch(), is_real_B=torch.tensor([True, True, False]))
    assert EVERYTHING(student(), signal, filler).zero_rows.item() == 1


def test_gradcheck() -> None:
    outputs = student()

    assert outputs.cls_states_BKH is not None
    assert outputs.cls_gradients_BKH is not None

    def total(logits: Tensor, states: Tensor, cls: Tensor, embedding: Tensor) -> Tensor:
        output = StudentOutput(logits, states, cls, _masked(embedding))
        return EVERYTHING(output, teacher(), batch()).total(BatchCounts(3, 9))

    # padding rows of zero have no derivative to compare with: they are filled, then masked inside
    embedding = rows(3, 4, 5, seed=3).requires_grad_(True)
    inputs = (outputs.logits_BC, outputs.cls_states_BKH, outputs.cls_gradients_BKH, embedding)
    assert torch.autograd.gradcheck(total, inputs)


def _masked(rows_BLH: Tensor) -> Tensor:
    return rows_BLH * batch().attention_mask_BL[..., None]


def test_terms_are_off_unless_named() -> None:
    assert Objective(Terms()).weights == {"cross_entropy": 1.0}
