"""How long the members of a world wait for one that dies on the way in; torch's part is replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist
from tiny import wait_until
from torch.distributed import rpc

from distill_dist.comm import rpc_world
from distill_dist.comm.rpc_world import ENTER_S, REFORM_S, RpcWorld


def test_a_world_that_is_formed_anew_gives_up_soon_and_waits_longer_where_that_was_too_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    fails = [False, True, True, True, False, True, False]  # of the worlds, in their order

    def init_rpc(name: str, *, rpc_backend_options: Any, **_: Any) -> None:
        waits.append(rpc_backend_options.rpc_timeout)
        assert rpc_backend_options.init_method.endswith(f"?timeout_s={waits[-1]}")
        assert rpc.constants.DEFAULT_PROCESS_GROUP_TIMEOUT.total_seconds() == waits[-1]
        if fails[len(waits) - 1]:
            raise RuntimeError("a member did not come")

    monkeypatch.setattr(rpc, "init_rpc", init_rpc)
    monkeypatch.setattr(rpc, "shutdown", lambda graceful: None)
    monkeypatch.setattr(rpc.constants, "DEFAULT_PROCESS_GROUP_TIMEOUT", None)
    monkeypatch.setattr(rpc, "_init_counter", 0)
    monkeypatch.setattr(rpc_world, "WATCH_S", 0.01)
    master = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = RpcWorld(
        master, name="student0", students=("student0",), hosts=(), address="127.0.0.1", timeout_s=20.0
    )
    try:
        for generation in (4, 6):  # those in which the worlds stand that are asked for
            master.add("rpc/generation", 1)
            wait_until(
                lambda generation=generation: world.generation == generation,
                what=f"world {generation}",
                timeout_s=20.0,
            )
    finally:
        world.leave()
    assert waits == [ENTER_S, *(REFORM_S * n for n in (1, 2, 4)), ENTER_S, REFORM_S, 2 * REFORM_S]
