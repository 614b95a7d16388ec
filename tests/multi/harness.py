"""Run a module-level function on n ranks, each a real process, with a hard limit that names who hung."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tiny import environment, free_port, start

CHILD = Path(__file__).with_name("child.py")
LIMIT_S = 150.0


def run_ranks(
    function: str,
    *,
    size: int,
    folder: Path,
    limit_s: float = LIMIT_S,
    may_die: Collection[int] = (),
    absent: Collection[int] = (),
    **arguments: Any,
) -> list[Any]:
    """What ``function`` ("module:name") returned on every rank of ``size``; it finds RANK and so on in os.environ.

    ``arguments`` and results travel as JSON; tensors in files below ``folder``. Ranks in ``may_die`` give None
    when they fail, ranks in ``absent`` are not started. Raises AssertionError with tracebacks when another rank
    fails, and names every rank that is not done after ``limit_s``, with the place where it hangs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arguments.json").write_text(json.dumps(arguments), encoding="utf-8")
    port = free_port()
    present = [rank for rank in range(size) if rank not in absent]
    environments = [
        environment(
            RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        for rank in present
    ]
    results = [folder / f"result-{rank}.json" for rank in range(size)]
    commands = [
        [sys.executable, str(CHILD), function, str(folder / "arguments.json"), str(results[rank]),
         str(max(1.0, limit_s - 5))]
        for rank in present
    ]  # fmt: skip
    started = start(commands, environments, logs=folder / "logs", port=port)
    deadline = time.monotonic() + limit_s
    try:
        while any(process.poll() is None for process in started.processes) and time.monotonic() < deadline:
            failed = [
                rank
                for rank, process in zip(present, started.processes, strict=True)
                if process.poll() not in (None, 0) and rank not in may_die
            ]
            if failed:
                # the others wait for them: give them a moment to say so, no more
                deadline = min(deadline, time.monotonic() + 5)
            time.sleep(0.02)
        hung = [
            rank
            for rank, process in zip(present, started.processes, strict=True)
            if process.poll() is None and rank not in may_die
        ]
    finally:
        started.kill()
    codes = dict(zip(present, (process.returncode for process in started.processes), strict=True))
    bad = {rank: code for rank, code in codes.items() if code != 0 and rank not in may_die}
    assert not bad, f"{function}: exit codes {bad}, hung: {hung}\n{started.text()}"
    return [json.loads(path.read_text()) if path.exists() else None for path in results]


def rank_and_size() -> tuple[int, int]:
    """In a child: this rank and the number of ranks."""
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
