"""What a checkpoint costs the training: the pause, and all it takes, written beside the steps and before them."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from distill_dist.assemble.saver import Saver
from distill_dist.bench.distillation_cases import Case, Shape, make_setting
from distill_dist.bench.gradients import run_step
from distill_dist.checkpoint import Keep
from distill_dist.comm.students import StudentGroup
from distill_dist.objectives.objective import METHODS, Objective
from distill_dist.student import StudentStep
from distill_dist.telemetry import Telemetry

LIMIT_S = 600.0  # of a write
WAYS = {"none": None, "foreground": False, "background": True}  # whether it is written in the background


@dataclass
class _Seconds:
    """Of a way, in each round."""

    pause: list[float] = field(default_factory=list)
    block: list[float] = field(default_factory=list)  # a checkpoint, and the steps to the next


class _Alone:
    """A student without siblings."""

    rank, size = 0, 1

    def agree(self, value: int) -> int:
        return value


class _Training:
    """KD steps with AdamW of the student that ``shape`` says, all of whose weights are trained."""

    def __init__(self, shape: Shape, *, cases: int) -> None:
        setting = make_setting(shape, device=torch.device("cpu"), count=cases, seed=0)
        self._model = setting.student.model.requires_grad_(True)
        self._step = StudentStep(setting.student, Objective(METHODS["kd"]))
        self._cases: Iterator[Case] = cycle(setting.cases)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-5, fused=True)

    def run(self, steps: int) -> None:
        """So many optimizer steps."""
        for _ in range(steps):
            run_step(self._step, next(self._cases))
            self._optimizer.step()
            self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and moments, copied one by one, as the engine does where nothing is sharded."""
        found = {}
        for name, parameter in self._model.named_parameters():
            moments = self._optimizer.state[parameter]
            found[f"weights/{name}"] = parameter.detach().clone()
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"{key}/{name}"] = moments[key].clone()
        return found


def measure_checkpoint(
    shape: Shape, *, rounds: int, every: int, folder: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Pauses and costs of checkpoints ``every`` so many steps, below ``folder``, whose disk is what is measured.

    Ways take turns: no checkpoint, in the foreground, in the background. The cost of one is what it adds to a block of
    ``every`` steps, the end of its writing included. Raises OSError on a full disk.
    """
    training = _Training(shape, cases=every)
    training.run(2)
    root = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=folder))
    ways = {name: _Seconds() for name in WAYS}
    try:
        savers = {
            name: _saver(root / name, training, in_background=background)
            for name, background in WAYS.items()
            if background is not None
        }
        for number in range(1, rounds + 1):
            for name in list(WAYS)[:: 1 if number % 2 else -1]:
                progress(f"{name} {number}/{rounds}")
                _run_block(training, savers.get(name), ways[name], number, every=every)
    finally:
        shutil.rmtree(root)
    num_bytes = sum(tensor.nbytes for tensor in training.state_dict().values())
    written_s = {name: saver.spent.write_s / saver.spent.saved for name, saver in savers.items()}
    return _figures(ways, written_s, num_bytes=num_bytes, rounds=rounds, every=every)


def _run_block(
    training: _Training, saver: Saver | None, seconds: _Seconds, number: int, *, every: int
) -> None:
    begin = time.perf_counter()
    if saver is not None:
        saver.save(number, lambda: {"dev": None})
        seconds.pause.append(time.perf_counter() - begin)
    training.run(every)
    if saver is not None:
        saver.settle()
    seconds.block.append(time.perf_counter() - begin)


def _saver(root: Path, training: _Training, *, in_background: bool) -> Saver:
    silent = Telemetry(
        root, terms=(), rank=1, students=1, sum_=lambda tensor: tensor, device=torch.device("cpu"), total_steps=1,
        start_step=0, progress=False,
    )  # fmt: skip
    return Saver(
        root=root, group=cast(StudentGroup, _Alone()), telemetry=silent, keep=Keep(2), in_background=in_background,
        limit_s=LIMIT_S, gather=training.state_dict, saved_step=0,
    )  # fmt: skip


def _figures(
    ways: dict[str, _Seconds], written_s: dict[str, float], *, num_bytes: int, rounds: int, every: int
) -> dict[str, Any]:
    plain = statistics.median(ways["none"].block)
    found: dict[str, Any] = {}
    for name, way in ways.items():
        if way.pause:
            found[name] = {
                "pause_ms": 1000 * statistics.median(way.pause),
                "quartiles_ms": [1000 * value for value in np.quantile(way.pause, [0.25, 0.75]).tolist()],
                "longest_ms": 1000 * max(way.pause),
                "cost_ms": 1000 * (statistics.median(way.block) - plain),
                "write_ms": 1000 * written_s[name],
            }
    return {
        "benchmark": "checkpoint",
        "bytes": num_bytes,
        "rounds": rounds,
        "every": every,
        "threads": torch.get_num_threads(),
        "step_ms": 1000 * plain / every,
        "ways": found,
        "pause_ratio": found["foreground"]["pause_ms"] / found["background"]["pause_ms"],
    }


def table(found: dict[str, Any]) -> str:
    """The result of ``measure_checkpoint`` as text."""
    lines = [
        f"checkpoints of {found['bytes'] / 1e6:.0f} MB every {found['every']} steps of {found['step_ms']:.0f} ms "
        f"({found['threads']} thread(s)), {found['rounds']} rounds",
        f"  {'':12}{'pause':>10}  {'quartiles':<18}{'longest':>10}{'all in all':>13}{'writing':>11}",
    ]
    for name, each in found["ways"].items():
        low, high = each["quartiles_ms"]
        lines.append(
            f"  {name:12}{each['pause_ms']:7.0f} ms  {f'{low:.0f} – {high:.0f} ms':<18}{each['longest_ms']:7.0f} ms"
            f"{each['cost_ms']:10.0f} ms{each['write_ms']:8.0f} ms"
        )
    return "\n".join([*lines, f"  the pause is {found['pause_ratio']:.1f} times shorter in the background"])
