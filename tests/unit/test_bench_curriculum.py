"""The benchmark of the curriculum on a thousand rows: its figures mean what they say."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill_dist.bench import curriculum, curriculum_side, streaming_side
from distill_dist.bench.curriculum import Sizes, measure_curriculum
from distill_dist.bench.curriculum_table import bars, table
from distill_dist.bench.measured_process import PeakMemory, Stopwatch, answer, run_apart
from distill_dist.bench.score_snapshot import confidences, drop_cached, write_snapshot
from distill_dist.bench.streaming_side import write_index
from distill_dist.curriculum.pacing import WHOLE
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.errors import UserError

ROWS, SHARD, BATCH = 5000, 1024, 16


def no_progress(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("snapshots")
    return write_snapshot(root, rows=ROWS, shard_rows=SHARD, seed=0, progress=no_progress)


def test_scores_on_disk_are_the_confidences_of_a_trained_model(snapshot: Path) -> None:
    opened = Snapshot.open(snapshot)
    assert opened.sizes.tolist() == [1024] * 4 + [904]
    scores = np.concatenate([opened.scores(block) for block in range(5)])
    assert np.array_equal(scores[SHARD : 2 * SHARD], confidences(1, SHARD, seed=0))
    assert not np.array_equal(confidences(1, SHARD, seed=0), confidences(0, SHARD, seed=0))
    # P(N(2, 2) > 0) = 0.841; its standard error over 5,000 rows is 0.005
    assert np.mean(scores > 0.5) == pytest.approx(0.841, abs=0.03)


def test_a_resume_goes_on_with_the_batch_of_the_plan(snapshot: Path, tmp_path: Path) -> None:
    job: dict[str, Any] = {
        "snapshot": str(snapshot),
        "saved": str(tmp_path / "plan.npz"),
        "batch": BATCH,
        "seed": 3,
        "position": 2512,
    }
    planned, resumed = curriculum_side.plan(**job, num_calls=3), curriculum_side.resume(**job)
    assert len(set(planned["batch"])) == BATCH
    assert planned["batch"] == resumed["batch"]
    assert planned["batch"] != curriculum_side.resume(**job | {"position": 2496})["batch"]
    assert planned["reduced"]["per_plan"] >= 2  # thresholds, counts
    assert planned["reduced"]["per_step"] == 0
    assert planned["plan_file_bytes"] == (tmp_path / "plan.npz").stat().st_size
    assert all(planned[key] > 0 for key in ("plan_s", "plan_cached_s", "first_window_s", "ids_per_s"))
    assert resumed["resume_first_window_s"] > resumed["resume_first_batch_s"] > 0


def test_the_plan_measured_is_one_of_a_growing_pool() -> None:
    spec = curriculum_side.paced_spec(10**6, 32, seed=0)
    shares = [stage.cut / WHOLE for stage in spec.stages]
    assert len(shares) > 100
    # linear from 0.2 at 0 to 1 at 8 of 10 epochs
    assert shares[0] == pytest.approx(0.5)
    assert 0.59 < shares[-1] < 0.6


def test_exact_quotas_make_batches_more_even(snapshot: Path) -> None:
    found = curriculum_side.composition(snapshot=str(snapshot), batches=[8, 40], num_batches=100, seed=0)
    scores = np.concatenate([confidences(b, size, seed=0) for b, size in enumerate([1024] * 4 + [904])])
    for batch, each in found.items():
        # of a batch drawn uniformly; the deviation of 100 (or 125) batches is known to 7 %
        assert each["uniform"] == pytest.approx(scores.std() / int(batch) ** 0.5, rel=0.3)
        assert each["exact"] < each["uniform"] / 3
        # everything is admitted: 100 batches of exact quotas have the mean of all rows
        assert each["exact_mean"] == pytest.approx(scores.mean(), abs=0.01)


def hold(size: int) -> None:
    """Fills ``size`` bytes straight from the system, which an allocator might have kept from before, and frees them."""
    with mmap.mmap(-1, size) as memory:
        memory[::4096] = b"x" * (size // 4096)  # a byte a page


def test_memory_is_the_most_that_the_block_held() -> None:
    hold(1 << 25)  # before the block: does not count
    with PeakMemory() as memory:
        hold(1 << 24)  # gone again at the end of the block
    assert memory.bytes == pytest.approx(1 << 24, rel=0.2)
    with PeakMemory() as memory:
        pass
    assert memory.bytes < 1 << 22


def test_a_stopwatch_counts_what_comes_from_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    drop_cached(tmp_path)
    with Stopwatch() as watch:
        file.read_bytes()
    assert watch.read_bytes in (0, pytest.approx(1 << 20, rel=0.5))  # 0 where temporary files are in memory
    assert watch.seconds > 0
    with Stopwatch() as again:
        file.read_bytes()
    assert again.read_bytes == 0


def test_a_side_answers_what_its_task_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cores: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, chosen: cores.append(chosen))

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "side"]
        assert "WORLD_SIZE" not in env
        assert env["OMP_NUM_THREADS"] == "1"
        monkeypatch.setattr(sys, "argv", command[2:])
        answer({"add": lambda left, right: {"sum": left + right}})
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(subprocess, "run", run)
    assert run_apart("side", {"task": "add", "left": 2, "right": 3}) == {"sum": 5}
    assert [len(each) for each in cores] == [1]

    def ends_with(code: int, said: str = "") -> None:
        done = subprocess.CompletedProcess[str]([], code, said)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)

    ends_with(-9)
    with pytest.raises(UserError, match="lack of memory: take fewer --rows"):
        run_apart("side", {"task": "add"})
    ends_with(1, "its words")
    with pytest.raises(RuntimeError, match="its words"):
        run_apart("side", {"task": "add"})


def test_a_side_runs_under_an_interpreter_named_relatively(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the Makefile names the one with Streaming; and through the link that an environment's python is."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "{\\"as\\": \\"$0\\"}" > "$4"\n', encoding="utf-8")
    python.chmod(0o755)
    python.with_name("link").symlink_to(python)
    monkeypatch.chdir(tmp_path)
    found = run_apart("side", {"task": "add"}, python=Path("bin", "link"))
    assert found == {"as": str(tmp_path / "bin" / "link")}


def test_streaming_gets_an_index_of_the_same_shards(tmp_path: Path) -> None:
    write_index(tmp_path, rows=ROWS, shard_rows=SHARD)
    shards = json.loads((tmp_path / "index.json").read_text())["shards"]
    assert [shard["samples"] for shard in shards] == [1024] * 4 + [904]
    assert len({shard["raw_data"]["basename"] for shard in shards}) == 5


OTHERS: dict[str, dict[str, Any]] = {
    "streaming plan": {
        "plan_s": 4.0,
        "plan_cpu_s": 3.0,
        "bytes_per_row": 50.0,
        "ids_per_s": 5e5,
        "batch": [1],
    },
    "streaming resume": {"resume_first_batch_s": 5.0, "batch": [1]},
    "deepspeed plan": {
        **{"plan_s": 2.0, "plan_cpu_s": 1.0, "bytes_per_row": 60.0, "ids_per_s": 3e4},
        **{"batch": [1], "state": {}},
    },
    "deepspeed resume": {"resume_first_batch_s": 0.5, "batch": [2]},
    "deepspeed analyze": {"analyze_s": 40.0},
    "deepspeed version": {"deepspeed": "0"},
    "streaming version": {"mosaicml-streaming": "0.13.0"},
}
OUR_TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "plan": curriculum_side.plan,
    "resume": curriculum_side.resume,
    "composition": curriculum_side.composition,
}


def run_here(module: str, job: dict[str, Any], *, python: Path | str = "") -> dict[str, Any]:
    """In place of a process: our side itself, and what the others might say."""
    task = job["task"]
    if module == curriculum.OURS:
        return OUR_TASKS[task](**{name: value for name, value in job.items() if name != "task"})
    return dict(OTHERS[f"{'streaming' if module == curriculum.STREAMING else 'deepspeed'} {task}"])


SMALL = Sizes(
    rows=(ROWS,),
    deepspeed_rows=2000,
    shard_rows=SHARD,
    batch=BATCH,
    batches=(16, 40),
    num_batches=50,
    num_calls=3,
)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    monkeypatch.setattr(curriculum, "run_apart", run_here)
    python = tmp_path / "python"
    python.touch()

    def measured(sizes: Sizes = SMALL, python: Path = python) -> dict[str, Any]:
        return measure_curriculum(sizes, streaming_python=python, folder=tmp_path, progress=no_progress)

    return measured


def test_the_result_has_the_promised_keys(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    found = measure()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["rows"] == ROWS
    ours, small = found["sizes"][str(ROWS)]["ours"], found["sizes"]["2000"]
    assert (found["plan_s"], found["bytes_per_row"]) == (ours["plan_s"], ours["bytes_per_row"])
    assert found["resume_first_batch_s"] == ours["resume_first_batch_s"]
    assert (found["streaming_plan_s"], found["deepspeed_plan_s"]) == (4.0, 2.0)
    assert set(small) == {"ours", "deepspeed"}
    assert ours["resumes_exactly"]
    assert not small["deepspeed"]["resumes_exactly"]
    assert set(found["composition"]) == {"16", "40"}
    assert found["quota_std_ratio"] == min(each["ratio"] for each in found["composition"].values()) > 2
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "temporary folders went"

    text = table(found)
    assert "Mosaic Streaming" in text
    assert "analyzer takes 40.0 s" in text
    assert "the bars stand at 1e+08 rows" in text


def test_without_streaming_its_figures_are_absent(
    measure: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = measure(python=tmp_path / "nowhere")
    assert found["streaming_plan_s"] is None
    assert "make bench-curriculum" in table(found)
    assert "streaming" not in found["sizes"][str(ROWS)]


def test_an_interpreter_without_streaming_is_refused(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(module: str, job: dict[str, Any], **where: Any) -> dict[str, Any]:
        if module == curriculum.STREAMING:
            raise RuntimeError("PackageNotFoundError")
        return run_here(module, job)

    monkeypatch.setattr(curriculum, "run_apart", fails)
    with pytest.raises(UserError, match="has no mosaicml-streaming; make bench-curriculum"):
        measure()


def test_what_does_not_fit_is_left_out_and_said(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = Sizes(**{**SMALL.__dict__, "rows": (ROWS, 10**15)})
    found = measure(huge)
    assert set(found["sizes"]) == {"2000", str(ROWS)}
    assert "left out: 1e+15: needs 26000000 GB of scores" in table(found)
    with pytest.raises(UserError, match="--rows: 1e"):
        measure(Sizes(**{**SMALL.__dict__, "rows": (10**15,)}))

    monkeypatch.setattr(curriculum, "available_memory", lambda: ROWS * curriculum.STREAMING_BYTES - 1)
    found = measure()
    assert set(found["sizes"][str(ROWS)]) == {"ours"}
    assert "5e+03, Mosaic Streaming" in found["left_out"]
    monkeypatch.setattr(curriculum, "available_memory", lambda: ROWS * curriculum.OUR_BYTES - 1)
    with pytest.raises(UserError, match="of memory"):
        measure()


def test_bars_hold_and_miss() -> None:
    found: dict[str, Any] = {
        **{"rows": 10**8, "plan_s": 10.0, "streaming_plan_s": 20.0, "bytes_per_row": 6.0},
        **{"resume_first_batch_s": 1.0, "ids_per_s": 1e6, "quota_std_ratio": 10.0},
        "sizes": {"100000000": {"ours": {"reduced": {"per_step": 0}}}},
    }
    names = {"plan_s", "streaming_plan_s", "bytes_per_row", "resume_first_batch_s", "ids_per_s"}
    assert set(bars(found)) == names | {"quota_std_ratio", "communication"}
    assert all(holds for _, holds in bars(found).values())
    worse = {
        **{"plan_s": 10.1, "streaming_plan_s": 19.9, "bytes_per_row": 6.1, "resume_first_batch_s": 1.1},
        **{"ids_per_s": 9.9e5, "quota_std_ratio": 9.9},
        "sizes": {"100000000": {"ours": {"reduced": {"per_step": 1}}}},
    }
    for name, value in worse.items():
        missed = {each for each, (_, holds) in bars(found | {name: value}).items() if not holds}
        # a slower plan is slow against Streaming too
        expected = {"communication"} if name == "sizes" else {name}
        assert expected <= missed <= expected | {"streaming_plan_s"}


def test_streaming_sides_stay_free_of_our_dependencies() -> None:
    """Streaming's interpreter has neither torch 2.13's friends nor this package installed."""
    source = Path(streaming_side.__file__).read_text(encoding="utf-8")
    ours = [line for line in source.splitlines() if line.startswith("from distill_dist")]
    assert ours == ["from distill_dist.bench.measured_process import PeakMemory, Stopwatch, answer"]
