"""The process that owns one member's share of a sharded teacher.

The leader's is started by its host and answers that; a follower's by its supervisor, and it hears the leader alone.
"""

from __future__ import annotations

import functools
import logging
import os
import select
import socket
from pathlib import Path
from typing import NoReturn

import torch

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.models import build_teacher
from distill_dist.assemble.shard_job import ShardJob
from distill_dist.assemble.teacher_worker import computer_of, probe_rows
from distill_dist.children import child_job
from distill_dist.comm.attempts import AttemptBroken, Attempts, Broken, StoreGone
from distill_dist.comm.environment import LaunchEnvironment, pin_interface
from distill_dist.comm.rendezvous import reach_store
from distill_dist.comm.shard_group import ShardGroup
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import load_manifest
from distill_dist.errors import UserError
from distill_dist.models.build import quiet_loading
from distill_dist.run_folder import RunFolder
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.shards import ShardedComputer
from distill_dist.teacher.worker import serve_requests

# by its name: as the program that runs it is __main__, whose messages are nobody's in the rank's log
_log = logging.getLogger("distill_dist.assemble.shard_worker")
# How often an idle leader looks whether its followers are there; far below any deadline.
BEAT_S = 0.5


def main() -> None:
    """Load this member's share, and compute with the others until the leader's host lets go."""
    job = ShardJob(**child_job())
    config, launch = load_config(Path(job.config), []), LaunchEnvironment(**job.launch)
    RunFolder(Path(config.run_dir)).log_to_file(launch.rank, "worker")
    quiet_loading()
    attempts = Attempts(
        reach_store(
            launch, timeout_s=config.cluster.rendezvous_s, silence_s=config.cluster.silence_s, run=job.run
        ),
        leader=job.leader,
    )
    give_up = functools.partial(_give_up, attempts, job.attempt)
    try:
        device = pick_device(config.cluster.device, launch.local_rank)
        if device.type == "cpu":
            torch.set_num_threads(job.threads)
        pin_interface(os.environ, launch.master_address)
        rows = probe_rows(config)
        compute, group = build_share(config, device, attempts, member=job.member, attempt=job.attempt)
    except UserError as error:
        give_up(Broken("refused", f"rank {launch.rank}: {error}"))
    except AttemptBroken as error:
        _log.warning("attempt %d of replica %d ended before it began: %s", job.attempt, job.leader, error)
        os._exit(1)
    sharded = ShardedComputer(compute, group, give_up=give_up)
    if job.connection is None:
        sharded.follow()
    else:
        connection = socket.socket(fileno=job.connection)
        until_asked = functools.partial(_beat_until_asked, connection, sharded)
        about = sharded.introduce(rows)
        probe = functools.partial(sharded.probe, rows)
        serve_requests(connection, sharded, about, probe, until_asked=until_asked)
        sharded.end()
    # The groups' threads still run: the interpreter's teardown would not end well (command_line.py).
    os._exit(0)


def build_share(
    config: RunConfig, device: torch.device, attempts: Attempts, *, member: int, attempt: int
) -> tuple[RowComputer, ShardGroup]:
    """The run's teacher, cut to one member's share on ``device``, once all members are there.

    Raises UserError, AttemptBroken.
    """
    manifest, teacher = load_manifest(Path(config.data.prepared)), config.teacher
    # in host memory: the whole may be larger than the device
    parts = build_teacher(config, manifest, torch.device("cpu"))
    compute = computer_of(config, manifest, parts, device)  # its fingerprint is the whole model's
    attempts.meet(
        attempt,
        member=member,
        size=teacher.shards,
        teacher=compute.fingerprint,
        timeout_s=config.cluster.collective_s,
    )
    group = ShardGroup(
        attempts.group_store(attempt),
        member=member,
        size=teacher.shards,
        device=device,
        timeout_s=teacher.deadline_s,
    )
    group.shard(parts.model, parts.layers, offload=teacher.offload)
    _log.info("attempt %d: member %d of %d of the teacher is loaded", attempt, member, teacher.shards)
    return compute, group


def _beat_until_asked(connection: socket.socket, sharded: ShardedComputer) -> None:
    while not select.select([connection], [], [], BEAT_S)[0]:
        sharded.beat()


def _give_up(attempts: Attempts, attempt: int, broken: Broken) -> NoReturn:
    """End for all members; at once: a member that waits for another one inside torch cannot be asked to."""
    _log.warning("attempt %d ends (%s): %s", attempt, broken.kind, broken.reason)
    try:
        attempts.break_(attempt, broken)
    except StoreGone as error:
        _log.debug("nobody was told: %s", error)
    logging.shutdown()
    os._exit(1)


if __name__ == "__main__":
    main()
