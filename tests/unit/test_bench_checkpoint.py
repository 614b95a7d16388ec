"""The benchmark of checkpoints on a student of milliseconds: its figures mean what they say."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from distill_dist import checkpoint
from distill_dist.bench.checkpoint import measure_checkpoint, table
from distill_dist.bench.distillation_cases import Shape
from distill_dist.durable import read_anew

TINY = Shape(
    4, 2, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=1100, batch=9, rounds=2
)
SLOW_S = 0.2  # of each of a checkpoint's two files


def test_the_background_takes_the_writing_out_of_the_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path) -> None:
        time.sleep(SLOW_S)
        read_anew(path)

    monkeypatch.setattr(checkpoint, "read_anew", slow)
    said: list[str] = []
    found = measure_checkpoint(TINY, rounds=2, every=3, folder=tmp_path, progress=said.append)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert said[:3] == ["none 1/2", "foreground 1/2", "background 1/2"]
    assert said[3:] == ["background 2/2", "foreground 2/2", "none 2/2"]
    front, back = found["ways"]["foreground"], found["ways"]["background"]
    # a lower bound each: the writing is in the one's pause, and in what both cost
    assert front["pause_ms"] >= 2000 * SLOW_S
    assert front["write_ms"] >= 2000 * SLOW_S <= back["write_ms"]
    assert back["pause_ms"] < front["pause_ms"]
    assert found["pause_ratio"] == front["pause_ms"] / back["pause_ms"]
    assert found["bytes"] > 3 * 4 * TINY.vocab_size * TINY.hidden_size
    assert list(tmp_path.iterdir()) == []
    lines = table(found).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["foreground", "background"]
