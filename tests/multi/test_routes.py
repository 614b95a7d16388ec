"""Every combination of ZeRO stage, route, attention, checkpointing, accumulation and precision: right, or refused.

Two students take four SGD steps of GKD-CLS in each cell. Gradients before clipping, per parameter group, and the
moves of the weights are compared with one float64 computation of the whole global batch. Here runs a covering subset
(every pair of settings once); `make matrix` runs every cell.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill_dist.data.collate import collate
from distill_dist.models.build import load_classifier
from distill_dist.models.encoder import encoder_parts
from distill_dist.records import BatchCounts
from distill_dist.student import Route, StudentStep
from distill_dist.teacher.compute import compute_signal
from multi.engine_worker import make_objective
from multi.engine_world import GLOBAL_BATCH, RATE, Case, make_models, make_rows
from multi.harness import run_ranks
from multi.method_reference import Trajectory, train
from multi.routes_world import ALL, ROUTES, STEPS, Cell, covering

pytestmark = pytest.mark.timeout(1800)
STAGES = (0, 1, 2, 3)
WHOLE = os.environ.get("DISTILL_WHOLE_MATRIX") == "1"
CASE = Case("gkd_cls", "any", frozen=True)
# Parameter groups: what the optimizer decays and what it does not; an error in one must not drown in the other.
GROUPS = {"matrices": lambda tensor: tensor.ndim >= 2, "vectors": lambda tensor: tensor.ndim < 2}
EPS = 2.0**-24
# bf16 keeps 8 bits (0.4 % a rounding), through two differentiations of two layers.
BF16 = 0.05


def cells_of(stage: int) -> tuple[Cell, ...]:
    return ALL if WHOLE else covering(stage)


CASES = [
    pytest.param(stage, cell, id=f"zero{stage}-{cell.name}") for stage in STAGES for cell in cells_of(stage)
]


class Runs:
    """One pair of processes per ZeRO stage; run when asked for the first time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.models = folder, folder / "models"
        make_models(self.models)
        self.world = functools.lru_cache(maxsize=None)(self._world)
        self.reference = functools.lru_cache(maxsize=None)(
            lambda dtype: train(CASE, make_rows(), self.models, dtype)
        )

    def _world(self, stage: int) -> dict[str, Any]:
        first, second = run_ranks(
            "multi.routes_worker:matrix", size=2, folder=self.folder / f"zero{stage}-ranks", limit_s=1500,
            stage=stage, models=str(self.models), out=str(self.folder / f"zero{stage}"),
            cells=[asdict(cell) for cell in cells_of(stage)],
        )  # fmt: skip
        assert first.keys() == second.keys()
        return first

    @functools.cache  # noqa: B019 - one object per session
    def truncation(self, group: str) -> float:
        """Error of a central difference in float64, on the first global batch."""
        exact, found = (first_gradient(self.models, Route(name)) for name in ROUTES)
        return error_of(found, exact, group)

    def tensors(self, stage: int, cell: Cell) -> dict[str, Tensor]:
        """Gradients and weights of a cell."""
        return load_file(self.folder / f"zero{stage}" / f"{cell.name}.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All worlds of this module."""
    return Runs(tmp_path_factory.mktemp("routes"))


def error_of(found: dict[str, Tensor], expected: dict[str, Tensor], group: str) -> float:
    """‖found − expected‖ / ‖expected‖ over the tensors of one parameter group."""
    names = [name for name, tensor in expected.items() if GROUPS[group](tensor)]
    a, b = (torch.cat([side[name].double().flatten() for name in names]) for side in (found, expected))
    return float((a - b).norm() / b.norm())


def tolerance(runs: Runs, cell: Cell, group: str) -> float:
    """Ten times what the arithmetic itself costs.

    fp32: what the reference loses when it computes in fp32. A central difference divides the rounding of a margin by
    its relative step, and leaves out terms of the square of the step, which float64 shows alone.
    """
    if cell.precision != "fp32":
        return BF16
    exact, rough = runs.reference(torch.float64), runs.reference(torch.float32)
    rounding = max(error_of(a, b, group) for a, b in zip(rough.gradients, exact.gradients, strict=True))
    found = max(rounding, EPS)
    if cell.route == "central_difference":
        found += EPS / Route().step + runs.truncation(group)
    assert 10 * found < 0.02, "would not tell an error of scale"
    return 10 * found


def first_gradient(models: Path, route: Route) -> dict[str, Tensor]:
    """The gradient of the first global batch in float64, in this process."""
    teacher, student = (
        encoder_parts(load_classifier(f"{models}/{name}", attention="eager").double())
        for name in ("teacher", "student")
    )
    student.embeddings.requires_grad_(False)
    objective = make_objective("gkd_cls")
    rows = make_rows().read(np.arange(GLOBAL_BATCH))
    batch = collate(rows, pad_token_id=0)
    assert objective.signal_spec is not None
    teacher.model.requires_grad_(False)
    signal = compute_signal(teacher, *batch.inputs, objective.signal_spec)
    counts = BatchCounts(GLOBAL_BATCH, int(batch.attention_mask_BL.sum()))
    total = StudentStep(student, objective, route=route).loss_terms(batch, signal, counts).total(counts)
    total.backward()
    return {name: p.grad for name, p in student.model.named_parameters() if p.grad is not None}


def moves(exact: Trajectory, steps: int) -> dict[str, Tensor]:
    """What ``steps`` of plain SGD changed."""
    return {name: -RATE * sum(g[name] for g in exact.gradients[:steps]) for name in exact.start}  # type: ignore[misc]


@pytest.mark.parametrize(("stage", "cell"), CASES)
def test_right_or_refused(runs: Runs, stage: int, cell: Cell):
    found = runs.world(stage)[cell.name]
    if cell.is_forbidden:
        assert "alignment.route" in found["refused"] or "train.precision" in found["refused"], found
        return
    assert "refused" not in found, found
    assert found["micro_batches"] == [cell.accumulation] * STEPS
    tensors, exact = runs.tensors(stage, cell), runs.reference(torch.float64)
    assert found["probe"] < (0.5 if cell.precision != "fp32" else 0.02)
    for group in GROUPS:
        allowed = tolerance(runs, cell, group)
        for step in range(STEPS):
            prefix = f"gradient/{step}/"
            gradients = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            assert gradients.keys() == exact.gradients[step].keys()
            assert error_of(gradients, exact.gradients[step], group) < allowed, (group, step)
            assert math.isclose(found["losses"][step], exact.losses[step], rel_tol=allowed), step
        expected = moves(exact, STEPS)
        moved = {
            name: tensors[f"weight/{name}"].double() - tensors[f"start/{name}"].double() for name in expected
        }
        # a weight of size 1 in fp32 keeps only so many digits of its move
        stored = {
            name: (exact.start[name] + expected[name]).float().double() - exact.start[name]
            for name in expected
        }
        assert error_of(moved, expected, group) < allowed + 10 * error_of(stored, expected, group)


def test_every_pair_of_settings_stands_in_the_subset():
    for stage in STAGES:
        assert len(covering(stage)) < len(ALL) / 4
    chosen = {cell for stage in STAGES for cell in covering(stage)}
    for route in ROUTES:
        assert any(cell.route == route and cell.is_forbidden for cell in chosen)


@pytest.mark.parametrize("stage", STAGES)
def test_the_probe_sees_what_is_silently_wrong(runs: Runs, stage: int):
    first, _ = run_ranks(
        "multi.routes_worker:mutations", size=2, folder=runs.folder / f"mutations{stage}", limit_s=300,
        stage=stage, models=str(runs.models), out=str(runs.folder / f"mutated{stage}"),
    )  # fmt: skip
    assert max(first["none"]["errors"]) < 1e-3, first
    assert first["no rank factor"]["errors"][0] > 0.4, first  # half of the gradient is missing
    assert first["micro-batches forgotten"]["errors"][0] > 0.1 or stage != 3, first
    if stage == 3:
        assert "raised" in first["no gather"], first
    # FACTS: raises at ZeRO 0 to 2; at 3 it goes wrong in silence after the first step
    wrapped = first["wrapper's forward"]
    assert "raised" in wrapped or max(wrapped["errors"]) > 0.1, first
