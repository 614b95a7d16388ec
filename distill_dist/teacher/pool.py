"""Several teachers that answer as one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from distill_dist.objectives.join_signals import Joining
from distill_dist.records import Batch, SignalSpec, TeacherSignal
from distill_dist.teacher.local import T, Teacher, spec_of


class TeacherPool:
    """Asks every one of its teachers and joins what they say; see Teacher."""

    def __init__(self, members: Sequence[Teacher], joining: Joining) -> None:
        """One of ``members`` per model, in the order of the weights of ``joining``."""
        self.members, self._joining = tuple(members), joining

    @property
    def waited_s(self) -> float:
        """See Teacher; they are waited for one after another."""
        return sum(member.waited_s for member in self.members)

    def signals(
        self, items: Iterable[T], batches_of: Callable[[T], Sequence[Batch]], spec: SignalSpec, *, ahead: int
    ) -> Iterator[tuple[T, tuple[TeacherSignal, ...]]]:
        """See Teacher. Raises TeacherLost when one of them is lost: the others do not stand in for it."""
        asked = self._joining.asked(spec)
        # no copy holds more than the items under way: each stream takes as many
        copies = itertools.tee(items, len(self.members))
        streams = [
            member.signals(copy, batches_of, asked, ahead=ahead)
            for member, copy in zip(self.members, copies, strict=True)
        ]
        for answers in zip(*streams, strict=True):
            item = answers[0][0]
            by_batch = zip(*(signals for _, signals in answers), strict=True)
            yield (
                item,
                tuple(
                    self._joining(signals, spec_of(batch, spec), batch)
                    for batch, signals in zip(batches_of(item), by_batch, strict=True)
                ),
            )

    def describe(self) -> dict[str, Any]:
        """See Teacher; of all together."""
        members = [member.describe() for member in self.members]
        differences = [member["row_difference"] for member in members if "row_difference" in member]
        found = {"parameters": sum(member["parameters"] for member in members)}
        return {**found, "row_difference": max(differences)} if differences else found

    def wire(self, spec: SignalSpec, tokens: float) -> tuple[dict[str, float], ...]:
        """See Teacher; each is asked what all have to be asked."""
        asked = self._joining.asked(spec)
        return tuple(cost for member in self.members for cost in member.wire(asked, tokens))

    def counters(self) -> dict[str, dict[str, int]]:
        """See Teacher; no host serves two models, and those in this process are numbered."""
        found: dict[str, dict[str, int]] = {}
        for number, member in enumerate(self.members):
            for name, counts in member.counters().items():
                found[f"{name}-{number}" if name in found else name] = counts
        return found

    def release(self, *, timeout_s: float, early: bool = False) -> bool:
        """See Teacher."""
        heard = [member.release(timeout_s=timeout_s, early=early) for member in self.members]
        return all(heard)
