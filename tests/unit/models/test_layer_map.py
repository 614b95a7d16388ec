from __future__ import annotations

import itertools

import pytest

from distill_dist.errors import UserError
from distill_dist.models.layer_map import copied_layers, matched_layers


@pytest.mark.parametrize(
    ("keep", "how", "chosen", "expected"),
    [
        (None, "first", (), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)),
        (None, "even", (), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)),
        (6, "first", (), (1, 2, 3, 4, 5, 6)),
        (6, "even", (), (2, 4, 6, 8, 10, 12)),
        (3, "even", (), (4, 8, 12)),
        (5, "even", (), (2, 4, 7, 9, 12)),
        (3, "list", (2, 7, 3), (2, 7, 3)),
    ],
)
def test_copied_layers(
    keep: int | None, how: str, chosen: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert copied_layers(12, keep=keep, how=how, chosen=chosen) == expected


def test_even_copies_are_distinct_and_end_at_the_last_layer() -> None:
    for source in range(1, 30):
        for keep in range(1, source + 1):
            found = copied_layers(source, keep=keep, how="even", chosen=())
            assert len(set(found)) == keep
            assert found == tuple(sorted(found))
            assert (found[0] >= 1, found[-1]) == (True, source)


def test_the_papers_map() -> None:
    """METHOD.md §1: teacher 2,4,6,8,10 ↔ student 1..5; the last layer is not matched."""
    assert matched_layers(12, 6, teacher=(), student=()) == ((2, 4, 6, 8, 10), (1, 2, 3, 4, 5))


def test_even_maps_rise_and_leave_the_last_layer_out() -> None:
    for teacher, student in itertools.product(range(1, 25), repeat=2):
        if student > teacher:
            continue
        theirs, ours = matched_layers(teacher, student, teacher=(), student=())
        assert ours == tuple(range(1, student))
        assert len(set(theirs)) == len(ours)
        assert theirs == tuple(sorted(theirs))
        assert all(1 <= layer < teacher for layer in theirs)


def test_lists_of_the_user() -> None:
    assert matched_layers(12, 6, teacher=(3, 12), student=(1, 6)) == ((3, 12), (1, 6))
    assert matched_layers(12, 6, teacher=(), student=(2, 6)) == ((4, 12), (2, 6))
    assert matched_layers(2, 6, teacher=(1, 2), student=(3, 6)) == ((1, 2), (3, 6))


@pytest.mark.parametrize(
    ("keep", "how", "chosen", "message"),
    [
        (13, "first", (), "student.layers=13, but the source has only 12 layers"),
        (13, "even", (), "student.layers=13"),
        (2, "list", (1, 13), "student.layer_list names layer 13, but the source has 12"),
    ],
)
def test_a_source_too_shallow(keep: int, how: str, chosen: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        copied_layers(12, keep=keep, how=how, chosen=chosen)


@pytest.mark.parametrize(
    ("layers", "teacher", "student", "message"),
    [
        ((6, 12), (), (), "the student has 12 layers and its teacher 6: no even map"),
        ((12, 6), (1, 2), (1, 2, 3), r"objective.teacher_layers has 2 layers \[1, 2\]"),
        ((12, 6), (1, 2), (), "objective.student_layers 5"),
        ((12, 6), (13,), (1,), r"objective.teacher_layers=\[13\]: the teacher has layers 1 to 12"),
        ((12, 6), (1,), (7,), r"objective.student_layers=\[7\]: the student has layers 1 to 6"),
        ((12, 6), (0,), (1,), r"objective.teacher_layers=\[0\]"),
    ],
)
def test_impossible_maps(
    layers: tuple[int, int], teacher: tuple[int, ...], student: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        matched_layers(*layers, teacher=teacher, student=student)
