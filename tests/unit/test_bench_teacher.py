"""The benchmark of the teacher service on a student of milliseconds: its figures mean what they say."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from teacher.service_cases import client_of

from distill_dist.bench import teacher_world
from distill_dist.bench.distillation_cases import Setting, Shape, make_setting
from distill_dist.bench.teacher import BARS, Sizes, exchange_figures, in_turns
from distill_dist.bench.teacher_client import Exchange, are_equal, questions, rows_per_s
from distill_dist.bench.teacher_store import (
    VARIANT_TOKENS,
    Pace,
    StoredCases,
    as_variant,
    contents,
    encode_cases,
    load_cases,
)
from distill_dist.bench.teacher_student import Block, MeasuredStudent, Share, orders
from distill_dist.bench.teacher_table import bars, table
from distill_dist.bench.teacher_wire import measure_wire
from distill_dist.bench.teacher_worker import Replay
from distill_dist.bench.teacher_world import Processes, meet
from distill_dist.config.schema_teacher import TeacherConfig
from distill_dist.records import Batch, SignalSpec, TeacherSignal
from distill_dist.teacher.client import RemoteTeacher
from distill_dist.teacher.host import TeacherHost
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_keys import row_keys
from distill_dist.teacher.signal_cache import SignalCache
from distill_dist.teacher.wire import Request, join_requests, pack_request

TINY = Shape(
    4, 2, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=1100, batch=9, rounds=2
)
COSTS = (0.5, 1.0, 1.5)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting(TINY, device=torch.device("cpu"), count=3, seed=0)


@pytest.fixture(scope="module")
def spec(setting: Setting) -> SignalSpec:
    assert setting.objective.signal_spec is not None
    return setting.objective.signal_spec


@pytest.fixture(scope="module")
def stored(setting: Setting, spec: SignalSpec) -> StoredCases:
    return encode_cases(setting.cases, spec, step_s=[0.02 * cost for cost in COSTS], types=WireTypes())


def host(stored: StoredCases, folder: Path, *, pace_s: float = 0.0) -> TeacherHost:
    return TeacherHost(
        Replay(stored, Pace(folder, pace_s)),
        SignalCache(1 << 24, None, context=bytes(32)),
        students=1,
        lease_s=60.0,
        batch_tokens=4096,
        queue_tokens=1 << 20,
        description=stored.description,
    )


def keys(batch: Batch) -> list[bytes]:
    request = pack_request(batch, labels=False)
    return row_keys(
        request.input_ids_BL, request.lengths_B, request.token_type_ids_BL, None, context=bytes(32)
    )


# ---------------------------------------------------------------- stored cases


def test_stored_cases_come_back_and_decode_to_what_the_teacher_said(
    stored: StoredCases, setting: Setting, tmp_path: Path
) -> None:
    stored.save(tmp_path)
    found = load_cases(tmp_path)
    assert (found.spec, found.costs, found.description) == (stored.spec, stored.costs, stored.description)
    assert found.costs == pytest.approx(COSTS)
    assert found.rows == stored.rows
    for batch, signal, case in zip(found.batches, found.signals(), setting.cases, strict=True):
        for field in ("ids_B", "labels_B", "is_real_B"):
            assert torch.equal(getattr(batch, field), getattr(case.batch, field))
        assert all(torch.equal(*pair) for pair in zip(batch.inputs, case.batch.inputs, strict=True))
        assert batch.alignment == 1.0
        assert torch.equal(signal.logits_BC, case.signal.logits_BC)


def test_a_row_has_one_signal_in_whatever_batch_it_stands(stored: StoredCases) -> None:
    """A vocabulary of 100 words has short rows twice."""
    seen: dict[bytes, set[bytes]] = {}
    for batch, rows in zip(stored.batches, stored.rows, strict=True):
        for content, row in zip(contents(batch), rows, strict=True):
            seen.setdefault(content, set()).add(row)
    assert all(len(rows) == 1 for rows in seen.values())


def test_variants_have_keys_of_their_own_and_the_same_tokens(stored: StoredCases) -> None:
    batch = stored.batches[0]
    before = batch.token_type_ids_BL.clone()
    variants = [as_variant(batch, number) for number in (0, 1, 255, 256, 1 << 16, (1 << 24) - 1)]
    every = [key for variant in variants for key in keys(variant)]
    assert len(set(every)) == len(variants) * len(set(contents(batch)))
    assert keys(variants[0]) == keys(batch)
    assert torch.equal(batch.token_type_ids_BL, before)
    for variant in variants:
        assert contents(variant) == contents(batch)
        assert torch.equal(variant.token_type_ids_BL[:, VARIANT_TOKENS:], before[:, VARIANT_TOKENS:])


# ---------------------------------------------------------------- the stand-in


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that a stand-in would have slept, on a clock that stands."""
    found: list[float] = []
    monkeypatch.setattr("distill_dist.bench.teacher_worker.time.sleep", found.append)
    monkeypatch.setattr("distill_dist.bench.teacher_worker.time.monotonic", lambda: 100.0)
    return found


