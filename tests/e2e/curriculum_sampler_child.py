"""Runs with everything of a curriculum's but the network and its siblings, to be killed: test_curriculum_killed.py.

The process ``python curriculum_sampler_child.py PREPARED SHOWN`` imports once and forks a run for every line
`RUN_DIR<tab>MODE<tab>SETTING…` on stdin; it prints the run's process, and how it ended. The file SHOWN has one byte:
the place in PHASES of what the run is at. What stands for the network is a number that every row which was trained
on goes into, and from which every score comes: one row out of order changes all that follows.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

from e2e.curriculum_sampler import BATCH, CHECKPOINT_EVERY, EPOCHS, MODES, PHASES, SHARED


@dataclass
class Network:
    """One number stands for all weights."""

    state: int = 0

    def train(self, rows: np.ndarray, reliance: np.ndarray) -> None:
        """Every row, its place in the batch and its λ count."""
        for row, share in zip(rows.tolist(), reliance.tolist(), strict=True):
            self.state = (self.state * 6364136223846793005 + row * 4096 + round(share * 1024) + 1) % (1 << 63)

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """[rows, 3], by the state."""
        words: np.ndarray = rows[:, None].astype(np.uint64) * np.uint64(3) + np.arange(3, dtype=np.uint64)
        words = words + np.uint64(self.state)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        return ((words >> np.uint64(40)) / float(1 << 24)).astype(np.float32) * 4

    def signals(
        self, items: Sequence[Any], batches_of: Callable[[Any], Sequence[Any]], spec: Any, *, ahead: int
    ) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """It answers for batches as models do."""
        import torch

        for item in items:
            logits = (self.logits(batch.ids_B.numpy()) for batch in batches_of(item))
            yield item, tuple(SimpleNamespace(logits_BC=torch.from_numpy(found)) for found in logits)


class Alone:
    """A group of one."""

    rank, size = 0, 1

    def agree(self, value: int) -> int:
        """Its own word."""
        return value

    def hear(self, text: str | None) -> tuple[int, str]:
        """Its own words."""
        assert text is not None
        return 0, text

    def sum_integers(self, values: np.ndarray) -> np.ndarray:
        """Its own numbers."""
        return values


def serve(prepared: Path, shown: Path) -> None:
    """Fork a run for every line on stdin."""
    with shown.open("r+b") as file:
        phase = mmap.mmap(file.fileno(), 1)
    import_all()
    for line in sys.stdin:
        run_dir, mode, *more = line.rstrip("\n").split("\t")
        phase[0] = 0
        process = os.fork()
        if process == 0:
            code = 1
            try:
                train(prepared, Path(run_dir), [*MODES[mode], *more], phase)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def import_all() -> None:
    """What takes seconds, before the forks."""
    import distill_dist.assemble.curriculum
    import distill_dist.assemble.served_scores
    import distill_dist.checkpoint  # noqa: F401


def train(prepared: Path, run_dir: Path, changed: list[str], phase: mmap.mmap) -> None:
    """One life of a run, from its newest checkpoint to its end."""
    import torch

    from distill_dist import checkpoint
    from distill_dist.run_folder import RunFolder
    from distill_dist.trace import Trace

    run = Run.begin(prepared, RunFolder(run_dir), changed, phase)
    written = Trace(run_dir / "trace-00000.jsonl", first_step=run.start)
    previous = run.start
    stream: Iterator[Any] = iter(())
    per_epoch = run.curriculum.steps_per_epoch
    end = run.curriculum.config.train.max_steps or EPOCHS * per_epoch
    for done in range(run.start, end):
        if done == run.start or done % per_epoch == 0:
            stream = run.epochs.open(done)
        phase[0] = PHASES.index("batches")
        step, _ = next(stream)
        run.take(step)
        written(step, [])
        if (done + 1) % CHECKPOINT_EVERY == 0 or (done + 1) % per_epoch == 0:
            phase[0] = PHASES.index("checkpoint")
            checkpoint.save(
                run_dir / "checkpoints",
                step=done + 1,
                previous=previous,
                tensors={"state": torch.tensor([run.network.state])},
                progress={"step": done + 1, "curriculum": run.state_dict()},
                keep=checkpoint.Keep(2),
            )
            previous = done + 1
    if end % per_epoch == 0:
        run.curriculum.finish(end)
    if run.epochs.windowed is not None:
        (run_dir / "fetches").write_text(str(run.epochs.windowed.fetches), encoding="utf-8")
        run.epochs.windowed.close()


@dataclass
class Run:
    """The objects of one life."""

    network: Network
    curriculum: Any
    epochs: Any
    served: Any
    start: int

    @classmethod
    def begin(cls, prepared: Path, folder: Any, changed: list[str], phase: mmap.mmap) -> Self:
        """At the newest checkpoint of ``folder``."""
        from distill_dist import checkpoint
        from distill_dist.assemble.curriculum import Curriculum
        from distill_dist.assemble.epochs import Epochs
        from distill_dist.assemble.scores_of_run import ScoresOfRun
        from distill_dist.assemble.served_scores import ServedScores
        from distill_dist.config.load import load_config
        from distill_dist.data.loader import StepLoader
        from distill_dist.data.shards import open_split
        from distill_dist.data.window_reader import WindowedSplit

        folder.claim()
        show_phases(phase)
        config = load_config(None, settings(prepared, folder.path, changed))
        split, saved = open_split(prepared, "train"), checkpoint.newest(folder.checkpoints)
        progress: dict[str, Any] = {"step": 0, "curriculum": {}} if saved is None else saved.progress
        network = Network(0 if saved is None else int(saved.tensors["state"][0]))
        served = None
        if config.curriculum.score == "served":
            served = ServedScores(
                folder.served,
                Alone(),  # type: ignore[arg-type]
                measure="true_probability",
                lengths=progress["curriculum"].get("served", {}),
                flush_every=3,
            )
        per_epoch = -(-split.num_rows // BATCH)
        curriculum = Curriculum(
            config=config,
            split=split,
            groups=split.labels if config.curriculum.stratify == "label" else None,
            group=Alone(),  # type: ignore[arg-type]
            folder=folder,
            scores=ScoresOfRun(
                config=config,
                maker=maker(folder.snapshots, split, config),
                student=network,
                teacher=Network(1),
                steps_per_epoch=per_epoch,
                logs=lambda: [] if served is None else served.paths,
                taught_by="",
                pinned=progress["curriculum"].get("snapshot"),
            ),
            steps_per_epoch=per_epoch,
            total_steps=EPOCHS * per_epoch,
        )
        windowed = WindowedSplit(split) if config.data.window_shards else None
        loader = StepLoader(
            split=windowed or split, rows_at=curriculum.rows_at, rank=0, size=1, seed=config.seed, batch_size=BATCH,
            window=config.batch.length_window, micro_tokens=64, pad_token_id=0, reliance_of=curriculum.reliance_of,
        )  # fmt: skip
        epochs = Epochs(
            curriculum, loader, windowed, teacher=None, spec=None, prefetch=1, epochs=EPOCHS,
            last_step=curriculum.total_steps, report=lambda done: None,
        )  # fmt: skip
        return cls(network, curriculum, epochs, served, int(progress["step"]))

    def take(self, step: Any) -> None:
        """Train on the step's rows, and log what was said of them."""
        import torch

        said = []
        for batch in step.batches:
            rows = batch.ids_B.numpy()
            said.append(SimpleNamespace(logits_BC=torch.from_numpy(self.network.logits(rows))))
            self.network.train(
                rows, np.ones(len(rows)) if batch.reliance_B is None else batch.reliance_B.numpy()
            )
        if self.served is not None:
            self.served(step, said)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint, as the trainer's."""
        found = {"snapshot": self.curriculum.state_dict()}
        return found if self.served is None else {**found, "served": self.served.sync()}


