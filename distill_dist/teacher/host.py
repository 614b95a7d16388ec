"""The teacher's side of the RPC world: a queue that remote calls fill and one loop that empties.

Calls (remote_calls.py) come in threads of RPC. They answer from the cache where they can, and queue the rest; the loop
in the main thread merges what waits, computes and stores it, so that two questions never compete for the device and
rows asked for twice are computed once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from torch.futures import Future

from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import NotSane, is_out_of_memory
from distill_dist.teacher.merge import micro_batches
from distill_dist.teacher.question import Question, request_of
from distill_dist.teacher.sanity import Drifted
from distill_dist.teacher.signal_cache import SignalCache
from distill_dist.teacher.wire import Reaction, Request

_log = logging.getLogger(__name__)
# How long a question waits for others to be computed with it: less than a forward takes.
LINGER_S = 0.002
COUNTERS = (
    "answered", "answered_bytes", "refused", "batches", "computed_rows", "real_tokens", "padded_tokens", "busy_ms",
    "out_of_memory",
)  # fmt: skip


class TeacherHost:
    """Answers questions until every student has let go, the lease runs out, or it is told to stop."""

    def __init__(
        self,
        compute: Callable[[Request, SignalSpec], list[bytes]],
        cache: SignalCache,
        *,
        students: int,
        lease_s: float,
        batch_tokens: int,
        queue_tokens: int,
        description: dict[str, Any],
        rest: Callable[[], None] = lambda: None,
        rest_after_s: float = float("inf"),
        check: Callable[[], bool] = lambda: True,
        check_every_s: float = float("inf"),
        more_counters: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """``compute`` gives the encoded rows of a request of at most ``batch_tokens`` tokens, padding included.

        ``lease_s`` is the longest silence of all students, in seconds; of ``queue_tokens`` waiting tokens on, who asks
        is told to ask again later. ``rest`` is called when nothing had to be computed for ``rest_after_s``,
        ``check`` before what is computed after ``check_every_s``, and before rows on disk are sealed: whether what was
        computed came of a teacher that was asked what it says now; else the rows are dropped. It raises Drifted where
        that is something else, and so does ``compute``.
        ``more_counters`` are shown with its own.
        """
        self._compute, self._cache = compute, cache
        self._students = set(range(students))
        self._lease_s = lease_s
        self._batch_tokens, self._queue_tokens = batch_tokens, queue_tokens
        self.description = description
        self._questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._waiting_tokens = 0
        self._lock = threading.Lock()
        self._last_call = time.monotonic()
        self._counts: Counter[str] = Counter(
            dict.fromkeys(COUNTERS, 0)
        )  # changed under the lock: by the loop and by threads of RPC
        self.dismissed = False
        self._rest, self._rest_after_s = rest, rest_after_s
        self._computed_at: float | None = time.monotonic()  # None: at rest
        self._check, self._check_every_s, self._checked_at = check, check_every_s, time.monotonic()
        self._more_counters = more_counters
        self._most_waiting = 0

    @property
    def answered(self) -> int:
        """Questions answered so far."""
        return self._counts["answered"]

    def serve(self, *, should_stop: Callable[[], bool]) -> bool:
        """Answer until done: True when every student let go, False when it leaves before that.

        That is when the lease ran out, it was stopped, or a student dismissed it. Raises Drifted: then nothing that
        it says may be used any more, and what waits is not answered.
        """
        while self._students:
            if self.dismissed:
                return False
            if self._cache.is_due:
                self._vouch()
            try:
                first = self._questions.get(timeout=0.2)
            except queue.Empty:
                if time.monotonic() - self._last_call > self._lease_s:
                    _log.warning("no student called for %.0f s (teacher.lease_s): leaving", self._lease_s)
                    return False
                if should_stop():
                    return False
                self._rest_if_idle()
                continue
            questions = self._gather(first)
            if time.monotonic() - self._checked_at > self._check_every_s:
                self._vouch()
            self._answer(questions)
            self._computed_at = time.monotonic()  # after it: a worker may have had to load its teacher first
        return True

    def _rest_if_idle(self) -> None:
        if self._computed_at is not None and time.monotonic() - self._computed_at > self._rest_after_s:
            self._computed_at = None
            self._vouch()
            self._rest()

    def _vouch(self) -> None:
        """Seal what was computed once the teacher says what it said; drop it where none can be asked.

        Raises Drifted where it says something else.
        """
        is_good = self._check()
        self._checked_at = time.monotonic()
        if is_good:
            self._cache.seal()
        else:
            self._cache.drop()

    def _gather(self, first: Question) -> list[Question]:
        """``first`` and what else waits, up to one batch of tokens; a little time is given for more to come."""
        found, tokens = [first], first.tokens
        deadline = time.monotonic() + LINGER_S
        while tokens < self._batch_tokens:
            try:
                found.append(self._questions.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
            tokens += found[-1].tokens
        with self._lock:
            self._waiting_tokens -= tokens
        return found

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counts.update(more)

    def _answer(self, questions: list[Question]) -> None:
        by_spec = groupby(sorted(questions, key=lambda question: repr(question.spec)), lambda q: q.spec)
        for spec, group in by_spec:
            self._answer_alike(spec, list(group))

    def _answer_alike(self, spec: SignalSpec, questions: list[Question]) -> None:
        """Questions of one spec: rows that several ask for are computed once; each is answered when it is complete."""
        for question in questions:
            self._look_again(question)
        questions = [question for question in questions if not question.answer.done()]
        wanted = {
            question.request.keys_B[row]: (question, row)
            for question in questions
            for row in question.missing
        }
        keys = list(wanted)
        lengths = [int(question.request.lengths_B[row]) for question, row in wanted.values()]
        for batch in micro_batches(lengths, budget=self._batch_tokens):
            asking = [question for question in questions if not question.answer.done()]
            chosen = [keys[place] for place in batch]
            try:
                found = dict(self._rows(request_of([wanted[key] for key in chosen]), spec))
            except Drifted:
                raise
            except Exception as error:  # whatever the model raises belongs to those who asked
                _log.warning("rows could not be computed: %s", error, exc_info=not isinstance(error, NotSane))
                for question in asking:
                    if not question.answer.done() and set(chosen) & set(question.request.keys_B):
                        question.fail(error)
                continue
            for question in asking:
                question.rows |= {key: found[key] for key in question.request.keys_B if key in found}
                if not question.missing:
                    self._give(question)

    def _look_again(self, question: Question) -> None:
        """Rows that were computed for others while it waited."""
        known = {key: self._cache.peek(key) for key in question.request.keys_B if key not in question.rows}
        question.rows |= {key: row for key, row in known.items() if row is not None}
        if not question.missing:
            self._give(question)

    def _give(self, question: Question) -> None:
        question.give()
        self._count(answered=1, answered_bytes=question.bytes)

    def _rows(self, request: Request, spec: SignalSpec) -> Iterator[tuple[bytes, bytes]]:
        """Keys with rows, newly computed. Where memory runs out, batches are halved from then on."""
        begin = time.monotonic()
        try:
            rows = self._compute(request, spec)
        except Exception as error:
            if not is_out_of_memory(error) or len(request.keys_B) == 1:
                raise
            tokens = len(request.keys_B) * request.input_ids_BL.shape[1]
            self._batch_tokens = max(1, tokens // 2)
            self._count(out_of_memory=1)
            _log.warning(
                "out of memory at %d tokens a batch: %d from here on (teacher.batch_tokens)",
                tokens,
                self._batch_tokens,
            )
            half = len(request.keys_B) // 2
            for part in (range(half), range(half, len(request.keys_B))):
                yield from self._rows(request.take(part), spec)
            return
        self._cache.put_many(request.keys_B, rows)
        self._count(
            batches=1,
            busy_ms=round(1000 * (time.monotonic() - begin)),
            computed_rows=len(rows),
            real_tokens=int(request.lengths_B.sum()),
            padded_tokens=len(rows) * request.input_ids_BL.shape[1],
        )
        yield from zip(request.keys_B, rows, strict=True)

    def put(self, request: Request, spec: SignalSpec) -> Future[Reaction | None]:
        """Answer from the cache, or queue a question; None where too much waits already. Called by RPC threads."""
        answer: Future[Reaction | None] = Future()
        self._last_call = time.monotonic()
        question = Question(request, spec, answer)
        found = self._cache.get_many(request.keys_B)
        question.rows = {key: row for key, row in zip(request.keys_B, found, strict=True) if row is not None}
        if not question.missing:
            self._give(question)
            return answer
        with self._lock:
            is_full = self._waiting_tokens > self._queue_tokens
            if not is_full:
                self._waiting_tokens += question.tokens
                self._most_waiting = max(self._most_waiting, self._waiting_tokens)
        if is_full:
            self._count(refused=1)
            answer.set_result(None)
        else:
            self._questions.put(question)
        return answer

    def counters(self) -> dict[str, int]:
        """What telemetry shows of it: totals since its start, and the most tokens that waited since the last call."""
        with self._lock:
            counts, most = dict(self._counts), self._most_waiting
            self._most_waiting = self._waiting_tokens
        return {**counts, **self._cache.counters(), **self._more_counters(), "waiting_tokens": most}

    def renew(self) -> None:
        """A student is alive, whether or not it has a question."""
        self._last_call = time.monotonic()

    def release(self, student: int) -> None:
        """``student`` needs no more answers."""
        self._students.discard(student)

    def dismiss(self) -> None:
        """The run ended early: nobody will ask any more, not even students that cannot say so."""
        self.dismissed = True
