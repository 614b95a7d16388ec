"""The RPC world that students and teachers share: students call, teachers answer.

RPC has no authentication and unpickles what it is sent (SECURITY.md): private networks only.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed import rpc
from torch.futures import Future

from distill_dist.comm.rendezvous import free_port

answered_later = rpc.functions.async_execution


class CallFailed(RuntimeError):
    """A remote call did not come back: the peer died, raised, or missed its deadline."""


class Reply:
    """The answer to one remote call, still under way."""

    def __init__(self, peer: str, future: Future[Any]) -> None:
        """Watch ``future``, an answer of ``peer``."""
        self._peer, self._future = peer, future
        self._done = threading.Event()
        # A torch future has no wait with a timeout of its own.
        future.add_done_callback(lambda _: self._done.set())

    def wait(self, timeout_s: float) -> Any:
        """The answer. Raises CallFailed, naming the peer, after ``timeout_s`` seconds or when the peer is gone."""
        if not self._done.wait(timeout_s):
            raise CallFailed(f"{self._peer} did not answer within {timeout_s:.0f} s")
        try:
            found = self._future.value()
        except Exception as error:  # torch raises what the peer raised, in its own type
            raise CallFailed(f"{self._peer} failed: {_reason(error)}") from error
        if isinstance(found, Exception):
            # What an answer that is given later was set to fail with arrives as a value (torch 2.13).
            raise CallFailed(f"{self._peer} failed: {_reason(found)}") from found
        return found

    @property
    def done(self) -> bool:
        """Whether ``wait`` would return at once."""
        return self._done.is_set()


def _reason(error: Exception) -> str:
    """The line of a remote error that says something; torch puts `On WorkerInfo(…)` before and a traceback after."""
    lines = [line for line in str(error).splitlines() if line.strip() and "On WorkerInfo(" not in line]
    return lines[0].strip() if lines else repr(error)


class RpcWorld:
    """This process's membership of the RPC world, with a port of its own."""

    def __init__(
        self, store: dist.Store, *, rank: int, names: tuple[str, ...], address: str, timeout_s: float
    ) -> None:
        """Join as ``names[rank]``; rank 0 picks the port at ``address``. Waits at most ``timeout_s`` seconds."""
        if rank == 0:
            store.set("rpc/port", str(free_port(address)))
        port = int(store.get("rpc/port"))
        options = rpc.TensorPipeRpcBackendOptions(
            init_method=f"tcp://{address}:{port}",
            rpc_timeout=timeout_s,
            num_worker_threads=4,
            # Plain sockets: the probing for InfiniBand fails on some clouds, and shared memory would leave
            # segments behind when a rank is killed.
            _transports=["uv"],
            _channels=["basic"],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that RPC is in maintenance mode
            rpc.init_rpc(names[rank], rank=rank, world_size=len(names), rpc_backend_options=options)

    def call(self, peer: str, function: Callable[..., Any], *args: Any) -> Reply:
        """Start ``function(*args)`` at ``peer``; the deadline is the waiter's (Reply.wait)."""
        try:
            return Reply(peer, rpc.rpc_async(peer, function, args=args, timeout=0))
        except RuntimeError as error:
            raise CallFailed(f"{peer} cannot be called: {str(error).splitlines()[0]}") from error

    def leave(self) -> None:
        """Leave without waiting for anybody, dead or alive."""
        with contextlib.suppress(RuntimeError):
            rpc.shutdown(graceful=False)
