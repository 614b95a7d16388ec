"""A teacher in the student's process behind a cache: the same signals, computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill_dist.errors import UserError
from distill_dist.records import SignalSpec
from distill_dist.teacher.cached import CachedTeacher
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.signal_cache import SignalCache
from teacher.service_cases import SPEC, assert_equal, batches, computer, each, expect_all, signals_of


def cached(folder: Path | None, *, memory_bytes: int = 1 << 20) -> CachedTeacher:
    return CachedTeacher(computer(), SignalCache(memory_bytes, folder, context=bytes(32)))


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_it_says_what_the_teacher_says_and_asks_it_once(tmp_path: Path, memory_bytes: int) -> None:
    rows = {int(row) for batch in batches() for row in batch.ids_B}
    teacher = cached(tmp_path, memory_bytes=memory_bytes)
    for _ in range(2):
        expect_all(signals_of(teacher))
    counters = teacher.counters()["in_process"]
    assert counters["computed_rows"] == len(rows)
    assert counters["misses"] == len(rows)
    assert teacher.waited_s > 0
    assert teacher.describe()["parameters"] > 0
    teacher.release(timeout_s=1.0)
    # another process, later
    again = cached(tmp_path, memory_bytes=memory_bytes)
    expect_all(signals_of(again))
    counters = again.counters()["in_process"]
    assert "computed_rows" not in counters
    assert counters["disk_hits"] >= len(rows)
    assert counters["answered_bytes"] > 0


def test_rows_that_stand_twice_in_a_batch_are_computed_once() -> None:
    teacher = cached(None)
    (batch,) = batches()[2:3]
    twice = batch.to("cpu")
    index = torch.tensor([0, 1, 0])
    twice = type(batch)(
        *(value[index] if isinstance(value, torch.Tensor) else value for value in vars(twice).values())
    )
    ((_, (signal,)),) = teacher.signals([twice], each, SignalSpec(embedding_gradient=True), ahead=0)
    assert torch.equal(signal.logits_BC[0], signal.logits_BC[2])
    assert teacher.counters()["in_process"]["computed_rows"] == 2


def test_the_wire_s_types_hold_here_too() -> None:
    exact = signals_of(cached(None))
    rounded = signals_of(
        CachedTeacher(
            computer(WireTypes(embedding_gradients="int8")), SignalCache(0, None, context=bytes(32))
        )
    )
    for ours, theirs in zip(rounded, exact, strict=True):
        assert torch.equal(ours.logits_BC, theirs.logits_BC)
        assert ours.embedding_gradient_BLVH is not None
        assert theirs.embedding_gradient_BLVH is not None
        assert not torch.equal(ours.embedding_gradient_BLVH, theirs.embedding_gradient_BLVH)
        torch.testing.assert_close(
            ours.embedding_gradient_BLVH, theirs.embedding_gradient_BLVH, atol=1e-2, rtol=0
        )


def test_a_teacher_of_nonsense_is_the_users_error() -> None:
    teacher = cached(None)
    with torch.no_grad():
        teacher._compute._parts.model.get_input_embeddings().weight.fill_(float("nan"))  # type: ignore[operator]
    with pytest.raises(
        UserError, match=r"nobody can learn from the teacher: its logits, cls states, .* are not finite"
    ):
        list(teacher.signals(batches(), each, SPEC, ahead=0))


def test_equality_is_no_accident() -> None:
    first, second = signals_of(cached(None))[:2]
    with pytest.raises(AssertionError):
        assert_equal(first, second)
