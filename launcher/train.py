"""Train one model: fine-tune it, or distil it from a teacher.

deepspeed --num_gpus 3 launcher/train.py --config configs/gkd_sst2_minilm.yaml [key=value …]
python launcher/train.py --config configs/gkd_sst2_minilm.yaml cluster.teachers=0
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from distill_dist.command_line import launch, leave_at_once
from distill_dist.config.schema import RunConfig
from distill_dist.console import outlive_readers
from distill_dist.stop_signal import StopSignal


def main(config: RunConfig, args: argparse.Namespace) -> dict[str, Any] | None:
    """The run's summary on student 0, None on the other ranks."""
    if config.cluster.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
    outlive_readers()
    stop = StopSignal()  # before the imports: a launcher may change its mind while they run
    # Only now: a wrong key answers at once, torch and DeepSpeed take seconds. And only the own role: a teacher's
    # supervisor needs neither DeepSpeed nor transformers, which take 200 MB more.
    from distill_dist.assemble.run import enter

    place, folder = enter(config, stop)
    if place.is_teacher:
        if place.is_leader:
            from distill_dist.assemble.teacher_rank import serve_teacher as serve
        else:
            from distill_dist.assemble.shard_follower import follow_leader as serve
        serve(config, place, stop, folder)
        return None
    from distill_dist.assemble.student_rank import train_student

    return train_student(config, place, stop, folder)


if __name__ == "__main__":
    try:
        launch(main, description=__doc__ or "")
    except SystemExit as ended:
        leave_at_once(ended)
