"""A teacher in the student's own process, behind a cache: what was computed once is read from then on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from distill_dist.errors import UserError
from distill_dist.records import Batch, SignalSpec, TeacherSignal
from distill_dist.teacher.compute import NotSane
from distill_dist.teacher.local import T, spec_of
from distill_dist.teacher.report import IN_PROCESS
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.row_keys import row_keys, signal_context
from distill_dist.teacher.signal_cache import SignalCache
from distill_dist.teacher.wire import Request, pack_request


def keyed_request(batch: Batch, spec: SignalSpec, *, fingerprint: str, types: WireTypes) -> Request:
    """The rows of ``batch`` with the keys of their signals by that teacher."""
    request = pack_request(batch, labels=spec.needs_labels)
    keys = row_keys(
        request.input_ids_BL,
        request.lengths_B,
        request.token_type_ids_BL,
        request.labels_B,
        context=signal_context(fingerprint, spec, types),
    )
    return replace(request, keys_B=tuple(keys))


def cached_rows(
    request: Request,
    spec: SignalSpec,
    cache: SignalCache,
    compute: Callable[[Request, SignalSpec], list[bytes]],
) -> tuple[dict[bytes, bytes], int]:
    """Encoded rows by key, and how many were computed for it, once each, and put into ``cache``. Raises NotSane."""
    found = dict(zip(request.keys_B, cache.get_many(request.keys_B), strict=True))
    # one text may stand in several rows: it is computed and kept once
    first = {key: row for row, key in reversed(list(enumerate(request.keys_B)))}
    missing = sorted(row for key, row in first.items() if found[key] is None)
    if missing:
        asked = request.take(missing)
        rows = compute(asked, spec)
        cache.put_many(asked.keys_B, rows)
        found.update(zip(asked.keys_B, rows, strict=True))
    return {key: row for key, row in found.items() if row is not None}, len(missing)


class CachedTeacher:
    """See Teacher; the numbers are those of LocalTeacher where the wire's types are fp32."""

    def __init__(self, compute: RowComputer, cache: SignalCache) -> None:
        """``cache`` is closed with it."""
        self._compute, self._cache = compute, cache
        self._counts: Counter[str] = Counter()
        self.waited_s = 0.0

    def signals(
        self, items: Iterable[T], batches_of: Callable[[T], Sequence[Batch]], spec: SignalSpec, *, ahead: int
    ) -> Iterator[tuple[T, tuple[TeacherSignal, ...]]]:
        """See Teacher; computes when asked, so nothing is ever ahead. Raises UserError for a teacher of nonsense."""
        for item in items:
            start = time.perf_counter()
            found = tuple(self._signal(batch, spec_of(batch, spec)) for batch in batches_of(item))
            self.waited_s += time.perf_counter() - start
            yield item, found

    def describe(self) -> dict[str, Any]:
        """See Teacher."""
        return {"parameters": self._compute.describe()["parameters"]}

    def wire(self, spec: SignalSpec, tokens: float) -> tuple[dict[str, float], ...]:
        """See Teacher; nothing travels."""
        return ()

    def counters(self) -> dict[str, dict[str, int]]:
        """See Teacher; of this process."""
        return {IN_PROCESS: {**self._counts, **self._cache.counters()}}

    def release(self, *, timeout_s: float, early: bool = False) -> bool:
        """See Teacher; what was computed is sealed, for other runs."""
        self._cache.close()
        return True

    def _signal(self, batch: Batch, spec: SignalSpec) -> TeacherSignal:
        request = keyed_request(batch, spec, fingerprint=self._compute.fingerprint, types=self._compute.types)
        try:
            rows, _ = cached_rows(request, spec, self._cache, self._count)
        except NotSane as error:
            raise UserError(f"nobody can learn from the teacher: {error}") from error
        encoded = [rows[key] for key in request.keys_B]
        self._counts["answered_bytes"] += sum(map(len, encoded))
        decoded = self._compute.codec(spec).decode(encoded, length=request.input_ids_BL.shape[1])
        return decoded.to(batch.labels_B.device)

    def _count(self, request: Request, spec: SignalSpec) -> list[bytes]:
        begin = time.monotonic()
        rows = self._compute(request, spec)
        self._counts.update(
            busy_ms=round(1000 * (time.monotonic() - begin)),
            computed_rows=len(rows),
            real_tokens=int(request.lengths_B.sum()),
            padded_tokens=len(rows) * request.input_ids_BL.shape[1],
        )
        return rows
