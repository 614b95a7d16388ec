"""A worker whose model is a rule: a row's answer is its token ids; some ids harm the process. No pytest in here."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import asdict
from pathlib import Path

from distill_dist.children import child_job
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import NotSane
from distill_dist.teacher.frames import send
from distill_dist.teacher.sanity import Probe
from distill_dist.teacher.wire import Request
from distill_dist.teacher.worker import serve_requests

DIES, STOPS, NO_MEMORY, WRONG, NO_DEVICE, ALWAYS_DIES, INSANE, LEAKS, NO_KERNEL = range(101, 110)


def main() -> None:
    """Serve; what harms the process is done once, but for ALWAYS_DIES."""
    job = child_job()
    connection = socket.socket(fileno=job["connection"])
    if job["refuses"]:
        send(connection, {"refused": "teacher.path does not exist"}, timeout_s=10)
        return

    def compute(request: Request, spec: SignalSpec) -> list[bytes]:
        tokens = set(request.input_ids_BL.flatten().tolist())
        done = Path(job["folder"], "-".join(str(token) for token in sorted(tokens)))
        if tokens & {ALWAYS_DIES}:
            os.kill(os.getpid(), signal.SIGKILL)
        first, _ = not done.exists(), done.touch()
        if first and tokens & {DIES}:
            os.kill(os.getpid(), signal.SIGKILL)
        if first and tokens & {STOPS}:
            os.kill(os.getpid(), signal.SIGSTOP)
        if tokens & {NO_MEMORY}:
            raise MemoryError("too many rows")
        if tokens & {INSANE}:
            raise NotSane("its logits are not finite")
        if tokens & {WRONG}:
            raise ValueError("this row is wrong")
        if first and tokens & {NO_DEVICE}:
            raise RuntimeError("CUDA error: device-side assert triggered")
        if first and tokens & {LEAKS}:
            raise MemoryError("nothing is left")
        if first and tokens & {NO_KERNEL}:
            raise RuntimeError("could not create a primitive")
        labels = [] if request.labels_B is None else request.labels_B.tolist()
        return [
            bytes([*row[:length], len(spec.layers), *labels[place : place + 1]])
            for place, (row, length) in enumerate(
                zip(request.input_ids_BL.tolist(), request.lengths_B.tolist(), strict=True)
            )
        ]

    def probe() -> Probe:
        """It says something else once the file `drifted` is there."""
        drifted = Path(job["folder"], "drifted").exists()
        return Probe(logits=[[0.5, -0.5 - drifted]], saliency=[[1.0, 2.0]])

    about = {"parameters": 7, "process": os.getpid(), "probe": asdict(probe())}
    serve_requests(connection, compute, about, probe)


if __name__ == "__main__":
    main()
