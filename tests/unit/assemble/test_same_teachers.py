"""A run that goes on must have the teachers that it began with."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config.trees import good_with

from assemble.students import on_each, said
from distill_dist.assemble.same_teachers import same_teachers
from distill_dist.checkpoint import Checkpoint
from distill_dist.config.schema_teacher import PooledTeacher
from distill_dist.errors import UserError
from distill_dist.teacher.identity import Identity, read_identity
from distill_dist.teacher.sanity import Probe

# numbers as a model says them: of fp32, the second row shorter
PROBE = Probe(
    logits=np.float32([[1 / 3, -2 / 3], [1e-3, 2e-7]]).tolist(),
    saliency=[np.float32([0.1, 0.7]).tolist(), np.float32([0.3]).tolist()],
)
FIRST = Identity("a" * 64, PROBE)
OTHER_MODEL = replace(FIRST, fingerprint="b" * 64)
DRIFTED = replace(FIRST, probe=replace(PROBE, logits=[[1 / 3, -0.5], [1e-3, 2e-7]]))
FLIPPED = replace(FIRST, probe=replace(PROBE, saliency=[[0.1, 0.9], [0.3]]))


def checkpoint(taught_by: Sequence[Identity] | None) -> Checkpoint:
    """As it is read back."""
    progress: dict[str, Any] = {"step": 10}
    if taught_by is not None:
        progress["teachers"] = [each.to_json() for each in taught_by]
    return Checkpoint(Path("run/checkpoints/step-00000010"), {}, json.loads(json.dumps(progress)))


def config_of(models: int) -> Any:
    teachers = tuple(PooledTeacher(f"teacher-{n}", 1.0) for n in range(models)) if models > 1 else ()
    return good_with({"teacher.path": "teacher-0", "teachers": teachers})


def test_an_identity_survives_a_checkpoint() -> None:
    found = read_identity(json.loads(json.dumps(FIRST.to_json())))
    assert found.fingerprint == FIRST.fingerprint
    for ours, theirs in ((found.probe.logits, PROBE.logits), (found.probe.saliency, PROBE.saliency)):
        assert [len(row) for row in ours] == [len(row) for row in theirs]
        assert np.array_equal(np.float32(np.concatenate(ours)), np.float32(np.concatenate(theirs)))
    assert len(json.dumps(FIRST.to_json())) < 64 + 16 * 7 + 60


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (OTHER_MODEL, "another model (fingerprint bbbbbbbbbbbb instead of aaaaaaaaaaaa"),
        (DRIFTED, "the same model and does not say what it said: its logits on 2 rows differ by"),
        (FLIPPED, "the same model and does not say what it said: its gradients on 2 rows differ by"),
    ],
    ids=["another model", "logits", "gradients"],
)
@pytest.mark.parametrize("models", [1, 2])
def test_another_teacher_than_the_checkpoint_s_is_refused_by_all_and_one_says_it(
    now: Identity, words: str, models: int
) -> None:
    saved, found = [FIRST] * models, [*[FIRST] * (models - 1), now]
    ends = on_each(
        2,
        lambda group: same_teachers(
            config_of(models), checkpoint(saved), saved if group.rank == 0 else found, group
        ),
    )
    (text,) = said(ends, UserError)
    assert words in text
    assert f"the teacher at teacher-{models - 1} is not the one of run/checkpoints/step-00000010" in text
    assert "Put that one back" in text
    assert text.startswith("teachers[1]: ") == (models == 2)


def test_the_first_ones_stay_and_rounding_is_no_change() -> None:
    rounded = replace(FIRST, probe=replace(PROBE, logits=[[1 / 3 + 1e-5, -2 / 3], [1e-3, 2e-7]]))
    for found in on_each(2, lambda group: same_teachers(config_of(1), checkpoint([FIRST]), [rounded], group)):
        (kept,) = found
        assert kept.to_json() == FIRST.to_json() != rounded.to_json()
    (new,) = on_each(1, lambda group: same_teachers(config_of(1), None, [rounded], group))
    assert new == (rounded,)


def test_a_checkpoint_that_does_not_say_who_taught_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        (found,) = on_each(1, lambda group: same_teachers(config_of(1), checkpoint(None), [FIRST], group))
    assert found == (FIRST,)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "does not say who taught" in caplog.text
