"""What a student asks a host, while the answer is not complete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

from torch.futures import Future

from distill_dist.errors import UserError
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import NotSane
from distill_dist.teacher.wire import Failure, Reaction, Refusal, Request, join_requests, pack_rows
from distill_dist.teacher.worker_process import WorkerLost


@dataclass(eq=False)
class Question:
    """Rows of one spec; ``answer`` is what RPC sends when it is set."""

    request: Request
    spec: SignalSpec
    answer: Future[Reaction | None]
    rows: dict[bytes, bytes] = field(default_factory=dict)  # what is known by now, by key

    @property
    def missing(self) -> list[int]:
        """Rows that nobody has computed yet, the first of those with one key."""
        first = {key: row for row, key in reversed(list(enumerate(self.request.keys_B)))}
        return sorted(row for key, row in first.items() if key not in self.rows)

    @property
    def tokens(self) -> int:
        return int(self.request.lengths_B.sum())

    def give(self) -> None:
        """Answer it."""
        self.answer.set_result(pack_rows([self.rows[key] for key in self.request.keys_B]))

    @property
    def bytes(self) -> int:
        """Of its answer, once it is complete."""
        return sum(len(self.rows[key]) for key in self.request.keys_B)

    def fail(self, error: Exception) -> None:
        """Whatever the model raises belongs to those who asked; who cannot get a worker up is as good as gone.

        Rows that are no numbers here may be some elsewhere: that the teacher drifted was excluded (worker_process.py).
        """
        reason = str(error) if isinstance(error, NotSane) else f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            self.answer.set_result(Refusal(str(error)))
        elif isinstance(error, WorkerLost):
            self.answer.set_exception(RuntimeError(reason))  # type: ignore[arg-type]
        else:
            self.answer.set_result(Failure(reason))


def request_of(rows: Iterable[tuple[Question, int]]) -> Request:
    """One request of (question, row) rows of several questions, in the order of ``rows``."""
    by_question = groupby(rows, lambda entry: entry[0])
    return join_requests(
        [question.request.take([row for _, row in entries]) for question, entries in by_question]
    )
