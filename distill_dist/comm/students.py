"""The students' process group: the default group, without the teachers (DeepSpeed needs it so)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import psutil
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import distributed_c10d

from distill_dist.comm.pulse import SILENT_S, Pulse
from distill_dist.comm.transport import is_of_a_peer
from distill_dist.errors import Interrupted


class PeerLost(Interrupted):
    """A sibling died or hung inside a collective; the last checkpoint is good."""


class StudentGroup:
    """Collectives among the students, each with a deadline.

    Data travels over the default group (gloo on CPU, NCCL on CUDA); single integers over gloo always, so
    that agreeing on a step costs no device sync.
    """

    def __init__(
        self,
        store: dist.Store,
        *,
        rank: int,
        global_ranks: tuple[int, ...],
        peers: dict[int, tuple[str, int]],
        backend: str,
        timeout_s: float,
    ) -> None:
        """Join as student ``rank``; ``global_ranks`` and ``peers`` serve to name a lost sibling."""
        self.rank, self.size = rank, len(global_ranks)
        self._global_ranks, self._peers, self._timeout_s = global_ranks, peers, timeout_s
        timeout = timedelta(seconds=timeout_s)
        # DeepSpeed makes groups of its own and gives them no limit: torch's would be 30 minutes (10 with NCCL)
        distributed_c10d.default_pg_timeout = timeout
        distributed_c10d.default_pg_nccl_timeout = timeout
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("students", store),
            rank=rank,
            world_size=self.size,
            timeout=timeout,
        )
        self._control = None if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
        self._pulse = Pulse(store, rank=global_ranks[rank])

    def agree(self, value: int) -> int:
        """The largest ``value`` of all students; the same on each. Raises PeerLost."""
        tensor = torch.tensor([value])
        try:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._control)
        except RuntimeError as error:
            raise self.lost(error) from error
        return int(tensor.item())

    def hear(self, text: str | None) -> tuple[int, str]:
        """Who speaks first of the students that have a ``text``, and it; the same on each. Raises PeerLost.

        One of them has a text at least.
        """
        speaker = self.size - self.agree(0 if text is None else self.size - self.rank)
        words = text.encode() if text is not None and speaker == self.rank else b""
        tensor = torch.zeros(self.agree(len(words)), dtype=torch.uint8)
        tensor[: len(words)] = torch.tensor(list(words), dtype=torch.uint8)
        try:
            dist.broadcast(tensor, src=speaker, group=self._control)
        except RuntimeError as error:
            raise self.lost(error) from error
        return speaker, bytes(tensor.tolist()).decode()

    def sum_(self, tensor: Tensor) -> Tensor:
        """``tensor`` becomes, in place, the sum over all students. Raises PeerLost."""
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise self.lost(error) from error
        return tensor

    def sum_integers(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sum of ``values`` (int64, equal shapes) over all students, by way of the CPU. Raises PeerLost."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        try:
            dist.all_reduce(tensor, group=self._control)
        except RuntimeError as error:
            raise self.lost(error) from error
        found: NDArray[np.int64] = tensor.numpy()
        return found

    @contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Turn the failure of a collective that somebody else runs (DeepSpeed's) into PeerLost."""
        try:
            yield
        except Interrupted:
            raise  # named already, though its message may quote the transport
        except RuntimeError as error:
            if is_of_a_peer(error):
                raise self.lost(error) from error
            raise

    def lost(self, error: Exception) -> PeerLost:
        """What to raise when a collective failed with ``error``: names the siblings that are gone."""
        gone, before = self.gone(self._global_ranks), self._pulse.signs(self._global_ranks)
        # A dying process closes its sockets some time before it counts as dead; and only here: what became of those
        # on other hosts, or hangs, their signs of life say.
        deadline = time.monotonic() + SILENT_S
        while not gone and time.monotonic() < deadline:
            time.sleep(0.02)
            gone = self.gone(self._global_ranks)
        if not gone:
            silent = self._pulse.silent_since(before)
            gone = [f"{self._name(rank)}, which gives no sign of life" for rank in silent]
        whom = ", ".join(gone) or f"one of ranks {list(self._global_ranks)}"
        reason = str(error).split("This is typically")[0].strip()
        return PeerLost(f"student {self.rank} lost {whom} (limit {self._timeout_s:.0f} s): {reason}")

    def gone(self, ranks: Iterable[int] | None = None) -> list[str]:
        """Launched processes on this host that are dead, of ``ranks`` of the whole run, teachers too (None: all)."""
        here = socket.gethostname()
        return [
            self._name(rank)
            for rank in (self._peers if ranks is None else ranks)
            for host, pid in [self._peers[rank]]
            if host == here and not _alive(pid)
        ]

    def _name(self, rank: int) -> str:
        host, pid = self._peers[rank]
        return f"rank {rank} (process {pid} on {host})"

    def leave(self) -> None:
        """Destroy the group; only after every student agreed that it is done."""
        self._pulse.end()
        dist.destroy_process_group()


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
