"""Which layers are copied and which are matched: pure integers, layers counted from 1."""

from __future__ import annotations

from distill_dist.errors import UserError


def copied_layers(
    source_layers: int, *, keep: int | None, how: str, chosen: tuple[int, ...]
) -> tuple[int, ...]:
    """The layers of the source that the student's layers 1, 2, … start from.

    ``even`` ends at the last layer: 6 of 12 are 2, 4, …, 12. Raises UserError where the source is too shallow.
    """
    if how == "list":
        if max(chosen) > source_layers:
            raise UserError(
                f"student.layer_list names layer {max(chosen)}, but the source has {source_layers} layers"
            )
        return chosen
    if keep is None:
        return tuple(range(1, source_layers + 1))
    if keep > source_layers:
        raise UserError(f"student.layers={keep}, but the source has only {source_layers} layers")
    if how == "even":
        return tuple(source_layers * place // keep for place in range(1, keep + 1))
    return tuple(range(1, keep + 1))


def matched_layers(
    teacher_layers: int, student_layers: int, *, teacher: tuple[int, ...], student: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Matched layers (teacher's, student's), from the lists the user gave or evenly spaced.

    The paper's map for 12 and 6 layers: 2, 4, 6, 8, 10 and 1 to 5; the last layer is not matched (METHOD.md §1).
    Raises UserError for a layer that does not exist or a student deeper than its teacher.
    """
    if not student:
        student = tuple(range(1, student_layers))
    if not teacher:
        if student_layers > teacher_layers:
            raise UserError(
                f"the student has {student_layers} layers and its teacher {teacher_layers}: no even map exists; "
                "give objective.teacher_layers and objective.student_layers"
            )
        teacher = tuple(layer * teacher_layers // student_layers for layer in student)
    if len(teacher) != len(student):
        raise UserError(
            f"objective.teacher_layers has {len(teacher)} layers {list(teacher)} and objective.student_layers "
            f"{len(student)} {list(student)}; they are matched one to one"
        )
    for key, layers, limit in (("teacher", teacher, teacher_layers), ("student", student, student_layers)):
        if any(not 1 <= layer <= limit for layer in layers):
            raise UserError(f"objective.{key}_layers={list(layers)}: the {key} has layers 1 to {limit}")
    return teacher, student
