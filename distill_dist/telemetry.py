"""What the run says while it runs: device-side sums, one collective per interval, TensorBoard, a progress bar."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from distill_dist.errors import UserError

_log = logging.getLogger(__name__)


@dataclass
class Totals:
    """Counts since the process began, over all students; what throughput is computed from."""

    sequences: float = 0.0
    real_tokens: float = 0.0
    computed_tokens: float = 0.0
    waited_s: float = 0.0  # summed over students
    elapsed_s: float = 0.0
    measures: dict[str, tuple[float, float]] = field(default_factory=dict)  # tag -> sum, count


class _Lines:
    """Where no terminal moves a cursor back, every state of the bar is a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(f"{text.strip()}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def _where_it_is_drawn() -> dict[str, Any]:
    """tqdm's arguments. A terminal shows one line again and again; a file gets one twice a minute."""
    return {"mininterval": 1.0} if sys.stderr.isatty() else {"file": _Lines(), "mininterval": 30.0}


class Telemetry:
    """Gathers sums per step without touching the host; speaks every interval. Same calls on every student."""

    def __init__(
        self,
        folder: Path,
        *,
        terms: tuple[str, ...],
        rank: int,
        students: int,
        sum_: Callable[[Tensor], Tensor],
        device: torch.device,
        total_steps: int,
        start_step: int,
        progress: bool,
        measures: tuple[str, ...] = (),
    ) -> None:
        """``terms`` are the objective's names; ``sum_`` adds a tensor over students in place.

        ``measures`` are tags of further means, each over a count of its own.
        """
        self._measures = measures
        self._terms, self._rank, self._students, self._sum = terms, rank, students, sum_
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1) if rank == 0 else None
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc="train",
            unit="step",
            disable=rank != 0 or not progress,
            dynamic_ncols=True,
            **_where_it_is_drawn(),
        )
        # Sums of the terms, sums and counts of the measures, zero rows, real tokens; float64 so that adding many steps
        # loses nothing.
        size = len(terms) + 2 * len(measures) + 2
        self._device_sums = torch.zeros(size, dtype=torch.float64, device=device)
        self._nothing = torch.zeros((), dtype=torch.float64, device=device)
        self._computed_tokens = 0
        self._sequences = self._tokens = 0
        self._since = time.perf_counter()
        self._waited_before = 0.0
        self.totals = Totals()

    def add(
        self,
        sums: dict[str, Tensor],
        zero_rows: Tensor,
        *,
        real_tokens: Tensor,
        computed_tokens: int,
        measures: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """One micro-batch, which need not have every term nor (sum, count) of every measure; no host sync."""
        values = [sums[term].detach().double() if term in sums else self._nothing for term in self._terms]
        for tag in self._measures:
            values += [value.double() for value in (measures or {}).get(tag, (self._nothing, self._nothing))]
        self._device_sums += torch.stack([*values, zero_rows.double(), real_tokens.double()])
        self._computed_tokens += computed_tokens

    def step_done(self, *, sequences: int, tokens: int) -> None:
        """One optimizer step of the whole global batch."""
        self._sequences += sequences
        self._tokens += tokens
        self._bar.update()

    def resume_clock(self, *, waited_s: float) -> None:
        """Leave out of the throughput what lay between two intervals (evaluation, scores, checkpoints).

        ``waited_s`` so far: what those waited for teachers is left out as well.
        """
        self._since = time.perf_counter()
        self._waited_before = waited_s

    def speak(
        self, step: int, *, learning_rate: float, gradient_norm: float | None, waited_s: float
    ) -> dict[str, float]:
        """Means since the last call, over all students; a collective and a sync. ``waited_s`` so far, this student.

        Raises UserError when the loss or the gradient is not finite or a gradient had no direction.
        """
        if self._sequences == 0:
            return {}
        elapsed = time.perf_counter() - self._since
        waits = [0.0] * self._students
        waits[self._rank] = waited_s - self._waited_before
        host = torch.tensor(
            [*waits, self._computed_tokens], dtype=torch.float64, device=self._device_sums.device
        )
        *all_sums, computed = self._sum(torch.cat([self._device_sums, host])).tolist()
        waits, all_sums = all_sums[-self._students :], all_sums[: -self._students]
        *all_sums, zero_rows, real = all_sums
        waited = sum(waits)
        sums, pairs = all_sums[: len(self._terms)], iter(all_sums[len(self._terms) :])
        measured = dict(zip(self._measures, zip(pairs, pairs, strict=True), strict=True))
        means = {
            f"loss/{term}": value / (self._tokens if term == "gradient_embedding" else self._sequences)
            for term, value in zip(self._terms, sums, strict=True)
        }
        self._check(step, means, zero_rows, gradient_norm)
        scalars = {
            **means,
            **{tag: total / count for tag, (total, count) in measured.items() if count},
            "train/learning_rate": learning_rate,
            "throughput/samples_per_s": self._sequences / elapsed,
            "throughput/tokens_per_s": real / elapsed,
            "throughput/real_token_share": real / computed,
            "throughput/teacher_wait_share": waited / (elapsed * self._students),
            **{f"teacher_wait_share/student_{n}": each / elapsed for n, each in enumerate(waits)},
        }
        if gradient_norm is not None:
            scalars["train/gradient_norm"] = gradient_norm
        self.write(step, scalars)
        _log.debug("step %d: %s", step, ", ".join(f"{name} {value:.5g}" for name, value in scalars.items()))
        self._bar.set_postfix(
            {name.split("/")[1]: f"{value:.3g}" for name, value in means.items()}, refresh=False
        )
        self._add_totals(real, computed, waited, elapsed)
        for tag, (total, count) in measured.items():
            before = self.totals.measures.get(tag, (0.0, 0.0))
            self.totals.measures[tag] = (before[0] + total, before[1] + count)
        self._device_sums.zero_()
        self._computed_tokens = 0
        self._sequences = self._tokens = 0
        self.resume_clock(waited_s=waited_s)
        return scalars

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Scalars to TensorBoard, on student 0."""
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)

    def hyperparameters(self, values: dict[str, bool | float | str]) -> None:
        """For TensorBoard's tab of them, on student 0.

        Without the list of all columns, which torch's own add_hparams writes: of many runs TensorBoard would show those
        of one. It gathers them from the runs, and so it does the metrics.
        """
        if self._writer is not None:
            _, start, _ = hparams(values, {})
            self._writer._get_file_writer().add_summary(start)

    def histograms(self, step: int, histograms: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Tag -> (int counts [bins], edges [bins + 1]) to TensorBoard, on student 0: bins already summed by whoever
        counted. Means and spreads that TensorBoard stores beside them take every value at its bin's middle.
        """
        if self._writer is None:
            return
        for name, (counts, edges) in histograms.items():
            filled = np.flatnonzero(counts)
            middles = (edges[:-1] + edges[1:]) / 2
            self._writer.add_histogram_raw(
                name,
                # TensorBoard draws the outermost bins that are filled from `min` and to `max`
                min=float(edges[filled[0]]) if filled.size else 0.0,
                max=float(edges[filled[-1] + 1]) if filled.size else 0.0,
                num=int(counts.sum()),
                sum=float(counts @ middles),
                sum_squares=float(counts @ middles**2),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )

    def close(self) -> None:
        """Flush everything. A full disk is only a warning: what ends the run must not be hidden by it."""
        self._bar.close()
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                _log.warning("TensorBoard's file is not complete: %s", error)

    def _add_totals(self, real: float, computed: float, waited: float, elapsed: float) -> None:
        self.totals.sequences += self._sequences
        self.totals.real_tokens += real
        self.totals.computed_tokens += computed
        self.totals.waited_s += waited
        self.totals.elapsed_s += elapsed

    def _check(
        self, step: int, means: dict[str, float], zero_rows: float, gradient_norm: float | None
    ) -> None:
        if zero_rows:
            raise UserError(
                f"{zero_rows:.0f} tokens or sequences before step {step} had a zero gradient, which has no direction "
                "to align: the model's output does not depend on them (or bf16 underflowed; try train.precision=fp32)"
            )
        if not all(map(math.isfinite, means.values())):
            told = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
            raise UserError(
                f"the loss is not finite before step {step} ({told}); lower train.learning_rate, or set "
                "train.clip_norm. The last checkpoint is from before"
            )
        if gradient_norm is not None and not math.isfinite(gradient_norm):
            raise UserError(
                f"the gradient's norm is {gradient_norm} at step {step}; lower train.learning_rate, or take "
                "train.precision=fp32. The last checkpoint is from before"
            )
