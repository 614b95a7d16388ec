"""DeepSpeed's data sampler on one gloo rank: its curriculum over integer levels, from scores to global batches.

It knows integer levels only, so confidence becomes one of ``LEVELS``; each level that comes in is a cluster, which
rank 0 shuffles, writes to disk and draws every batch from.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import deepspeed.comm
import numpy as np
import torch
from deepspeed.runtime.data_pipeline.data_sampling.data_analyzer import DataAnalyzer
from deepspeed.runtime.data_pipeline.data_sampling.data_sampler import DeepSpeedDataSampler
from deepspeed.runtime.data_pipeline.data_sampling.utils import (
    close_mmap_dataset_builder,
    create_mmap_dataset_builder,
)
from torch.utils.data import Dataset

from distill_dist.bench.measured_process import PeakMemory, Stopwatch, answer

LEVELS = 100
METRIC = "difficulty"
NUM_BATCHES = 1000  # for the rate, once every level is in
INDEX, METRICS = f"{METRIC}_index_to_sample", f"{METRIC}_index_to_metric"


def levels_of(scores: np.ndarray) -> np.ndarray:
    """Difficulty 1 … LEVELS (int64) of confidences in [0, 1]."""
    return np.clip(((1 - scores) * LEVELS).astype(np.int64) + 1, 1, LEVELS)


class _Levels(Dataset[torch.Tensor]):
    """A data set whose samples are their own difficulty: the analyzer's other costs are left out."""

    def __init__(self, levels: np.ndarray) -> None:
        self.levels = torch.from_numpy(levels)

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.levels[index]


def _write_index(folder: Path, scores: np.ndarray) -> None:
    """The files that the sampler reads, by its own writer; the analyzer writes the same, sample by sample."""
    levels = levels_of(scores)
    order = np.argsort(levels, kind="stable")
    values, starts = np.unique(levels[order], return_index=True)
    samples = create_mmap_dataset_builder(str(folder / INDEX), np.uint32)
    metrics = create_mmap_dataset_builder(str(folder / METRICS), np.int64)
    for value, rows in zip(values, np.split(order.astype(np.uint32), starts[1:]), strict=True):
        samples.add_item_numpy(rows)
        metrics.add_item_numpy(np.array([value]))
    close_mmap_dataset_builder(samples, str(folder / INDEX))
    close_mmap_dataset_builder(metrics, str(folder / METRICS))


def _sampler(folder: Path, rows: int, batch: int, seed: int) -> Any:
    """The sampler over the files in ``folder``; one level comes in at every one of the first global batches."""
    metric = {
        "index_to_sample_path": str(folder / INDEX),
        "index_to_metric_path": str(folder / METRICS),
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 1,
        "max_difficulty": LEVELS,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": LEVELS, "difficulty_step": 1},
    }
    curriculum = {
        "enabled": True,
        "data_cluster_path": str(folder / "clusters"),
        "curriculum_metrics": {METRIC: metric},
    }
    return DeepSpeedDataSampler(
        {"seed": seed, "data_sampling": {"num_epochs": 2, "curriculum_learning": curriculum}},
        rows,
        batch,
        0,
        1,
        deepspeed.comm.get_world_group(),
        1,
        0,
    )


def _one_rank(folder: str) -> None:
    deepspeed.comm.init_distributed(
        "gloo",
        auto_mpi_discovery=False,
        init_method=f"file://{folder}/store-{time.time_ns()}",
        rank=0,
        world_size=1,
    )


def plan(*, scores: str, folder: str, batch: int, seed: int) -> dict[str, Any]:
    """Seconds from scores to the last level's cluster, memory, ids per second, and what a resume starts from."""
    _one_rank(folder)
    where = Path(folder)
    with PeakMemory() as memory:
        with Stopwatch() as planning:
            confidence = np.load(scores, allow_pickle=False)
            _write_index(where, confidence)
            sampler = _sampler(where, len(confidence), batch, seed)
            batches = iter(sampler)
            for _ in range(LEVELS):
                next(batches)
        with Stopwatch() as serving:
            for _ in range(NUM_BATCHES):
                next(batches)
    state = sampler.state_dict()
    kind, keys, *rest = state["np_rng_state"]
    # as a checkpoint keeps it: the sampler goes on changing its own lists
    saved = json.dumps(state | {"np_rng_state": [kind, keys.tolist(), *rest]}, default=int)
    return {
        "plan_s": planning.seconds,
        "plan_cpu_s": planning.cpu_s,
        "bytes_per_row": memory.bytes / len(confidence),
        "ids_per_s": NUM_BATCHES * batch / serving.cpu_s,
        "clusters": len(sampler.data_clusters),
        "state": json.loads(saved),
        "batch": next(batches),
    }


def resume(*, folder: str, rows: int, batch: int, seed: int, state: dict[str, Any]) -> dict[str, Any]:
    """Seconds from a new process (imports and the process group left out) to the batch after ``state``."""
    _one_rank(folder)
    with Stopwatch() as watch:
        sampler = _sampler(Path(folder), rows, batch, seed)
        kind, keys, *rest = state["np_rng_state"]
        sampler.load_state_dict(state | {"np_rng_state": (kind, np.array(keys, np.uint32), *rest)})
        found = next(iter(sampler))
    return {"resume_first_batch_s": watch.seconds, "batch": found}


def analyze(*, scores: str, folder: str) -> dict[str, Any]:
    """Seconds that DeepSpeed's own analyzer takes to turn the levels into the sampler's files."""
    _one_rank(folder)
    levels = levels_of(np.load(scores, allow_pickle=False))
    analyzer = DataAnalyzer(
        _Levels(levels),
        batch_size=1 << 16,
        metric_names=[METRIC],
        metric_functions=[torch.Tensor.numpy],
        metric_types=["single_value_per_sample"],
        metric_dtypes=[np.int64],
        save_path=folder,
    )
    with Stopwatch() as watch:
        analyzer.run_map_reduce()
    return {"analyze_s": watch.seconds}


def version() -> dict[str, Any]:
    """Of the package."""
    return {"deepspeed": deepspeed.__version__}


if __name__ == "__main__":
    answer({"plan": plan, "resume": resume, "analyze": analyze, "version": version})
