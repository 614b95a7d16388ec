"""One micro-batch of the student: forward, gradients of its signal, objective."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from distill_dist.models.central_difference import Direction, both_sides, choose_direction, surrogate
from distill_dist.models.encoder import EncoderParts
from distill_dist.models.hooks import Displacement, InnerPoints, gradients_at, noisy_logits_BDC, watch_points
from distill_dist.models.width_maps import WidthMaps
from distill_dist.objectives.alignment import unit_rows
from distill_dist.objectives.attribution import attribution_BLC
from distill_dist.objectives.noise import all_noise_BDLH
from distill_dist.objectives.objective import ALIGNED, LossTerms, Objective
from distill_dist.objectives.signal import differentiated_BV, margins_BV, pick_views, signal_classes_BV
from distill_dist.records import Batch, BatchCounts, Inputs, JoinedSignal, StudentOutput, TeacherSignal


@dataclass(frozen=True)
class Route:
    """How the gradient of a gradient is found.

    `double_backward` differentiates twice: exact. `central_difference` evaluates the student beside its points,
    ``step`` × their norm away, and needs first-order autograd only; with ``keeps_graph`` the forward at the
    points is differentiated where it was run, without it once more beside the others (at ZeRO 3 and with compiled
    layers the graph cannot be kept).
    """

    name: Literal["double_backward", "central_difference"] = "double_backward"
    step: float = 5e-3
    keeps_graph: bool = True


@dataclass(frozen=True)
class _Seen:
    """One forward at the student's own points."""

    logits_BC: Tensor
    embedding_BLH: Tensor
    cls_states_BKH: Tensor | None
    points: InnerPoints


@dataclass(frozen=True)
class _Slopes:
    """Gradients of the margins of ``views_BV`` at the inner points; those of the signal are ``classes_BV``."""

    classes_BV: Tensor
    views_BV: Tensor
    embedding_BLVH: Tensor | None
    cls_BKVH: Tensor | None

    @property
    def sides(self) -> int:
        """Evaluations beside x: two per view."""
        return 2 * self.views_BV.shape[1]

    def margins_beside(self, logits_MC: Tensor) -> Tensor:
        """Margins [2VB] of the rows of ``both_sides``, each of the class that was differentiated at x."""
        classes_M = self.views_BV.T.reshape(-1).repeat(2)
        return margins_BV(logits_MC, classes_M[:, None])[:, 0]

    @property
    def tensors(self) -> list[Tensor]:
        """Those that are there."""
        return [tensor for tensor in (self.embedding_BLVH, self.cls_BKVH) if tensor is not None]

    def as_leaves(self) -> _Slopes:
        """The same values, to be differentiated with respect to."""
        embedding, cls = (
            None if tensor is None else tensor.detach().requires_grad_()
            for tensor in (self.embedding_BLVH, self.cls_BKVH)
        )
        return replace(self, embedding_BLVH=embedding, cls_BKVH=cls)


