"""What a teacher's row costs on its way, and how much of its directions the types of `teacher.wire` lose."""

from __future__ import annotations

from collections.abc import Sequence

Costs = dict[str, float]
"""`bytes_per_row`, and for each kind of unit rows in it the mean of 1 − cosine of what came out and what went in."""


def wire_scalars(costs: Sequence[Costs]) -> dict[str, float]:
    """``costs`` of each model, for TensorBoard; of several models each has its number."""
    return {
        f"wire/{name}" + (f"/teacher_{number}" if len(costs) > 1 else ""): value
        for number, each in enumerate(costs)
        for name, value in each.items()
    }


def wire_line(costs: Sequence[Costs]) -> str:
    """``costs`` of each model, for the log."""
    told = []
    for number, each in enumerate(costs):
        lost = ", ".join(f"{name} {value:.1e}" for name, value in each.items() if name != "bytes_per_row")
        whose = f"teachers[{number}] " if len(costs) > 1 else ""
        told.append(f"{whose}{each['bytes_per_row']:.0f} bytes a row" + (lost and f" (1 − cosine: {lost})"))
    return ", ".join(told)
