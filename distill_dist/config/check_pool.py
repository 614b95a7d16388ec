"""Rules on several teachers: the entries themselves, and what goes together with them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from distill_dist.config.fields import describe_problem
from distill_dist.config.pool import is_pool
from distill_dist.config.schema import RunConfig
from distill_dist.config.schema_teacher import TeacherConfig


def check_pool(config: RunConfig) -> Iterator[str]:
    """One line per problem."""
    for number, entry in enumerate(config.teachers):
        if not entry.path:
            yield f"teachers[{number}].path = '': required: a folder or hub name"
        if not (entry.weight > 0 and math.isfinite(entry.weight)):
            text = "must be above 0; leave the entry away to do without it"
            yield f"teachers[{number}].weight = {entry.weight}: {text}"
    yield from _named_twice(config)
    weights = [entry.weight for entry in config.teachers]
    if weights and all(w > 0 for w in weights) and not min(weights) / sum(weights) > 0:
        yield f"teachers: the weights {weights} differ too much, or are too large, to be shares of one sum"
    if config.teachers and config.teacher.path != config.teachers[0].path:
        text = f"with teachers it is the first one's, {config.teachers[0].path!r}: leave it away (or empty)"
        yield describe_problem(config, "teacher.path", text)
    if not is_pool(config) and config.teacher.combine != TeacherConfig.combine:
        yield describe_problem(config, "teacher.combine", "needs at least two teachers")
    models, shards = len(config.teachers), config.teacher.shards
    if is_pool(config) and 0 < config.cluster.teachers < models * shards:
        each, times = ("a process", "") if shards == 1 else (f"{shards} processes", f" times {shards}")
        text = f"every model needs {each}: at least the {models} of teachers{times}"
        if shards == 1:
            text += ", or 0 for all in the student's own"
        yield describe_problem(config, "cluster.teachers", text)


def _named_twice(config: RunConfig) -> Iterator[str]:
    """One model twice is that model with the sum of both weights, at twice the cost. Links are followed."""
    first: dict[str, int] = {}
    for number, entry in enumerate(config.teachers):
        place = os.path.realpath(entry.path) if os.path.isdir(entry.path) else entry.path
        if place and (before := first.setdefault(place, number)) != number:
            total = config.teachers[before].weight + entry.weight
            yield (
                f"teachers[{number}].path = {entry.path!r}: is the model of teachers[{before}]: name it once, with "
                f"weight {total:g}"
            )
