"""Several teachers behind one: the same in process and behind hosts, each asked of its own hosts only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from tiny_encoders import ragged_batch, tiny_encoder, undecided

from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.objectives.join_signals import Joining
from distill_dist.records import Batch, JoinedSignal, SignalSpec
from distill_dist.teacher.cached import CachedTeacher
from distill_dist.teacher.local import LocalTeacher, TeacherLost
from distill_dist.teacher.pool import TeacherPool
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.signal_cache import SignalCache
from teacher.service_cases import (
    DEADLINE_S,
    SPEC,
    FakeWorld,
    batches,
    each,
    host_of,
    remote,
    serving,
)

CPU = torch.device("cpu")
MODELS = (0, 1)
# host -> model; teacher ranks take turns
HOSTS = {"teacher0": 0, "teacher1": 1, "teacher2": 0}
OWN_MAX = replace(SPEC, signal="own_max")


def parts_of(model: int) -> EncoderParts:
    found = tiny_encoder(dtype=torch.float32, seed=model).requires_grad_(False)
    return encoder_parts(undecided(found, ragged_batch((9, 3, 7, 12, 5, 8))))


def joining(how: str = "average") -> Joining:
    return Joining(how, (0.75, 0.25), 2.0)


def local(how: str = "average") -> TeacherPool:
    return TeacherPool([LocalTeacher(parts_of(model), CPU) for model in MODELS], joining(how))


def hosts() -> dict[str, Any]:
    def about(model: int) -> RowComputer:
        return RowComputer(parts_of(model), CPU, types=WireTypes(), fingerprint=str(model) * 64)

    return {name: host_of(about=(row := about(model)), compute=row) for name, model in HOSTS.items()}


def pool_in(world: FakeWorld, how: str = "average", **more: Any) -> TeacherPool:
    return TeacherPool(
        [
            remote(world, names=tuple(name for name, served in HOSTS.items() if served == model), **more)
            for model in MODELS
        ],
        joining(how),
    )


@contextmanager
def served(how: str = "average") -> Iterator[tuple[TeacherPool, FakeWorld]]:
    """A pool of hosts that serve; all end well."""
    members = hosts()
    world = FakeWorld(members)
    with serving(members) as ended:
        pool = pool_in(world, how)
        yield pool, world
        assert pool.release(timeout_s=DEADLINE_S)
    assert ended == [True] * len(HOSTS)


def joined_of(pool: TeacherPool, spec: SignalSpec, ahead: int = 2) -> list[JoinedSignal]:
    found = []
    for (batch, (signal,)), expected in zip(
        pool.signals(batches(), each, spec, ahead=ahead), batches(), strict=True
    ):
        assert batch.ids_B.tolist() == expected.ids_B.tolist()
        assert isinstance(signal, JoinedSignal)
        found.append(signal)
    return found


def assert_same(first: Any, second: Any) -> None:
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name == "members":
            for mine, theirs in zip(one, other, strict=True):
                assert_same(mine, theirs)
        else:
            assert torch.equal(one, other), field.name


@pytest.mark.parametrize("how", ["average", "best", "separate"])
@pytest.mark.parametrize("spec", [SPEC, OWN_MAX], ids=["label", "own_max"])
@pytest.mark.parametrize("ahead", [0, 3])
def test_the_same_in_process_and_behind_hosts(how: str, spec: SignalSpec, ahead: int) -> None:
    here = joined_of(local(how), spec)
    with served(how) as (pool, _):
        there = joined_of(pool, spec, ahead)
    for one, other in zip(here, there, strict=True):
        assert_same(one, other)
        assert len(one.members) == (2 if how == "separate" else 0)


def test_what_a_row_is_said_to_cost_is_what_travels() -> None:
    """Where all classes are asked for, as `average` has to, every one of them counts."""
    lengths = [int(length) for batch in batches() for length in batch.attention_mask_BL.sum(dim=1)]
    said = {}
    for how in ("average", "best"):
        with served(how) as (pool, _):
            joined_of(pool, OWN_MAX)
            counters, costs = pool.counters(), pool.wire(OWN_MAX, sum(lengths) / len(lengths))
        sent = [
            sum(counters[name]["answered_bytes"] for name in HOSTS if HOSTS[name] == model)
            for model in MODELS
        ]
        assert [cost["bytes_per_row"] * len(lengths) for cost in costs] == pytest.approx(sent, rel=1e-12)
        said[how] = costs[0]
        assert set(costs[1]) == {"bytes_per_row", "cls_states", "cls_gradients", "embedding_gradient"}
        (_, logits_alone) = pool.wire(SignalSpec(), 7.0)
        assert set(logits_alone) == {"bytes_per_row"}
    assert said["average"]["bytes_per_row"] > 2 * said["best"]["bytes_per_row"], "three classes"
    assert local().wire(OWN_MAX, 7.0) == ()


def test_ways_of_joining_differ() -> None:
    """Else the comparison above proves little."""
    average, best = (joined_of(local(how), OWN_MAX) for how in ("average", "best"))
    assert any(not torch.equal(a.logits_BC, b.logits_BC) for a, b in zip(average, best, strict=True))
    disagreement = torch.cat([each.disagreement_B for each in average if each.disagreement_B is not None])
    assert set(disagreement.tolist()) == {0.0, 1.0}


def test_every_host_is_asked_for_its_own_model_and_let_go_once() -> None:
    with served() as (pool, world):
        joined_of(pool, OWN_MAX)
        assert set(pool.counters()) == set(HOSTS)
        # six different rows of each model
        rows = {name: counts["computed_rows"] for name, counts in pool.counters().items()}
        assert rows["teacher1"] == 6
        assert rows["teacher0"] + rows["teacher2"] == 6
        assert min(rows["teacher0"], rows["teacher2"]) > 0
        singles = [sum(p.numel() for p in parts_of(model).model.parameters()) for model in MODELS]
        assert pool.describe() == {"parameters": sum(singles), "row_difference": 0.0}
        assert pool.waited_s == sum(member.waited_s for member in pool.members) > 0
    released = Counter(name for name, call in world.calls if call == "release")
    assert released == dict.fromkeys(HOSTS, 1)


def test_a_stop_dismisses_every_host_once() -> None:
    members = hosts()
    world = FakeWorld(members)
    with serving(members) as ended:
        pool = pool_in(world)
        assert pool.release(timeout_s=DEADLINE_S, early=True)
    assert ended == [False] * len(HOSTS)
    assert Counter(name for name, call in world.calls if call == "dismiss") == dict.fromkeys(HOSTS, 1)


def test_all_models_are_asked_ahead_and_no_item_is_taken_twice() -> None:
    taken: list[list[int]] = []

    def items() -> Iterator[Batch]:
        for batch in batches():
            taken.append(batch.ids_B.tolist())
            yield batch

    with served() as (pool, world):
        stream = pool.signals(items(), each, OWN_MAX, ahead=2)
        next(stream)
        assert len(taken) == 3
        asked = {name for name, call in world.calls if call == "ask"}
        assert asked == set(HOSTS)
        assert sum(call == "ask" and name == "teacher1" for name, call in world.calls) == 3
        list(stream)
        assert taken == [batch.ids_B.tolist() for batch in batches()]


@pytest.mark.parametrize("dead", [{"teacher1"}, {"teacher0", "teacher2"}])
def test_a_model_without_hosts_is_waited_for_and_named(dead: set[str]) -> None:
    """The other model's hosts cannot stand in for it."""
    members = hosts()
    world = FakeWorld(members)
    with serving(members):
        pool = pool_in(world, patience_s=0.3)
        world.dead = dead
        with pytest.raises(TeacherLost) as caught:
            joined_of(pool, OWN_MAX)
        assert any(name in str(caught.value) for name in dead)
        world.dead = set()
        assert pool.release(timeout_s=DEADLINE_S)


