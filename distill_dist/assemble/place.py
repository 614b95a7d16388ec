"""Where one process stands in the run, and how it waits for the others to be ready."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from distill_dist.comm.environment import LaunchEnvironment
from distill_dist.comm.rendezvous import Stopped, Store, await_ready, never, report_failure
from distill_dist.comm.roles import Roles
from distill_dist.comm.rpc_world import RpcWorld
from distill_dist.comm.stop_word import tell_stop
from distill_dist.errors import UserError


@dataclass(frozen=True)
class Place:
    """This process among all of the run's."""

    launch: LaunchEnvironment
    roles: Roles
    store: Store
    device: torch.device  # where it computes; a teacher's worker has one of its own
    run: str  # scope of the rendezvous keys

    @property
    def rank(self) -> int:
        """Global rank."""
        return self.launch.rank

    @property
    def is_teacher(self) -> bool:
        """Whether it teaches; else it is a student."""
        return self.roles.is_teacher(self.rank)

    @property
    def is_leader(self) -> bool:
        """Whether it answers for its replica; every teacher that is not sharded does."""
        return self.rank in self.roles.leaders

    @property
    def student(self) -> int:
        """Number among the students; only for students."""
        return self.roles.students.index(self.rank)

    @property
    def rpc_names(self) -> tuple[str, ...]:
        """Name of every rank in the RPC world."""
        return tuple(
            f"teacher{rank}" if self.roles.is_teacher(rank) else f"student{rank}"
            for rank in range(self.roles.world_size)
        )

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """RPC names of the teachers that answer."""
        return tuple(self.rpc_names[rank] for rank in self.roles.leaders)

    @property
    def student_names(self) -> tuple[str, ...]:
        """RPC names of the students."""
        return tuple(self.rpc_names[rank] for rank in self.roles.students)

    def join_rpc(self, *, timeout_s: float) -> RpcWorld:
        """Enter the RPC world that students and teachers share; waits at most ``timeout_s`` for the others."""
        try:
            return RpcWorld(
                self.store,
                name=self.rpc_names[self.rank],
                students=self.student_names,
                hosts=self.teacher_names,
                address=self.launch.master_address,
                timeout_s=timeout_s,
            )
        except TimeoutError as error:
            raise UserError(f"{error}; see their logs, or raise cluster.rendezvous_s") from error

    @contextmanager
    def loading(self, *, timeout_s: float, stopped: Stopped = never) -> Iterator[None]:
        """What can fail on one rank alone happens inside: the block ends for all ranks, or fails for all.

        Raises Interrupted on all where one was ``stopped`` meanwhile.
        """
        try:
            yield
        except UserError as error:
            report_failure(self.store, self.launch, error)
            raise
        except KeyboardInterrupt:  # the second Ctrl-C: the first only asked
            tell_stop(self.store, self.rank, "by Ctrl-C")
            raise
        except BaseException as error:  # a bug, or memory: this rank shows its traceback, the others end soon
            report_failure(self.store, self.launch, UserError(f"{type(error).__name__}: {error}"))
            raise
        device = "" if self.is_teacher else self.device.type
        await_ready(self.store, self.launch, timeout_s=timeout_s, stopped=stopped, device=device)
