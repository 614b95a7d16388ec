"""A run's teachers from outside: their processes, their logs and their cache, to harm and to watch."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from tiny import Started, trace, wait_until

# A worker starts in seconds, most of them imports; a host waits for its worker, and a world for its hosts.
HEALS_WITHIN_S = 240.0
# A look at processes or logs takes milliseconds of a core that those who heal need.
LOOK_S = 0.1
# How many steps may be made, one after another, while teachers meet, and how long students then stand still.
MOST_STEPS, HELD_S = 8, 2.0


def child_of(process: psutil.Process | None) -> psutil.Process | None:
    """The one process that ``process`` started; None while there is none."""
    with suppress(psutil.NoSuchProcess):
        return None if process is None else next(iter(process.children()), None)
    return None


@dataclass(frozen=True)
class Teachers:
    """Those of one run, by their number among teachers; every wait has a deadline."""

    ranks: Started
    run_dir: Path
    students: int
    number: int

    # ------------------------------------------------------------------ processes

    def host(self, teacher: int) -> psutil.Process | None:
        """The process that answers for that teacher."""
        return child_of(psutil.Process(self.ranks.processes[self.students + teacher].pid))

    def worker(self, teacher: int) -> psutil.Process | None:
        """The process that holds that teacher's model."""
        return child_of(self.host(teacher))

    def hit(self, processes: Sequence[psutil.Process | None], number: signal.Signals) -> None:
        """Signal all of them, one right after the other."""
        assert None not in processes, "it is not there to be hit"
        for process in processes:
            assert process is not None
            process.send_signal(number)

    def kill_hosts(self, teachers: Sequence[int]) -> None:
        """SIGKILL at once; return when their supervisors have noticed."""
        before = [self.said(r"its host ended", teacher) for teacher in teachers]
        self.hit([self.host(teacher) for teacher in teachers], signal.SIGKILL)
        for teacher, count in zip(teachers, before, strict=True):
            self.await_said(r"its host ended", teacher, more_than=count)

    # ------------------------------------------------------------------ logs

    def log(self, teacher: int, part: str = "") -> str:
        """What the supervisor, the `host` or the `worker` of that teacher has logged so far."""
        name = f"rank-{self.students + teacher:05d}{part and '-'}{part}.log"
        path = self.run_dir / "logs" / name
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def said(self, pattern: str, teacher: int, part: str = "") -> int:
        """How often."""
        return len(re.findall(pattern, self.log(teacher, part)))

    def await_said(self, pattern: str, teacher: int, part: str = "", *, more_than: int) -> None:
        """Return when it was said more often than that."""
        wait_until(
            lambda: self.said(pattern, teacher, part) > more_than,
            what=f"teacher {teacher}'s {part or 'supervisor'} to say {pattern!r} at step {self.steps()}",
            timeout_s=HEALS_WITHIN_S,
            every_s=LOOK_S / 5,
        )

    def steps(self) -> int:
        """That student 0 has committed."""
        return len(trace(self.run_dir))

    def generation(self) -> int:
        """Of the world that student 0 is in."""
        text = (self.run_dir / "logs" / "rank-00000.log").read_text(encoding="utf-8")
        return int(re.findall(r"world (\d+): ", text)[-1])

    # ------------------------------------------------------------------ healing

    @contextmanager
    def held(self) -> Iterator[None]:
        """The students stand still: their steps take milliseconds, a teacher's next host some seconds."""
        students = [psutil.Process(process.pid) for process in self.ranks.processes[: self.students]]
        for student in students:
            student.suspend()
        try:
            yield
        finally:
            for student in students:
                student.resume()

    def await_loaded(self, teachers: Sequence[int]) -> None:
        """Return when their workers can answer, while the students stand still."""
        with self.held():
            for teacher in teachers:
                wait_until(
                    lambda teacher=teacher: self._is_loaded(teacher),
                    what=f"teacher {teacher} to be loaded",
                    timeout_s=HEALS_WITHIN_S,
                    every_s=LOOK_S,
                )

    def heal(self) -> None:
        """Return when every teacher can answer again, in a world that has all."""
        self.await_loaded(range(self.number))
        deadline, seen = time.monotonic() + HEALS_WITHIN_S, self.steps()
        while not self._all_met():
            assert time.monotonic() < deadline, f"teachers did not meet within {HEALS_WITHIN_S:.0f} s"
            # who dies on the way into a world keeps others there for some seconds (comm/rpc_world.py), and the next
            # host loads for some: in them those who are left teach, and the run is not to end before
            if self.steps() > seen + MOST_STEPS:
                with self.held():
                    time.sleep(HELD_S)
                seen = self.steps()
            time.sleep(LOOK_S / 5)

    def _is_loaded(self, teacher: int) -> bool:
        host, worker = self.host(teacher), self.worker(teacher)
        if host is None or worker is None:
            return False
        serving = self._since_start(teacher)
        news = re.findall(
            r"worker lost|worker \d+ has loaded", serving
        )  # one that is lost may still be there
        return serving.startswith(f"process {host.pid} ") and news[-1:] == [f"worker {worker.pid} has loaded"]

    def _since_start(self, teacher: int) -> str:
        """What the newest host of that teacher has logged."""
        log = self.log(teacher, "host")
        starts = [match.start() for match in re.finditer(r"process \d+ serves as ", log)]
        return log[starts[-1] :] if starts else ""

    def _all_met(self) -> bool:
        students = [
            (self.run_dir / "logs" / f"rank-{rank:05d}.log").read_text(encoding="utf-8")
            for rank in range(self.students)
        ]
        texts = [*students, *(self._since_start(teacher) for teacher in range(self.number))]
        worlds = {(re.findall(r"world (\d+: .*)", text) or [""])[-1] for text in texts}
        return len(worlds) == 1 and worlds.pop().count("teacher") == self.number


@dataclass(frozen=True)
class Cache:
    """The folder that the run's teachers share, on a small disk of its own."""

    folder: Path
    filled: Path  # a sealed segment of everything that the run asks for, kept elsewhere

    def refill(self) -> None:
        """As a job that ends well would leave it: with room, and one segment that holds all."""
        for path in self.folder.iterdir():
            path.unlink()
        place = self.folder / f"{self.filled.stem[:-16]}{time.monotonic_ns():016x}"
        shutil.copyfile(self.filled, place.with_suffix(".copied"))
        place.with_suffix(".copied").rename(place.with_suffix(".seg"))

    def damage(self, *, bit: int) -> None:
        """Flip one bit in every stretch of 64 bytes of every segment's records, open ones included."""
        for path in [*self.folder.glob("*.seg"), *self.folder.glob("*.unchecked")]:
            size = path.stat().st_size * 9 // 10  # of a sealed one the rest is its index, or nearly
            with path.open("r+b") as file:
                for place in range(64, size, 64):
                    file.seek(place)
                    byte = file.read(1)
                    file.seek(place)
                    file.write(bytes([byte[0] ^ 1 << bit]))

    def fill_disk(self) -> None:
        """Not a byte more can be written, except into pages that files have begun."""
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
        assert shutil.disk_usage(self.folder).free == 0
