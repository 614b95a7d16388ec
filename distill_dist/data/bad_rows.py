"""The bad rows of a `prepare`: counted, listed, and turned into one message."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TextIO

from distill_dist.data.manifest import BAD_ROWS
from distill_dist.data.rows import BadRow
from distill_dist.errors import UserError

MOST_NAMES, SHOWN_NAMES = 10_000, 20  # of unknown labels: counted, and in the message


class BadRowLog:
    """Counts bad rows per split and lists them in `bad_rows.jsonl`; no bad rows, no file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / BAD_ROWS
        self._file: TextIO | None = None
        self._first: str | None = None
        self._counts: dict[str, Counter[str]] = {}
        self._unknown: Counter[str] = Counter()

    def add(self, split: str, place: str, row: BadRow) -> None:
        """Counts and lists one bad row of the source ``place``."""
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8")
            self._first = f"{place}:{row.line}: {row.reason}"
        self._counts.setdefault(split, Counter())[row.kind] += 1
        if row.kind == "unknown label" and (row.name in self._unknown or len(self._unknown) < MOST_NAMES):
            self._unknown[row.name] += 1
        record = {"split": split, "file": place, "line": row.line, "kind": row.kind, "reason": row.reason}
        # ASCII, because the reason may quote the very bytes that are no text
        self._file.write(json.dumps(record) + "\n")

    @property
    def any(self) -> bool:
        """Whether there was one."""
        return self._first is not None

    def counts(self, split: str) -> dict[str, int]:
        """Rows of ``split`` by kind, the most frequent first."""
        return dict(self._counts.get(split, Counter()).most_common())

    def close(self) -> None:
        """Ends the list."""
        if self._file is not None:
            self._file.close()

    def describe(self) -> str:
        """The first bad row, the count of all, the unknown labels, and the remedy."""
        total, kinds = self._kinds()
        remedy = "Mend them, or set data.on_bad_row=skip to leave them out"
        if self._unknown:
            remedy = f"{self._unknown_labels()}; the rest: {remedy.lower()}"
        return f"{self._first}\n{total} bad rows in all: {kinds}. {remedy}"

    def say_skipped(self) -> None:
        """To stderr, what was left out, if anything was: a class that is missing in data.labels would be."""
        if self._first is None:
            return
        total, kinds = self._kinds()
        labels = f". {self._unknown_labels()}" if self._unknown else ""
        print(f"left out {total} bad rows, listed in {self._path.name}: {kinds}{labels}", file=sys.stderr)

    def _kinds(self) -> tuple[int, str]:
        total = sum(self._counts.values(), Counter())
        return total.total(), ", ".join(f"{count} {kind}" for kind, count in total.most_common())

    def _unknown_labels(self) -> str:
        names = ", ".join(f"{count} {name!r:.40}" for name, count in self._unknown.most_common(SHOWN_NAMES))
        more = len(self._unknown) - SHOWN_NAMES
        if more > 0:
            names += f" and {more} more names (is data.label_column the right column?)"
        return f"Unknown labels: {names}. Add those that are classes to data.labels"

    def refuse(self) -> None:
        """UserError with ``describe``, if there was a bad row."""
        if self._first is not None:
            raise UserError(self.describe())
