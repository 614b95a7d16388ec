"""The curriculum through the launchers: resumed runs, any number of students, windows of shards, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import World, launch, running, start_ranks, state, trace

from distill_dist.curriculum.served import RECORD
from distill_dist.curriculum.snapshot import Snapshot
from distill_dist.data.loader import evaluation_batches
from distill_dist.data.shards import open_split
from e2e.curriculum_sampler import MODES, SHARED, Sampler
from e2e.test_curriculum_killed import SHARD, hidden, shards, snapshot_hashes
from e2e.test_interrupted import assert_same_run, await_step, newest_checkpoint
from e2e.test_mistakes import assert_one_message

__all__ = ["shards"]  # a fixture

pytestmark = pytest.mark.timeout(600)  # the first test of a session also waits for its fixtures
STEPS, SIZE = 50, 8  # of an epoch, of a batch
KD = ("method=kd", "evaluate.saliency=false", "train.trace=true", "train.checkpoint_every=10")


@pytest.fixture(scope="module")
def sampler(shards: Path) -> Iterator[Sampler]:
    """Runs without a network, a second each."""
    with Sampler(shards) as found:
        yield found


def arguments_of(world: World, shards: Path, run_dir: Path, *more: str) -> list[str]:
    """A run over eight shards."""
    return world.student(run_dir, f"data.prepared={shards}", SHARD, *more)


def finish(arguments: list[str], *, size: int, logs: Path) -> None:
    """It ends well on ``size`` ranks."""
    with running(start_ranks(arguments, size=size, logs=logs)) as ranks:
        assert ranks.wait() == [0] * size, ranks.text()


def batches(run_dir: Path, students: int = 1) -> list[list[int]]:
    """Rows of every global batch, ascending."""
    lines = zip(*(trace(run_dir, student) for student in range(students)), strict=True)
    return [sorted(row for line in step for ids in line["ids"] for row in ids) for step in lines]


# ------------------------------------------------------------------ resumed


@pytest.mark.parametrize("kind", ["served", pytest.param("gkd_cls", marks=pytest.mark.long)])
def test_a_killed_run_goes_on_as_the_undisturbed_one(
    world: World, shards: Path, tmp_path: Path, kind: str
) -> None:
    more, size = {
        "served": ((*KD, "curriculum.score=served", "student.dropout=0.1"), 2),
        "gkd_cls": (
            (
                "method=gkd_cls", *KD[1:], "reliance.rule=ramp", "reliance.scale_alignment=true",
                "reliance.control=permuted", "alignment.share=0.5", "alignment.choose=hardest", "cluster.teachers=1",
            ),
            3,
        ),
    }[kind]  # fmt: skip
    order = "curriculum.order=easy_to_hard"
    whole, killed = (
        arguments_of(world, shards, tmp_path / name, order, *more) for name in ("whole", "killed")
    )
    finish(whole, size=size, logs=tmp_path / "logs-1")
    with running(start_ranks(killed, size=size, logs=tmp_path / "logs-2")) as ranks:
        await_step(ranks, tmp_path / "killed", 63)
        ranks.kill()
    assert 60 <= newest_checkpoint(tmp_path / "killed")[0] < 100
    logs = sorted((tmp_path / "killed" / "served").glob("rank-*.log"))
    for log in logs:  # what a run had logged since its checkpoint, and a torn record
        with log.open("ab") as file:
            file.write(np.ones(5, RECORD).tobytes() + b"torn")
    finish(killed, size=size, logs=tmp_path / "logs-3")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert snapshot_hashes(tmp_path / "killed") == snapshot_hashes(tmp_path / "whole") != {}
    assert len(logs) == (2 if kind == "served" else 0)
    for log in logs:
        assert log.read_bytes() == (tmp_path / "whole" / "served" / log.name).read_bytes()
    assert hidden(tmp_path / "killed") == []


# ------------------------------------------------------------------ any number of students


def test_the_batches_in_windows_of_shards_are_the_same_for_one_two_and_three_students(
    world: World, shards: Path, sampler: Sampler, tmp_path: Path
) -> None:
    """Without windows, and with the losses: test_world_sizes.py."""
    scores = np.random.default_rng(0).normal(size=400).astype(np.float16)  # few values: there are ties
    np.save(tmp_path / "scores.npy", scores)
    given = ("curriculum.source=file", f"curriculum.file={tmp_path}/scores.npy")
    windows = "data.window_shards=2"
    assert sampler.run(tmp_path / "alone", "pass", *given, windows) == 0
    expected = batches(tmp_path / "alone")
    assert len({row for batch in expected[:STEPS] for row in batch}) < 400, "the pool grows"
    run_dir = tmp_path / "run"
    arguments = arguments_of(world, shards, run_dir, *KD, *SHARED, *given, windows)
    found: list[list[int]] = []
    for size, end in ((1, 17), (3, 40), (2, 70)):
        finish([*arguments, f"train.max_steps={end}"], size=size, logs=tmp_path / f"logs-{size}")
        begin = len(found)
        lines = [trace(run_dir, student)[-(end - begin) :] for student in range(size)]
        assert [[line["step"] for line in of] for of in lines] == [list(range(begin, end))] * size
        found += [
            sorted(row for line in step for ids in line["ids"] for row in ids)
            for step in zip(*lines, strict=True)
        ]
    assert found == expected[:70]


def test_a_teachers_scores_are_the_same_from_another_process(
    world: World, shards: Path, tmp_path: Path
) -> None:
    more = (*KD, "curriculum.order=easy_to_hard", "curriculum.source=teacher", "train.max_steps=5")
    for teachers in (0, 1):
        arguments = arguments_of(world, shards, tmp_path / f"run-{teachers}", *more)
        finish(
            [*arguments, f"cluster.teachers={teachers}"],
            size=2 + teachers,
            logs=tmp_path / f"logs-{teachers}",
        )
    assert snapshot_hashes(tmp_path / "run-0") == snapshot_hashes(tmp_path / "run-1")
    assert batches(tmp_path / "run-0", 2) == batches(tmp_path / "run-1", 2)
    snapshot = Snapshot.open(tmp_path / "run-0" / "snapshots" / "snapshot-00000")
    rows = np.arange(400)
    score, loss = snapshot.scores_at(rows), snapshot.column_at("teacher_loss", rows)
    # p and -log p of one logit vector, each rounded to fp32 once
    np.testing.assert_allclose(score, np.exp(-loss.astype(np.float64)), rtol=1e-6)
    assert len(np.unique(score)) > 50


# ------------------------------------------------------------------ orders, pacings, windows


def coverage(run_dir: Path) -> list[int]:
    """Different rows of each epoch."""
    steps = batches(run_dir)
    assert all(len(batch) == SIZE for batch in steps)
    return [
        len({row for batch in steps[begin : begin + STEPS] for row in batch})
        for begin in range(0, len(steps), STEPS)
    ]


def test_every_order_and_pacing_runs(sampler: Sampler, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for number, mode in enumerate(MODES):
        # all is in from the third of four epochs on: the last serves every row once
        more = () if "plain" in mode else ("curriculum.full_at=0.5",)
        assert sampler.run(tmp_path / str(number), mode, *more) == 0, mode
        found[mode] = coverage(tmp_path / str(number))
        # before the first snapshot everything is admitted; the teacher's is there from the start
        assert (found[mode][0] < 400) == (mode == "teacher")
        fetches = tmp_path / str(number) / "fetches"
        if "windows" in mode:
            assert int(fetches.read_text()) == 4 * 8, "each shard once an epoch"
        else:
            assert not fetches.exists()
    for mode in ("plain", "plain in windows", "none"):
        assert found.pop(mode) == [400] * 4
    own_end = {mode: found.pop(mode) for mode in ("competence", "fixed_exponential", "step")}
    assert own_end["competence"][1] < 400 == own_end["step"][3]
    assert own_end["fixed_exponential"][3] < 400
    assert found["repeating"][1] < found["pass"][1], "rows admitted early come again"
    assert {mode: epochs[3] for mode, epochs in found.items()} == dict.fromkeys(found, 400)
    fast = {mode for mode, epochs in found.items() if epochs[1] == 400}
    assert fast <= {"root", "logarithmic"}, found
    orders = [
        batches(tmp_path / str(list(MODES).index(mode)))
        for mode in ("pass", "hard to easy", "random", "frozen", "by label", "windows")
    ]
    assert all(orders[0] != other for other in orders[1:])


@pytest.mark.parametrize("in_the_way", ["plans", "plans/plan-00002.npz/"], ids=["folder", "file"])
def test_plans_that_cannot_be_kept_change_no_batch(sampler: Sampler, tmp_path: Path, in_the_way: str) -> None:
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    obstacle = run_dir / in_the_way
    if in_the_way.endswith("/"):
        obstacle.mkdir(parents=True)
    else:
        run_dir.mkdir()
        obstacle.touch()
    assert sampler.run(whole, "pass") == 0
    assert [path.name for path in (whole / "plans").iterdir()] == ["plan-00003.npz"]
    for end in (130, 200):  # it stops in the midst of an epoch, and goes on
        assert sampler.run(run_dir, "pass", f"train.max_steps={end}") == 0
    assert batches(run_dir) == batches(whole)
    assert not (run_dir / "plans" / "plan-00003.npz").exists()


# ------------------------------------------------------------------ refused


def damage(folder: Path, kind: str) -> None:
    """Do to a snapshot what disks and people do."""
    record = folder / "snapshot.json"
    if kind == "removed":
        shutil.rmtree(folder)
    elif kind == "flipped":  # of the second student's shards
        path = folder / "shard-000001.bin"
        content = bytearray(path.read_bytes())
        content[3] ^= 1
        path.write_bytes(content)
    elif kind == "another run's":
        found = json.loads(record.read_text(encoding="utf-8"))
        record.write_text(json.dumps({**found, "run": "0" * 64}), encoding="utf-8")
    else:  # the same run's, taken another time
        found = json.loads(record.read_text(encoding="utf-8"))
        record.write_text(json.dumps({**found, "parent": "0" * 64}), encoding="utf-8")


@pytest.fixture(scope="module")
def stopped(world: World, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that stands in the middle of its second epoch, and what goes on with it but for its folder."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    arguments = arguments_of(world, shards, run_dir, *KD, "curriculum.order=easy_to_hard")
    finish([*arguments, "train.max_steps=60"], size=2, logs=run_dir.with_name("logs"))
    return run_dir, arguments[1:]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("removed", ("is gone", "checkpoint at step 60", "put a copy in its place")),
        ("flipped", ("shard-000001.bin does not have its checksum", "put a copy")),
        ("another run's", ("other settings", "choose another run_dir")),
        ("another time's", ("is not the snapshot that the checkpoint's epoch was planned on", "put that one back")),
    ],
    ids=["removed", "flipped", "another run", "another time"],
)  # fmt: skip
def test_scores_that_are_not_those_of_the_checkpoint_are_refused(
    stopped: tuple[Path, list[str]], tmp_path: Path, kind: str, words: tuple[str, ...]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(stopped[0], run_dir)
    damage(run_dir / "snapshots" / "snapshot-00001", kind)
    before = (run_dir / "trace-00000.jsonl").read_bytes()
    with running(start_ranks([f"run_dir={run_dir}", *stopped[1]], size=2, logs=tmp_path / "logs")) as ranks:
        assert_one_message(ranks, "snapshot-00001", *words)
    assert (run_dir / "trace-00000.jsonl").read_bytes() == before
    assert newest_checkpoint(run_dir)[0] == 60


def test_damage_that_one_student_reads_in_a_scoring_pass_ends_both(
    world: World, shards: Path, tmp_path: Path
) -> None:
    prepared, run_dir = tmp_path / "damaged", tmp_path / "run"
    shard = damage_row_of_student_1(shutil.copytree(shards, prepared))
    more = (*KD, "curriculum.order=easy_to_hard", "curriculum.source=teacher")
    arguments = arguments_of(world, prepared, run_dir, *more)
    with running(start_ranks(arguments, size=2, logs=tmp_path / "logs")) as ranks:
        assert_one_message(ranks, "[rank 1] error: ", f"{shard} is missing or damaged", "prepare again")
    verdict = state(run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("failed", False)
    assert str(shard) in verdict["reason"]
    assert trace(run_dir) == []
    assert snapshot_hashes(run_dir) == {}


def damage_row_of_student_1(prepared: Path) -> Path:
    """Flip a bit of a row in the third shard that only the second of two students reads; the shard."""
    split = open_split(prepared, "train")
    in_shard = np.arange(100, 150)
    kinds = {"micro_tokens": 64, "pad_token_id": 0, "rows": in_shard}
    read = [
        {
            row
            for batch in evaluation_batches(split, rank=rank, size=2, **kinds)
            for row in batch.ids_B.tolist()
        }
        for rank in (0, 1)
    ]
    row = min(read[1] - read[0])
    block = split.block(2)
    content = bytearray(block.path.read_bytes())
    content[int(block.offset[row - block.first_row])] ^= 1
    block.path.write_bytes(content)
    return block.path


def test_a_file_of_another_length_is_refused(world: World, shards: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "scores.npy", np.zeros(399))
    given = ("curriculum.source=file", f"curriculum.file={tmp_path}/scores.npy")
    arguments = arguments_of(world, shards, tmp_path / "run", *KD, "curriculum.order=easy_to_hard", *given)
    with running(start_ranks(arguments, size=2, logs=tmp_path / "logs")) as ranks:
        assert_one_message(ranks, f"{tmp_path}/scores.npy has the shape [399], the train rows are 400")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("curriculum.source=file", "curriculum.file=s.npy", "reliance.rule=weighted"), "reads probabilities"),
        (("curriculum.source=file", "curriculum.file=s.npy", "reliance.rule=bell"), "reads probabilities"),
        (("alignment.choose=hardest",), "needs matched gradients"),
        (("curriculum.source=file",), "curriculum.file"),
    ],
    ids=["weighted", "bell", "hardest", "no file"],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    world: World, tmp_path: Path, settings: tuple[str, ...], words: str
) -> None:
    done = launch("train.py", world.student(tmp_path / "run", "method=kd", *settings), logs=tmp_path / "logs")
    assert done.processes[0].returncode == 2, done.text()
    assert done.stderr().count("error: ") == 1
    assert words in done.stderr()
    assert "Traceback" not in done.stderr()
