"""Whether a run can measure how far the student looks at the tokens that its teacher looks at (METHOD.md §5, SL)."""

from __future__ import annotations

from collections.abc import Sequence

from distill_dist.assemble.models import TeacherShape
from distill_dist.config.schema import RunConfig


def why_no_saliency(config: RunConfig, shapes: Sequence[TeacherShape]) -> str | None:
    """Why saliency loyalty to teachers of these ``shapes`` is not defined; None: it is."""
    if config.data.teacher_tokenizer:
        return "the teacher reads other tokens than the student (data.teacher_tokenizer)"
    if any(shape.is_decoder for shape in shapes):
        return "a decoder's tokens see only those before them"
    widths = [shape.embedding_size for shape in shapes]
    if len(set(widths)) > 1:
        return (
            f"the teachers' embeddings are {widths} wide, and gradients of different widths cannot be joined"
        )
    return None


def asks_saliency(config: RunConfig, shapes: Sequence[TeacherShape]) -> bool:
    """Whether the run measures it: where it is defined, unless `evaluate.saliency` is false."""
    return config.evaluate.saliency is not False and why_no_saliency(config, shapes) is None
