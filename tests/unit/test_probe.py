"""The probe with an engine of one process: what it accepts, and that it sees whatever makes a gradient wrong."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from student_cases import ALIGNED, LENGTHS, difference, models, objective_of, signal_of
from tiny_encoders import ragged_batch, take_rows
from torch import Tensor, nn

from distill_dist.models.encoder import encoder_parts
from distill_dist.probe import ROWS, Probe, first_rows, probe
from distill_dist.records import Batch
from distill_dist.student import Route, StudentStep

BATCH = take_rows(ragged_batch(LENGTHS), [0, 1, 2, 3])


class Engine:
    """What the probe calls of an engine, in one process."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.last: list[bool] = []

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.last.append(last)
        loss.backward()

    def reduced_gradients(self) -> dict[str, Tensor]:
        return {name: p.grad.clone() for name, p in self.module.named_parameters() if p.grad is not None}

    def discard_gradient(self) -> None:
        self.module.zero_grad(set_to_none=True)


class Alone:
    """The only student."""

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor


def run(
    name: str = "gkd_cls",
    *,
    route: Route | None = None,
    engine: type[Engine] = Engine,
    batch: Batch = BATCH,
    dtype: torch.dtype = torch.float32,
    scale_alignment: float | None = None,
    **more: Any,
) -> tuple[Probe, Engine]:
    student, teacher = models(dtype)
    per_row = batch.reliance_B is not None
    objective = objective_of(name, per_row=per_row, scale_alignment=scale_alignment)
    signal = signal_of(teacher, objective, batch)
    assert signal is not None
    plain = StudentStep(encoder_parts(copy.deepcopy(student)), objective)
    step = StudentStep(encoder_parts(student), objective, route or Route(), **more)
    made, group = engine(student), Alone()
    found = probe(made, step, plain, batch, signal, group)  # type: ignore[arg-type]
    return found, made


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("route", [Route(), difference(True, 5e-3), difference(False, 5e-3)], ids=str)
def test_a_right_gradient_passes(name: str, route: Route) -> None:
    """fp32: 1e-5 (summation order of two micro-batches); a difference a percent at most on this curved encoder."""
    found, engine = run(name, route=route)
    assert found.whole_error <= found.aligned_error * 3
    assert found.aligned_error < (1e-4 if route.name == "double_backward" else 2e-2)
    assert found.seconds > 0
    assert engine.last == [False, True]  # accumulation over two micro-batches is part of what is tried


def test_the_engine_is_left_as_it_was() -> None:
    student, _ = models(torch.float32)
    before = copy.deepcopy(student.state_dict())
    _, engine = run()
    assert engine.reduced_gradients() == {}
    after = engine.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_frozen_embeddings_are_compared_with_nothing() -> None:
    student, teacher = models(torch.float32)
    encoder_parts(student).embeddings.requires_grad_(False)
    objective = objective_of("gkd")
    signal = signal_of(teacher, objective, BATCH)
    assert signal is not None
    plain = StudentStep(encoder_parts(copy.deepcopy(student)), objective)
    step = StudentStep(encoder_parts(student), objective)
    found = probe(Engine(student), step, plain, BATCH, signal, Alone())  # type: ignore[arg-type]
    assert found.aligned_error < 1e-4


class Halved(Engine):
    """A rank's factor is missing."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        super().backward(loss / 2, last=last)


class Clipped(Engine):
    """DeepSpeed's default."""

    def reduced_gradients(self) -> dict[str, Tensor]:
        found = super().reduced_gradients()
        norm = torch.cat([g.flatten() for g in found.values()]).norm()
        return {name: g / norm for name, g in found.items()}


class LastOnly(Engine):
    """Micro-batches before the last are lost."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        if last:
            super().backward(loss, last=last)


class MeanOfMeans(Engine):
    """Divided by the number of micro-batches once more than the counts do, and by each one's own size."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        super().backward(loss * (1.2 if last else 0.8), last=last)


class OneParameterLost(Engine):
    """Weights that were not gathered."""

    def reduced_gradients(self) -> dict[str, Tensor]:
        found = super().reduced_gradients()
        name = next(name for name in found if "layer.0.attention.self.value.weight" in name)
        return {**found, name: torch.zeros_like(found[name])}


