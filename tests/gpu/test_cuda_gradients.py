"""The gradient of the whole objective on one CUDA device, against double backward in float64 on the CPU."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from student_cases import counts_of, difference, gradients, objective_of, relative_error, signal_of
from tiny_encoders import FAMILIES, WITH_SDPA, pad_token, ragged_batch, tiny_encoder, undecided
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill_dist.models.build import set_attention
from distill_dist.models.encoder import encoder_parts
from distill_dist.records import Batch, TeacherSignal
from distill_dist.student import Route, StudentStep

DEVICE = torch.device("cuda")
# No row is so short that one of ModernBERT's windows would hold padding alone.
LENGTHS = (9, 6, 7, 8, 5)
# The CPU's own fp32 is 2e-6 to 1e-5 away, its difference 1e-4 to 2.5e-3, its bf16 0.12 to 0.14. Another device sums in
# another order; a wrong gradient is away by the size of its aligned part, some tenths.
EXACT, DIFFERENCE, BF16 = 1e-4, 5e-3, 0.2


def models(family: str) -> tuple[Any, Any, Batch]:
    """A float64 student of 3 layers, its teacher of 6 and rows that they are undecided about."""
    batch = ragged_batch(LENGTHS, pad=pad_token(family))
    student, teacher = (
        undecided(tiny_encoder(family, layers=layers, seed=seed, hidden=32), batch)
        for layers, seed in ((3, 1), (6, 2))
    )
    return student, teacher.requires_grad_(False), batch


def as_fp32(signal: TeacherSignal) -> TeacherSignal:
    """As it would come from a teacher in fp32."""
    given = {field.name: getattr(signal, field.name) for field in fields(signal)}
    return replace(signal, **{name: v.float() for name, v in given.items() if isinstance(v, torch.Tensor)})


def errors(
    family: str,
    route: Route,
    *,
    kernel: str = "eager",
    autocast: torch.dtype | None = None,
    name: str = "gkd_cls",
) -> float:
    """‖found − expected‖ / ‖expected‖ of the gradient on the device."""
    student, teacher, batch = models(family)
    objective, counts = objective_of(name), counts_of(batch)
    signal = signal_of(teacher, objective, batch)
    assert signal is not None
    exact = StudentStep(encoder_parts(student), objective)
    expected = gradients(student, exact.loss_terms(batch, signal, counts).total(counts))

    student.to(DEVICE, torch.float32)
    set_attention(student, "eager" if kernel == "eager" else "sdpa")
    beside = StudentStep(encoder_parts(student), objective, route, autocast=autocast)
    with sdpa_kernel(SDPBackend.MATH) if kernel == "math" else contextlib.nullcontext():
        terms = beside.loss_terms(batch.to(DEVICE), as_fp32(signal).to(DEVICE), counts)
        found = gradients(student, terms.total(counts))
    assert all(value.device.type == DEVICE.type for value in found.values())
    return relative_error({key: value.cpu() for key, value in found.items()}, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_double_backward_is_exact(family: str, record_property: Any) -> None:
    found = errors(family, Route())
    record_property("relative_error", found)
    assert found < EXACT


@pytest.mark.gpu
@pytest.mark.parametrize("family", WITH_SDPA)
def test_double_backward_through_the_math_kernel_is_exact(family: str) -> None:
    assert errors(family, Route(), kernel="math") < EXACT


@pytest.mark.gpu
@pytest.mark.parametrize("keeps_graph", [True, False])
@pytest.mark.parametrize("family", WITH_SDPA)
def test_a_difference_through_any_kernel_is_close(
    family: str, keeps_graph: bool, record_property: Any
) -> None:
    found = errors(family, difference(keeps_graph, 5e-3), kernel="any")
    record_property("relative_error", found)
    assert found < DIFFERENCE


@pytest.mark.gpu
@pytest.mark.parametrize("route", [Route(), difference(True, 5e-3)], ids=["double_backward", "difference"])
def test_bf16_keeps_the_direction(route: Route, record_property: Any) -> None:
    found = errors("bert", route, autocast=torch.bfloat16)
    record_property("relative_error", found)
    assert found < BF16
