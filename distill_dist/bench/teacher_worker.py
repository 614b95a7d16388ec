"""A stand-in for a worker on another device: it replays stored rows once such a device would have computed them."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from distill_dist.bench.teacher_store import Pace, StoredCases, contents, load_cases
from distill_dist.children import child_job
from distill_dist.records import SignalSpec
from distill_dist.teacher.sanity import Probe
from distill_dist.teacher.wire import Request
from distill_dist.teacher.worker import serve_requests


class Replay:
    """What a host's worker calls instead of a model. The processor is idle meanwhile, as beside a busy device."""

    def __init__(self, cases: StoredCases, pace: Pace) -> None:
        """A row costs its part of its batch, so that parts of batches and merged questions take what they should."""
        self._pace, self._spec = pace, cases.spec
        self._rows: dict[bytes, tuple[bytes, float]] = {}
        for batch, rows, cost in zip(cases.batches, cases.rows, cases.costs, strict=True):
            for content, row in zip(contents(batch), rows, strict=True):
                self._rows[content] = row, cost / len(rows)

    def __call__(self, request: Request, spec: SignalSpec) -> list[bytes]:
        """The stored rows, after the pace's time for them."""
        begin = time.monotonic()
        assert spec == self._spec, spec
        ids_BL = request.input_ids_BL.numpy()
        found = [
            self._rows[ids_BL[place, :length].tobytes()]
            for place, length in enumerate(request.lengths_B.tolist())
        ]
        until = begin + self._pace.seconds * sum(cost for _, cost in found)
        time.sleep(max(0.0, until - time.monotonic()))
        return [row for row, _ in found]


def main() -> None:
    """Answer until the host is gone."""
    job = child_job()
    connection, folder = socket.socket(fileno=job["connection"]), Path(job["folder"])
    cases = load_cases(folder)
    said = Probe(**cases.description["probe"])
    serve_requests(connection, Replay(cases, Pace(folder)), cases.description, lambda: said)


if __name__ == "__main__":
    main()
