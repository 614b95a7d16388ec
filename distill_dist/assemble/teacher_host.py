"""The process that answers students: RPC, queue and cache, and no device, so that it survives the device's faults.

Its supervisor reads JSON lines from its standard output: `ready` once its worker has loaded the teacher, or `refused`;
`alive` ever again; `left` at the end, or `drifted`, and then no other host may take its place. It ends when its
standard input does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from distill_dist.assemble.shard_job import ShardJob
from distill_dist.assemble.signal_cache_of_run import signal_cache
from distill_dist.children import child_job, start_child
from distill_dist.comm.attempts import Attempts
from distill_dist.comm.environment import LaunchEnvironment, pin_interface
from distill_dist.comm.rendezvous import reach_store
from distill_dist.comm.rpc_world import RpcWorld
from distill_dist.config.load import load_config
from distill_dist.config.methods import is_sharded
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError
from distill_dist.run_folder import RunFolder
from distill_dist.teacher.host import TeacherHost
from distill_dist.teacher.remote_calls import open_host
from distill_dist.teacher.replica_process import ReplicaProcess
from distill_dist.teacher.sanity import Drifted
from distill_dist.teacher.worker_process import WorkerLost, WorkerProcess

_log = logging.getLogger("distill_dist.assemble.teacher_host")  # __name__ is __main__, which logs leave out
# How often it says that it is alive.
ALIVE_S = 0.5
# The answer to the last student's goodbye is still on its way when the host is done.
LAST_ANSWER_S = 0.3
# Waiting batches from which on students are asked to wait: enough to keep the device busy, bounded in memory.
QUEUE_BATCHES = 64


@dataclass(frozen=True)
class HostJob:
    """What a supervisor tells its host."""

    config: str  # path of the resolved YAML
    launch: dict[str, Any]  # LaunchEnvironment
    run: str  # scope of the rendezvous keys
    name: str
    students: list[str]
    hosts: list[str]
    threads: int
    replaces: bool  # one of this name was in the world before


def main() -> None:
    """Answer the students until they let go, or until the supervisor says so."""
    job = HostJob(**child_job())
    config, launch = load_config(Path(job.config), []), LaunchEnvironment(**job.launch)
    RunFolder(Path(config.run_dir)).log_to_file(launch.rank, "host")
    _log.info("process %d serves as %s", os.getpid(), job.name)
    try:
        worker = _worker(config, launch, job)
        about = worker.start()
    except (UserError, WorkerLost) as error:
        _say(refused=str(error))
        return
    with contextlib.closing(signal_cache(config.teacher, about["fingerprint"], seals_itself=False)) as cache:
        host = TeacherHost(
            worker,
            cache,
            students=len(job.students),
            lease_s=config.teacher.lease_s,
            batch_tokens=config.teacher.shards * config.teacher.batch_tokens,
            queue_tokens=QUEUE_BATCHES * config.teacher.shards * config.teacher.batch_tokens,
            description=about,
            rest=functools.partial(_rest, worker),
            rest_after_s=config.teacher.rest_after_s,
            check=worker.check,
            check_every_s=config.teacher.check_every_s,
            more_counters=worker.counters,
        )
        _say(ready=True)
        try:
            left = _serve(config, launch, job, host)
            if cache.has_open and not worker.check():
                cache.drop()  # or closing would seal it
        except Drifted as error:
            cache.drop()
            _say_last(drifted=str(error))
    worker.stop()
    # Threads of torch's agents may still run: the interpreter's teardown would not end well (command_line.py).
    _say_last(left={"done": left, "dismissed": host.dismissed, "answered": host.answered, **host.counters()})


def _serve(config: RunConfig, launch: LaunchEnvironment, job: HostJob, host: TeacherHost) -> bool:
    """Whether every student let go."""
    stopped = threading.Event()
    threading.Thread(target=_watch_supervisor, args=(stopped,), daemon=True).start()
    open_host(host)
    pin_interface(os.environ, launch.master_address)
    world = RpcWorld(
        reach_store(
            launch, timeout_s=config.cluster.rendezvous_s, silence_s=config.cluster.silence_s, run=job.run
        ),
        name=job.name,
        students=tuple(job.students),
        hosts=tuple(job.hosts),
        address=launch.master_address,
        timeout_s=config.cluster.rendezvous_s,
        replaces=job.replaces,
    )
    try:
        return host.serve(should_stop=stopped.is_set)
    finally:
        time.sleep(LAST_ANSWER_S)
        world.leave()


def _rest(worker: WorkerProcess) -> None:
    _log.info("every question was answered from the cache for a while: the worker ends, its device is free")
    worker.stop()


def _watch_supervisor(stopped: threading.Event) -> None:
    threading.Thread(target=_say_alive, daemon=True).start()
    sys.stdin.read()
    stopped.set()


def _say_alive() -> None:
    while True:
        time.sleep(ALIVE_S)
        _say(alive=True)


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def _say_last(**line: Any) -> NoReturn:
    _say(**line)
    os._exit(0)


def _worker(config: RunConfig, launch: LaunchEnvironment, job: HostJob) -> WorkerProcess:
    """What computes here, not started yet. Raises UserError."""
    start_s, deadline_s = config.cluster.collective_s, config.teacher.deadline_s
    if not is_sharded(config):
        return WorkerProcess(
            lambda connection: _start_worker(job, launch, connection), start_s=start_s, deadline_s=deadline_s
        )
    store = reach_store(
        launch, timeout_s=config.cluster.rendezvous_s, silence_s=config.cluster.silence_s, run=job.run
    )
    return ReplicaProcess(
        lambda connection, attempt: _start_leader(job, launch, connection, attempt),
        Attempts(store, leader=launch.rank),
        start_s=start_s,
        deadline_s=deadline_s,
    )


def _start_leader(
    job: HostJob, launch: LaunchEnvironment, connection: socket.socket, attempt: int
) -> subprocess.Popen[bytes]:
    worker = ShardJob(
        config=job.config,
        launch=job.launch,
        run=job.run,
        leader=launch.rank,
        member=0,
        attempt=attempt,
        threads=job.threads,
        connection=connection.fileno(),
    )
    return start_child(
        "distill_dist.assemble.shard_worker",
        asdict(worker),
        pass_fds=(connection.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )


def _start_worker(
    job: HostJob, launch: LaunchEnvironment, connection: socket.socket
) -> subprocess.Popen[bytes]:
    worker = {
        "config": job.config,
        "rank": launch.rank,
        "local_rank": launch.local_rank,
        "threads": job.threads,
        "connection": connection.fileno(),
    }
    return start_child(
        "distill_dist.assemble.teacher_worker",
        worker,
        pass_fds=(connection.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )


if __name__ == "__main__":
    main()
