"""Objectives of every kind, a student and a teacher to try them on, and what a step of the student gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from reference import Weights
from tiny_encoders import ragged_batch, tiny_encoder, undecided
from torch import Tensor

from distill_dist.models.encoder import encoder_parts
from distill_dist.models.width_maps import WidthMaps
from distill_dist.objectives.objective import METHODS, LossTerms, Objective
from distill_dist.records import Batch, BatchCounts, NoiseSpec, TeacherSignal
from distill_dist.student import Route, StudentStep
from distill_dist.teacher.compute import compute_signal

LENGTHS = (9, 3, 7, 12, 5)
TEACHER_LAYERS, STUDENT_LAYERS = (2, 4), (1, 2)
NOISE = NoiseSpec(std=0.2, draws=2, seed=3)
SIGNALS = ("own_max", "teacher_max", "label", "all_classes")

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A method, where it matches gradients (None: where it does by itself), and what stands beside it."""

    method: str
    positions: tuple[bool, bool] | None = None  # at the embedding, at [CLS]
    attribution: float = 0.0
    noise: float = 0.0

    @property
    def at(self) -> tuple[bool, bool]:
        """(at the embedding, at [CLS]) of METHOD.md §1, unless said otherwise."""
        own = {"gkd": (True, False), "gkd_cls": (True, True)}
        return self.positions or own.get(self.method, (False, False))

    @property
    def has_layers(self) -> bool:
        """Whether layers are matched."""
        return self.at[1] or self.method in ("pkd", "gkd_cls")


CASES = {
    **{method: Case(method) for method in METHODS},
    "gkd at cls": Case("gkd", (False, True)),
    "gkd at both": Case("gkd", (True, True)),
    "gkd_cls at embedding": Case("gkd_cls", (True, False)),
    "gkd_cls at cls": Case("gkd_cls", (False, True)),
    "kd + attribution": Case("kd", attribution=0.9),
    "pkd + attribution": Case("pkd", attribution=0.9),
    "kd + noise": Case("kd", noise=0.8),
    "everything": Case("gkd_cls", attribution=0.9, noise=0.8),
}
MATCH_DIRECTIONS = tuple(name for name, case in CASES.items() if any(case.at))
ALIGNED = (*MATCH_DIRECTIONS, "kd + attribution", "pkd + attribution")


def objective_of(name: str, *, signal: str = "own_max", per_class: bool = False, **more: Any) -> Objective:
    """Weights under which no term hides behind another."""
    case = CASES[name]
    at_embedding, at_cls = case.at
    found = Objective(
        replace(METHODS[case.method], embedding_gradient=at_embedding, cls_gradients=at_cls),
        kd=0.3,
        patience=20.0,
        gradient=0.7,
        attribution=case.attribution,
        noise=case.noise,
        temperature=2.5,
        kd_per_class=per_class,
        signal=signal,
        noise_spec=NOISE if case.noise else None,
        teacher_layers=TEACHER_LAYERS if case.has_layers else (),
        student_layers=STUDENT_LAYERS if case.has_layers else (),
    )
    return replace(found, **more)


def weights_of(name: str, *, signal: str = "own_max", per_class: bool = False, **more: Any) -> Weights:
    """The same in the reference's words, from METHOD.md §1 and §6."""
    case = CASES[name]
    found = Weights(temperature=2.5, per_class=per_class, signal=signal)
    if case.method != "finetune":
        found = replace(found, alpha=0.3, attribution=case.attribution, noise=case.noise, noise_spec=NOISE)
    if case.method in ("pkd", "gkd_cls"):
        found = replace(found, patience=20.0)
    if case.has_layers:
        found = replace(found, teacher_layers=TEACHER_LAYERS, student_layers=STUDENT_LAYERS)
    at_embedding, at_cls = case.at
    return replace(found, embedding=0.7 * at_embedding, cls=0.7 * at_cls, **more)


def models(dtype: torch.dtype = torch.float64, *, classes: int = 3) -> tuple[Any, Any]:
    """A student of 3 layers and its teacher of 6; neither predicts one class alone."""
    batch = ragged_batch(LENGTHS, classes=classes)
    student, teacher = (
        undecided(tiny_encoder("bert", layers=layers, seed=seed, classes=classes), batch)
        for layers, seed in ((3, 1), (6, 2))
    )
    return student.to(dtype), teacher.requires_grad_(False).to(dtype)