def test_a_stand_in_replays_rows_in_their_time(
    stored: StoredCases, spec: SignalSpec, tmp_path: Path, slept: list[float]
) -> None:
    pace = Pace(tmp_path, 2.0)
    replay = Replay(stored, Pace(tmp_path))
    first, last = (pack_request(as_variant(stored.batches[case], 7), labels=False) for case in (1, 2))

    def with_keys(request: Request) -> Request:
        return replace(request, keys_B=tuple(bytes([row]) for row in range(TINY.batch)))

    assert replay(first, spec) == stored.rows[1]
    assert replay(with_keys(last).take([4, 2]), spec) == [stored.rows[2][4], stored.rows[2][2]]
    assert replay(join_requests([first, last]), spec) == stored.rows[1] + stored.rows[2]
    pace.seconds = 1.0
    replay(first, spec)
    # short rows that stand in several batches cost what they cost in the last of them
    apart = {content for batch in stored.batches[:2] for content in contents(batch)}
    assert not apart & set(contents(stored.batches[2])), "chosen so: the expected times below are exact"
    assert slept == pytest.approx([2 * COSTS[1], 2 * COSTS[2] * 2 / 9, 2 * (COSTS[1] + COSTS[2]), COSTS[1]])


def test_a_stand_in_refuses_rows_and_specs_that_it_does_not_know(
    stored: StoredCases, spec: SignalSpec, tmp_path: Path
) -> None:
    replay = Replay(stored, Pace(tmp_path, 0.0))
    request = pack_request(stored.batches[0], labels=False)
    with pytest.raises(AssertionError):
        replay(request, replace(spec, cls_gradients=False))
    with pytest.raises(KeyError):
        replay(replace(request, input_ids_BL=request.input_ids_BL + 1), spec)


# ---------------------------------------------------------------- the student


