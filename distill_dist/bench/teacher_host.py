"""A host process of the teacher benchmark: the product's host with its queue and cache; only the model is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from distill_dist.assemble.signal_cache_of_run import signal_cache
from distill_dist.assemble.teacher_host import LAST_ANSWER_S, QUEUE_BATCHES
from distill_dist.bench.teacher_world import ADDRESS, START_S, Membership
from distill_dist.children import child_job, start_child
from distill_dist.comm.environment import pin_interface
from distill_dist.config.schema_teacher import TeacherConfig
from distill_dist.teacher.host import TeacherHost
from distill_dist.teacher.remote_calls import open_host
from distill_dist.teacher.worker_process import WorkerProcess


def main() -> None:
    """Answer until every student has let go."""
    member, config = Membership(**child_job()), TeacherConfig()

    def start_worker(connection: socket.socket) -> subprocess.Popen[bytes]:
        job = {"connection": connection.fileno(), "folder": member.folder}
        fds = (connection.fileno(),)
        return start_child("distill_dist.bench.teacher_worker", job, pass_fds=fds, stdout=sys.stderr)

    worker = WorkerProcess(start_worker, start_s=START_S, deadline_s=config.deadline_s)
    about = worker.start()
    host = TeacherHost(
        worker,
        signal_cache(config, about["fingerprint"]),
        students=len(member.students),
        lease_s=config.lease_s,
        batch_tokens=config.batch_tokens,
        queue_tokens=QUEUE_BATCHES * config.batch_tokens,
        description=about,
        rest=worker.stop,
        rest_after_s=config.rest_after_s,
        check=worker.check,
        check_every_s=config.check_every_s,
        more_counters=worker.counters,
    )
    open_host(host)
    pin_interface(os.environ, ADDRESS)
    store = member.reach()
    store.set(f"loaded/{member.name}", "")
    world = member.join(store)
    host.serve(should_stop=lambda: False)
    time.sleep(LAST_ANSWER_S)
    world.leave()
    worker.stop()
    Path(member.result).write_text("{}", encoding="utf-8")
    # Threads of torch's agents may still run: the interpreter's teardown would not end well (command_line.py).
    os._exit(0)


if __name__ == "__main__":
    main()
