"""What a row costs, and how the log and TensorBoard say it."""

from __future__ import annotations

from distill_dist.assemble.wire_report import wire_line, wire_scalars

ONE = {"bytes_per_row": 1234.6, "cls_states": 2e-8, "embedding_gradient": 1.5e-5}
LOGITS_ALONE = {"bytes_per_row": 24.0}


def test_one_teacher_has_no_number() -> None:
    assert wire_scalars([ONE]) == {f"wire/{name}": value for name, value in ONE.items()}
    assert wire_line([ONE]) == "1235 bytes a row (1 − cosine: cls_states 2.0e-08, embedding_gradient 1.5e-05)"
    assert wire_scalars([]) == {}


def test_several_have() -> None:
    assert wire_scalars([LOGITS_ALONE, ONE])["wire/bytes_per_row/teacher_1"] == 1234.6
    assert len(wire_scalars([LOGITS_ALONE, ONE])) == 4
    assert wire_line([LOGITS_ALONE, LOGITS_ALONE]) == "teachers[0] 24 bytes a row, teachers[1] 24 bytes a row"