@dataclass(frozen=True)
class StudentStep:
    """What the trainer calls per micro-batch.

    ``parts.model`` is the module itself, not DeepSpeed's wrapper: differentiating twice through the wrapper
    raises or is silently wrong (FACTS, second-order gradients). ``autocast``: the precision of forwards at the
    student's own points; those beside them are fp32, where bf16 would round the difference away.
    """

    parts: EncoderParts
    objective: Objective
    route: Route = Route()
    maps: WidthMaps | None = None
    autocast: torch.dtype | None = None

    def loss_terms(
        self, batch: Batch, signal: TeacherSignal | None, counts: BatchCounts | None = None
    ) -> LossTerms:
        """The objective's sums over ``batch``, graphs attached; ``counts`` of the global batch for a difference."""
        aligned = self.objective.is_aligned and batch.alignment > 0
        if aligned and self.route.name == "central_difference":
            assert signal is not None
            assert counts is not None
            if self.route.keeps_graph:
                return self._difference_beside(batch, signal, counts)
            return self._difference_in_one(batch, signal, counts)
        with self._autocast():
            seen = self._forward(batch, differentiated=aligned)
            slopes = None
            if aligned:
                assert signal is not None
                slopes = self._slopes(seen, batch, signal, twice=True, keep=True)
        return self._terms(seen, slopes, batch, signal)

    def _difference_beside(self, batch: Batch, signal: TeacherSignal, counts: BatchCounts) -> LossTerms:
        """The graph of the forward at x stays; x ± εv run beside it, in fp32."""
        with self._autocast():
            seen = self._forward(batch)
            slopes = self._slopes(seen, batch, signal, twice=False, keep=True).as_leaves()
        terms = self._terms(seen, slopes, batch, signal)
        direction = self._direction(seen, slopes, terms.share_of(ALIGNED, counts), batch)
        logits_MC, _ = self._run(_repeat(batch.inputs, slopes.sides), both_sides(direction))
        return replace(terms, surrogate=surrogate(slopes.margins_beside(logits_MC), direction))

    def _difference_in_one(self, batch: Batch, signal: TeacherSignal, counts: BatchCounts) -> LossTerms:
        """x, x + εv and x − εv in one forward, after one at x whose graph is dropped; all in fp32."""
        rows = len(batch.labels_B)
        seen = self._forward(batch)
        slopes = self._slopes(seen, batch, signal, twice=False, keep=False).as_leaves()
        aligned = self._terms(seen, slopes, batch, signal, names=ALIGNED)
        direction = self._direction(seen, slopes, aligned.share_of(ALIGNED, counts), batch)
        logits_MC, points = self._run(
            _repeat(batch.inputs, 1 + slopes.sides), both_sides(direction, still_rows=rows)
        )
        assert points.embedding_BLH is not None
        states_MKH = self._states(points)
        seen = _Seen(
            logits_MC[:rows],
            points.embedding_BLH[:rows],
            None if states_MKH is None else states_MKH[:rows],
            points,
        )
        terms = self._terms(seen, slopes, batch, signal)
        return replace(terms, surrogate=surrogate(slopes.margins_beside(logits_MC[rows:]), direction))

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(next(self.parts.model.parameters()).device.type, dtype=self.autocast)

    def _wants(self, name: str) -> bool:
        return name in self.objective.weights

    @property
    def _layers(self) -> tuple[int, ...]:
        wants = self._wants("patience") or self._wants("gradient_cls")
        return self.objective.student_layers if wants else ()

    def _run(
        self, inputs: Inputs, displacement: Displacement | None = None, *, differentiated: bool = True
    ) -> tuple[Tensor, InnerPoints]:
        """One forward: logits and the points it passed; to be ``differentiated`` at unless it is displaced."""
        with watch_points(
            self.parts,
            layers=self._layers,
            embedding_gradient=differentiated
            and (self._wants("gradient_embedding") or self._wants("attribution")),
            cls_gradients=differentiated and self._wants("gradient_cls"),
            displacement=displacement,
        ) as points:
            return self.parts.logits_BC(*inputs), points

    def _states(self, points: InnerPoints) -> Tensor | None:
        if not self._layers:
            return None
        return torch.stack([points.cls_states_BH[layer] for layer in self._layers], dim=1)

    def _forward(self, batch: Batch, *, differentiated: bool = True) -> _Seen:
        logits_BC, points = self._run(batch.inputs, differentiated=differentiated)
        assert points.embedding_BLH is not None
        return _Seen(logits_BC, points.embedding_BLH, self._states(points), points)

    def _slopes(
        self, seen: _Seen, batch: Batch, signal: TeacherSignal, *, twice: bool, keep: bool
    ) -> _Slopes:
        logits_BC = seen.logits_BC
        classes_BV = signal_classes_BV(
            self.objective.signal,
            logits_BC,
            teacher_logits_BC=signal.logits_BC,
            labels_B=batch.labels_B,
        )
        views_BV = differentiated_BV(classes_BV, logits_BC, every_class=self._wants("attribution"))
        margins_V = margins_BV(logits_BC, views_BV).sum(dim=0)
        found = gradients_at(
            margins_V, seen.points, layers=self._layers, create_graph=twice, retain_graph=keep
        )
        return _Slopes(classes_BV, views_BV, *found)

    def _direction(self, seen: _Seen, slopes: _Slopes, aligned: Tensor, batch: Batch) -> Direction:
        """v: how the aligned terms' share of the loss changes with the gradients."""
        found = iter(torch.autograd.grad(aligned, slopes.tensors, retain_graph=True))
        return choose_direction(
            None if slopes.embedding_BLVH is None else next(found),
            None if slopes.cls_BKVH is None else next(found),
            embedding_BLH=seen.embedding_BLH.detach(),
            mask_BL=batch.attention_mask_BL,
            cls_states_BKH=None if seen.cls_states_BKH is None else seen.cls_states_BKH.detach(),
            step=self.route.step,
        )

    def _terms(
        self,
        seen: _Seen,
        slopes: _Slopes | None,
        batch: Batch,
        signal: TeacherSignal | None,
        names: tuple[str, ...] | None = None,
    ) -> LossTerms:
        """The objective's sums, those in ``names`` alone where it is given."""
        states_BKH, noisy = seen.cls_states_BKH, None
        if self.maps is not None and signal is not None and states_BKH is not None:
            states_BKH, signal = self._in_teachers_width(states_BKH, signal)
        if names is None and self._wants("noisy_distillation"):
            assert self.objective.noise_spec is not None
            noise = all_noise_BDLH(
                *batch.inputs[:2], width=self.parts.embedding_size, spec=self.objective.noise_spec
            )
            with self._autocast():
                noisy = noisy_logits_BDC(self.parts, batch.inputs, noise)
        embedding = cls = attribution = None
        if slopes is not None:
            embedding, cls, attribution = self._aligned(seen, slopes, batch)
        output = StudentOutput(seen.logits_BC, states_BKH, cls, embedding, attribution, noisy)
        return self.objective(output, signal, batch, names=names)

    def _aligned(
        self, seen: _Seen, slopes: _Slopes, batch: Batch
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(embedding gradients, [CLS] gradients, attribution), each where a term wants it."""
        embedding = cls = attribution = None
        if self._wants("gradient_embedding"):
            assert slopes.embedding_BLVH is not None
            embedding = pick_views(slopes.embedding_BLVH, slopes.classes_BV, slopes.views_BV)
        if slopes.cls_BKVH is not None:
            cls = pick_views(slopes.cls_BKVH, slopes.classes_BV, slopes.views_BV)
        if self._wants("attribution"):
            assert slopes.embedding_BLVH is not None
            attribution = attribution_BLC(
                slopes.embedding_BLVH,
                seen.embedding_BLH,
                batch.attention_mask_BL,
                top_k=self.objective.attribution_top_k,
            )
        return embedding, cls, attribution

    def _in_teachers_width(self, states_BKH: Tensor, signal: TeacherSignal) -> tuple[Tensor, TeacherSignal]:
        """(the student's states through the learned maps, the teacher's [CLS] gradients pulled back through them)."""
        assert self.maps is not None
        if isinstance(signal, JoinedSignal):
            members = tuple(self._in_teachers_width(states_BKH, each)[1] for each in signal.members)
            signal = replace(signal, members=members)
        mapped_BKH, pulled = self.maps(states_BKH, signal.cls_gradients_BKVH)
        if pulled is not None:
            # The norms that came along are those of the teacher's own rows.
            signal = replace(signal, cls_gradients_BKVH=unit_rows(pulled)[0], cls_gradient_norm_BKV=None)
        return mapped_BKH, signal


def _repeat(inputs: Inputs, times: int) -> Inputs:
    ids_BL, mask_BL, types_BL = (values_BL.repeat(times, 1) for values_BL in inputs)
    return ids_BL, mask_BL, types_BL