def test_one_of_two_hosts_of_a_model_is_enough() -> None:
    expected = joined_of(local(), OWN_MAX)
    with served() as (pool, world):
        world.dead = {"teacher0"}
        for one, other in zip(joined_of(pool, OWN_MAX), expected, strict=True):
            assert_same(one, other)
        world.dead = set()


def test_rows_that_are_not_aligned_bring_logits_alone() -> None:
    plain = [replace(batch, alignment=0.0) for batch in batches()]
    for _, (signal,) in local().signals(plain, each, OWN_MAX, ahead=0):
        assert isinstance(signal, JoinedSignal)
        assert signal.embedding_gradient_BLVH is None
        assert signal.gradient_cosine_B is None
        assert signal.disagreement_B is not None
        assert signal.cls_states_BKH is not None


def test_models_in_this_process_are_counted_apart() -> None:
    members = []
    for model in MODELS:
        compute = RowComputer(parts_of(model), CPU, types=WireTypes(), fingerprint=str(model) * 64)
        members.append(CachedTeacher(compute, SignalCache(1 << 20, None, context=bytes(32))))
    pool = TeacherPool(members, joining())
    here = joined_of(local(), OWN_MAX)
    for one, other in zip(joined_of(pool, OWN_MAX), here, strict=True):
        assert_same(one, other)
    assert [counts["computed_rows"] for counts in pool.counters().values()] == [6, 6]
