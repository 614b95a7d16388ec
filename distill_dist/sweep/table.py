"""What the trials found: one row each, one per group of seeds, and the best, by the split that selects (dev)."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill_dist.sweep.plan import Trial
from distill_dist.sweep.verdict import Verdict

_OWN = ("matthews", "f1")  # a task's own metric, before accuracy
_SHOWN = ("accuracy", "f1", "matthews", "loss", "ll", "pl", "sl_spearman_norm")
_SIGNALS = ("rows", "computed")


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone; ``mean`` and ``deviation`` of their score over those that are done.

    ``loss``: the mean of their losses, which decides between equal scores.

    ``deviation`` is the sample's; None of fewer than two. ``is_whole``: all of its trials are done.
    """

    trials: tuple[Trial, ...]
    values: tuple[float, ...]
    losses: tuple[float, ...]
    is_whole: bool

    @property
    def mean(self) -> float | None:
        """None: none is done."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def loss(self) -> float | None:
        """None: none is done."""
        return statistics.fmean(self.losses) if self.losses else None

    @property
    def deviation(self) -> float | None:
        """Of a sample: divided by n - 1."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def says(self) -> str:
        """`0.8123 ± 0.0041`."""
        if self.mean is None:
            return ""
        return f"{self.mean:.4f}" + ("" if self.deviation is None else f" ± {self.deviation:.4f}")


class Table:
    """Of all trials with their verdicts, in the order of their numbers."""

    def __init__(self, trials: Sequence[Trial], verdicts: Sequence[Verdict], fields: Sequence[str]) -> None:
        """``fields``: what is varied."""
        self._found = dict(zip((trial.number for trial in trials), verdicts, strict=True))
        self._trials, self._fields = trials, tuple(fields)
        self.split = trials[0].config.evaluate.select_on
        self.metric = self._metric()
        self.groups = sorted(self._groups(), key=_place)

    def _metric(self) -> str:
        """What it is measured by: Matthews or F1 where the task uses it, as the runs choose their best epoch."""
        done = [found.summary["splits"][self.split] for found in self._found.values() if found.summary]
        own = (name for name in _OWN if done and all(name in scores for scores in done))
        return next(own, "accuracy")

    def _groups(self) -> Iterable[Group]:
        members: dict[tuple[str, ...], list[Trial]] = {}
        for trial in self._trials:
            key = tuple(value for name, value in trial.overrides.items() if name != "seed")
            members.setdefault(key, []).append(trial)
        for trials in members.values():
            values, losses = self._known(trials, self.metric), self._known(trials, "loss")
            yield Group(tuple(trials), values, losses, len(values) == len(trials))

    def _known(self, trials: Sequence[Trial], metric: str) -> tuple[float, ...]:
        values = (self._score(trial, metric) for trial in trials)
        return tuple(value for value in values if value is not None)

    def _score(self, trial: Trial, metric: str = "") -> float | None:
        """On the split that selects; by the task's own metric where none is named."""
        summary = self._found[trial.number].summary
        return None if summary is None else _finite(summary["splits"][self.split].get(metric or self.metric))

    def best_group(self) -> Group | None:
        """Of those whose trials are all done, the one of the highest mean."""
        return next((group for group in self.groups if group.is_whole), None)

    def best(self) -> dict[str, Any] | None:
        """The group of the highest mean, and its best run; None while none has all of its seeds done.

        Groups that lack a seed are left out: the mean of those that did not fail would flatter them.
        """
        group = self.best_group()
        if group is None:
            return None
        first = min(group.trials, key=lambda trial: _descending(self._score(trial)))
        return {
            "overrides": {key: value for key, value in first.overrides.items() if key != "seed"},
            "mean": group.mean,
            "deviation": group.deviation,
            "trials": [trial.number for trial in group.trials],
            "run_dir": str(first.folder),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Sorted by the group's mean, whole groups first, then by the trial's own; what is not known is None."""
        return [
            self._row(trial, group)
            for group in self.groups
            for trial in sorted(group.trials, key=lambda trial: _descending(self._score(trial)))
        ]

    def _row(self, trial: Trial, group: Group) -> dict[str, Any]:
        found = self._found[trial.number]
        row: dict[str, Any] = {"trial": trial.number, **{key: trial.overrides[key] for key in self._fields}}
        row["state"] = found.state
        if "seed" in self._fields:
            row |= {
                f"{self.split}.{self.metric}.mean": group.mean,
                f"{self.split}.{self.metric}.deviation": group.deviation,
            }
        summary = found.summary or {}
        row |= _scores(summary)
        row["samples_per_s"] = _finite(summary.get("throughput", {}).get("samples_per_s"))
        row |= {f"teacher.{key}": (summary.get("signals") or {}).get(key) for key in _SIGNALS}
        return {**row, "run_dir": str(trial.folder), "reason": found.reason}

    def csv(self) -> str:
        """All columns of all trials."""
        rows = self.rows()
        # what one trial alone has, say, another split, has a column as well
        columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("run_dir", "reason")))
        text = io.StringIO()
        writer = csv.DictWriter(text, [*columns, "run_dir", "reason"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def markdown(self) -> str:
        """For people: what is varied, dev, loyalty, throughput and state; one line per trial."""
        seeds = "seed" in self._fields
        rows = self.rows()
        known = dict.fromkeys(key for found in self._found.values() for key in _scores(found.summary or {}))
        scored = [key for key in known if key.rpartition(".")[2] in _SHOWN]
        head = ["trial", *self._fields, *scored, "samples/s", *(["mean ± s"] if seeds else []), "state"]
        said = {trial.number: group.says() for group in self.groups for trial in group.trials}
        lines = [
            [
                row["trial"], *(row[key] for key in self._fields), *(row.get(key) for key in scored),
                row["samples_per_s"], *([said[row["trial"]]] if seeds else []), row["state"],
            ]
            for row in rows
        ]  # fmt: skip
        return "\n".join(map(_line, [head, ["---"] * len(head), *lines]))

    def computed(self) -> int:
        """Rows that teachers computed for the trials that are done, since each one's last start."""
        summaries = (found.summary or {} for found in self._found.values())
        return sum((summary.get("signals") or {}).get("computed", 0) for summary in summaries)

    def counts(self) -> dict[str, int]:
        """How many trials are in which state."""
        found: dict[str, int] = {}
        for verdict in self._found.values():
            found[verdict.state] = found.get(verdict.state, 0) + 1
        return found


def _scores(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Of every split, dev first, by `SPLIT.NAME`; loyalty to the teacher's saliency is dev's as well."""
    splits: dict[str, Mapping[str, Any]] = {"dev": {}, **summary.get("splits", {})}
    loyalty = {key: value for key, value in summary.get("loyalty", {}).items() if value is not None}
    splits["dev"] = {**splits["dev"], **loyalty}
    return {
        f"{split}.{key}": _finite(value)
        for split in sorted(splits, key=lambda name: name != "dev")
        for key, value in splits[split].items()
    }


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def _place(group: Group) -> tuple[bool, float, float]:
    """Whole groups first, by the mean, then by the loss."""
    return not group.is_whole, _descending(group.mean), math.inf if group.loss is None else group.loss


def _descending(value: float | None) -> float:
    """A key that puts the highest first and what is not known last."""
    return math.inf if value is None else -value


def _finite(value: Any) -> float | None:
    """JSON has no NaN, and nothing can be compared with it."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None
