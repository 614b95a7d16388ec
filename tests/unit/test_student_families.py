"""Both routes on every family, by its own kernels, and under activation checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from student_cases import (
    LENGTHS,
    assert_second_order,
    counts_of,
    difference,
    gradients,
    objective_of,
    relative_error,
    step,
)
from tiny_encoders import FAMILIES, WITH_SDPA, pad_token, ragged_batch, take_rows, tiny_encoder, undecided

from distill_dist.models.build import set_checkpointing
from distill_dist.models.encoder import encoder_parts
from distill_dist.records import Batch
from distill_dist.student import Route

# Models that differ from their family's first example where the hooks sit.
SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "electra with narrow embeddings": ("electra", {"embedding_size": 12}),
    "deberta with a convolution": ("deberta-v2", {"conv_kernel_size": 3}),
    "modernbert with a mean": ("modernbert", {"classifier_pooling": "mean"}),
}
CASES = (*FAMILIES, *SPECIAL)


def family_of(case: str) -> str:
    return SPECIAL.get(case, (case, {}))[0]


def batch_of(case: str) -> Batch:
    """Short enough that no window of a ModernBERT in float64 holds padding alone (tiny_encoders.py)."""
    return ragged_batch((8, 3, 6), pad=pad_token(family_of(case)))


def pair(case: str, **more: Any) -> tuple[Any, Any]:
    """(student of 3 layers, teacher of 6) of one family."""
    student, teacher = (
        undecided(
            tiny_encoder(
                family_of(case), layers=layers, seed=seed, **SPECIAL.get(case, (case, {}))[1], **more
            ),
            batch_of(case),
        )
        for layers, seed in ((3, 1), (6, 2))
    )
    return student, teacher.requires_grad_(False)


def name_for(student: Any) -> str:
    return "gkd_cls" if encoder_parts(student).pools_cls else "gkd"


def arithmetic(case: str) -> dict[str, Any]:
    """ModernBERT's softmax and rotations are fp32 whatever its weights: 2.6e-8 / h was seen; 4 times that passes."""
    return {"step_h": 5e-3, "rounding": 1e-10} if case.startswith("modernbert") else {}


@pytest.mark.parametrize("case", CASES)
def test_both_routes_agree(case: str) -> None:
    student, teacher = pair(case)
    assert name_for(student) == ("gkd" if "mean" in case else "gkd_cls")
    assert_second_order(student, teacher, objective_of(name_for(student)), batch_of(case), **arithmetic(case))


@pytest.mark.parametrize("case", CASES)
def test_attribution_agrees_too(case: str) -> None:
    student, teacher = pair(case)
    assert_second_order(
        student, teacher, objective_of("kd + attribution"), batch_of(case), **arithmetic(case)
    )


@pytest.mark.parametrize("family", WITH_SDPA)
def test_a_fused_kernel_has_a_difference_and_no_second_derivative(family: str) -> None:
    student, teacher = pair(family)
    fused, _ = pair(family, attention="sdpa")
    objective, batch = objective_of("gkd_cls"), batch_of(family)
    with pytest.raises(RuntimeError, match="not implemented"):
        gradients(fused, step(fused, teacher, objective, batch).total(counts_of(batch)))
    assert_second_order(student, teacher, objective, batch, beside=fused, **arithmetic(family))


@pytest.mark.parametrize("name", ["gkd_cls", "everything"])
@pytest.mark.parametrize("case", CASES)
def test_checkpointing_changes_nothing(case: str, name: str) -> None:
    """Layers run again in the backward, with the same points and the same displacements: float64's last bits."""
    student, teacher = pair(case)
    if name == "gkd_cls":
        name = name_for(student)
    elif not encoder_parts(student).pools_cls:
        name = "kd + attribution"
    batch, objective = batch_of(case), objective_of(name)
    student.train()  # checkpoints are of training alone; dropout is 0
    layer, runs = encoder_parts(student).layers[1], []
    inner = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
    inner.register_forward_hook(lambda *_: runs.append(1))
    for route, rounding in ((Route(), 1e-12), (difference(True), 1e-9), (difference(False), 1e-9)):
        found, times = [], []
        for on in (False, True):
            set_checkpointing(student, on=on)
            runs.clear()
            loss = step(student, teacher, objective, batch, route=route).total(counts_of(batch))
            found.append(gradients(student, loss))
            times.append(len(runs))
        assert times[1] > times[0]
        # ModernBERT: a difference of fp32 roundings, which may fall otherwise
        bound = 1e-4 if case.startswith("modernbert") and route.name != "double_backward" else rounding
        assert relative_error(found[1], found[0]) < bound


def test_a_kink_has_no_difference() -> None:
    """DistilBERT's head has a ReLU. Where x + εv and x − εv lie on two sides of it, the jump of a derivative is
    divided by 2ε: with steps that are harmless for every other family the error is many times the gradient.
    Double backward does not see the kink. The probe stops such a run where its few rows show it.
    """
    errors = {}
    for family in ("bert", "distilbert"):
        batch = ragged_batch(LENGTHS)
        student, teacher = (
            undecided(tiny_encoder(family, layers=layers, seed=seed), batch)
            for layers, seed in ((3, 1), (6, 2))
        )
        teacher.requires_grad_(False)
        objective, counts = objective_of("gkd_cls"), counts_of(batch)
        exact = gradients(student, step(student, teacher, objective, batch).total(counts))
        for h in (1e-3, 1e-2):
            loss = step(student, teacher, objective, batch, route=difference(True, h)).total(counts)
            errors[family, h] = relative_error(gradients(student, loss), exact)
    assert errors["bert", 1e-3] < errors["bert", 1e-2] < 1e-3
    assert errors["distilbert", 1e-3] < 1e-4
    assert errors["distilbert", 1e-2] > 1


def test_deberta_compares_no_padding() -> None:
    """Its convolution reads the padding behind a row: gradients there are not 0, and must not count."""
    case = "deberta with a convolution"
    student, teacher = pair(case)
    objective = objective_of("gkd")
    whole = step(student, teacher, objective, batch_of(case)).sums["gradient_embedding"].item()
    alone = [take_rows(batch_of(case), [row]) for row in range(3)]
    rows = [step(student, teacher, objective, row).sums["gradient_embedding"].item() for row in alone]
    assert whole == pytest.approx(sum(rows), rel=1e-10)
