"""What the methods are made of, as far as a configuration has to know it."""

from __future__ import annotations

from distill_dist.config.schema import RunConfig


def is_gradient_method(method: str) -> bool:
    """Whether the method matches input gradients, so that the student is differentiated twice."""
    return method in ("gkd", "gkd_cls")


def matches_states(method: str) -> bool:
    """Whether the method matches [CLS] states of inner layers."""
    return method in ("pkd", "gkd_cls")


def is_aligned(config: RunConfig) -> bool:
    """Whether any term of the run is a function of the student's own gradients."""
    return is_gradient_method(config.method) or config.weight.attribution > 0


def aligned_positions(config: RunConfig) -> tuple[bool, bool]:
    """(at the embedding output, at [CLS] of matched layers): where gradients are matched."""
    if not is_gradient_method(config.method):
        return False, False
    positions = config.alignment.positions
    if positions == "auto":
        positions = "embedding" if config.method == "gkd" else "both"
    return positions in ("embedding", "both"), positions in ("cls", "both")
