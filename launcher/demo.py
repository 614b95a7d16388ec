"""The main job from nothing, on a generated corpus: prepare, train a teacher, distil, compare.

    python launcher/demo.py

Starts the project's own launchers one after another, exactly as a user would, on the CPU: 2 students under
DeepSpeed ZeRO-1 and, for the distillation, 1 teacher over RPC. Takes a few minutes on 2 cores. Prints one table
to stderr and one JSON line to stdout; fails when the result is not what a working system gives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from distill_dist.config.load import load_config
from distill_dist.data.shards import open_split
from distill_dist.durable import write_json
from distill_dist.evaluation.bag_of_words import bag_of_words_accuracy

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
# What a working system gives with room to spare; below it the demo fails.
TEACHER_FLOOR = 0.85
STUDENT_OVER_WORDS = 0.10


class DemoFailed(RuntimeError):
    """A step went wrong or a result is too low; the message says which."""


def run_launcher(name: str, config: str, *, processes: int = 0) -> dict[str, Any]:
    """Run one of our launchers to its end and return the JSON line it printed. Raises DemoFailed.

    ``processes`` above 0 starts it with the deepspeed launcher; progress goes straight to stderr.
    """
    command = [sys.executable]
    if processes:
        deepspeed = str(Path(sys.executable).with_name("deepspeed"))
        command = [deepspeed, "--num_gpus", str(processes), "--master_port", str(_free_port())]
    command += [f"launcher/{name}.py", "--config", str(CONFIGS / config)]
    # The launcher too has to count CPU slots, not GPUs.
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"{' '.join(command)} ended with code {done.returncode}; its messages are above")
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        raise DemoFailed(f"{' '.join(command)} printed no result")
    summary: dict[str, Any] = json.loads(found[-1])
    return summary


def demo() -> dict[str, Any]:
    """Run every step and return the summary of the distillation with the comparison added."""
    begin = time.monotonic()
    config = load_config(CONFIGS / "demo.yaml", [])
    for name in ("demo_teacher.yaml", "demo_finetune.yaml", "demo.yaml"):
        # The demo shows a run from its first step; its own earlier folders would only be resumed.
        folder = load_config(CONFIGS / name, []).run_dir
        if (ROOT / folder).exists():
            _say(f"{folder} of an earlier demo is removed: this one begins anew")
            shutil.rmtree(ROOT / folder, ignore_errors=True)
    _say("1/5 preparing the corpus")
    run_launcher("prepare", "demo.yaml")
    _say("2/5 training the teacher")
    teacher = run_launcher("train", "demo_teacher.yaml", processes=2)
    if teacher["student"]["accuracy"] < TEACHER_FLOOR:
        raise DemoFailed(
            f"the teacher reached {teacher['student']['accuracy']:.3f} on dev, below {TEACHER_FLOOR}"
        )
    _say("3/5 the student alone")
    alone = run_launcher("train", "demo_finetune.yaml", processes=2)
    _say("4/5 the student distilled from its teacher (GKD-CLS)")
    distilled = run_launcher("train", "demo.yaml", processes=3)
    _say("5/5 a bag of words on the same rows")
    words = _bag_of_words(ROOT / config.data.prepared)
    comparison = {
        "bag_of_words": words,
        "teacher": _row(teacher),
        "alone": _row(alone),
        "distilled": _row(distilled),
    }
    distilled["comparison"] = comparison
    distilled["seconds"] = round(time.monotonic() - begin, 1)
    write_json(ROOT / config.run_dir / "summary.json", distilled)
    _say(_table(comparison))
    _say(
        f"student: {config.run_dir}/model   summary: {config.run_dir}/summary.json   {distilled['seconds']:.0f} s\n"
        f"next: .venv/bin/python launcher/evaluate.py {config.run_dir} --saliency; … export.py {config.run_dir} --out "
        "exports/demo"
    )
    if distilled["student"]["accuracy"] < words + STUDENT_OVER_WORDS:
        raise DemoFailed(
            f"the distilled student reached {distilled['student']['accuracy']:.3f} on dev; a bag of words reaches "
            f"{words:.3f}, and it should be {STUDENT_OVER_WORDS} above that"
        )
    return distilled


def _bag_of_words(prepared: Path) -> float:
    train, dev = open_split(prepared, "train"), open_split(prepared, "dev")
    return bag_of_words_accuracy(train.read(np.arange(train.num_rows)), dev.read(np.arange(dev.num_rows)))


def _row(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "parameters": summary["student"]["parameters"],
        "accuracy": summary["student"]["accuracy"],
        "ll": summary["loyalty"].get("ll"),
        "pl": summary["loyalty"].get("pl"),
        "samples_per_s": summary["throughput"]["samples_per_s"],
    }


def _table(comparison: dict[str, Any]) -> str:
    titles = {
        "teacher": "teacher",
        "alone": "student, fine-tuned alone",
        "distilled": "student, distilled (GKD-CLS)",
    }
    lines = [f"\n{'':30}{'parameters':>12}{'accuracy':>10}{'LL':>8}{'PL':>8}{'samples/s':>11}"]
    for key, title in titles.items():
        row = comparison[key]
        loyal = "".join(
            f"{row[name]:>8.3f}" if row[name] is not None else f"{'':>8}" for name in ("ll", "pl")
        )
        lines.append(
            f"{title:30}{row['parameters']:>12,}{row['accuracy']:>10.3f}{loyal}{row['samples_per_s']:>11.0f}"
        )
    lines.append(f"{'bag of words':30}{'':>12}{comparison['bag_of_words']:>10.3f}\n")
    return "\n".join(lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Exit code: 0 when everything worked and the numbers are as they should be, 1 otherwise."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        print(json.dumps(demo()), flush=True)
    except DemoFailed as error:
        _say(f"demo failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
