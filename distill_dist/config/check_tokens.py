"""Rules on a teacher with a tokenizer of its own: what still can be compared is what it says of the whole row."""

from __future__ import annotations

from collections.abc import Iterator

from distill_dist.config.fields import describe_problem
from distill_dist.config.methods import asks_inside
from distill_dist.config.schema import DataConfig, RunConfig


def check_teacher_tokens(config: RunConfig) -> Iterator[str]:
    """One line per problem, for `prepare` and training."""
    if config.data.teacher_tokenizer:
        return
    for name in ("teacher_max_length", "teacher_separator"):
        if getattr(config.data, name) != getattr(DataConfig, name):
            yield describe_problem(config, f"data.{name}", "needs data.teacher_tokenizer")


def check_other_tokens(config: RunConfig) -> Iterator[str]:
    """One line per problem of a run that learns from it."""
    # Several read the same second tokens. Their weights may be wrong still, and are nobody's business here.
    paths = [path for path in (*(each.path for each in config.teachers), config.teacher.path) if path]
    if not (config.data.teacher_tokenizer and paths):
        return
    for key in asks_inside(config):
        text = (
            "compares what both models hold of the same tokens, and this teacher reads others "
            "(data.teacher_tokenizer); of it only logits can be learned: "
        )
        yield describe_problem(config, key, text + _REMEDIES[key])
    if config.student.path in paths:
        text = (
            "a student cut from its teacher reads its tokens: name an encoder of data.tokenizer, or no path"
        )
        yield describe_problem(config, "student.path", text)


_REMEDIES = {
    "method": "take kd, or a teacher of the student's tokenizer",
    "weight.attribution": "set it to 0, or take a teacher of the student's tokenizer",
    "weight.noise": "set it to 0, or take a teacher of the student's tokenizer",
    "evaluate.saliency": "leave it away",
}
