"""Which way the gradient of a gradient is found in this run, and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from distill_dist.config.methods import is_aligned
from distill_dist.config.schema import RunConfig
from distill_dist.engine import VERSION, ZERO3_TWICE_VERSIONS
from distill_dist.errors import UserError
from distill_dist.models.encoder import has_kinks
from distill_dist.student import Route

# Of the free memory, for weights that ZeRO 3 gathers whole.
GATHERED_SHARE = 0.5


@dataclass(frozen=True)
class ChosenRoute:
    """The route and the reason for it, for the log and summary.json."""

    route: Route
    reason: str


def choose_route(
    config: RunConfig,
    *,
    zero_stage: int,
    model: nn.Module,
    device: torch.device,
    least: Callable[[int], int] = int,
) -> ChosenRoute:
    """The cheapest route that is right (launcher/bench.py gradients: double backward, wherever it runs).

    The rules that need no model stand in config/check_alignment.py. ``least`` gives the smallest of all students'
    numbers: with memory of their own in mind, they would choose different routes and wait for each other. Raises
    UserError where no route is right.
    """
    wanted, student = config.alignment.route, config.student
    if student.compile and zero_stage == 3:
        raise UserError(
            "student.compile=true does not run at ZeRO 3: set it to false, or take ds_configs/zero2.json"
        )
    if not is_aligned(config):
        return ChosenRoute(Route(), "no gradient is matched")
    why_not = _why_not_twice(config, zero_stage, model, device, least)
    why_no_difference = _why_no_difference(config, model)
    # ZeRO 3 lets go of weights behind a forward, and a compiled layer gives its saved tensors away in a backward.
    keeps_graph = zero_stage != 3 and not student.compile
    difference = Route("central_difference", step=config.alignment.step, keeps_graph=keeps_graph)
    if wanted == "double_backward":
        if why_not is not None:
            raise UserError(f"alignment.route=double_backward: {why_not}; set it to central_difference")
        return ChosenRoute(Route(), "asked for")
    if wanted == "central_difference":
        if why_no_difference is not None:
            raise UserError(
                f"alignment.route=central_difference: {why_no_difference}; set it to double_backward"
            )
        return ChosenRoute(difference, "asked for")
    if why_not is None:
        return ChosenRoute(Route(), "exact, and the cheaper one")
    if why_no_difference is not None:
        raise UserError(f"alignment.route=auto finds none: {why_not}, and {why_no_difference}")
    return ChosenRoute(difference, why_not)


def _why_no_difference(config: RunConfig, model: nn.Module) -> str | None:
    if config.train.precision == "bf16":
        return "bf16 weights round a central difference away (train.precision=bf16_autocast or fp32 does not)"
    if has_kinks(model):
        return (
            f"the student ({model.config.model_type}) has an activation with a kink, across which a difference is no "  # type: ignore[union-attr]
            "derivative (student.architecture=same or electra from a BERT has none)"
        )
    return None


def _why_not_twice(
    config: RunConfig, zero_stage: int, model: nn.Module, device: torch.device, least: Callable[[int], int]
) -> str | None:
    if config.student.attention == "sdpa":
        return "attention sdpa has no second derivative"
    if config.student.compile:
        return "a compiled layer has no second derivative"
    if zero_stage == 3:
        if VERSION not in ZERO3_TWICE_VERSIONS:
            tested = ", ".join(ZERO3_TWICE_VERSIONS)
            return f"at ZeRO 3 double backward was tested with DeepSpeed {tested}, not with {VERSION}"
        needed = sum(p.numel() * p.element_size() for p in model.parameters())
        free = least(_free_bytes(device))
        if needed > GATHERED_SHARE * free:
            return (
                f"at ZeRO 3 double backward needs the whole student on every rank, {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free"
            )
    return None


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
