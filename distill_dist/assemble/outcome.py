"""What a run produces along the way and at its end: checkpoints, the best model, the summary."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from distill_dist.assemble.agreement import UNWRITTEN, agree_written
from distill_dist.assemble.pool_report import PoolReport
from distill_dist.assemble.saver import Saver
from distill_dist.assemble.service_watch import ServiceWatch
from distill_dist.assemble.wire_report import Costs, wire_line, wire_scalars
from distill_dist.comm.students import StudentGroup
from distill_dist.config.methods import is_gradient_method, method_name
from distill_dist.config.schema import RunConfig
from distill_dist.durable import write_json
from distill_dist.engine import Engine
from distill_dist.evaluation.scoring import evaluating
from distill_dist.evaluation.split import SplitScorer, loyalty
from distill_dist.models.width_maps import WIDTH_MAPS
from distill_dist.run_folder import RunFolder, versions
from distill_dist.teacher.identity import Identity
from distill_dist.teacher.local import LocalTeacher, Teacher
from distill_dist.teacher.report import served_rows
from distill_dist.telemetry import Telemetry

_log = logging.getLogger(__name__)
# Label loyalty of a student that is undecided: those of first_round.yaml stayed at 0.56, then went above 0.9.
UNDECIDED = 0.75
_T = TypeVar("_T")


@dataclass
class Outcome:
    """Every method is a collective of all students; files are written by student 0."""

    config: RunConfig
    engine: Engine
    student: LocalTeacher  # the student itself, answering for its own logits and gradients
    teacher: Teacher | None
    scorers: dict[str, SplitScorer]
    group: StudentGroup
    telemetry: Telemetry
    folder: RunFolder
    save_tokenizer: Callable[[Path], None]  # of the student, into a folder
    identity: dict[str, Any]
    alignment: (
        dict[str, Any] | None
    )  # route, signal and the probe's errors; None where no gradient is matched
    matched_layers: (
        dict[str, list[int]] | None
    )  # "teacher" and "student", one to one; None where none are matched
    best: (
        dict[str, Any] | None
    )  # {"step", "value"} of the best epoch so far by evaluate.select_on; on student 0 "sha256" of its weights
    saver: Saver
    curriculum: Callable[[], dict[str, Any]]  # its state for a checkpoint; a collective
    order: Callable[[], dict[str, Any] | None]  # what the summary says of the curriculum; None without one
    taught_by: tuple[Identity, ...] = ()  # who the teachers are, for a checkpoint
    no_saliency: str | None = None  # why saliency loyalty is not defined; None: it is
    pool: PoolReport | None = None  # of several teachers
    watch: ServiceWatch | None = None  # on student 0, where there is a teacher
    wire: tuple[Costs, ...] = ()  # of each teacher whose rows travel
    _teacher_logits: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _selected: tuple[int, float] = (
        -1,
        0.0,
    )  # the step that evaluate.select_on was scored at last, and its score

    def save(self, step: int) -> None:
        """Checkpoint after ``step`` finished steps, unless it is there; see Saver."""

        def progress() -> dict[str, Any]:
            return {
                "step": step,
                "best": self.best,
                "score": self._selected[1] if self._selected[0] == step else None,
                "identity": self.identity,
                "teachers": [each.to_json() for each in self.taught_by],
                "curriculum": self.curriculum(),
            }

        self.saver.save(step, progress)

    def hear_teacher(self) -> None:
        """The frozen teacher's logits of every split, before the first step: no epoch's end has to wait for it."""
        if self.teacher is None:
            return
        for name in self.scorers:
            self._teacher_on(name)
        if "dev" in self.scorers and self.group.rank == 0:
            self._doubt(self.scorers["dev"])
        if self.watch is not None:
            self.watch.begin(self.saver.saved_step)
            self._say_wire()

    def _doubt(self, scorer: SplitScorer) -> None:
        accuracy = scorer.metrics(self._teacher_on("dev"))["accuracy"]
        if accuracy <= scorer.most_frequent_share:
            _log.warning(
                "the teacher is right on %.1f %% of dev, of which the most frequent class is %.1f %%: was "
                "teacher.path fine-tuned on this task, with its labels in this order?",
                100 * accuracy,
                100 * scorer.most_frequent_share,
            )

    def _say_wire(self) -> None:
        if self.wire:
            self.telemetry.write(self.saver.saved_step, wire_scalars(self.wire))
            _log.info("wire: %s", wire_line(self.wire))
        elif self.config.teacher.cache_dir:
            _log.info(
                "wire: nothing travels, the teacher is in this process; rows are kept as teacher.wire says"
            )

    def end_epoch(self, step: int) -> None:
        """Score the splits of every epoch; export the model where that of evaluate.select_on is the best so far."""
        if self.watch is not None:
            self.watch.end_epoch(step)
        if self.pool is not None:
            self.pool.end_epoch(step)
        at_end, select_on = self.config.evaluate.at_end, self.config.evaluate.select_on
        found = {name: self._score(name) for name in self.scorers if name not in at_end}
        self.telemetry.write(
            step, {f"{name}/{key}": value for name, scores in found.items() for key, value in scores.items()}
        )
        value = found[select_on][self.scorers[select_on].metric]
        self._selected = (step, value)
        for name in dict.fromkeys((select_on, "dev") if "dev" in found else (select_on,)):
            told = ", ".join(f"{key} {score:.4f}" for key, score in found[name].items())
            _log.info("step %d: %s %s", step, name, told)
        if self.group.rank == 0:
            self._warn_of_other_classes(step, select_on, found[select_on])
        if self.best is None or value > self.best["value"]:
            best = {"step": step, "value": value}
            export = functools.partial(
                self.folder.export, self.engine.module, self._own_weights(), self.save_tokenizer, best=best
            )
            self.best = self._write(export, self.folder.model) or best

    def _warn_of_other_classes(self, step: int, split: str, scores: dict[str, float]) -> None:
        config = self.config
        matches_own = is_gradient_method(config.method) and config.alignment.signal == "own_max"
        if matches_own and scores.get("ll", 1.0) < UNDECIDED:
            _log.warning(
                "step %d: the student agrees with its teacher on %.1f %% of %s. On the others alignment.signal=own_max "
                "matches the gradients of different classes, which can hold an undecided student where it is for "
                "long: alignment.signal=teacher_max matches those of the teacher's class",
                step,
                100 * scores["ll"],
                split,
            )

    def summary(self, steps: int) -> dict[str, Any]:
        """The result of the run, measured on the best epoch's model; written to summary.json."""
        weights = load_file(self.folder.model / "model.safetensors")
        maps = {name: weight for name, weight in self.engine.weights().items() if _is_map(name)}
        self.engine.load_weights({**maps, **weights})
        scores = {name: self._score(name) for name in self.scorers}
        dev = scores["dev"]
        loyal: dict[str, float | None] = {key: dev[key] for key in ("ll", "pl") if key in dev}
        if self.teacher is not None and self.config.evaluate.saliency is not False:
            loyal["sl_spearman_norm"] = self._saliency_loyalty(self.teacher)
        found = {
            "task": self.config.data.task if self.config.data.source != "synthetic_nli" else "synthetic_nli",
            "method": self.config.method,
            "label": self.config.label or method_name(self.config),
            "seed": self.config.seed,
            "zero_stage": self.engine.zero_stage,
            "world": {"students": self.group.size, "teachers": self.config.cluster.teachers},
            "steps": steps,
            "best_step": None if self.best is None else self.best["step"],
            "student": {
                "parameters": sum(tensor.numel() for tensor in weights.values()),
                **{key: dev.get(key) for key in ("accuracy", "f1", "matthews", "ece", "loss")},
            },
            "teacher": self._teacher_summary(),
            "conflict": self._conflict(),
            "loyalty": loyal,
            "splits": scores,
            "throughput": self._throughput(),
            "signals": self._signals(),
            "checkpoints": self._checkpoints(),
            "data": {"manifest": self.identity.get("prepared data")},
            "alignment": self.alignment,
            "matched_layers": self.matched_layers,
            "curriculum": self._curriculum(),
            "versions": versions(),
        }
        self._write(functools.partial(write_json, self.folder.summary, found), self.folder.summary)
        return found

    def _saliency_loyalty(self, teacher: Teacher) -> float | None:
        """None, which JSON has in place of NaN, where it is not defined or no row had an order of its tokens."""
        if self.no_saliency is not None:
            _log.info("saliency loyalty is not measured: %s", self.no_saliency)
            return None
        with evaluating(self.engine.module):
            value = self.scorers["dev"].saliency_loyalty(self.student, teacher)
        return None if math.isnan(value) else value

    def _own_weights(self) -> dict[str, Tensor]:
        """The student's own weights, without the maps to its teacher's width."""
        return {name: weight for name, weight in self.engine.weights().items() if not _is_map(name)}

    def _write(self, write: Callable[[], _T], path: Path) -> _T | None:
        """What ``write()`` returns on student 0, None on the others; nobody goes on, or exits, before it is done.

        Raises Interrupted, on all students, where ``path`` could not be written.
        """
        written, failed = None, None
        if self.group.rank == 0:
            try:
                written = write()
            except UNWRITTEN as error:
                failed = error
        agree_written(self.group, failed, place=path)
        return written

    def _score(self, split: str) -> dict[str, float]:
        scorer = self.scorers[split]
        with evaluating(self.engine.module):
            student_NC = scorer.logits_NC(self.student)
        found = scorer.metrics(student_NC)
        if self.teacher is not None:
            found.update(loyalty(student_NC, self._teacher_on(split)))
        return found

    def _teacher_on(self, split: str) -> NDArray[np.float64]:
        """The frozen teacher's logits; asked for once."""
        if split not in self._teacher_logits:
            assert self.teacher is not None
            self._teacher_logits[split] = self.scorers[split].logits_NC(self.teacher)
        return self._teacher_logits[split]

    def _teacher_summary(self) -> dict[str, Any] | None:
        if self.teacher is None:
            return None
        scores = self.scorers["dev"].metrics(self._teacher_on("dev"))
        if self.pool is not None:
            more = self.pool.members(self.scorers["dev"], self.wire)
        else:
            more = {"wire_report": self.wire[0]} if self.wire else {}
        return {**self.teacher.describe(), **scores, **more}

    def _before(self, key: str) -> Any:
        """What the summary said of a finished run that is started again; None where there is none."""
        if not self.folder.summary.is_file():
            return None
        return json.loads(self.folder.summary.read_text("utf-8")).get(key)

    def _conflict(self) -> dict[str, float] | None:
        if not self.telemetry.totals.elapsed_s and (before := self._before("conflict")):
            found: dict[str, float] = before
            return found
        return None if self.pool is None else self.pool.conflict()

    def _curriculum(self) -> dict[str, Any] | None:
        if not self.telemetry.totals.elapsed_s and (before := self._before("curriculum")):
            found: dict[str, Any] = before
            return found
        return self.order()

    def _signals(self) -> dict[str, int] | None:
        """Rows that teachers were asked for since the run's (or their own) last start, and those that they computed.

        None where there is no teacher, or none that counts (in the students' own processes, without a cache).
        """
        own = (
            (0, 0)
            if self.teacher is None
            else served_rows(self.teacher.counters(), whole=self.group.rank == 0)
        )
        asked, computed = self.group.sum_integers(np.array(own, dtype=np.int64)).tolist()
        if not self.telemetry.totals.elapsed_s and (before := self._before("signals")):
            found: dict[str, int] = before
            return found
        return {"rows": asked, "computed": computed} if asked else None

    def _checkpoints(self) -> dict[str, float]:
        if not self.telemetry.totals.elapsed_s and (before := self._before("checkpoints")):
            found: dict[str, float] = before
            return found
        return self.saver.spent.describe()

    def _throughput(self) -> dict[str, float | None]:
        totals = self.telemetry.totals
        if not totals.elapsed_s and (before := self._before("throughput")):
            found: dict[str, float | None] = before
            return found
        if not totals.elapsed_s:
            return dict.fromkeys(("samples_per_s", "tokens_per_s", "real_token_share", "teacher_wait_share"))
        return {
            "samples_per_s": totals.sequences / totals.elapsed_s,
            "tokens_per_s": totals.real_tokens / totals.elapsed_s,
            "real_token_share": totals.real_tokens / totals.computed_tokens,
            "teacher_wait_share": totals.waited_s / (totals.elapsed_s * self.group.size),
        }


def _is_map(name: str) -> bool:
    return name.startswith(f"{WIDTH_MAPS}.")