def test_served_steps_ask_for_every_pass_and_get_the_teachers_signals(
    stored: StoredCases, spec: SignalSpec, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = MeasuredStudent(setting)
    ran: list[tuple[int, TeacherSignal]] = []
    number_of = {id(case.batch): number for number, case in enumerate(setting.cases)}
    monkeypatch.setattr(student, "_run", lambda case: ran.append((number_of[id(case.batch)], case.signal)))
    teaching = host(stored, tmp_path)
    with client_of({"teacher": teaching}) as client:
        cold = itertools.count(1)
        block = student.served(client, spec, [[2, 0, 1], [0, 1, 2]], cold, ahead=1)
        assert next(cold) == 5  # before, two passes, after
        assert [number for number, _ in ran] == [2, 0, 2, 0, 1, 0, 1, 2]
        assert all(are_equal(signal, stored.signals()[number]) for number, signal in ran)
        rows = [len(set(contents(batch))) for batch in stored.batches]
        computed = teaching.counters()["computed_rows"]
        assert computed == rows[2] + rows[0] + 2 * sum(rows) + rows[0]
        for _ in range(2):
            warm = student.served(client, spec, [[0, 1, 2]], itertools.repeat(0), ahead=1)
            computed, before = teaching.counters()["computed_rows"], computed
        assert computed == before, "the second pass is all cached"
    assert 0 < block.waited_s < block.seconds
    assert (block.computed > 0, warm.computed) == (True, 0)


def test_served_passes_take_turns_at_the_pace_of_the_step(
    stored: StoredCases, spec: SignalSpec, setting: Setting, tmp_path: Path
) -> None:
    teaching, said = host(stored, tmp_path), list[str]()
    pace, sizes = Pace(tmp_path), Sizes(rounds=2, cases=3, passes=2, shape=TINY)
    with client_of({"teacher": teaching}) as client:
        found = in_turns(MeasuredStudent(setting), client, spec, pace, sizes, said.append, 0)
    assert said == [f"{kind} {number}/2" for number in (1, 2) for kind in ("hidden_teacher", "warm_cache")]
    assert pace.seconds == pytest.approx(0.9 * found["ready_step_ms"] / 1000)
    rows = sum(len(set(contents(batch))) for batch in stored.batches)
    # what fills the cache, then two passes a round and a pass or less before and after, all of rows never asked for
    ahead = TeacherConfig().prefetch
    asked = 2 * sizes.cases + (min(2 * sizes.cases, ahead + 1) + min(2 * sizes.cases, ahead))
    computed = found["counters"]["teacher"]["computed_rows"]
    assert rows * (1 + 2 * 4) <= computed <= TINY.batch * (1 + 2) * asked
    for kind in ("hidden_teacher", "warm_cache"):
        low, high = found[kind]["quartiles"]
        assert 0 < low <= found[kind]["share"] <= high
        assert found[kind]["step_ms"] > found[kind]["waited_ms"] > 0
    assert found["hidden_teacher"]["computed_share"] > 0
    assert found["warm_cache"]["computed_share"] == 0


def test_steps_train_and_leave_no_gradient(setting: Setting) -> None:
    student = MeasuredStudent(setting)
    seen: list[bool] = []
    weight = next(p for p in setting.student.model.parameters() if p.requires_grad)
    handle = weight.register_post_accumulate_grad_hook(lambda p: seen.append(bool(p.grad.abs().sum() > 0)))
    ready, (first, *others) = student.ready([0, 1]), student.step_s(repeats=2)
    handle.remove()
    assert seen == [True] * (2 + 1 + 2 * 3)
    assert weight.grad is None
    assert min(ready.seconds, ready.cpu_s, first, *others) > 0


def test_passes_are_permutations_that_differ() -> None:
    found = list(itertools.islice(orders(9, seed=0), 3))
    assert all(sorted(order) == list(range(9)) for order in found)
    assert found[0] != found[1] != found[2]


def test_a_share_is_of_the_mean_of_both_neighbours() -> None:
    share = Share(Block(1.0, 0.8), Block(2.0, 1.0, 0.5), Block(2.0, 1.0))
    assert share.of_throughput == 0.75
    assert share.of_cpu == pytest.approx(0.9)


# ---------------------------------------------------------------- the clients


def test_every_client_asks_for_new_batches_and_for_its_neighbours() -> None:
    asked = [list(itertools.islice(questions(client, 5, 3), 20)) for client in range(5)]
    fresh = [pair for pairs in asked for pair in pairs[::2]]
    assert len(set(fresh)) == len(fresh) == 50
    for client, pairs in enumerate(asked):
        assert pairs[1::2] == asked[(client + 1) % 5][::2]
        assert {case for case, _ in pairs} == {0, 1, 2}


def exchange(client: RemoteTeacher, stored: StoredCases, found: Exchange, *, count: int) -> Exchange:
    """Ends after ``count`` requests: a clock that makes a step a question."""
    found.run(client, stored, number=0, clients=1, seconds=float(count))
    return found


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("distill_dist.bench.teacher_client.time", _Clock(lambda: float(next(ticks))))


class _Clock:
    perf_counter = staticmethod(time.perf_counter)

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.monotonic = monotonic


@pytest.mark.usefixtures("ticking")
def test_requests_that_are_rightly_answered_are_counted(stored: StoredCases, tmp_path: Path) -> None:
    with client_of({name: host(stored, tmp_path) for name in ("a", "b")}) as client:
        found = exchange(client, stored, Exchange(), count=6)
    assert (found.asked, found.right, len(found.latency_s)) == (5, 5, 5)
    assert min(found.latency_s) > 0


@pytest.mark.usefixtures("ticking")
def test_wrong_and_missing_answers_are_lost(stored: StoredCases, tmp_path: Path) -> None:
    swapped = replace(stored, rows=[[*rows[1:], rows[0]] for rows in stored.rows])
    # rows of another sample in the second batch: only sizes that fit decode at all
    lengths = stored.batches[1].attention_mask_BL.sum(dim=1)
    assert len(set(lengths.tolist())) < len(lengths), "some neighbours have one length"
    with client_of({"a": host(swapped, tmp_path)}) as client:
        found = exchange(client, stored, Exchange(), count=3)
    assert found.asked == 2
    assert found.right == 0

    class Fails:
        def signals(self, items: Iterator[Any], *_: Any, ahead: int) -> Iterator[Any]:
            next(iter(items))
            raise RuntimeError("gone")
            yield

    failed = Exchange()
    with pytest.raises(RuntimeError, match="gone"):
        exchange(cast(RemoteTeacher, Fails()), stored, failed, count=9)
    assert (failed.asked, failed.right) == (1, 0)


def test_equal_means_to_the_bit(stored: StoredCases) -> None:
    one, other = stored.signals()[0], stored.signals()[0]
    assert are_equal(one, other)
    for field in fields(TeacherSignal):
        value = getattr(one, field.name)
        if value is None:
            continue
        changed = value.clone()
        changed.view(-1)[-1] += 1e-6 + changed.view(-1)[-1].abs() * 1e-6
        assert not are_equal(one, replace(other, **{field.name: changed})), field.name
        assert not are_equal(one, replace(other, **{field.name: value.double()})), field.name
        assert not are_equal(one, replace(other, **{field.name: None})), field.name


def test_throughput_counts_rows_that_no_cache_knows(stored: StoredCases, tmp_path: Path) -> None:
    teaching = host(stored, tmp_path)
    with client_of({"teacher": teaching}) as client:
        begin = time.perf_counter()
        rate = rows_per_s(client, stored, num_hosts=2, passes=2)
        seconds = time.perf_counter() - begin
        rate_again = rows_per_s(client, stored, num_hosts=1, passes=1)  # of what is cached by now
    assert rate >= 4 * 3 * TINY.batch / seconds
    assert rate_again > 0
    assert teaching.counters()["computed_rows"] == 4 * sum(len(set(contents(b))) for b in stored.batches)


def client_figures(**more: Any) -> dict[str, Any]:
    return {"asked": 4, "right": 4, "latency_s": [0.1, 0.2, 0.3, 0.4], **more}


def counted(hits: int, misses: int) -> dict[str, dict[str, int]]:
    return {"host": {"memory_hits": hits, "misses": misses, "batches": 1}}


def test_figures_of_an_exchange_sum_over_its_clients() -> None:
    first = client_figures(
        rows_per_s=10.0, counters={"before": counted(100, 100), "after": counted(130, 110)}
    )
    second = client_figures(asked=5, right=3, error="TeacherLost: gone")
    found = exchange_figures([first, second], seconds=2.0)
    assert (found["requests"], found["lost_requests"], found["requests_per_s"]) == (9, 2, 3.5)
    assert found["cached_share"] == 0.75
    assert found["errors"] == ["TeacherLost: gone"]
    assert found["p50_ms"] == pytest.approx(250)
    # numpy interpolates between the two largest of 8, which are equal
    assert found["p99_ms"] == pytest.approx(400)
    assert found["max_ms"] == pytest.approx(400)
    with pytest.raises(RuntimeError, match="no request was answered"):
        exchange_figures([{**first, "latency_s": []}], seconds=2.0)


# ---------------------------------------------------------------- the wire


def test_wire_types_save_bytes_at_a_measured_error(setting: Setting, spec: SignalSpec) -> None:
    found = measure_wire(setting.cases, spec)
    assert set(found) == {"fp32", "fp16", "bf16", "int8"}
    assert found["fp32"]["bytes_ratio"] == 1.0
    assert found["fp32"]["cosine"] == pytest.approx(1.0, abs=1e-12)
    ratios = [found[name]["bytes_ratio"] for name in ("fp32", "fp16", "int8")]
    assert ratios == sorted(ratios)
    assert 1.5 < ratios[1] < 2 < ratios[2] < 4
    assert found["bf16"]["bytes_per_sample"] == found["fp16"]["bytes_per_sample"]
    errors = [1 - found[name]["cosine"] for name in ("fp16", "bf16", "int8")]
    assert errors == sorted(errors)
    # the rounding of fp16 is 2⁻¹¹ at most, of bf16 8 times that: cosine errors are of its square
    assert 1e-9 < errors[0] < 2**-21
    assert 10 * errors[0] < errors[1] < 64 * 2**-21
    for each in found.values():
        assert each["least_cosine"] <= each["cosine"]
        assert set(each["cosine_error"]) == {
            "cls_states_BKH",
            "cls_gradients_BKVH",
            "embedding_gradient_BLVH",
        }


# ---------------------------------------------------------------- processes


class FakeStore:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, key: str, more: int) -> int:
        self.counts[key] = self.counts.get(key, 0) + more
        return self.counts[key]


