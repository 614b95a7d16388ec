"""The benchmark of the teacher service, whole, on a student of milliseconds."""

from __future__ import annotations

from typing import Any

from distill_dist.bench.distillation_cases import Shape
from distill_dist.bench.teacher import Sizes, measure_teacher
from distill_dist.bench.teacher_table import table

TINY = Shape(
    4, 2, hidden_size=64, num_attention_heads=2, intermediate_size=64, vocab_size=1100, batch=16, rounds=2
)


def measure(seconds: float) -> dict[str, Any]:
    """Its figures, with the table and what it said meanwhile."""
    said: list[str] = []
    sizes = Sizes(rounds=2, cases=6, hosts=2, clients=2, seconds=seconds, scaling_passes=1, shape=TINY)
    found = measure_teacher(sizes, progress=said.append)
    return {"found": found, "table": table(found), "said": said}
