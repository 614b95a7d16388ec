"""A host's loop: merging, memory that is short, errors, its lease, its rest."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill_dist.records import SignalSpec
from distill_dist.teacher import host, remote_calls
from distill_dist.teacher.disk_cache import SealLimits
from distill_dist.teacher.sanity import Drifted
from distill_dist.teacher.signal_cache import SignalCache
from distill_dist.teacher.wire import Failure, Request, pack_request
from teacher.service_cases import (
    PROBE,
    SPEC,
    batches,
    computer,
    host_of,
    never,
    queued,
    serve_once,
)


class Scarce:
    """A device with room for ``rows`` rows."""

    def __init__(self, rows: int, error: Exception) -> None:
        self.rows, self.error, self.about = rows, error, computer()
        self.sizes: list[int] = []

    def __call__(self, request: Request, spec: SignalSpec) -> list[bytes]:
        self.sizes.append(len(request.keys_B))
        if len(request.keys_B) > self.rows:
            raise self.error
        return self.about(request, spec)


def test_questions_that_wait_are_computed_together_and_answered_as_if_alone() -> None:
    together, alone = host_of(), host_of(batch_tokens=1, cache_bytes=0)
    futures = queued(together, batches())
    assert not any(future.done() for future in futures), "the loop computes, not the caller's thread"
    serve_once(together)
    assert together.counters()["batches"] == 1
    assert together.counters()["computed_rows"] == 6, "two rows are asked for twice, one three times"
    expected = queued(alone, batches())
    serve_once(alone)
    assert alone.counters()["batches"] > 5
    for future, other in zip(futures, expected, strict=True):
        assert [bytes(row) for row in future.value().rows()] == [bytes(row) for row in other.value().rows()]


def test_questions_of_different_kinds_wait_for_each_other_but_do_not_mix() -> None:
    teaching = host_of()
    logits = SignalSpec()
    futures = [*queued(teaching, batches()[:2]), *queued(teaching, batches()[1:2], logits)]
    serve_once(teaching)
    assert teaching.counters()["batches"] == 2
    sizes = [future.value().sizes_B.tolist() for future in futures]
    assert max(sizes[2]) < min(sizes[1])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
        RuntimeError("std::bad_alloc"),
    ],
    ids=["cuda", "python", "torch on cpu", "a container of torch"],
)
def test_out_of_memory_halves_the_batch_for_good(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    scarce = Scarce(2, error)
    teaching = host_of(scarce, cache_bytes=0)
    futures = queued(teaching, batches())
    serve_once(teaching)
    assert all(isinstance(future.value().sizes_B, torch.Tensor) for future in futures)
    assert scarce.sizes == [6, 3, 1, 2, 3, 1, 2]
    assert "out of memory at 72 tokens a batch: 36 from here on (teacher.batch_tokens)" in caplog.text
    again = queued(teaching, batches())
    begin = len(scarce.sizes)
    serve_once(teaching)
    assert max(scarce.sizes[begin:]) <= 2, "it was learned"
    assert all(future.done() for future in again)


def test_a_row_alone_that_does_not_fit_belongs_to_who_asked() -> None:
    teaching = host_of(Scarce(0, MemoryError()))
    (future,) = queued(teaching, batches()[:1])
    serve_once(teaching)
    assert isinstance(future.value(), Failure)
    assert "MemoryError" in future.value().reason


def test_a_row_that_was_computed_while_a_question_waited_is_not_computed_again() -> None:
    about, sizes = computer(), []

    def compute(request: Request, spec: SignalSpec) -> list[bytes]:
        sizes.append(len(request.keys_B))
        return about(request, spec)

    # one row at a time: the second question's loop begins when the first one's row is there
    teaching = host_of(compute, batch_tokens=1)
    first, second = (queued(teaching, batches()[:1])[0] for _ in range(2))
    serve_once(teaching)
    assert sizes == [1]
    assert bytes(first.value().rows()[0]) == bytes(second.value().rows()[0])
    assert teaching.counters()["misses"] == 2, "both had to ask"


def test_an_error_of_the_model_reaches_those_who_asked_and_nobody_else() -> None:
    about = computer()

    def fails_on_long_rows(request: Request, spec: SignalSpec) -> list[bytes]:
        if request.input_ids_BL.shape[1] == 12:
            raise ValueError("twelve tokens are too many")
        return about(request, spec)

    teaching = host_of(fails_on_long_rows, batch_tokens=12)
    futures = queued(teaching, batches())
    serve_once(teaching)
    assert futures.pop(2).value() == Failure("ValueError: twelve tokens are too many")
    assert all(len(future.value().rows()) > 0 for future in futures)


def test_a_host_ends_when_all_students_let_go() -> None:
    teaching = host_of(students=2)
    teaching.release(0)
    teaching.release(0)  # twice the same is not everybody
    stopped = threading.Event()
    stopped.set()
    assert teaching.serve(should_stop=stopped.is_set) is False
    teaching.release(1)
    assert teaching.serve(should_stop=never) is True


def test_a_host_leaves_when_its_lease_runs_out() -> None:
    assert host_of(lease_s=0.0).serve(should_stop=never) is False


def test_calls_prolong_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    teaching = host_of(lease_s=10.0)
    asks = 0

    def later() -> bool:
        """Asked whenever the queue was empty: nine seconds pass, then somebody calls."""
        nonlocal now, asks
        now, asks = now + 9.0, asks + 1
        if asks == 1:
            teaching.renew()
        elif asks == 2:
            queued(teaching, batches()[:1])
        return asks > 5

    monkeypatch.setattr("distill_dist.teacher.host.time.monotonic", lambda: now)
    teaching.renew()
    assert teaching.serve(should_stop=later) is False
    assert asks == 4  # two calls prolonged it; then 9 s are within the lease and 18 s are not
    assert teaching.answered == 1


def test_a_host_rests_once_when_everything_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asks, rests = 0.0, 0, []
    monkeypatch.setattr("distill_dist.teacher.host.time.monotonic", lambda: now)
    teaching = host_of(lease_s=1000.0, rest=lambda: rests.append(now), rest_after_s=25.0)

    def later() -> bool:
        """Asked whenever the queue was empty: ten seconds pass."""
        nonlocal now, asks
        now, asks = now + 10.0, asks + 1
        if asks in (1, 2, 6):
            queued(teaching, batches()[:1])  # cached from the second time on
        if asks == 8:
            queued(teaching, batches()[1:2])
        return asks > 12

    assert teaching.serve(should_stop=later) is False
    assert rests == [40.0, 110.0]


def test_a_host_whose_worker_was_slow_to_answer_does_not_rest_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asks, rests = 0.0, 0, []
    monkeypatch.setattr("distill_dist.teacher.host.time.monotonic", lambda: now)
    about = computer()

    def slow(request: Request, spec: SignalSpec) -> list[bytes]:
        nonlocal now
        now += 100.0  # its worker had to load its teacher
        return about(request, spec)

    teaching = host_of(slow, lease_s=1000.0, rest=lambda: rests.append(now), rest_after_s=25.0)
    queued(teaching, batches()[:1])

    def later() -> bool:
        nonlocal now, asks
        now, asks = now + 10.0, asks + 1
        return asks > 5

    assert teaching.serve(should_stop=later) is False
    assert rests == [130.0]


@pytest.mark.parametrize("found_by", ["check", "compute"])
def test_a_teacher_that_drifted_answers_nobody(found_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(host.time, "monotonic", lambda: now)
    asked: list[float] = []
    about = computer()

    def check() -> bool:
        asked.append(now)
        if len(asked) == 2 and found_by == "check":
            raise Drifted("its logits differ")
        return True

    def compute(request: Request, spec: SignalSpec) -> list[bytes]:
        if len(asked) == 2 and found_by == "compute":
            raise Drifted("its logits differ")
        return about(request, spec)

    teaching = host_of(compute, lease_s=1000.0, cache_bytes=0, check=check, check_every_s=30.0)
    for seconds, checks in ((100.0, 0), (129.0, 0), (131.0, 1), (160.0, 1)):
        now = seconds
        (answer,) = queued(teaching, batches()[:1])
        serve_once(teaching)
        assert answer.done()
        assert len(asked) == checks
    now = 162.0
    (waiting,) = queued(teaching, batches()[:1])
    with pytest.raises(Drifted):
        teaching.serve(should_stop=never)
    assert not waiting.done()


def test_rows_are_sealed_only_once_the_teacher_was_found_good_and_dropped_where_nobody_knows(
    tmp_path: Path,
) -> None:
    verdicts: list[bool | Exception] = [False, True, Drifted("its logits differ")]

    def check() -> bool:
        verdict = verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    limits = SealLimits(records=1)
    cache = SignalCache(0, tmp_path, context=bytes(32), limits=limits, seals_itself=False)
    teaching = host_of(cache=cache, check=check)
    for batch, sealed in zip(batches()[:2], (0, 1), strict=True):
        queued(teaching, [batch])
        serve_once(teaching)  # what is due before, rows, what is due then
        assert len(list(tmp_path.glob("*.seg"))) == sealed
        assert not list(tmp_path.glob("*.unchecked"))
        assert cache.counters()["written"] == 2 * sealed
    queued(teaching, batches()[2:3])
    with pytest.raises(Drifted):
        teaching.serve(should_stop=never)
    assert len(list(tmp_path.glob("*.unchecked"))) == 1
    cache.drop()
    assert len(list(tmp_path.glob("*.seg"))) == 1
    assert not list(tmp_path.glob("*.unchecked"))
    good = SignalCache(0, tmp_path, context=bytes(32))
    assert good.counters()["disk_bytes"] > 0


def test_remote_functions_reach_the_open_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_calls, "_host", None)
    with pytest.raises(AssertionError, match="open_host comes before"):
        remote_calls.renew()
    teaching = host_of(students=1)
    remote_calls.open_host(teaching)
    assert remote_calls.describe() == computer().introduce(PROBE)
    request = replace(pack_request(batches()[0], labels=True), keys_B=(bytes(16),))
    answer = remote_calls.ask(request, SPEC)
    assert not answer.done()
    remote_calls.renew()
    serve_once(teaching)
    (row,) = answer.value().rows()
    assert remote_calls.counters()["answered"] == 1
    again = remote_calls.ask(request, SPEC)
    assert again.done(), "from the cache, at once"
    assert again.value().rows() == [row]
    remote_calls.dismiss()
    assert teaching.serve(should_stop=never) is False
