"""Aligning a share of the rows: unbiased over all draws, and rows that are not drawn cost nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tiny_encoders import ragged_batch, take_rows, tiny_encoder
from torch import Tensor

from distill_dist.models.encoder import encoder_parts
from distill_dist.objectives.objective import METHODS, Objective
from distill_dist.records import BatchCounts
from distill_dist.student import Route, StudentStep
from distill_dist.teacher.local import LocalTeacher

LENGTHS = (8, 3, 6, 5)
COUNTS = BatchCounts(len(LENGTHS), sum(LENGTHS))
OBJECTIVE = Objective(
    terms=METHODS["gkd_cls"], gradient=0.1, attribution=0.5, teacher_layers=(1, 2), student_layers=(1, 2)
)


def loss_and_gradient(student: StudentStep, teacher: LocalTeacher, weights: list[float]) -> Tensor:
    """The whole gradient and the loss of rows whose aligned terms weigh ``weights``, each row a micro-batch."""
    batch = ragged_batch(LENGTHS)
    rows = [replace(take_rows(batch, [row]), alignment=weight) for row, weight in enumerate(weights)]
    spec = student.objective.signal_spec
    assert spec is not None
    total = torch.zeros((), dtype=torch.float64)
    for row, (signal,) in teacher.signals(rows, lambda row: (row,), spec, ahead=0):
        if row.alignment == 0:
            assert signal.embedding_gradient_BLVH is None, "the teacher computed what nobody asked for"
            assert signal.cls_states_BKH is not None
        total = total + student.loss_terms(row, signal, COUNTS).total(COUNTS)
    parameters = list(student.parts.model.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    zeros = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([total.detach()[None], *(gradient.flatten() for gradient in zeros)])


@pytest.mark.parametrize("route", ["double_backward", "central_difference"])
def test_the_mean_over_all_draws_is_the_whole(route: str) -> None:
    teacher = LocalTeacher(encoder_parts(tiny_encoder(layers=3, seed=1)), torch.device("cpu"))
    student = StudentStep(encoder_parts(tiny_encoder(layers=3, seed=2)), OBJECTIVE, route=Route(route))  # type: ignore[arg-type]
    whole = loss_and_gradient(student, teacher, [1.0] * 4)
    draws = [
        loss_and_gradient(student, teacher, [2.0 if row in chosen else 0.0 for row in range(4)])
        for chosen in itertools.combinations(range(4), 2)
    ]
    assert all((draw - whole).norm() > 1e-3 * whole.norm() for draw in draws)
    assert torch.allclose(torch.stack(draws).mean(dim=0), whole, rtol=0, atol=1e-10 * float(whole.norm()))
