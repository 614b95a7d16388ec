"""A request over the members of a sharded teacher: each computes its share of the rows, all in lockstep.

A member needs the others' weights at every layer, forward and backward, so one that fails inside the model leaves the
others waiting, and torch's FSDP in an undefined state: all of them end and start again, and what the failure was
is said for all of them (``Broken``). What a member finds out after its model ran is an answer like another.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NoReturn, Protocol

from distill_dist.comm.attempts import Broken
from distill_dist.comm.transport import is_of_a_peer
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import NotSane, is_out_of_memory
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.sanity import Probe, drift, fault
from distill_dist.teacher.wire import Request
from distill_dist.teacher.worker import pack_question, unpack_question

_BEAT, _QUESTION, _PROBE, _REPORT, _END = range(5)
_SIZE = struct.Struct("<I")


class Group(Protocol):
    """What is needed of comm.shard_group.ShardGroup."""

    member: int
    size: int

    def announce(self, kind: int, content: bytes = b"") -> tuple[int, bytes]:
        """See ShardGroup."""
        ...

    def gather(self, content: bytes) -> list[bytes]:
        """See ShardGroup."""
        ...


def share_of(rows: int, *, member: int, size: int) -> range:
    """Which of ``rows`` a member computes: contiguous shares that differ by one row at most; maybe none."""
    return range(rows * member // size, rows * (member + 1) // size)


class ShardedComputer:
    """One member's part in every request; ``__call__`` on the leader, ``follow`` on the others."""

    def __init__(
        self,
        compute: RowComputer,
        group: Group,
        *,
        give_up: Callable[[Broken], NoReturn],
    ) -> None:
        """``compute`` runs the sharded model, in lockstep with the others; ``give_up`` ends this process."""
        self._compute, self._group, self._give_up = compute, group, give_up

    def __call__(self, request: Request, spec: SignalSpec) -> list[bytes]:
        """The encoded signal of every row. Raises NotSane."""
        with self._or_give_up():
            self._group.announce(_QUESTION, _pack(*pack_question(request, spec)))
            answers = [_unpack(answer) for answer in self._group.gather(self._share(request, spec))]
        rows: list[bytes] = []
        for header, body in answers:
            if "insane" in header:
                raise NotSane(header["insane"])
            ends = itertools.accumulate(header["sizes"], initial=0)
            rows += [body[begin:end] for begin, end in itertools.pairwise(ends)]
        return rows

    def probe(self, rows: Request) -> Probe:
        """What the teacher says of ``rows`` (sanity.py): every member is asked about all of them, and says the same."""
        with self._or_give_up():
            self._group.announce(_PROBE, _pack(*pack_question(rows, SignalSpec())))
            mine, *others = [Probe(**_unpack(answer)[0]) for answer in self._group.gather(self._probed(rows))]
        for member, other in enumerate(others, start=1):
            if fault(mine) is None and (difference := drift(mine, other)):
                reason = f"member {member} of the teacher does not compute what its leader does: {difference}"
                self._give_up(Broken("refused", reason))
        return mine

    def introduce(self, rows: Request) -> dict[str, Any]:
        """See RowComputer."""
        about = {**self._compute.describe(), "probe": asdict(self.probe(rows))}
        with self._or_give_up():
            self._group.announce(_REPORT, _pack(*pack_question(rows, SignalSpec())))
            return {**about, **self._compute.measure(rows)}

    def beat(self) -> None:
        """The leader is there, and hears that the others are."""
        with self._or_give_up():
            self._group.announce(_BEAT)

    def end(self) -> None:
        """The leader lets the others go."""
        with self._or_give_up():
            self._group.announce(_END)

    def follow(self) -> None:
        """Compute this member's share of what the leader asks, until it lets go."""
        while True:
            with self._or_give_up():
                kind, content = self._group.announce(_BEAT)
                if kind == _END:
                    return
                if kind == _QUESTION:
                    self._group.gather(self._share(*unpack_question(*_unpack(content))))
                elif kind == _PROBE:
                    self._group.gather(self._probed(unpack_question(*_unpack(content))[0]))
                elif kind == _REPORT:
                    self._compute.measure(unpack_question(*_unpack(content))[0])

    def _probed(self, rows: Request) -> bytes:
        return _pack(asdict(self._compute.probe(rows)), b"")

    def _share(self, request: Request, spec: SignalSpec) -> bytes:
        count = len(request.lengths_B)
        share = share_of(count, member=self._group.member, size=self._group.size)
        try:
            # the others need this member's weights, so it runs without rows of its own too
            rows = self._compute(request.take(share or [0]), spec)
        except NotSane as error:
            return _pack({"insane": str(error)}, b"")
        rows = rows if share else []
        return _pack({"sizes": [len(row) for row in rows]}, b"".join(rows))

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the others wait for this member
            reason = f"{type(error).__name__}: {error}"
            if is_out_of_memory(error):
                self._give_up(Broken("memory", reason))
            if is_of_a_peer(error) or "CUDA error" in reason:
                self._give_up(Broken("lost", reason))
            self._give_up(Broken("model", reason))


def _pack(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return b"".join((_SIZE.pack(len(text)), text, body))


def _unpack(content: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = _SIZE.unpack_from(content)
    end = _SIZE.size + size
    header: dict[str, Any] = json.loads(content[_SIZE.size : end])
    return header, content[end:]
