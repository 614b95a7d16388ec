"""Rules on the teacher service."""

from __future__ import annotations

from collections.abc import Iterator

from distill_dist.config.fields import describe_problem
from distill_dist.config.methods import teacher_max_length
from distill_dist.config.schema import RunConfig
from distill_dist.config.schema_teacher import WireConfig


def check_teacher(config: RunConfig) -> Iterator[str]:
    """One line per problem."""
    teacher, longest = config.teacher, teacher_max_length(config.data)
    if teacher.lease_s <= teacher.deadline_s:
        text = f"must be above teacher.deadline_s = {teacher.deadline_s}"
        yield describe_problem(config, "teacher.lease_s", text)
    if teacher.batch_tokens < longest:
        name = "max_length" if config.data.teacher_max_length is None else "teacher_max_length"
        text = f"one row must fit: at least data.{name} = {longest}"
        yield describe_problem(config, "teacher.batch_tokens", text)
    if teacher.cache_dir_mib and not teacher.cache_dir:
        text = "limits teacher.cache_dir, and there is none: name one, or leave it away"
        yield describe_problem(config, "teacher.cache_dir_mib", text)
    if not config.cluster.teachers and not teacher.cache_dir and teacher.wire != WireConfig():
        reason = (
            "says how signals travel and are cached, and with cluster.teachers=0 and no teacher.cache_dir they do "
            "neither: leave it away, or set one of these"
        )
        yield describe_problem(config, "teacher.wire", reason)
    if not config.cluster.teachers:
        reason = "belongs to teacher processes, and cluster.teachers=0 has none: leave it away, or start some"
        for key, is_set in (("shards", teacher.shards > 1), ("offload", teacher.offload)):
            if is_set:
                yield describe_problem(config, f"teacher.{key}", reason)
    elif teacher.shards > 1 and config.cluster.teachers % teacher.shards:
        text = (
            f"cluster.teachers={config.cluster.teachers} processes cannot be cut into groups of so many: take a "
            f"multiple of {teacher.shards} for that"
        )
        yield describe_problem(config, "teacher.shards", text)
