"""A launched process that teaches."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from distill_dist.assemble.models import build_teacher
from distill_dist.assemble.place import Place
from distill_dist.comm.environment import pin_interface
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import load_manifest
from distill_dist.errors import Interrupted
from distill_dist.records import SignalSpec
from distill_dist.stop_signal import StopSignal
from distill_dist.teacher.compute import compute_signal, describe_model
from distill_dist.teacher.host import TeacherHost, open_host
from distill_dist.teacher.wire import Request, WireSignal, pack_signal

# Launchers signal every rank at once; the students still need a while to save, and ask no more after it.
STOP_GRACE_S = 20.0
# The answer to the last student's goodbye is still on its way when the host is done.
LAST_ANSWER_S = 0.3
_log = logging.getLogger(__name__)


def serve_teacher(config: RunConfig, place: Place, stop: StopSignal) -> None:
    """Answer the students until they let go. Raises Interrupted when it leaves before that."""
    with place.loading(timeout_s=config.cluster.collective_s):
        parts = build_teacher(config, load_manifest(Path(config.data.prepared)), place.device)

    def compute(request: Request, spec: SignalSpec) -> WireSignal:
        inputs = request.unpack(place.device)
        labels_B = None if request.labels_B is None else request.labels_B.long().to(place.device)
        return pack_signal(compute_signal(parts, *inputs, spec, labels_B=labels_B), inputs[1])

    host = TeacherHost(
        compute,
        students=len(place.roles.students),
        lease_s=config.teacher.lease_s,
        description=describe_model(parts),
    )
    open_host(host)
    pin_interface(os.environ, place.launch.master_address)
    world = place.join_rpc(timeout_s=config.cluster.rendezvous_s)
    began = time.monotonic()

    def should_stop() -> bool:
        # A signal that came while models were loading does not shorten what the students need.
        return stop.asked_for(STOP_GRACE_S) and time.monotonic() - began >= STOP_GRACE_S

    try:
        if not host.serve(should_stop=should_stop):
            when = "when its students stopped early" if host.dismissed else "before its students did"
            raise Interrupted(f"teacher {place.rank} left after {host.answered} answers, {when}")
        _log.info("taught %d micro-batches", host.answered)
    finally:
        time.sleep(LAST_ANSWER_S)
        world.leave()
