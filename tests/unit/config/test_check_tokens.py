"""A teacher that reads other tokens: what can be learned of it, and which fields go together."""

from __future__ import annotations

from typing import Any

import pytest

from config.trees import problems

OTHER: dict[str, Any] = {
    "method": "kd",
    "data.teacher_tokenizer": "bpe",
    "student.path": "student",
}


def test_logits_can_be_learned() -> None:
    assert problems(OTHER) == []
    assert problems({**OTHER, "method": "finetune", "teacher.path": ""}) == []
    assert problems({**OTHER, "data.teacher_max_length": 256, "data.teacher_separator": ""}) == []


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("method", "pkd", "take kd, or a teacher of the student's tokenizer"),
        ("method", "gkd", "take kd"),
        ("method", "gkd_cls", "take kd"),
        ("weight.attribution", 0.1, "set it to 0"),
        ("weight.noise", 0.1, "set it to 0"),
        ("evaluate.saliency", True, "leave it away"),
    ],
)
def test_what_is_compared_token_by_token_cannot(key: str, value: Any, remedy: str) -> None:
    same = {name: OTHER[name] for name in OTHER if name != "data.teacher_tokenizer"}
    assert problems({**same, "student.layers": 3, key: value}) == []
    (said,) = problems({**OTHER, key: value})
    assert said.startswith(f"{key} = {value!r}: ")
    assert "data.teacher_tokenizer" in said
    assert "only logits can be learned" in said
    assert remedy in said


def test_a_student_cut_from_such_a_teacher_is_refused() -> None:
    (said,) = problems({**OTHER, "student.path": "teacher"})
    assert said.startswith(
        "student.path = 'teacher': a student cut from its teacher reads its tokens: name an"
    )


def test_fields_of_the_second_tokenizer_need_it_and_one_row_must_fit() -> None:
    for key, value in (("data.teacher_max_length", 64), ("data.teacher_separator", " ")):
        for need in ("prepare", "train"):
            (said,) = problems({key: value}, need=need)  # type: ignore[arg-type]
            assert said == f"{key} = {value!r}: needs data.teacher_tokenizer"
    (said,) = problems({**OTHER, "data.teacher_max_length": 5000})
    assert said == "teacher.batch_tokens = 4096: one row must fit: at least data.teacher_max_length = 5000"
    (said,) = problems({**OTHER, "data.teacher_max_length": 4})
    assert said == "data.teacher_max_length = 4: must be 8 to 8192"
