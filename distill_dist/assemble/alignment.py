"""What a run that matches gradients says about it, and the probe before its first step."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch

from distill_dist.assemble.loading import Loaded
from distill_dist.assemble.route import ChosenRoute
from distill_dist.comm.students import StudentGroup
from distill_dist.config.methods import aligned_positions
from distill_dist.config.schema import RunConfig
from distill_dist.engine import Engine
from distill_dist.errors import UserError
from distill_dist.models.build import set_attention, set_checkpointing
from distill_dist.models.encoder import encoder_parts
from distill_dist.models.width_maps import WIDTH_MAPS
from distill_dist.probe import Probe, first_rows, probe
from distill_dist.records import Batch, Step
from distill_dist.student import StudentStep
from distill_dist.teacher.local import Teacher

_log = logging.getLogger(__name__)


def describe_alignment(config: RunConfig, route: ChosenRoute) -> dict[str, Any]:
    """For summary.json: `route`, `reason`, `signal`, `positions`; and the step of a difference."""
    at_embedding, at_cls = aligned_positions(config)
    found: dict[str, Any] = {
        "route": route.route.name,
        "reason": route.reason,
        "signal": config.alignment.signal,
        "positions": [name for name, there in (("embedding", at_embedding), ("cls", at_cls)) if there],
    }
    if route.route.name == "central_difference":
        found["step"] = route.route.step
    _log.info("alignment: %s (%s)", route.route.name, route.reason)
    return found


def copied_for_probe(config: RunConfig, loaded: Loaded, device: torch.device) -> StudentStep | None:
    """A whole fp32 copy of the student with plain attention, taken before it is sharded; None: nothing to prove."""
    if not loaded.objective.is_aligned or not config.alignment.probe:
        return None
    model = copy.deepcopy(loaded.student.model).to(device)
    model.train()
    set_checkpointing(model, on=False)
    set_attention(model, "eager")
    return StudentStep(encoder_parts(model), loaded.objective, maps=getattr(model, WIDTH_MAPS, None))


def run_probe(
    config: RunConfig,
    route: ChosenRoute,
    engine: Engine,
    student: StudentStep,
    plain: StudentStep,
    first: Step,
    teacher: Teacher,
    group: StudentGroup,
) -> dict[str, float]:
    """Errors and seconds of the probe on rows of the first step. Raises UserError, on all students, above tolerance."""
    batch = first_rows(first.batches[0])
    spec = student.objective.signal_spec
    assert spec is not None
    ((_, (signal,)),) = teacher.signals([batch], _alone, spec, ahead=0)
    device = next(plain.parts.model.parameters()).device
    found = probe(engine, student, plain, batch.to(device), signal.to(device), group)
    tolerance = _tolerance(config, route, found)
    _log.info(
        "probe: gradient differs by %.1e of itself, %.1e of its aligned part (at most %.0e), in %.1f s",
        found.whole_error, found.aligned_error, tolerance, found.seconds,
    )  # fmt: skip
    if found.aligned_error > tolerance:
        raise UserError(_disagreement(config, route, engine.zero_stage, found.aligned_error, tolerance))
    return {
        "whole_error": found.whole_error,
        "aligned_error": found.aligned_error,
        "seconds": round(found.seconds, 3),
    }


def _alone(batch: Batch) -> tuple[Batch]:
    return (batch,)


def _tolerance(config: RunConfig, route: ChosenRoute, found: Probe) -> float:
    if config.alignment.tolerance is not None:
        return config.alignment.tolerance
    if config.train.precision != "fp32":
        return 0.5  # rounding of the other terms, often ten times as large, counts too
    return _rounding(found) + (0.02 if route.route.name == "central_difference" else 1e-3)


def _rounding(found: Probe) -> float:
    """What rounding of all terms may look like beside a small aligned part: 1e-6 of the whole gradient."""
    if not (found.whole_error and math.isfinite(found.aligned_error)):
        return 0.0
    rounding = 1e-6 * found.aligned_error / found.whole_error
    if rounding > 0.5:
        _log.warning("the aligned terms weigh so little that the probe proves nothing of them")
    return rounding


def _disagreement(config: RunConfig, route: ChosenRoute, stage: int, error: float, tolerance: float) -> str:
    other = "central_difference" if route.route.name == "double_backward" else "double_backward"
    return (
        f"the probe found a wrong gradient: it differs from plain double backward in fp32 by {error:.2g} of its "
        f"aligned part, {tolerance:.2g} is allowed. At fault is this combination: "
        f"alignment.route={route.route.name}, ZeRO {stage}, student.attention={config.student.attention}, "
        f"train.precision={config.train.precision}, student.checkpointing={config.student.checkpointing}, "
        f"student.compile={config.student.compile}. Take alignment.route={other}, or train.precision=fp32 with "
        "student.attention=eager; a larger alignment.tolerance trains with the error"
    )
