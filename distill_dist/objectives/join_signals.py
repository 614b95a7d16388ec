"""The signals of several teachers as one (METHOD.md §7): pure functions, in fp32 or better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from distill_dist.errors import UserError
from distill_dist.objectives.alignment import unit_rows
from distill_dist.objectives.conflict import gradient_cosine_B, label_disagreement_B
from distill_dist.objectives.divergences import cross_entropy_B
from distill_dist.objectives.signal import all_classes_BV, pick_views
from distill_dist.records import Batch, JoinedSignal, SignalSpec, TeacherSignal, at_least_fp32


@dataclass(frozen=True)
class Joining:
    """How signals are joined: `average`, `best` or `separate`; by ``weights`` that sum to 1."""

    how: str
    weights: tuple[float, ...]
    temperature: float  # at which probabilities are averaged: the objective's

    def asked(self, spec: SignalSpec) -> SignalSpec:
        """What every teacher has to be asked, so that ``spec`` can be answered by all together.

        The class whose margin is differentiated is the one that they predict together, and none of them knows it:
        each sends all of them, which of two classes costs nothing (m_1 = −m_0).
        """
        return replace(spec, signal="all_classes") if self._picks(spec) else spec

    def _picks(self, spec: SignalSpec) -> bool:
        gradients = spec.cls_gradients or spec.embedding_gradient
        return gradients and self.how != "best" and spec.signal in ("own_max", "teacher_max")

    def __call__(self, signals: Sequence[TeacherSignal], spec: SignalSpec, batch: Batch) -> JoinedSignal:
        """One signal, and how far they agree. ``signals`` answer ``asked(spec)`` for ``batch``, on one device.

        Raises UserError where their widths differ.
        """
        _check_widths(signals)
        if self.how == "best":
            labels_B = batch.labels_B.to(signals[0].logits_BC.device)
            members, joined = tuple(signals), best_of(signals, labels_B)
        else:
            members, joined = self._weighted(signals, spec)
        return JoinedSignal(
            **{field.name: getattr(joined, field.name) for field in fields(TeacherSignal)},
            disagreement_B=label_disagreement_B([each.logits_BC for each in signals]),
            gradient_cosine_B=gradient_cosine_B(members, batch.attention_mask_BL),
            members=members if self.how == "separate" else (),
        )

    def _weighted(
        self, signals: Sequence[TeacherSignal], spec: SignalSpec
    ) -> tuple[tuple[TeacherSignal, ...], TeacherSignal]:
        """(each one's own signal for ``spec``, their mean)."""
        if not self._picks(spec):
            return tuple(signals), average_of(signals, self.weights, self.temperature)
        logits_BC = mean_logits([each.logits_BC for each in signals], self.weights, self.temperature)
        together = tuple(at_classes(each, logits_BC.argmax(dim=-1, keepdim=True)) for each in signals)
        joined = average_of(together, self.weights, self.temperature)
        if self.how == "separate" and spec.signal == "own_max":
            return tuple(
                at_classes(each, each.logits_BC.argmax(dim=-1, keepdim=True)) for each in signals
            ), joined
        return together, joined


def _check_widths(signals: Sequence[TeacherSignal]) -> None:
    for name in (unit for unit, _ in _ROWS):
        widths = [rows.shape[-1] for each in signals if (rows := getattr(each, name)) is not None]
        if len(set(widths)) > 1:
            raise UserError(
                f"the teachers are {widths} wide: gradients and states of different widths cannot be joined. Take "
                "teachers of one width, or leave away what asks for them (evaluate.saliency=false, or evaluate.py "
                "without --saliency)"
            )


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float], temperature: float) -> Tensor:
    """τ·log Σ_i w_i·softmax(z_i/τ) [..., C]: logits whose softmax at τ is exactly the weighted mean of theirs."""
    log_probabilities = torch.stack(
        [
            (at_least_fp32(each) / temperature).log_softmax(dim=-1) + math.log(weight)
            for each, weight in zip(logits, weights, strict=True)
        ]
    )
    return temperature * log_probabilities.logsumexp(dim=0)


def average_of(
    signals: Sequence[TeacherSignal], weights: Sequence[float], temperature: float
) -> TeacherSignal:
    """The weighted mean of everything that ``signals``, of equal widths and classes, have.

    Gradients and states are averaged as they are, and made unit rows again; attributions as shares, and made unit
    over the tokens again.
    """

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([at_least_fp32(t) * w for t, w in zip(tensors, weights, strict=True)]).sum(dim=0)

    def mean_rows(unit: str, norm: str) -> tuple[Tensor | None, Tensor | None]:
        rows = [_raw(each, unit, norm) for each in signals]
        return (None, None) if rows[0] is None else unit_rows(mean([row for row in rows if row is not None]))

    attributions = [each.attribution_BLC for each in signals if each.attribution_BLC is not None]
    noisy = [each.noisy_logits_BDC for each in signals if each.noisy_logits_BDC is not None]
    rows: dict[str, Any] = {}
    for unit, norm in _ROWS:
        rows[unit], rows[norm] = mean_rows(unit, norm)
    return TeacherSignal(
        logits_BC=mean_logits([each.logits_BC for each in signals], weights, temperature),
        **rows,
        attribution_BLC=unit_rows(mean(attributions).transpose(1, 2))[0].transpose(1, 2)
        if attributions
        else None,
        noisy_logits_BDC=mean_logits(noisy, weights, temperature) if noisy else None,
    )


def best_of(signals: Sequence[TeacherSignal], labels_B: Tensor) -> TeacherSignal:
    """Every row from the teacher whose cross-entropy at its label is lowest; of equal ones from the first."""
    losses_MB = torch.stack([cross_entropy_B(each.logits_BC, labels_B) for each in signals])
    chosen_B = losses_MB.argmin(dim=0)
    rows_B = torch.arange(len(chosen_B), device=chosen_B.device)

    def choose(*tensors: Tensor) -> Tensor:
        return torch.stack(tensors)[chosen_B, rows_B]

    return _each_tensor(choose, signals)


def at_classes(signal: TeacherSignal, classes_B1: Tensor) -> TeacherSignal:
    """The gradients of the margins of ``classes_B1`` out of a signal of all classes."""
    views_BV = all_classes_BV(signal.logits_BC)
    picked: dict[str, Any] = {}
    for unit, norm in _GRADIENTS:
        raw = _raw(signal, unit, norm)
        if raw is not None:
            picked[unit], picked[norm] = unit_rows(pick_views(raw, classes_B1, views_BV))
    return replace(signal, **picked)


# Unit rows and their norms.
_GRADIENTS = (
    ("cls_gradients_BKVH", "cls_gradient_norm_BKV"),
    ("embedding_gradient_BLVH", "embedding_gradient_norm_BLV"),
)
_ROWS = (("cls_states_BKH", "cls_state_norm_BK"), *_GRADIENTS)


def _raw(signal: TeacherSignal, unit: str, norm: str) -> Tensor | None:
    """Rows as long as the teacher's own were."""
    rows, norms = getattr(signal, unit), getattr(signal, norm)
    return None if rows is None else at_least_fp32(rows) * at_least_fp32(norms).unsqueeze(-1)


def _each_tensor(function: Callable[..., Tensor], signals: Sequence[TeacherSignal]) -> TeacherSignal:
    """``function`` of every field that is a tensor in ``signals``; the others stay the first one's."""
    found: dict[str, Any] = {}
    for field in fields(TeacherSignal):
        values = [getattr(each, field.name) for each in signals]
        if isinstance(values[0], Tensor):
            found[field.name] = function(*values)
    return replace(signals[0], **found)
