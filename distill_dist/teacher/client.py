"""Teachers in other processes: signals for batches, asked for ahead of their use."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from distill_dist.comm.rpc_world import CallFailed, Reply, RpcWorld, WorldChanged
from distill_dist.errors import UserError
from distill_dist.records import Batch, SignalSpec, TeacherSignal
from distill_dist.teacher import remote_calls
from distill_dist.teacher.asked import Asked, Part, Patience
from distill_dist.teacher.cached import keyed_request
from distill_dist.teacher.common_teacher import CommonTeacher
from distill_dist.teacher.identity import Identity
from distill_dist.teacher.local import T, TeacherLost, spec_of
from distill_dist.teacher.rendezvous_hash import rank_hosts
from distill_dist.teacher.wire import Answer, Failure, Reaction, Refusal, Request

_log = logging.getLogger(__name__)
# A host whose queue is full is asked again after so long.
BUSY_S = 0.02
# How often a wait looks whether the run is to stop.
LOOK_S = 0.5


class RemoteTeacher:
    """Teachers in other processes, called over RPC: each row is asked of the host that its key belongs to.

    So every host keeps its own share of the signals. A host that fails or gives no sign of life is not asked again
    until it is met in a new world; its share goes to the others.
    """

    def __init__(
        self,
        world: RpcWorld,
        *,
        names: Sequence[str],
        student: int,
        deadline_s: float,
        patience_s: float,
        lease_s: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """``names`` of the hosts of this model, others in the world are let be; ``student`` is this process's number.

        ``deadline_s``: the longest wait for a sign of life of a host; ``patience_s``: for an answer of any,
        cut short once ``should_stop``. Raises TeacherLost, and UserError where hosts do not teach the same.
        """
        self._world, self._names, self._student = world, frozenset(names), student
        self._deadline_s, self._patience_s, self._should_stop = deadline_s, patience_s, should_stop
        self._generation = -1
        self._hosts: list[str] = []  # of this generation, those that are not lost
        self._last_loss = ""
        self._has_met = False
        self.waited_s = 0.0
        self._teaches = CommonTeacher()
        patience = self._patience()
        self._meet(patience)
        self._await_host(patience)
        self._done = threading.Event()
        self._renewing = threading.Thread(target=self._renew_leases, args=(lease_s / 4,), daemon=True)
        self._renewing.start()

    def signals(
        self, items: Iterable[T], batches_of: Callable[[T], Sequence[Batch]], spec: SignalSpec, *, ahead: int
    ) -> Iterator[tuple[T, tuple[TeacherSignal, ...]]]:
        """See Teacher. Raises TeacherLost when no host answers for as long as patience lasts."""
        pending: deque[tuple[T, list[Asked]]] = deque()
        for item in items:
            pending.append((item, [self._ask(batch, spec) for batch in batches_of(item)]))
            if len(pending) > ahead:
                yield self._collect(*pending.popleft())
        while pending:
            yield self._collect(*pending.popleft())

    def describe(self) -> dict[str, Any]:
        """See Teacher."""
        return self._teaches.describe()

    def wire(self, spec: SignalSpec, tokens: float) -> tuple[dict[str, float], ...]:
        """See Teacher."""
        return (self._teaches.wire(spec, tokens),)

    @property
    def identity(self) -> Identity:
        """Who teaches, as the first host said."""
        return self._teaches.identity

    def counters(self) -> dict[str, dict[str, int]]:
        """See Teacher; of those that answer. One that is lost is not waited for."""
        found = {}
        for name in tuple(self._hosts):
            with contextlib.suppress(CallFailed):
                found[name] = self._world.call(name, remote_calls.counters).wait(self._deadline_s)
        return found

    def release(self, *, timeout_s: float, early: bool = False) -> bool:
        """See Teacher. One that does not hear it is no error: its lease will end."""
        function, arguments = (
            (remote_calls.dismiss, ()) if early else (remote_calls.release, (self._student,))
        )
        self._done.set()
        self._renewing.join(timeout_s)
        heard, replies = True, []
        until = time.monotonic() + timeout_s
        for name in self._met:
            try:
                replies.append((name, self._world.call(name, function, *arguments)))
            except CallFailed as error:
                heard = False
                _log.warning("%s was not released: %s", name, error)
        for name, reply in replies:
            try:
                reply.wait(max(0.0, until - time.monotonic()))
            except CallFailed as error:
                heard = False
                _log.warning("%s was not released: %s", name, error)
        return heard

    @property
    def _met(self) -> list[str]:
        """Hosts of this model in the world that stands."""
        return [name for name in self._world.hosts if name in self._names]

    # ------------------------------------------------------------------ asking

    def _ask(self, batch: Batch, spec: SignalSpec) -> Asked:
        if self._world.generation != self._generation:
            self._meet(self._patience())
        spec = spec_of(batch, spec)
        teaches = self._teaches
        request = keyed_request(batch, spec, fingerprint=teaches.fingerprint, types=teaches.types)
        return Asked(
            batch, spec, request, self._parts(request, range(len(request.keys_B)), spec, frozenset())
        )

    def _parts(
        self, request: Request, rows: Iterable[int], spec: SignalSpec, unable: frozenset[str]
    ) -> list[Part]:
        """Ask each row's owner among the hosts that are left, without those that are ``unable``."""
        hosts = [name for name in self._hosts if name not in unable]
        if not hosts:
            return [Part("", list(rows), None, unable)]
        shares: defaultdict[str, list[int]] = defaultdict(list)
        rows = list(rows)
        first = rank_hosts([request.keys_B[row] for row in rows], hosts)[:, 0]
        for row, place in zip(rows, first.tolist(), strict=True):
            shares[hosts[place]].append(row)
        return [
            Part(name, rows, self._call(name, request.take(rows), spec), unable)
            for name, rows in shares.items()
        ]

    def _call(self, name: str, request: Request, spec: SignalSpec) -> Reply | None:
        try:
            return self._world.call(name, remote_calls.ask, request, spec)
        except CallFailed as error:
            self._lose(name, error)
            return None

    def _collect(self, item: T, asked: list[Asked]) -> tuple[T, tuple[TeacherSignal, ...]]:
        start = time.perf_counter()
        found = tuple(self._signal(each) for each in asked)
        self.waited_s += time.perf_counter() - start
        return item, found

    def _signal(self, asked: Asked) -> TeacherSignal:
        patience = self._patience()
        rows: dict[int, memoryview] = {}
        parts = deque(asked.parts)
        while parts:
            part = parts.popleft()
            answer = self._wait(part, asked, patience)
            if isinstance(answer, Answer):
                rows |= dict(zip(part.rows, answer.rows(), strict=True))
                continue
            unable = part.unable if answer is None else self._without(part, answer)
            self._await_host(patience, unable)
            parts.extend(self._parts(asked.request, part.rows, asked.spec, unable))
        length = asked.request.input_ids_BL.shape[1]
        encoded = [rows[row] for row in range(len(asked.request.keys_B))]
        return self._teaches.codec(asked.spec).decode(encoded, length=length).to(asked.batch.labels_B.device)

    def _without(self, part: Part, failure: Failure) -> frozenset[str]:
        """The hosts that could not compute the part's rows. Raises UserError where none ever can."""
        unable = part.unable | {part.host}
        if self._names <= unable:
            raise UserError(f"no teacher can compute {len(part.rows)} row(s): {failure.reason}")
        self._last_loss = f"{part.host} did not compute {len(part.rows)} row(s): {failure.reason}"
        _log.warning("%s", self._last_loss)
        return unable

    def _wait(self, part: Part, asked: Asked, patience: Patience) -> Answer | Failure | None:
        """What the host says to a part; None: it is lost, or met anew, and somebody has to be asked again.

        Raises UserError where it should teach nobody, TeacherLost when patience has ended.
        """
        reply = part.reply
        while reply is not None:
            try:
                answer = self._while_it_lives(part, reply, patience)
            except CallFailed as error:
                self._lose(part.host, error)
                return None
            if isinstance(answer, Refusal):
                raise UserError(f"{part.host} cannot teach: {answer.reason}")
            if answer is not None:
                return answer
            if patience.left() <= 0:
                raise TeacherLost(f"the queue of {part.host} stayed full")
            time.sleep(BUSY_S)  # its queue is full
            reply = self._call(part.host, asked.request.take(part.rows), asked.spec)
        return None

    def _while_it_lives(self, part: Part, reply: Reply, patience: Patience) -> Reaction | None:
        """The answer, waited for as long as the host gives signs of life and others need not be asked instead.

        Raises CallFailed; TeacherLost when patience has ended.
        """
        begin = alive_at = time.monotonic()
        others = set(self._hosts) - part.unable - {part.host}
        # its worker may be loading for long, while another host is ready
        turn_s = patience.left() / (1 + len(others))
        while not reply.is_done_within(max(0.0, min(patience.left(), LOOK_S, self._deadline_s))):
            now = time.monotonic()
            if part.host not in self._hosts:
                raise CallFailed(f"{part.host} was lost meanwhile")
            if patience.left() <= 0:
                raise TeacherLost(
                    f"{self._world.where(part.host)} gave no answer while the step could wait (teacher.patience_s)"
                )
            if others and now - begin > turn_s:
                return Failure(f"no answer within {turn_s:.0f} s")
            if now - alive_at >= self._deadline_s:
                self._ask_patiently(part.host, remote_calls.renew, patience)
                alive_at = time.monotonic()
        found: Reaction | None = reply.wait(0.0)
        return found

    def _ask_patiently(self, name: str, function: Callable[..., Any], patience: Patience) -> Any:
        """What ``function`` answers at once; a sign of life. Raises CallFailed after ``deadline_s``, or patience."""
        reply, until = self._world.call(name, function), time.monotonic() + self._deadline_s
        while not reply.is_done_within(min(LOOK_S, self._deadline_s)):
            if time.monotonic() >= until or patience.left() <= 0:
                where = self._world.where(name)
                raise CallFailed(f"{where} gave no sign of life within {self._deadline_s:.0f} s")
        return reply.wait(0.0)

    # ------------------------------------------------------------------ hosts that come and go

    def _patience(self) -> Patience:
        return Patience(self._patience_s, self._should_stop)

    def _meet(self, patience: Patience) -> None:
        """Take the hosts of the world that stands, which must teach what the first ones did."""
        self._generation, self._hosts = self._world.generation, self._met
        for name in self._met:
            try:
                found = self._ask_patiently(name, remote_calls.describe, patience)
            except WorldChanged:
                return self._await_host(patience)
            except CallFailed as error:
                self._lose(name, error)
                continue
            self._compare(name, found)
        self._has_met = True
        return None

    def _compare(self, name: str, found: dict[str, Any]) -> None:
        """Raises UserError where ``name`` teaches something else than the others; it is lost if it came late."""
        reason = self._teaches.compare(name, found)
        if reason is None:
            return
        text = f"{name} has the model of the others, but does not say what they say: {reason}"
        if not self._has_met:
            raise UserError(text)  # nobody can tell which of them is right
        self._lose(name, CallFailed(text))

    def _lose(self, name: str, error: CallFailed) -> None:
        if isinstance(error, WorldChanged) or self._world.has_changed(self._generation):
            return
        self._last_loss = str(error)
        if name in self._hosts:
            self._hosts.remove(name)
            _log.warning(
                "lost %s, %d of %d teachers are left: %s", name, len(self._hosts), len(self._names), error
            )

    def _await_host(self, patience: Patience, unable: frozenset[str] = frozenset()) -> None:
        """Return once there is somebody to ask who is not ``unable``.

        Raises TeacherLost when patience has ended, or nobody is left who could come again.
        """
        while not set(self._hosts) - unable or self._world.has_changed(self._generation):
            while not self._world.await_standing(self._generation, min(LOOK_S, max(0.0, patience.left()))):
                gone = self._world.stood_down(self._names)
                if patience.left() <= 0 or self._world.is_last or self._names - unable <= gone.keys():
                    raise TeacherLost(self._why(gone))
            self._meet(patience)

    def _why(self, gone: dict[str, str]) -> str:
        """What became of the hosts: the reasons of those that are ``gone``, and of the last loss beside them."""
        reasons = [f"{name} teaches no more: {reason}" for name, reason in sorted(gone.items())]
        if self._names > gone.keys():
            reasons.append(self._last_loss or "no host is left")
        return "; ".join(reasons)

    def _renew_leases(self, every_s: float) -> None:
        while not self._done.wait(every_s):
            for name in self._met:
                try:
                    self._world.call(name, remote_calls.renew)
                except CallFailed as error:
                    _log.debug("lease not renewed: %s", error)  # the next signal will say so too
