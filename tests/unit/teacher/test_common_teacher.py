"""What hosts of one model have in common, and what may differ between them."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

from distill_dist.errors import UserError
from distill_dist.teacher.common_teacher import CommonTeacher
from distill_dist.teacher.sanity import TOLERANCE
from teacher.service_cases import PROBE, SPEC, computer


@pytest.fixture
def about() -> dict[str, Any]:
    return computer().introduce(PROBE)


def test_the_first_host_describes_the_model(about: dict[str, Any]) -> None:
    common = CommonTeacher()
    assert common.compare("teacher0", about) is None
    assert common.describe() == {"parameters": about["parameters"], "row_difference": 0.0}
    assert common.identity.fingerprint == common.fingerprint == about["fingerprint"]
    costs = common.wire(SPEC, 7.5)
    assert costs.keys() == {"bytes_per_row", *about["wire_report"]}
    assert costs["bytes_per_row"] == common.codec(SPEC).mean_row_bytes(7.5)


def test_another_model_is_refused(about: dict[str, Any]) -> None:
    common = CommonTeacher()
    common.compare("teacher0", about)
    with pytest.raises(UserError, match="teacher1 does not teach what the others do"):
        common.compare("teacher1", {**about, "fingerprint": "0" * 64})


def test_other_numbers_are_a_reason_and_measures_are_none(about: dict[str, Any]) -> None:
    common, other = CommonTeacher(), copy.deepcopy(about)
    common.compare("teacher0", about)
    other["wire_report"] = {kind: value + 1e-9 for kind, value in about["wire_report"].items()}
    assert common.compare("teacher1", other) is None
    logits = other["probe"]["logits"]
    largest = max(abs(value) for row in logits for value in row)
    logits[0][0] += 2 * TOLERANCE * largest
    assert "logits on 3 rows differ" in str(common.compare("teacher1", other))


def test_the_largest_row_difference_is_kept_and_said(
    about: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="distill_dist")
    common = CommonTeacher()
    for name, found in (("a", 0.0), ("b", 2e-7), ("c", 2e-7), ("d", 5e-7), ("e", 1e-7)):
        common.compare(name, {**about, "row_difference": found})
    assert common.describe()["row_difference"] == 5e-7
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[0] for text in said] == ["b", "d"]
    assert "5.0e-07 of the largest" in said[1]
