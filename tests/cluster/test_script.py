"""What the scripts' common body does on a real Slurm with ranks of a second, which end as each test tells them to."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from cluster.jobs import SMALL, Job, copy_checkout, submit
from cluster.slurm import Slurm

pytestmark = pytest.mark.timeout(300)

# In place of launcher/train.py: says where it is, then does what stands in plan-RESTARTS.json for its rank.
RANK = """
import json, os, signal, sys, time
from pathlib import Path
import distill_dist
from distill_dist.comm.environment import read_environment
from distill_dist.config.load import load_config
from distill_dist.stop_signal import StopSignal
stop = StopSignal()
folder = Path(load_config(Path(sys.argv[2]), []).run_dir)
restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
here = read_environment(os.environ)
found = {**vars(here), "code": distill_dist.__file__, "threads": os.environ["OMP_NUM_THREADS"]}
(folder / f"rank-{here.rank}-{restarts}.json").write_text(json.dumps(found))
print("rank", here.rank)
plans = Path(os.environ["PLANS"]) / os.environ.get("SLURM_ARRAY_TASK_ID", "")
plan = json.loads((plans / f"plan-{restarts}.json").read_text())[here.rank]
if plan == "wait":
    deadline = time.monotonic() + 100
    while not stop.asked() and time.monotonic() < deadline:
        time.sleep(0.1)
    plan = 75 if stop.asked() else 1
if plan == "fail":
    (folder / "state.json").write_text(json.dumps({"state": "failed", "resumable": False}, indent=2))
    plan = 1
if plan == "alone":
    (folder / "state.json").write_text(json.dumps({"state": "running", "process": os.getpid()}, indent=2))
    os.kill(os.getpid(), signal.SIGKILL)
if plan == "die":
    (folder / "state.json").write_text(json.dumps({"state": "stopped", "resumable": True}, indent=2))
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(plan)
"""


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose ranks do as they are told."""
    folder = copy_checkout(tmp_path_factory.mktemp("checkout"))
    (folder / "launcher" / "train.py").write_text(RANK, encoding="utf-8")
    for script in (folder / "slurm").glob("*.sh"):
        text = script.read_text(encoding="utf-8")
        assert "most_restarts=50" in text
        script.write_text(text.replace("most_restarts=50", "most_restarts=2"), encoding="utf-8")
    return folder


def start(
    slurm: Slurm,
    checkout: Path,
    folder: Path,
    plans: list[list[int | str]],
    *options: str,
    script: str = "gkd_mnli.sh",
    **variables: str,
) -> Job:
    """A job whose ranks end as ``plans`` say, one plan per start."""
    write_plans(folder, plans)
    data = [
        "data.source=synthetic_nli",
        "data.prepared=nowhere",
        "teacher.path=nowhere",
        "student.path=nowhere",
    ]
    return submit(
        slurm, folder / "run", *data, "cluster.teachers=1", options=options, checkout=checkout, script=script,
        PLANS=str(folder), **variables,
    )  # fmt: skip


def write_plans(folder: Path, plans: list[list[int | str]]) -> None:
    """For :data:`RANK`."""
    folder.mkdir(exist_ok=True)
    for number, plan in enumerate(plans):
        (folder / f"plan-{number}.json").write_text(json.dumps(plan), encoding="utf-8")


def seen(folder: Path, rank: int, start: int = 0) -> dict[str, object]:
    """What that rank was told at that start."""
    found: dict[str, object] = json.loads((folder / f"rank-{rank}-{start}.json").read_text(encoding="utf-8"))
    return found


