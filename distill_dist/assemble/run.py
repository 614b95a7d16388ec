"""One launched process of a run, whichever its role."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.place import Place
from distill_dist.comm.environment import LaunchEnvironment, read_environment, read_job_end
from distill_dist.comm.members import Member, as_all_see_it, members
from distill_dist.comm.rendezvous import Store, connect_store, report_failure
from distill_dist.comm.roles import Roles, assign_roles
from distill_dist.config.load import dump_config
from distill_dist.config.schema import RunConfig
from distill_dist.errors import Interrupted, UserError
from distill_dist.run_folder import RunFolder
from distill_dist.stop_signal import StopSignal

_log = logging.getLogger(__name__)
# How long a network's file system may take to show other hosts a new file; they usually see it at once.
SHARED_S = 20.0


def enter(config: RunConfig, stop: StopSignal) -> tuple[Place, RunFolder]:
    """This process's place among those of the run, once all have met, and the run's folder. Raises UserError."""
    launch = read_environment(os.environ)
    if launch.node is None or launch.local_size == launch.world_size:
        _roles(config, launch)  # nothing is to be learnt of the others: what is wrong is said at once
    folder = RunFolder(Path(config.run_dir))
    folder.log_to_file(launch.rank)
    mark = ""
    try:
        if launch.rank == 0:
            mark = folder.claim()  # no other rank looks into the folder before it has met rank 0
    except UserError as error:
        _log.warning("refused: %s", error)
        with contextlib.suppress(UserError, Interrupted):  # who cannot be met hides no reason
            report_failure(_meet(config, launch, stop, mark), launch, error)
        raise
    with _refusing(folder, launch):
        store = _meet(config, launch, stop, mark)
    known = members(store, launch.world_size)
    launch = as_all_see_it(known, launch)
    try:
        with _refusing(folder, launch):
            roles = _roles(config, launch)
            _heed_limit(stop, read_job_end(os.environ), config.cluster.end_margin_s)
            # a teacher's worker takes its device itself: a process that holds one cannot be replaced
            is_teacher = roles.is_teacher(launch.rank)
            device = (
                torch.device("cpu") if is_teacher else pick_device(config.cluster.device, launch.local_rank)
            )
            if not is_teacher:
                _check_shared(folder, known[0])
    except UserError as error:
        _log.warning("refused: %s", error)
        report_failure(store, launch, error)
        raise
    place = Place(launch=launch, roles=roles, store=store, device=device, run=_scope(config))
    if place.device.type == "cpu":
        torch.set_num_threads(_threads(config.cluster.threads, launch.local_size))
    return place, folder


def _roles(config: RunConfig, launch: LaunchEnvironment) -> Roles:
    return assign_roles(
        world_size=launch.world_size,
        local_size=launch.local_size,
        teachers=config.cluster.teachers,
        placement=config.cluster.placement,
        shards=config.teacher.shards,
        node_sizes=launch.node_sizes,
    )


@contextlib.contextmanager
def _refusing(folder: RunFolder, launch: LaunchEnvironment) -> Iterator[None]:
    """What ends the block is the run's verdict, says rank 0, which has claimed the folder."""
    try:
        yield
    except (UserError, Interrupted) as error:
        if launch.rank == 0:
            folder.refuse(error)
        raise


def _heed_limit(stop: StopSignal, ends_at: int | None, margin_s: float) -> None:
    """Let the run stop ``margin_s`` before the job ends. Raises UserError where it would have to at once."""
    if ends_at is None or margin_s == 0:
        return
    left_s = ends_at - time.time()
    if left_s <= margin_s:
        raise UserError(
            f"the job ends in {left_s:.0f} s (SLURM_JOB_END_TIME={ends_at}), and the last cluster.end_margin_s="
            f"{margin_s:g} are for its last checkpoint: ask for more time (--time), or lower end_margin_s"
        )
    stop.listen(lambda: "before the job's time limit" if time.time() >= ends_at - margin_s else None)


def _check_shared(folder: RunFolder, first: Member) -> None:
    """Raises UserError where a student would go on from other checkpoints and scores than rank 0."""
    if first.mark and not folder.has_mark(first.mark, timeout_s=SHARED_S):
        raise UserError(
            f"run_dir={folder.path} on {socket.gethostname()} is not the folder that rank 0 has on {first.host}: "
            "students share one (NFS, say), since checkpoints and scores lie in it"
        )


def _meet(config: RunConfig, launch: LaunchEnvironment, stop: StopSignal, mark: str) -> Store:
    return connect_store(
        launch,
        timeout_s=config.cluster.rendezvous_s,
        silence_s=config.cluster.silence_s,
        run=_scope(config),
        settings=_digest(dump_config(_without_places(config))),
        mark=mark,
        stopped=stop.why,
    )


def _scope(config: RunConfig) -> str:
    return _digest(os.path.realpath(config.run_dir))


def _without_places(config: RunConfig) -> RunConfig:
    """What must be the same on all ranks: a node may keep its copies elsewhere."""
    return replace(
        config,
        run_dir="",
        deepspeed_config="",
        data=replace(config.data, path="", prepared="", tokenizer="", teacher_tokenizer=""),
        curriculum=replace(config.curriculum, file=""),
        student=replace(config.student, path=""),
        teacher=replace(config.teacher, path=""),
        teachers=tuple(replace(teacher, path="") for teacher in config.teachers),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _threads(wanted: int, local_size: int) -> int:
    """Arithmetic threads of this process; more than its share of the cores makes all processes crawl."""
    if wanted:
        return wanted
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    return max(1, (os.cpu_count() or 1) // local_size)