def counts_of(batch: Batch) -> BatchCounts:
    """Of a batch that is a whole global batch."""
    real = batch.is_real_B
    return BatchCounts(sequences=int(real.sum()), tokens=int(batch.attention_mask_BL[real].sum()))


def signal_of(teacher: Any, objective: Objective, batch: Batch) -> TeacherSignal | None:
    """What the teacher sends for it."""
    spec = objective.signal_spec
    if spec is None:
        return None
    labels_B = batch.labels_B if spec.needs_labels else None
    # not filled up: a ModernBERT in float64 is NaN where its window sees padding alone (tiny_encoders.py)
    return compute_signal(
        encoder_parts(teacher),
        *batch.inputs,
        spec,
        labels_B=labels_B,
        min_rows=1,
        min_length=1,
        length_step=1,
    )


def step(
    student: Any,
    teacher: Any,
    objective: Objective,
    batch: Batch,
    *,
    route: Route | None = None,
    counts: BatchCounts | None = None,
    maps: WidthMaps | None = None,
) -> LossTerms:
    """The terms of one micro-batch, by plain double backward unless a route is given."""
    signal = signal_of(teacher, objective, batch)
    found = StudentStep(encoder_parts(student), objective, route or Route(), maps)
    return found.loss_terms(batch, signal, counts or counts_of(batch))


def gradients(model: torch.nn.Module, loss: Tensor) -> Gradients:
    """Of every parameter that is trained; zeros where the loss does not reach."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def difference(keeps_graph: bool, step: float = 1e-3) -> Route:
    """A central difference."""
    return Route("central_difference", step=step, keeps_graph=keeps_graph)


def assert_second_order(
    student: Any,
    teacher: Any,
    objective: Objective,
    batch: Batch,
    *,
    maps: WidthMaps | None = None,
    beside: Any | None = None,
    step_h: float = 1e-3,
    rounding: float = 1e-16,
) -> None:
    """Both kinds of central difference give double backward's values, and its gradient with a second-order error.

    How far it may be off is derived from the difference itself. Its error is e(h) = a·h² + O(h⁴) in the step h, so
    the change from h to 2h is 3a·h² and its third is e(h). A wrong factor, sign, row, class or view is an error
    that does not shrink with h: it would be in g(h) and in g(2h) alike, and so not in their difference.
    ``rounding`` is that of the model's arithmetic; a difference divides it by h. ``beside``: the student with
    another kernel, of which the difference is taken; double backward always is ``student``'s.
    """
    counts = counts_of(batch)

    def trained(model: Any) -> torch.nn.ModuleList:
        return torch.nn.ModuleList([model] if maps is None else [model, maps])

    exact = step(student, teacher, objective, batch, maps=maps)
    expected = gradients(trained(student), exact.total(counts))
    beside = student if beside is None else beside
    assert exact.zero_rows.item() == 0.0
    for keeps_graph in (True, False):
        found = []
        for h in (step_h, 2 * step_h):
            route = difference(keeps_graph, h)
            terms = step(beside, teacher, objective, batch, route=route, maps=maps)
            assert terms.sums.keys() == exact.sums.keys()
            for name, value in exact.sums.items():
                assert torch.allclose(terms.sums[name], value, rtol=1e4 * rounding, atol=0), name
            assert torch.allclose(terms.total(counts), exact.total(counts), rtol=1e4 * rounding, atol=0)
            found.append(gradients(trained(beside), terms.total(counts)))
        error, change = relative_error(found[0], expected), relative_error(found[1], found[0])
        assert error < 1e-2
        # 10 %: the fourth order; some 1e3 roundings, over h
        least = 1e3 * rounding / step_h
        assert error < 1.1 * change / 3 + least
        assert abs(relative_error(found[1], expected) - 4 * error) < 0.8 * error + least


def norm_of(tensors: Iterable[Tensor]) -> float:
    """L2 over all of them."""
    return torch.cat([tensor.flatten().double() for tensor in tensors]).norm().item()


def relative_error(found: Gradients, expected: Gradients) -> float:
    """‖found − expected‖ / ‖expected‖ over all parameters."""
    assert found.keys() == expected.keys()
    differences = [found[name].double() - gradient.double() for name, gradient in expected.items()]
    return norm_of(differences) / norm_of(expected.values())
