"""Stands for a launcher and its rank: a real process in a real run folder, which does what a file says.

`python fake_trial.py launcher/train.py --config FILE`. FAKE_TRIALS names a folder; N.json in it lists what trial N does
at each start (the last one from then on): done, wait, interrupted, failed, dies, early.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from distill_dist.durable import write_json
from distill_dist.errors import Interrupted
from distill_dist.run_folder import RunFolder
from distill_dist.stop_signal import StopSignal

WAIT_LIMIT_S = 60.0
ROWS = 520


def main() -> int:
    config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text(encoding="utf-8"))
    folder = RunFolder(Path(config["run_dir"]))
    number, plans = int(folder.path.name.split("-")[0]), Path(os.environ["FAKE_TRIALS"])
    with (plans / f"{number}.starts").open("a") as file:
        file.write(f"{time.time()} {os.getpid()}\n")
    starts = len((plans / f"{number}.starts").read_text().splitlines())
    path = plans / f"{number}.json"
    plan = json.loads(path.read_text()) if path.exists() else ["done"]
    what = plan[min(starts, len(plan)) - 1]
    if what == "early":
        print("error: there is no GPU", file=sys.stderr)
        return 2
    stop = StopSignal()
    folder.claim()
    try:
        with folder.verdict(writes=True):
            act(what, config, folder, stop)
    except Interrupted:
        return 75
    return 0


def act(what: str, config: dict[str, Any], folder: RunFolder, stop: StopSignal) -> None:
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "failed":
        raise ValueError("the loss is not finite")
    if what == "interrupted":
        raise Interrupted("the teachers are gone")
    deadline = time.monotonic() + WAIT_LIMIT_S
    while what == "wait" and time.monotonic() < deadline:
        if stop.asked():
            raise Interrupted("asked to stop at step 3")
        if (folder.path / "go").exists():
            break
        time.sleep(0.01)
    cache = Path(config["teacher"]["cache_dir"])
    computed = 0 if cache.exists() else ROWS
    write_json(folder.summary, summary(config, computed))
    cache.mkdir(exist_ok=True)


def summary(config: dict[str, Any], computed: int) -> dict[str, Any]:
    dev = {"accuracy": config["weight"]["kd"] + config["seed"] / 100, "loss": 0.5, "ll": 0.9, "pl": 0.8}
    return {
        "splits": {"dev": dev, "dev_mismatched": {**dev, "accuracy": 1 - dev["accuracy"]}},
        "student": dev,
        "loyalty": {"ll": 0.9, "pl": 0.8, "sl_spearman_norm": None},
        "throughput": {"samples_per_s": 100.0},
        "signals": {"rows": ROWS, "computed": computed},
    }


if __name__ == "__main__":
    sys.exit(main())
