"""`alignment.share`: rows whose gradients are matched weigh more, the others cost what they do without it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from student_cases import (
    ALIGNED,
    LENGTHS,
    SIGNALS,
    counts_of,
    difference,
    gradients,
    models,
    objective_of,
    relative_error,
    step,
)
from tiny_encoders import ragged_batch

from distill_dist.models.encoder import encoder_parts
from distill_dist.records import Batch, NoiseSpec, SignalSpec, TeacherSignal
from distill_dist.student import Route, StudentStep
from distill_dist.teacher.local import LocalTeacher

ROUTES = (Route(), difference(True), difference(False))
BATCH = ragged_batch(LENGTHS)


def each(batch: Batch) -> tuple[Batch]:
    return (batch,)


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("name", ALIGNED)
def test_a_weight_of_the_batch_is_a_weight_of_the_aligned_terms(name: str, route: Route) -> None:
    """On every route: a difference finds v from the weighted share. Its ε follows v: rounding alone."""
    student, teacher = models()
    objective, counts = objective_of(name), counts_of(BATCH)
    heavier = replace(objective, gradient=2.5 * objective.gradient, attribution=2.5 * objective.attribution)
    terms = step(student, teacher, objective, replace(BATCH, alignment=2.5), route=route)
    expected = step(student, teacher, heavier, BATCH, route=route)
    plain = step(student, teacher, objective, BATCH, route=route)
    assert terms.total(counts).item() == pytest.approx(expected.total(counts).item(), rel=1e-12)
    found = gradients(student, terms.total(counts))
    assert relative_error(found, gradients(student, expected.total(counts))) < 1e-10
    assert relative_error(found, gradients(student, plain.total(counts))) > 0.1


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", ["gkd_cls", "gkd at cls", "kd + attribution", "everything"])
def test_rows_that_are_not_aligned_ask_for_no_gradient_and_run_none(
    name: str, signal: str, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the signal reads labels: without a gradient nobody needs them."""
    student, teacher = models()
    objective = objective_of(name, signal=signal)
    spec = objective.signal_spec
    assert spec is not None
    batch = replace(BATCH, alignment=0.0)

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a gradient was asked for")

    local = LocalTeacher(encoder_parts(teacher), torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", refuse)
        ((_, (signal_of_batch,)),) = local.signals([batch], each, spec, ahead=0)
        terms = StudentStep(encoder_parts(student), objective, route).loss_terms(
            batch, signal_of_batch, counts_of(batch)
        )
    without = replace(objective, gradient=0.0, attribution=0.0)
    expected = step(student, teacher, without, BATCH)
    counts = counts_of(BATCH)
    assert terms.surrogate is None
    assert terms.total(counts).item() == pytest.approx(expected.total(counts).item(), rel=1e-12)
    found = gradients(student, terms.total(counts))
    assert relative_error(found, gradients(student, expected.total(counts))) < 1e-12


def test_a_batch_keeps_its_weight_on_the_way_to_a_device() -> None:
    batch = replace(BATCH, alignment=0.25)
    assert batch.to("cpu").alignment == batch.to("meta").alignment == 0.25


def test_every_tensor_of_a_batch_goes_to_the_device_and_what_is_not_there_stays_away() -> None:
    rows = len(BATCH.labels_B)
    whole = replace(BATCH, reliance_B=torch.linspace(0, 1, rows), positions_B=torch.arange(rows))
    for batch in (BATCH, whole):
        moved, same = batch.to("meta"), batch.to("cpu")
        for field in fields(Batch):
            value, there = getattr(batch, field.name), getattr(moved, field.name)
            assert (value is None) == (there is None), field.name
            if isinstance(value, torch.Tensor):
                assert there.device.type == "meta", field.name
                assert torch.equal(getattr(same, field.name), value), field.name
    assert BATCH.to("cpu").reliance_B is None


def test_what_is_left_of_a_spec_without_gradients() -> None:
    spec = SignalSpec((2, 4), True, True, True, "label", 3, NoiseSpec(0.1, 1, 0))
    assert spec.gradients
    assert spec.needs_labels
    found = spec.without_gradients
    assert found == SignalSpec((2, 4), cls_states=True, noise=NoiseSpec(0.1, 1, 0))
    assert not found.gradients
    assert not found.needs_labels
    assert SignalSpec((2,), cls_states=True).without_gradients == SignalSpec((2,), cls_states=True)


def test_a_teacher_computes_what_each_batch_asks_for() -> None:
    _, teacher = models()
    spec = objective_of("everything").signal_spec
    assert spec is not None
    local = LocalTeacher(encoder_parts(teacher), torch.device("cpu"))
    batches = [BATCH, replace(BATCH, alignment=0.0), replace(BATCH, alignment=4.0)]
    signals = [signal for _, (signal,) in local.signals(batches, each, spec, ahead=0)]
    gradients_of = (
        "cls_gradients_BKVH",
        "cls_gradient_norm_BKV",
        "embedding_gradient_BLVH",
        "embedding_gradient_norm_BLV",
        "attribution_BLC",
    )
    for field in fields(TeacherSignal):
        there = [getattr(signal, field.name) is not None for signal in signals]
        assert there == ([True, False, True] if field.name in gradients_of else [True] * 3), field.name