@pytest.mark.parametrize("engine", [Halved, Clipped, LastOnly, MeanOfMeans, OneParameterLost])
def test_whatever_the_engine_does_wrong_is_far_above_tolerance(engine: type[Engine]) -> None:
    found, _ = run(engine=engine)
    assert found.aligned_error > 0.05
    assert found.whole_error > 0.005


def test_a_missing_second_derivative_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gives none in silence: the aligned terms' part is lost as a whole."""
    real = StudentStep._slopes

    def cut(self: StudentStep, *arguments: Any, twice: bool, keep: bool) -> Any:
        found = real(self, *arguments, twice=twice, keep=keep)
        return found.as_leaves() if self.parts.model.training_route == "broken" else found

    monkeypatch.setattr(StudentStep, "_slopes", cut)
    student, teacher = models(torch.float32)
    objective = objective_of("gkd_cls")
    signal = signal_of(teacher, objective, BATCH)
    assert signal is not None
    errors = []
    for kind in ("whole", "broken"):
        fresh = copy.deepcopy(student)
        plain = StudentStep(encoder_parts(copy.deepcopy(student)), objective)
        fresh.training_route, plain.parts.model.training_route = kind, "whole"  # type: ignore[assignment]
        step = StudentStep(encoder_parts(fresh), objective)
        errors.append(probe(Engine(fresh), step, plain, BATCH, signal, Alone()).aligned_error)  # type: ignore[arg-type]
    assert errors[0] < 1e-4
    assert errors[1] == pytest.approx(1.0, rel=1e-3)


class NotFinite(Engine):
    def reduced_gradients(self) -> dict[str, Tensor]:
        return {name: g * float("nan") for name, g in super().reduced_gradients().items()}


def test_what_is_not_finite_proves_nothing() -> None:
    found, _ = run(engine=NotFinite)
    assert found.aligned_error == found.whole_error == math.inf


def test_a_batch_of_fillers_proves_nothing() -> None:
    """Not a pass: the aligned terms have no gradient to be wrong about."""
    nothing = replace(BATCH, is_real_B=torch.zeros(len(BATCH.labels_B), dtype=torch.bool))
    found, _ = run(batch=nothing)
    assert found.aligned_error == math.inf


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("engine", [Engine, Halved])
def test_rows_that_rely_on_nobody_can_be_probed(rows: int, engine: type[Engine]) -> None:
    """λ of 0 on all of them, and the aligned terms scaled by it: nothing would be left to compare."""
    batch = take_rows(replace(BATCH, reliance_B=torch.zeros(len(BATCH.labels_B))), list(range(rows)))
    found, _ = run(batch=batch, scale_alignment=0.75, engine=engine)
    assert (found.aligned_error < 1e-4) == (engine is Engine)
    assert math.isfinite(found.aligned_error)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_are_enough(rows: int) -> None:
    """One row is one micro-batch and a filler."""
    found, engine = run(batch=take_rows(ragged_batch(LENGTHS), list(range(rows))))
    assert found.aligned_error < 1e-4
    assert engine.last == [False, True]


def test_first_rows_of_a_batch_and_of_its_signal() -> None:
    places_B = torch.arange(len(LENGTHS))
    whole = replace(
        ragged_batch(LENGTHS), alignment=2.0, positions_B=10 * places_B, reliance_B=places_B.float() / 8
    )
    few = first_rows(whole)
    assert few.positions_B is not None
    assert few.positions_B.tolist() == [0, 10, 20, 30]
    assert few.reliance_B is not None
    assert few.reliance_B.tolist() == [0.0, 0.125, 0.25, 0.375]
    assert first_rows(ragged_batch(LENGTHS)).reliance_B is None
    assert few.ids_B.tolist() == [0, 1, 2, 3]
    assert len(few.ids_B) == ROWS
    assert few.input_ids_BL.shape == (ROWS, 12)
    assert few.alignment == 2.0
    _, teacher = models()
    signal = signal_of(teacher, objective_of("gkd"), whole)
    assert signal is not None
    part = first_rows(signal, 2)
    assert part.logits_BC.shape == (2, 3)
    assert part.cls_states_BKH is None
