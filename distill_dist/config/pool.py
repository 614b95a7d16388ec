"""Several teachers, as far as a configuration has to know them: which there are, and what the run is to each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from distill_dist.config.schema import RunConfig
from distill_dist.config.schema_teacher import PooledTeacher, TeacherConfig
from distill_dist.errors import UserError


def teachers_of(config: RunConfig) -> tuple[PooledTeacher, ...]:
    """All models that teach, their weights summing to 1; empty where none does."""
    if not config.teachers:
        return (PooledTeacher(config.teacher.path),) if config.teacher.path else ()
    total = sum(teacher.weight for teacher in config.teachers)
    return tuple(replace(teacher, weight=teacher.weight / total) for teacher in config.teachers)


def is_pool(config: RunConfig) -> bool:
    """Whether several models teach together."""
    return len(config.teachers) > 1


def as_only_teacher(config: RunConfig, number: int) -> RunConfig:
    """The run as the model of that number sees it, who knows of no other; model 0 also where there is but one.

    So the processes that serve one model need not know of the pool.
    """
    path = config.teachers[number].path if config.teachers else config.teacher.path
    return replace(
        config, teachers=(), teacher=replace(config.teacher, path=path, combine=TeacherConfig.combine)
    )


def model_served_by(teacher: int, models: int) -> int:
    """Which of ``models`` the teacher process of that number serves; they take turns."""
    return teacher % max(1, models)


@contextmanager
def naming_the_model(config: RunConfig, number: int) -> Iterator[None]:
    """A UserError inside says which of several teachers it is about."""
    try:
        yield
    except UserError as error:
        if not is_pool(config) or error.said:
            raise
        raise UserError(f"teachers[{number}]: {error}") from error