def test_a_meeting_ends_when_all_have_come_or_names_how_many_have_not() -> None:
    store = cast(Any, FakeStore())
    with pytest.raises(TimeoutError, match="2 of 3 did not come to begin within 0 s"):
        meet(store, "begin", 3, timeout_s=0.0)
    with pytest.raises(TimeoutError, match="1 of 3"):
        meet(store, "begin", 3, timeout_s=0.0)
    meet(store, "begin", 3, timeout_s=0.0)
    assert store.counts == {"meet/begin": 3}


def test_a_process_that_fails_or_hangs_is_named_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_world, "connect_store", lambda *_, **__: None)
    running = Processes(tmp_path, "test", num_students=1, num_hosts=1, cases=tmp_path)
    assert running.member.hosts == ["test-teacher0"]
    try:
        running.start("distill_dist.bench.nowhere", "fails")
        with pytest.raises(RuntimeError, match=r"fails ended with 1\n(.|\n)*No module named"):
            running.results(60.0)
    finally:
        running.kill()
    late = Processes(tmp_path, "test", num_students=1, num_hosts=1, cases=tmp_path)
    try:
        late.start("timeit", "late")
        with pytest.raises(RuntimeError, match="after 0 s late still ran"):
            late.results(0.0)
    finally:
        late.kill()


