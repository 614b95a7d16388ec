"""Mosaic Streaming's order of one epoch: its own dataset, partition, `py1e` shuffle and map from id to shard.

Runs under an interpreter of its own (mosaicml-streaming 0.13 needs numpy < 2.2 and transformers < 5):
`make bench-curriculum` makes one.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.bench.measured_process import PeakMemory, Stopwatch, answer

NUM_IDS = 1_000_000  # looked up for the rate


def _streaming_dataset() -> Any:
    """StreamingDataset, without the package's sets of images: those alone need torchvision.

    torchvision's wheels fit one build of torch each, and the machine brings its own build.
    """
    spec = importlib.util.find_spec("streaming")
    assert spec is not None, "installed: its version was asked for"
    package = types.ModuleType("streaming")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["streaming"] = package
    from streaming.base.dataset import StreamingDataset

    return StreamingDataset


def write_index(folder: Path, *, rows: int, shard_rows: int) -> None:
    """An index of shards that are not there: the order needs their sizes alone."""
    shards = [
        {
            "column_encodings": ["int"],
            "column_names": ["row"],
            "column_sizes": [8],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "raw_data": {"basename": f"shard.{number:06}.mds", "bytes": 1, "hashes": {}},
            "samples": min(shard_rows, rows - number * shard_rows),
            "size_limit": None,
            "version": 2,
            "zip_data": None,
        }
        for number in range(-(-rows // shard_rows))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}), encoding="utf-8")


def _open(kind: Any, folder: str, batch: int) -> Any:
    return kind(local=folder, shuffle=True, shuffle_algo="py1e", batch_size=batch)


def _work(dataset: Any) -> np.ndarray:
    """The ids of the epoch, from where the state that was loaded stands: what `__iter__` asks for first."""
    dataset._unique_worker_world = dataset._unique_rank_world.detect_workers()
    dataset._parallel_worker_world = dataset._parallel_rank_world.detect_workers()
    ids: np.ndarray = dataset._get_work(*dataset._resume_incr_epoch())
    return ids


def plan(*, folder: str, rows: int, batch: int, position: int) -> dict[str, Any]:
    """One epoch: seconds, memory, ids per second, and the batch (ids) at ``position``."""
    kind = _streaming_dataset()  # imports are left out
    with PeakMemory() as memory:
        with Stopwatch() as setup:
            dataset = _open(kind, folder, batch)
        with Stopwatch() as planning:
            ids = _work(dataset)
        served = min(NUM_IDS, len(ids))
        with Stopwatch() as serving:
            for number in ids[:served]:
                dataset.spanner[number]  # what `__getitem__` does first
    seen = np.zeros(rows, bool)
    seen[ids[ids >= 0]] = True
    assert seen.all(), "every sample once"
    return {
        "plan_s": planning.seconds,
        "plan_cpu_s": planning.cpu_s,
        "setup_s": setup.seconds,
        "bytes_per_row": memory.bytes / rows,
        "ids_per_s": served / serving.cpu_s,
        "batch": ids[position : position + batch].tolist(),
    }


def resume(*, folder: str, batch: int, position: int) -> dict[str, Any]:
    """Seconds from a new process (imports left out) to the batch at ``position`` of its first epoch."""
    kind = _streaming_dataset()
    with Stopwatch() as watch:
        dataset = _open(kind, folder, batch)
        # what a fresh dataset on one node would have saved at this position
        dataset.load_state_dict(
            {
                "epoch": 0,
                "sample_in_epoch": position,
                "num_canonical_nodes": 1,
                "shuffle_seed": dataset.shuffle_seed,
                "initial_physical_nodes": 1,
            }
        )
        ids = _work(dataset)[:batch]
        for number in ids:
            dataset.spanner[number]
    return {"resume_first_batch_s": watch.seconds, "batch": ids.tolist()}


def version(**_: Any) -> dict[str, Any]:
    """Of the package and its numpy."""
    from importlib.metadata import version as version_of

    return {"mosaicml-streaming": version_of("mosaicml-streaming"), "its numpy": version_of("numpy")}


if __name__ == "__main__":
    answer({"plan": plan, "resume": resume, "version": version})
