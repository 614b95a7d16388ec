"""The learning rate as a pure function of the step."""

from __future__ import annotations


def learning_rate(step: int, *, total_steps: int, peak: float, warmup_share: float) -> float:
    """Rate of optimizer step ``step`` (from 0): linear to ``peak`` over the warm-up, then linear to 0."""
    warmup = round(total_steps * warmup_share)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (total_steps - step) / max(1, total_steps - warmup)
