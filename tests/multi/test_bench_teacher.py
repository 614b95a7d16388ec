"""The benchmark of the teacher service with its real processes: hosts, their stand-ins for workers, and clients."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import launch

from multi.harness import run_ranks


def test_it_measures_a_service_of_real_processes_and_loses_nothing(tmp_path: Path) -> None:
    (result,) = run_ranks("multi.bench_teacher_worker:measure", size=1, folder=tmp_path, seconds=2.0)
    found, student, exchange = (result["found"], *(result["found"][key] for key in ("student", "exchange")))
    assert {"hidden_teacher_share", "warm_cache_share", "scaling_2_hosts", "wire", "p99_ms"} <= found.keys()
    for way in ("hidden_teacher", "warm_cache"):
        assert found[f"{way}_share"] == student[way]["share"] > 0
        assert student[way]["waited_ms"] > 0
    # what fills the cache, then 4 variants of 6 batches a round; more where a batch is asked for twice meanwhile, fewer
    # where short rows repeat
    (counters,) = student["counters"].values()
    asked = found["prefetch"] + 1 + 2 * 6 + found["prefetch"]
    assert 0.8 * 16 * 6 * (1 + 2 * 4) < counters["computed_rows"] <= 16 * asked * (1 + 2)
    assert counters["memory_hits"] >= 16 * 2 * asked
    assert found["scaling_2_hosts"] > 0
    assert exchange["requests"] >= 2
    assert found["lost_requests"] == 0
    assert exchange["errors"] == []
    assert 0 < exchange["p50_ms"] <= found["p99_ms"] <= exchange["max_ms"]
    assert 0 < exchange["cached_share"] < 1
    assert set(found["wire"]) == {"fp32", "fp16", "bf16", "int8"}
    assert "0 lost" in result["table"]
    assert "starting 2 clients" in result["said"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clients", "0"], "--clients 0: must be at least 1"),
        (["--seconds", "nan"], "--seconds nan: must be above 0"),
        (["seed=1"], "teacher reads no configuration"),
    ],
)
def test_wrong_options_are_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    started = launch("bench.py", ["teacher", *arguments], logs=tmp_path)
    assert started.processes[0].returncode == 2
    assert started.stderr().startswith(f"error: {message}")
    assert started.stderr().count("\n") == 1
    assert started.stdout() == ""