def settings(prepared: Path, run_dir: Path, changed: list[str]) -> list[str]:
    """The configuration of a run."""
    return [
        "method=kd", f"run_dir={run_dir}", "data.source=synthetic_nli", f"data.prepared={prepared}",
        "data.max_length=64", "student.path=unread", "teacher.path=unread", *SHARED, "reliance.rule=ramp",
        *changed,
    ]  # fmt: skip


def maker(root: Path, split: Any, config: Any) -> Any:
    """Makes the snapshots."""
    import torch

    from distill_dist.assemble.snapshots import SnapshotMaker
    from distill_dist.evaluation.scoring import ScoringPass

    scoring = ScoringPass(
        split, rank=0, size=1, micro_tokens=64, pad_token_id=0, num_classes=3, sum_=lambda tensor: tensor,
        device=torch.device("cpu"), ahead=1,
    )  # fmt: skip
    return SnapshotMaker(
        root=root,
        group=Alone(),  # type: ignore[arg-type]
        scoring=scoring,
        labels=split.labels,
        manifest="",
        run="",
        measure=config.curriculum.measure,
        smoothing=config.curriculum.smoothing,
        keep=config.curriculum.keep_snapshots,
        with_teacher_loss=config.reliance.rule == "weighted",
        should_stop=lambda: False,
        evaluating=contextlib.nullcontext,
    )


def show_phases(phase: mmap.mmap) -> None:
    """Say which of them the run is in: the functions that begin one are wrapped."""
    from distill_dist.assemble import curriculum
    from distill_dist.assemble.snapshots import SnapshotMaker
    from distill_dist.curriculum.snapshot_writer import SnapshotWriter

    def wrap(owner: Any, name: str, shown: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **more: Any) -> Any:
            phase[0] = PHASES.index(shown)
            return inner(*args, **more)

        setattr(owner, name, outer)

    wrap(SnapshotMaker, "_write", "scoring")
    wrap(SnapshotWriter, "commit", "commit")
    wrap(curriculum, "make_percentiles", "planning")
    wrap(curriculum, "make_plan", "planning")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
