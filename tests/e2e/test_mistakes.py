"""What a user gets wrong: one message, exit code 2 on every rank, no traceback, nobody waits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import RUN_LIMIT_S, Started, World, last_json, launch, running, start_ranks, state, wait_until

from e2e.conftest import TRACED

# the first test of a session also waits for its fixtures; tests run beside each other
pytestmark = pytest.mark.timeout(600)


def other_vocabulary(teacher: Path, folder: Path) -> Path:
    """The teacher's folder with two words of its vocabulary exchanged."""
    shutil.copytree(teacher, folder)
    path = folder / "tokenizer.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = record["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(record), encoding="utf-8")
    return folder


def damaged_copy(prepared: Path, folder: Path, *, flip: bool) -> tuple[Path, str]:
    """The prepared folder with a damaged shard of train: cut short, or one bit of row 0 flipped; and its name."""
    shutil.copytree(prepared, folder)
    shard = sorted((folder / "train").glob("*.tar"))[0]
    content = bytearray(shard.read_bytes())
    if flip:
        with np.load(shard.with_suffix(".index.npz")) as index:
            content[int(index["offset"][0])] ^= 1
    shard.write_bytes(content if flip else content[:-512])
    return folder, shard.name


def assert_one_message(ranks: Started, *words: str) -> None:
    """All ranks ended with 2, and one of them said why, in words."""
    assert ranks.wait() == [2] * len(ranks.processes), ranks.text()
    text = "".join(ranks.stderr(number) for number in range(len(ranks.processes)))
    assert "Traceback" not in text
    assert text.count("error: ") == 1, ranks.text()
    for word in words:
        assert word in text, ranks.text()


@pytest.mark.parametrize("kind", ["no teacher", "another vocabulary", "not prepared", "shard cut short"])
def test_at_assembly(world: World, tmp_path: Path, kind: str):
    changed, words = {
        "no teacher": lambda: ([f"teacher.path={tmp_path}/nowhere"], ["teacher.path", f"{tmp_path}/nowhere"]),
        "another vocabulary": lambda: (
            [f"teacher.path={other_vocabulary(world.teacher_run / 'model', tmp_path / 'teacher')}"],
            ["teacher.path", "vocabulary"],
        ),
        "not prepared": lambda: (
            [f"data.prepared={tmp_path}/nothing"],
            [f"{tmp_path}/nothing", "prepare.py"],
        ),
        "shard cut short": lambda: _damage(world, tmp_path),
    }[kind]()
    # the student has a path of its own, so that nothing is wrong but one thing
    student = f"student.path={world.teacher_run}/model"
    arguments = world.student(tmp_path / "run", "method=gkd_cls", *TRACED, student, *changed)
    with running(start_ranks(arguments, size=3, logs=tmp_path / "logs")) as ranks:
        assert_one_message(ranks, *words)
    verdict = state(tmp_path / "run")
    assert (verdict["state"], verdict["resumable"]) == ("failed", False)
    assert words[0] in verdict["reason"]


def _damage(world: World, tmp_path: Path) -> tuple[list[str], list[str]]:
    folder, shard = damaged_copy(world.prepared, tmp_path / "damaged", flip=False)
    return [f"data.prepared={folder}"], [shard]


def test_a_flipped_bit_stops_all_with_one_message(world: World, tmp_path: Path):
    folder, shard = damaged_copy(world.prepared, tmp_path / "damaged", flip=True)
    run_dir = tmp_path / "run"
    arguments = world.student(run_dir, "method=gkd_cls", *TRACED, f"data.prepared={folder}")
    with running(start_ranks(arguments, size=3, logs=tmp_path / "logs")) as ranks:
        # the teacher did nothing wrong
        assert ranks.wait() == [2, 2, 75], ranks.text()
    text = ranks.stderr(0) + ranks.stderr(1)
    assert text.count("error: ") == 1, ranks.text()
    assert shard in text
    assert "row 0" in text
    assert "Traceback" not in ranks.text()
    verdict = state(run_dir)
    assert (verdict["state"], verdict["resumable"]) == ("failed", False)


def test_a_missing_rank_is_named(world: World, tmp_path: Path):
    arguments = world.student(tmp_path / "run", "method=gkd_cls", *TRACED, "cluster.rendezvous_s=20")
    with running(start_ranks(arguments, size=3, logs=tmp_path / "logs")) as ranks:
        ranks.processes[1].kill()
        assert [ranks.processes[number].wait(120) for number in (0, 2)] == [2, 2], ranks.text()
    assert "ranks [1] of 3" in ranks.stderr(0)
    assert "Traceback" not in ranks.text()


def test_one_process_alone_and_then_again(world: World, tmp_path: Path):
    run_dir = tmp_path / "run"
    arguments = world.student(run_dir, "method=gkd_cls", "cluster.teachers=0", "train.epochs=1")
    first = launch("train.py", arguments, logs=tmp_path / "logs-1")
    assert first.processes[0].returncode == 0, first.text()
    summary = last_json(first.stdout())
    assert summary["world"] == {"students": 1, "teachers": 0}
    assert first.stdout().count("\n") == 1
    before = checkpoint_bytes(run_dir)

    again = launch("train.py", arguments, logs=tmp_path / "logs-2")
    assert again.processes[0].returncode == 0, again.text()
    assert checkpoint_bytes(run_dir) == before
    repeated = last_json(again.stdout())
    for key in ("student", "teacher", "loyalty", "steps", "best_step", "splits"):
        assert repeated[key] == summary[key], key
    assert state(run_dir)["state"] == "done"

    changed = launch("train.py", [*arguments, "train.learning_rate=2e-3"], logs=tmp_path / "logs-3")
    assert changed.processes[0].returncode == 2, changed.text()
    assert "train.learning_rate: 0.001 -> 0.002" in changed.stderr()
    assert "Traceback" not in changed.stderr()
    assert checkpoint_bytes(run_dir) == before


def test_a_second_run_in_the_same_folder_is_refused(world: World, tmp_path: Path):
    run_dir = tmp_path / "run"
    arguments = world.student(run_dir, "method=kd", "cluster.teachers=0", "train.epochs=50")
    with running(start_ranks(arguments, size=1, logs=tmp_path / "logs-1")) as first:
        wait_until(lambda: (run_dir / "state.json").exists(), what="the first run", timeout_s=RUN_LIMIT_S)
        holder = first.processes[0].pid
        with running(start_ranks(arguments, size=2, logs=tmp_path / "logs-2")) as second:
            assert_one_message(second, f"run_dir={run_dir} is in use", f"process {holder} on ")
        assert first.alive(), first.text()
    # that the lock goes with the process is tested in test_run_folder.py


def test_saliency_needs_a_teacher(world: World, tmp_path: Path):
    arguments = ["--student", f"{world.teacher_run}/model", "--saliency", *world.data]
    done = launch("evaluate.py", arguments, logs=tmp_path / "logs")
    assert done.processes[0].returncode == 2, done.text()
    assert done.stderr() == "error: --saliency compares with a teacher: give --teacher FOLDER\n"


def checkpoint_bytes(run_dir: Path) -> dict[str, bytes]:
    """Every file of every checkpoint."""
    root = run_dir / "checkpoints"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
