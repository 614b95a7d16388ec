"""Rules on the curriculum and on selective reliance: which fields go together (METHOD.md §3, §4)."""

from __future__ import annotations

from collections.abc import Iterator

from distill_dist.config.fields import describe_problem
from distill_dist.config.methods import (
    has_curriculum,
    is_aligned,
    is_gradient_method,
    matches_states,
    relies_selectively,
)
from distill_dist.config.schema import RunConfig
from distill_dist.config.schema_curriculum import CurriculumConfig


def check_curriculum(config: RunConfig) -> Iterator[str]:
    """One line per problem."""
    yield from _scores(config)
    yield from _reliance(config)
    curriculum = config.curriculum
    if curriculum.stratify == "source" and not config.data.source_column:
        yield describe_problem(
            config, "curriculum.stratify", "needs data.source_column: where a row comes from"
        )
    if not has_curriculum(config):
        for key in ("stratify", "pacing", "full_at", "once_per_pass", "buckets"):
            if getattr(curriculum, key) != getattr(CurriculumConfig, key):
                yield describe_problem(
                    config, f"curriculum.{key}", "needs a curriculum.order other than none"
                )
    if config.alignment.choose == "hardest" and not (is_aligned(config) and config.alignment.share < 1):
        yield describe_problem(
            config, "alignment.choose", "needs matched gradients and an alignment.share below 1"
        )
    if curriculum.final_snapshot and curriculum.source != "student":
        text = f"is of the student; curriculum.source: {curriculum.source} has one snapshot from the start"
        yield describe_problem(config, "curriculum.final_snapshot", text)


def _scores(config: RunConfig) -> Iterator[str]:
    curriculum = config.curriculum
    if curriculum.source == "file" and not curriculum.file:
        yield describe_problem(config, "curriculum.file", "required with curriculum.source: file")
    if curriculum.source != "file" and curriculum.file:
        yield describe_problem(config, "curriculum.file", "needs curriculum.source: file")
    if curriculum.source == "teacher" and not config.teacher.path:
        yield describe_problem(config, "curriculum.source", "needs teacher.path: whose confidence it is")
    if curriculum.score == "served" and curriculum.source != "student":
        text = f"needs curriculum.source: student; the {curriculum.source}'s scores do not change"
        yield describe_problem(config, "curriculum.score", text)


def _reliance(config: RunConfig) -> Iterator[str]:
    reliance = config.reliance
    if not relies_selectively(config):
        for key in ("control", "scale_alignment"):
            if getattr(reliance, key) not in ("none", False):
                yield describe_problem(config, f"reliance.{key}", "needs a reliance.rule other than constant")
        return
    if config.method == "finetune":
        yield describe_problem(config, "reliance.rule", "method finetune relies on no teacher; take kd")
    if reliance.maximum is None:
        yield describe_problem(
            config, "reliance.maximum", "null means weight.kd, and that is 0: give a number"
        )
    elif reliance.minimum > reliance.maximum:
        text = f"must not be above reliance.maximum = {reliance.maximum} (null: weight.kd)"
        yield describe_problem(config, "reliance.minimum", text)
    if config.curriculum.source == "file" and reliance.rule in ("bell", "weighted"):
        text = "reads probabilities, which curriculum.source: file does not have; take gate or ramp"
        yield describe_problem(config, "reliance.rule", text)
    if config.curriculum.score == "served" and reliance.rule == "weighted":
        text = "weighs by the teacher's loss, which only a pass asks for; take curriculum.score: pass"
        yield describe_problem(config, "reliance.rule", text)
    if reliance.scale_alignment and not (is_gradient_method(config.method) or matches_states(config.method)):
        text = f"method {config.method} matches neither states nor gradients"
        yield describe_problem(config, "reliance.scale_alignment", text)