def test_75_requeues_and_the_code_is_the_jobs_own(slurm: Slurm, checkout: Path, tmp_path: Path) -> None:
    job = start(slurm, checkout, tmp_path, [[75, 75, 75], [0, 0, 0]], "--nodes=3")
    assert job.await_end() == "COMPLETED", job.text()
    assert job.restarts == 1
    first, second = (seen(job.run_dir, 2, number) for number in (0, 1))
    assert (first["rank"], first["world_size"], first["local_rank"]) == (2, 3, 0)
    assert first["node_sizes"] == [1, 1, 1]
    assert first["code"] == second["code"] == f"{job.run_dir}/jobs/{job.number}/distill_dist/__init__.py"
    assert first["threads"] == "1"
    assert first["master_port"] != second["master_port"]
    logs = {path.name: path.read_text(encoding="utf-8") for path in (job.run_dir / "logs").glob("*.out")}
    assert logs == {f"rank-0000{rank}.out": f"rank {rank}\n" * 2 for rank in range(3)}


def test_a_student_that_is_killed_without_a_word_is_requeued(
    slurm: Slurm, checkout: Path, tmp_path: Path
) -> None:
    """The only one, say: its teachers write no verdict."""
    job = start(slurm, checkout, tmp_path, [["alone", 75, 75], [0, 0, 0]], "--nodes=3")
    assert job.await_end() == "COMPLETED", job.text()
    assert job.restarts == 1


slow = pytest.mark.whole_cluster


@pytest.mark.parametrize(
    ("plans", "restarts"),
    [
        pytest.param([[2, 2, 2]], 0, id="wrong input"),
        pytest.param([[1, 1, 1]], 0, id="a bug"),
        pytest.param([["fail", 75, 75]], 0, id="a bug, which stops the others in good order"),
        pytest.param([["die", 75, 75]] * 3, 2, id="a rank that is killed every time", marks=slow),
        pytest.param([[75, 75, 75]] * 3, 2, id="never done", marks=slow),
    ],
)
def test_what_is_not_requeued(
    slurm: Slurm, checkout: Path, tmp_path: Path, plans: list[list[int | str]], restarts: int
) -> None:
    job = start(slurm, checkout, tmp_path, plans, "--nodes=3")
    assert job.await_end() == "FAILED", job.text()
    assert job.restarts == restarts


def test_a_configuration_that_is_wrong_starts_no_rank(slurm: Slurm, checkout: Path, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path / "run", "batch.sise=3", options=("--nodes=3",), checkout=checkout)
    assert job.await_end() == "FAILED"
    assert slurm.job(job.number)["ExitCode"] == "2:0"
    assert "nearest valid name: batch.size" in job.text()
    assert not (job.run_dir / "logs").exists()


@slow
@pytest.mark.parametrize("full", [False, True], ids=["ranks", "ranks and script"])
def test_usr1(slurm: Slurm, checkout: Path, tmp_path: Path, full: bool) -> None:
    job = start(slurm, checkout, tmp_path, [["wait"] * 3, [0, 0, 0]], "--nodes=3")
    slurm.await_(lambda: len(list(job.run_dir.glob("rank-?-0.json"))) == 3, what="the ranks", timeout_s=60)
    slurm.run("scancel", "--signal=USR1", *(["--full"] if full else []), job.number)
    assert job.await_end() == "COMPLETED", job.text()
    assert job.restarts == 1


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, checkout: Path, tmp_path: Path) -> None:
    job = start(slurm, checkout, tmp_path, [["wait"] * 3], "--nodes=3")
    slurm.await_(lambda: len(list(job.run_dir.glob("rank-?-0.json"))) == 3, what="the ranks", timeout_s=60)
    slurm.run("scancel", job.number)
    assert job.await_end() == "CANCELLED", job.text()
    assert job.restarts == 0


@slow  # a limit is at least a minute
def test_the_time_limit_is_known_before_it_comes(slurm: Slurm, checkout: Path, tmp_path: Path) -> None:
    options = ("--nodes=3", "--time=1", "--signal=USR1@20")
    job = start(slurm, checkout, tmp_path, [["wait"] * 3, [0, 0, 0]], *options)
    assert job.await_end() == "COMPLETED", job.text()
    assert job.restarts == 1


