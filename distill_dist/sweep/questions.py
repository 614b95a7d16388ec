"""Which trials ask the same of their teacher, so that one cache of signals serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill_dist.config.fields import schema_fields, value_at
from distill_dist.config.methods import aligned_positions, is_aligned, matches_states, reads_scores
from distill_dist.config.schema import RunConfig

# of the teacher: the rest of the section says how the service runs
_TEACHER = ("teacher.path", "teachers", "teacher.combine")
_LAYERS = (
    "objective.teacher_layers",
    "objective.student_layers",
    "student.layers",
    "student.path",
    "student.architecture",
)
_GRADIENTS = ("alignment.signal", "objective.attribution_top_k", "alignment.share")


def questions(config: RunConfig) -> dict[str, Any] | None:
    """By dotted key what decides which rows a run asks its teacher for and how they are kept; None without a teacher.

    Runs with equal answers ask the same. Those with other answers may still share some rows, logits of dev say.
    """
    if not config.teacher.path:
        return None
    keys = [key for key in schema_fields() if key.startswith(("data.", "teacher.wire.")) or key in _TEACHER]
    keys += ["evaluate.saliency"]
    found: dict[str, Any] = {"method": None}
    if config.method != "finetune":
        embedding, at_cls = aligned_positions(config)
        states = matches_states(config.method)
        found["method"] = {"states": states, "embedding": embedding, "cls": at_cls}
        keys += _LAYERS if states or at_cls else ()
        keys += ["student.shape.num_hidden_layers"] if (states or at_cls) and not config.student.path else []
        keys += _GRADIENTS if is_aligned(config) else ()
        found["weight.attribution"] = config.weight.attribution > 0
        found["weight.noise"] = config.weight.noise > 0
        if config.weight.noise > 0:  # the noise is drawn from the run's seed, and the teacher computes at it
            keys += ["objective.noise_std", "objective.noise_draws", "seed"]
    found["curriculum.source"] = config.curriculum.source == "teacher" and reads_scores(config)
    return {**{key: value_at(config, key) for key in keys}, **found}


def group_by_questions(configs: Sequence[RunConfig]) -> tuple[list[int | None], tuple[str, ...]]:
    """(each run's group, counted from 0, None without a teacher; the keys in which groups differ)."""
    asked = [questions(config) for config in configs]
    different: list[dict[str, Any]] = []
    for one in asked:
        if one is not None and one not in different:
            different.append(one)
    # what only some ask for, layers say, follows from the method, which they all have
    keys = [key for key in (different[0] if different else ()) if all(key in one for one in different)]
    differing = tuple(key for key in keys if len({repr(one[key]) for one in different}) > 1)
    return [None if one is None else different.index(one) for one in asked], differing
