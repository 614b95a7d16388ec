"""What an epoch's order costs: this curriculum, Mosaic Streaming's shuffle and DeepSpeed's sampler, in one run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.bench.measured_process import available_memory, run_apart
from distill_dist.bench.score_snapshot import confidences, write_snapshot
from distill_dist.bench.streaming_side import write_index
from distill_dist.curriculum.snapshot_record import ROW_BYTES
from distill_dist.errors import UserError

OURS = "distill_dist.bench.curriculum_side"
STREAMING = "distill_dist.bench.streaming_side"
DEEPSPEED = "distill_dist.bench.deepspeed_side"

# Most memory of a side, bytes a row, to decide what is left out; measured at 1e7 rows: 9 and 52.
OUR_BYTES, STREAMING_BYTES = 8, 56
SHARED_BYTES = 8  # of Streaming's in /dev/shm


@dataclass(frozen=True)
class Sizes:
    """What is measured: rows against Streaming, rows against DeepSpeed, and of what shape."""

    rows: tuple[int, ...] = (10**7, 10**8, 10**9)
    deepspeed_rows: int = 10**6
    shard_rows: int = 1 << 16
    batch: int = 32
    batches: tuple[int, ...] = (32, 256)  # whose composition is compared
    num_batches: int = 4000
    num_calls: int = 500  # for ids, of a window each
    with_analyzer: bool = True  # of DeepSpeed: most of a minute


def measure_curriculum(
    sizes: Sizes,
    *,
    streaming_python: Path,
    folder: Path,
    progress: Callable[[str], None],
    seed: int = 0,
) -> dict[str, Any]:
    """Every side's plan, memory, resume and ids per second at every size, and the composition of batches.

    Each is measured in a process of its own. ``folder`` is where temporary files go: scores are read from its disk.
    Without an interpreter at ``streaming_python`` Streaming's figures are None. Sizes that do not fit are left out,
    with the reason. The figures at `rows` also stand on top. Raises UserError where nothing fits.
    """
    versions = run_apart(DEEPSPEED, {"task": "version"}) | _streaming_version(streaming_python)
    has_streaming = "mosaicml-streaming" in versions
    found: dict[int, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    composition: dict[str, Any] = {}
    for rows in sorted({sizes.deepspeed_rows, *sizes.rows}):
        why = _does_not_fit(rows, folder)
        if why:
            left_out[f"{rows:.0e}"] = why
            continue
        with tempfile.TemporaryDirectory(dir=folder, prefix="bench-curriculum-") as place:
            side = _Side(Path(place), rows, sizes, seed, progress)
            found[rows] = {"ours": side.ours()}
            if rows == sizes.deepspeed_rows:
                found[rows]["deepspeed"] = side.deepspeed()
                composition = side.composition()
            if rows in sizes.rows and has_streaming:
                why = _streaming_does_not_fit(rows)
                if why:
                    left_out[f"{rows:.0e}, Mosaic Streaming"] = why
                else:
                    found[rows]["streaming"] = side.streaming(streaming_python)
    measured = [rows for rows in sizes.rows if rows in found]
    if not measured:
        raise UserError(f"--rows: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    return {
        "benchmark": "curriculum",
        **_on_top(found, measured, sizes, composition),
        "clock": {"plan and resume": "wall", "ids": "processor"},
        "shape": {"shard_rows": sizes.shard_rows, "batch": sizes.batch},
        "versions": versions,
        "streaming_python": str(streaming_python) if has_streaming else None,
        "composition": composition,
        "left_out": left_out,
        "sizes": {str(rows): sides for rows, sides in found.items()},
    }


def _on_top(
    found: dict[int, dict[str, Any]], measured: list[int], sizes: Sizes, composition: dict[str, Any]
) -> dict[str, Any]:
    """The figures at 1e8 rows, where the bars stand; without them, at the most rows measured."""
    rows = 10**8 if 10**8 in measured else max(measured)
    ours, streaming = found[rows]["ours"], found[rows].get("streaming")
    deepspeed = found.get(sizes.deepspeed_rows, {}).get("deepspeed")
    return {
        "rows": rows,
        "plan_s": ours["plan_s"],
        "streaming_plan_s": streaming["plan_s"] if streaming else None,
        "deepspeed_plan_s": deepspeed["plan_s"] if deepspeed else None,
        "deepspeed_rows": sizes.deepspeed_rows,
        **{key: ours[key] for key in ("bytes_per_row", "resume_first_batch_s", "ids_per_s")},
        # a bar holds at every size of batch
        "quota_std_ratio": min((each["ratio"] for each in composition.values()), default=None),
    }


def _streaming_version(python: Path) -> dict[str, Any]:
    """Of the package that ``python`` has; {} where there is no such interpreter. UserError: without the package."""
    if not python.is_file():
        return {}
    try:
        return run_apart(STREAMING, {"task": "version"}, python=python)
    except RuntimeError as error:
        raise UserError(
            f"--streaming-python {python}: it has no mosaicml-streaming; make bench-curriculum makes one that has"
        ) from error


def _does_not_fit(rows: int, folder: Path) -> str:
    disk, memory = shutil.disk_usage(folder).free, available_memory()
    if 2 * rows * ROW_BYTES > disk:  # a benchmark fills no disk
        return f"{rows * ROW_BYTES / 1e9:.0f} GB of scores in {folder}, more than half of the {disk / 1e9:.0f} GB free"
    if rows * OUR_BYTES > memory:
        return f"{rows * OUR_BYTES / 1e9:.0f} GB of memory, {memory / 1e9:.0f} GB are available"
    return ""


def _streaming_does_not_fit(rows: int) -> str:
    memory, shared = available_memory(), Path("/dev/shm")
    if rows * STREAMING_BYTES > memory:
        return f"about {rows * STREAMING_BYTES / 1e9:.0f} GB of memory, {memory / 1e9:.0f} GB are available"
    if rows * SHARED_BYTES > shutil.disk_usage(shared).free:
        return f"{rows * SHARED_BYTES / 1e9:.0f} GB in {shared}, which has less"
    return ""


@dataclass(frozen=True)
class _Side:
    """The sides at one number of rows."""

    folder: Path
    rows: int
    sizes: Sizes
    seed: int
    progress: Callable[[str], None]

    @property
    def position(self) -> int:
        """Where runs resume: a global batch in the middle of the epoch."""
        return self.rows // 2 // self.sizes.batch * self.sizes.batch

    def ours(self) -> dict[str, Any]:
        """This project's, over a snapshot that stays for :meth:`composition`."""
        shape = {"rows": self.rows, "shard_rows": self.sizes.shard_rows, "seed": self.seed}
        write_snapshot(self.folder / "snapshots", **shape, progress=self.progress)
        job = self._job(snapshot=str(self._snapshot), saved=str(self.folder / "plan.npz"), seed=self.seed)
        self.progress(f"{self.rows:.0e} rows: plan")
        found = run_apart(OURS, {"task": "plan", "num_calls": self.sizes.num_calls, **job})
        self.progress(f"{self.rows:.0e} rows: resume")
        return _joined(found, run_apart(OURS, {"task": "resume", **job}))

    @property
    def _snapshot(self) -> Path:
        return self.folder / "snapshots" / "snapshot-00001"

    def composition(self) -> dict[str, Any]:
        """Deviation of the batch means per size of batch, and how many times smaller exact quotas make it."""
        self.progress(f"{self.rows:.0e} rows: batches")
        job = {"batches": self.sizes.batches, "num_batches": self.sizes.num_batches, "seed": self.seed}
        found = run_apart(OURS, {"task": "composition", "snapshot": str(self._snapshot), **job})
        return {batch: {**each, "ratio": each["uniform"] / each["exact"]} for batch, each in found.items()}

    def streaming(self, python: Path) -> dict[str, Any]:
        """Mosaic Streaming's, over shards of the same sizes."""
        place = self.folder / "streaming"
        write_index(place, rows=self.rows, shard_rows=self.sizes.shard_rows)
        job = self._job(folder=str(place))
        self.progress(f"{self.rows:.0e} rows: Mosaic Streaming")
        found = run_apart(STREAMING, {"task": "plan", "rows": self.rows, **job}, python=python)
        return _joined(found, run_apart(STREAMING, {"task": "resume", **job}, python=python))

    def deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's sampler, over the same confidences as levels; one batch after another, so no position."""
        place = self.folder / "deepspeed"
        place.mkdir()
        starts = range(0, self.rows, self.sizes.shard_rows)
        blocks = [
            confidences(block, min(self.sizes.shard_rows, self.rows - start), seed=self.seed)
            for block, start in enumerate(starts)
        ]
        scores = place / "scores.npy"
        np.save(scores, np.concatenate(blocks))
        job = {"folder": str(place), "batch": self.sizes.batch, "seed": self.seed}
        self.progress(f"{self.rows:.0e} rows: DeepSpeed")
        found = run_apart(DEEPSPEED, {"task": "plan", "scores": str(scores), **job})
        state = found.pop("state")
        found = _joined(
            found, run_apart(DEEPSPEED, {"task": "resume", "rows": self.rows, "state": state, **job})
        )
        if self.sizes.with_analyzer:
            self.progress(f"{self.rows:.0e} rows: DeepSpeed's analyzer")
            (place / "analyzer").mkdir()
            job = {"scores": str(scores), "folder": str(place / "analyzer")}
            found |= run_apart(DEEPSPEED, {"task": "analyze", **job})
        return found

    def _job(self, **more: Any) -> dict[str, Any]:
        return {"batch": self.sizes.batch, "position": self.position, **more}


def _joined(planned: dict[str, Any], resumed: dict[str, Any]) -> dict[str, Any]:
    """Both together; the batches become one answer: whether a resume goes on with the same rows."""
    same = planned.pop("batch") == resumed.pop("batch")
    return {**planned, **resumed, "resumes_exactly": same}
