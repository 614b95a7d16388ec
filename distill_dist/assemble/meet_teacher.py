"""Where a student's signals come from: teachers in other processes, or in its own."""

from __future__ import annotations

from dataclasses import dataclass

from distill_dist.assemble.loading import Loaded
from distill_dist.assemble.place import Place
from distill_dist.assemble.signal_cache_of_run import signal_cache
from distill_dist.assemble.teacher_pool import LocalModel, joined
from distill_dist.comm.rendezvous import announce_over
from distill_dist.comm.rpc_world import RpcWorld
from distill_dist.config.pool import model_served_by, naming_the_model, teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.stop_signal import StopSignal
from distill_dist.teacher.cached import CachedTeacher
from distill_dist.teacher.client import RemoteTeacher
from distill_dist.teacher.identity import Identity
from distill_dist.teacher.local import LocalTeacher, Teacher

# Longest wait for a teacher to hear that its student leaves; one that does not hear has its lease.
RELEASE_S = 5.0


@dataclass(frozen=True)
class Met:
    """Who teaches the run: one teacher, of the models with these identities, and the world in which it was met."""

    teacher: Teacher | None = None  # None: the run has none
    world: RpcWorld | None = None  # None: it is in this process
    identities: tuple[Identity, ...] = ()

    def part(self, place: Place, *, early: bool) -> None:
        """Let it go; ``early``: the run stopped before its end. Those in other processes hear so from student 0."""
        heard = self.teacher is None or self.teacher.release(timeout_s=RELEASE_S, early=early)
        if self.world is None:
            return
        absent = len(self.world.hosts) < len(place.teacher_names)
        self.world.leave()
        if place.student == 0:
            # a host that was killed just now is still counted among the world's
            linger = absent or not (heard or early)
            announce_over(place.store, linger=linger, early=early, listeners=place.roles.followers)


def meet_teacher(config: RunConfig, place: Place, loaded: Loaded, stop: StopSignal) -> Met:
    """The run's teacher. Raises UserError, TeacherLost."""
    if loaded.local_teachers:
        members = [_teacher_here(config, place, model) for model in loaded.local_teachers]
        return Met(joined(config, members), None, tuple(model.identity for model in loaded.local_teachers))
    if not place.roles.teachers:
        return Met()
    world = place.join_rpc(timeout_s=config.cluster.rendezvous_s)
    names, models = place.teacher_names, len(teachers_of(config))
    remote = []
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
        remote.append(member)
    return Met(joined(config, remote), world, tuple(member.identity for member in remote))


def _teacher_here(config: RunConfig, place: Place, model: LocalModel) -> Teacher:
    if not config.teacher.cache_dir:
        return LocalTeacher(model.parts, place.device)
    return CachedTeacher(model.compute, signal_cache(config.teacher, model.compute.fingerprint))