def test_a_heterogeneous_job_is_one_world(slurm: Slurm, checkout: Path, tmp_path: Path) -> None:
    two = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", ":", *SMALL, "--nodes=1")
    job = start(slurm, checkout, tmp_path, [[75] * 5, [0] * 5], *two, script="gkd_mnli_het.sh")
    assert job.await_end() == "COMPLETED", job.text()
    assert job.restarts == 1
    found = [seen(job.run_dir, rank, 1) for rank in range(5)]
    assert {(tuple(one["node_sizes"]), one["world_size"]) for one in found} == {((2, 2, 1), 5)}  # type: ignore[arg-type]
    assert [(one["rank"], one["local_rank"], one["local_size"]) for one in found] == [
        (0, 0, 2), (1, 1, 2), (2, 0, 2), (3, 1, 2), (4, 0, 1),
    ]  # fmt: skip
    assert len({(one["master_address"], one["master_port"]) for one in found}) == 1
    assert len(list((job.run_dir / "logs").glob("rank-0000[0-4].out"))) == 5


@slow
def test_jobs_on_the_same_nodes_have_ports_of_their_own(slurm: Slurm, checkout: Path, tmp_path: Path) -> None:
    jobs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        jobs.append(
            start(slurm, checkout, tmp_path / name, [["wait"] * 3, [0] * 3], "--nodes=3", "--nodelist=n[1-3]")
        )
    for job in jobs:
        slurm.await_(
            lambda job=job: len(list(job.run_dir.glob("rank-?-0.json"))) == 3, what="ranks", timeout_s=60
        )  # type: ignore[misc]
    assert [job.state() for job in jobs] == ["RUNNING", "RUNNING"]
    assert len({seen(job.run_dir, 0)["master_port"] for job in jobs}) == 2
    for job in jobs:
        slurm.run("scancel", "--signal=USR1", job.number)
        assert job.await_end() == "COMPLETED", job.text()


@slow
def test_one_task_of_an_array_is_requeued_alone(slurm: Slurm, checkout: Path, tmp_path: Path) -> None:
    """The last one: its number is the array's."""
    write_plans(tmp_path / "0", [["wait", "wait"]])
    write_plans(tmp_path / "1", [[75, 75], [0, 0]])
    folders = tmp_path / "run_dirs.txt"
    folders.write_text(f"{tmp_path}/run/0\n{tmp_path}/run/1\n", encoding="utf-8")
    array = start(slurm, checkout, tmp_path, [], "--nodes=2", "--array=0-1", SWEEP=str(folders))
    first, last = (Job(slurm, f"{array.number}_{task}", array.run_dir / str(task)) for task in (0, 1))
    assert slurm.job(last.number)["JobId"] == array.number
    assert last.await_end() == "COMPLETED", last.text()
    assert last.restarts == 1
    assert (first.state(), first.restarts) == ("RUNNING", 0)
    slurm.run("scancel", array.number)
    assert first.await_end() == "CANCELLED"


@slow
def test_a_script_that_slurm_has_given_up_does_not_disturb_the_job(
    slurm: Slurm, checkout: Path, tmp_path: Path
) -> None:
    """The first node's slurmd dies, as does the way to it: its script goes on when the job runs elsewhere."""
    job = start(slurm, checkout, tmp_path, [["wait"] * 3, ["wait"] * 3], "--nodes=3")
    slurm.await_(lambda: len(list(job.run_dir.glob("rank-?-0.json"))) == 3, what="the ranks", timeout_s=60)
    lost = slurm.job(job.number)["BatchHost"]
    orphans = slurm.kill_node(lost, power=False)
    (script,) = (orphan for orphan in orphans if any("slurm_script" in word for word in orphan.cmdline()))
    script.suspend()
    try:
        slurm.await_(
            lambda: len(list(job.run_dir.glob("rank-?-1.json"))) == 3, what="the next start", timeout_s=90
        )
        script.resume()
        slurm.await_(lambda: not any(map(_lives, orphans)), what="the orphans to end", timeout_s=120)
        assert (job.state(), job.restarts) == ("RUNNING", 1)
        slurm.run("scancel", job.number)
        assert job.await_end() == "CANCELLED"
    finally:
        slurm.repair_node(lost)


def _lives(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