# ---------------------------------------------------------------- the result


def result(**more: Any) -> dict[str, Any]:
    way = {"share": 0.99, "quartiles": [0.98, 1.0], "cpu_share": 1.0, "step_ms": 10.0, "waited_ms": 0.5}
    way["computed_share"] = 1.0
    wire = {"bytes_per_sample": 100.0, "bytes_ratio": 3.5, "cosine": 0.9999, "least_cosine": 0.999}
    return {
        "hidden_teacher_share": 0.97,
        "warm_cache_share": 0.97,
        "scaling_4_hosts": 3.6,
        "wire": {"int8": wire},
        "lost_requests": 0,
        "p99_ms": 12.0,
        "bars": BARS,
        "threads": 1,
        "processors": 2,
        "sizes": {"rounds": 2, "hosts": 4, "clients": 32, "seconds": 60.0},
        "student": {"ready_step_ms": 9.9, "hidden_teacher": way, "warm_cache": way, "rows_per_s": 90.0},
        "exchange": {
            **{"requests": 7, "requests_per_s": 1.0, "cached_share": 0.5, "p50_ms": 1.0, "max_ms": 13.0},
            "errors": ["TeacherLost: gone"],
        },
        **more,
    }


def test_bars_hold_and_miss() -> None:
    assert set(bars(result())) == set(BARS)
    assert all(holds for _, holds in bars(result()).values())
    int8 = result()["wire"]["int8"]
    worse: dict[str, Any] = {
        "hidden_teacher_share": {"hidden_teacher_share": 0.969},
        "warm_cache_share": {"warm_cache_share": 0.969},
        "scaling_4_hosts": {"scaling_4_hosts": 3.59},
        "int8_bytes_ratio": {"wire": {"int8": {**int8, "bytes_ratio": 3.49}}},
        "int8_cosine": {"wire": {"int8": {**int8, "cosine": 0.99989}}},
        "lost_requests": {"lost_requests": 1},
    }
    for name, change in worse.items():
        assert {each for each, (_, holds) in bars(result(**change)).items() if not holds} == {name}


def test_the_table_says_everything_and_leaves_out_the_bar_of_other_hosts() -> None:
    text = table(result())
    assert "MISSED" not in text
    for said in ("9.9 ms with signals ready", "3.60 times", "7 requests", "p99 12 ms", "TeacherLost: gone"):
        assert said in text
    assert "MISSED  no request lost" in table(result(lost_requests=2))
    two = result(sizes={**result()["sizes"], "hosts": 2}, scaling_2_hosts=1.9)
    del two["scaling_4_hosts"]
    assert "scaling" not in bars(two)
    assert "1.90 times" in table(two)
    assert json.loads(json.dumps(two)) == two
