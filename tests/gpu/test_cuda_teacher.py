"""What a teacher's worker does on a CUDA device: how far rows feel each other, and what it leaves behind."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import environment, make_world
from tiny_encoders import ragged_batch, tiny_encoder

from distill_dist.assemble.teacher_worker import probe_rows
from distill_dist.children import start_child
from distill_dist.config.load import dump_config, load_config
from distill_dist.models.encoder import encoder_parts
from distill_dist.records import SignalSpec
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.sanity import TOLERANCE
from distill_dist.teacher.wire import pack_request
from distill_dist.teacher.worker_process import WorkerProcess

DEVICE = torch.device("cuda", 0)
SLACK = 64 << 20  # of what a driver keeps, or another process takes
LENGTHS = (9, 3, 31, 12, 5, 17, 2, 40, 8, 24, 6, 15, 1, 33, 11, 7)


@pytest.mark.gpu
def test_how_far_rows_feel_each_other_is_reported(record_property: Any) -> None:
    """Rounding: far below what would be taken for another teacher."""
    model = tiny_encoder(layers=6, hidden=64, dtype=torch.float32).requires_grad_(False).to(DEVICE)
    compute = RowComputer(encoder_parts(model), DEVICE, types=WireTypes(), fingerprint="f" * 64)
    rows = pack_request(ragged_batch(LENGTHS), labels=False)
    found = compute.introduce(rows)["row_difference"]
    record_property("row_difference", found)
    assert 0 <= found < TOLERANCE / 10


@pytest.mark.gpu
def test_a_worker_that_is_stopped_frees_its_memory(tmp_path: Path) -> None:
    """As a host stops it that has every sample in its cache; it answers before, and again after."""
    world = make_world(tmp_path)
    config = load_config(None, [*world.student(tmp_path / "run"), f"cluster.device={DEVICE.type}"])
    Path(config.run_dir).mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")

    def start(connection: socket.socket) -> subprocess.Popen[bytes]:
        job = {
            "config": str(path),
            "rank": 0,
            "local_rank": 0,
            "threads": 1,
            "connection": connection.fileno(),
        }
        return start_child(
            "distill_dist.assemble.teacher_worker", job, pass_fds=(connection.fileno(),), env=environment()
        )

    torch.zeros(1, device=DEVICE)  # this process's own context
    before = free_bytes()
    worker = WorkerProcess(start, start_s=120, deadline_s=60)
    try:
        description = worker.start()
        assert description["row_difference"] < TOLERANCE / 10
        rows = worker(probe_rows(config), SignalSpec())
        assert free_bytes() < before - SLACK, "its context alone takes hundreds of MiB"
        worker.stop()
        assert abs(free_bytes() - before) < SLACK
        again = worker(probe_rows(config), SignalSpec())
        assert len(again) == len(rows) > 0
    finally:
        worker.stop()
    assert abs(free_bytes() - before) < SLACK


def free_bytes() -> int:
    """Of the device, whoever holds the rest."""
    return torch.cuda.mem_get_info(DEVICE)[0]
