"""Where a student's signals come from: teachers in other processes, or in its own."""

from __future__ import annotations

from distill_dist.assemble.loading import Loaded
from distill_dist.assemble.place import Place
from distill_dist.assemble.signal_cache_of_run import signal_cache
from distill_dist.assemble.teacher_pool import joined
from distill_dist.assemble.teacher_worker import computer_of
from distill_dist.comm.rpc_world import RpcWorld
from distill_dist.config.pool import model_served_by, naming_the_model, teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.models.encoder import EncoderParts
from distill_dist.stop_signal import StopSignal
from distill_dist.teacher.cached import CachedTeacher
from distill_dist.teacher.client import RemoteTeacher
from distill_dist.teacher.local import LocalTeacher, Teacher


def meet_teacher(
    config: RunConfig, place: Place, loaded: Loaded, stop: StopSignal
) -> tuple[Teacher | None, RpcWorld | None]:
    """The run's teacher, and the world in which it is met where that is another process; None without one.

    Raises UserError, TeacherLost.
    """
    if loaded.local_teachers:
        return joined(
            config, [_teacher_here(config, place, loaded, parts) for parts in loaded.local_teachers]
        ), None
    if not place.roles.teachers:
        return None, None
    world = place.join_rpc(timeout_s=config.cluster.rendezvous_s)
    names, models = place.teacher_names, len(teachers_of(config))
    members = []
    for model in range(models):
        with naming_the_model(config, model):
            member = RemoteTeacher(
                world,
                names=[name for n, name in enumerate(names) if model_served_by(n, models) == model],
                student=place.student,
                deadline_s=config.teacher.deadline_s,
                patience_s=config.teacher.patience_s,
                lease_s=config.teacher.lease_s,
                should_stop=stop.asked,
            )
        members.append(member)
    return joined(config, members), world


def _teacher_here(config: RunConfig, place: Place, loaded: Loaded, parts: EncoderParts) -> Teacher:
    if not config.teacher.cache_dir:
        return LocalTeacher(parts, place.device)
    compute = computer_of(config, loaded.manifest, parts, place.device)
    return CachedTeacher(compute, signal_cache(config.teacher, compute.fingerprint))
