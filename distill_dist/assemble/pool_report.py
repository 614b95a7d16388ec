"""What a run with several teachers says of them: how good each one is, and how far they contradict each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill_dist.assemble.wire_report import Costs
from distill_dist.config.schema_teacher import PooledTeacher
from distill_dist.evaluation.split import SplitScorer
from distill_dist.objectives.conflict import COSINE, DISAGREEMENT
from distill_dist.objectives.objective import teacher_tag
from distill_dist.teacher.pool import TeacherPool
from distill_dist.telemetry import Telemetry

_log = logging.getLogger(__name__)
Measures = Mapping[str, tuple[float, float]]


@dataclass
class PoolReport:
    """Of the training rows since this process began, and of the dev rows."""

    pool: TeacherPool
    teachers: tuple[PooledTeacher, ...]
    combine: str
    telemetry: Telemetry
    _before: dict[str, tuple[float, float]] = field(default_factory=dict)  # when the last epoch ended

    def end_epoch(self, step: int) -> None:
        """One line to the log, and one of every teacher's own loss where terms are separate."""
        now = self.telemetry.totals.measures
        found = means_since(self._before, now)
        self._before = dict(now)
        if found:
            cosine = f", the cosine of their gradients is {found[COSINE]:.2f}" if COSINE in found else ""
            share = found[DISAGREEMENT]
            _log.info(
                "step %d: conflict: the teachers' labels differ on %.1f %% of rows%s",
                step,
                100 * share,
                cosine,
            )
            own = [found.get(teacher_tag("distillation", n)) for n in range(len(self.teachers))]
            told = [f"{value:.4g} from teachers[{n}]" for n, value in enumerate(own) if value is not None]
            if told:
                _log.info("step %d: distillation: %s", step, ", ".join(told))

    def conflict(self) -> dict[str, float] | None:
        """`label_disagreement`, and `gradient_cosine` where gradients were asked for; None where no row was trained."""
        found = means_since({}, self.telemetry.totals.measures)
        return {tag.split("/")[1]: found[tag] for tag in (DISAGREEMENT, COSINE) if tag in found} or None

    def members(self, scorer: SplitScorer, wire: Sequence[Costs] = ()) -> dict[str, Any]:
        """`combine`, `label_disagreement` of the scorer's rows, and under `models` each one's own figures, with what
        its rows cost on the ``wire``; a collective.
        """
        logits = [scorer.logits_NC(member) for member in self.pool.members]
        labels_MN = np.stack([each.argmax(axis=1) for each in logits])
        models = [
            {"path": about.path, "weight": about.weight, **member.describe(), **scorer.metrics(logits_NC)}
            for about, member, logits_NC in zip(self.teachers, self.pool.members, logits, strict=True)
        ]
        for model, costs in zip(models, wire, strict=False):  # nothing travels where all are in this process
            model["wire_report"] = costs
        disagreement = float((labels_MN != labels_MN[0]).any(axis=0).mean())
        return {"combine": self.combine, "label_disagreement": disagreement, "models": models}


def means_since(before: Measures, now: Measures) -> dict[str, float]:
    """The mean of what was counted between the two, by tag; nothing where nothing was."""
    found = {}
    for tag, (total, count) in now.items():
        old_total, old_count = before.get(tag, (0.0, 0.0))
        if count > old_count:
            found[tag] = (total - old_total) / (count - old_count)
    return found
