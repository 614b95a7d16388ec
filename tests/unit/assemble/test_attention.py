"""Which attention kernel `auto` becomes: the fastest that the family has and the run may use."""

from __future__ import annotations

from typing import Any

import pytest
from config.trees import good_with
from tiny_encoders import tiny_encoder

from distill_dist.assemble.models import choose_attention
from distill_dist.models.encoder import encoder_parts


@pytest.mark.parametrize(
    ("values", "family", "expected"),
    [
        ({"method": "kd"}, "bert", "sdpa"),
        ({"method": "gkd_cls"}, "bert", "eager"),
        ({"method": "gkd_cls", "alignment.route": "central_difference"}, "bert", "sdpa"),
        ({"method": "gkd_cls", "student.compile": True}, "bert", "sdpa"),
        ({"method": "kd", "weight.attribution": 1.0}, "bert", "eager"),
        ({"method": "kd"}, "deberta-v2", "eager"),
        ({"method": "gkd_cls", "alignment.route": "central_difference"}, "deberta-v2", "eager"),
        ({"method": "kd", "student.attention": "eager"}, "bert", "eager"),
        ({"method": "gkd_cls", "student.attention": "math"}, "bert", "math"),
    ],
)
def test_the_kernel_of_a_run(values: dict[str, Any], family: str, expected: str) -> None:
    student = encoder_parts(tiny_encoder(family))
    assert choose_attention(good_with(values), student) == expected
