"""Run folders are found and read; what is missing is empty, what is damaged is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import environment

from distill_dist.durable import sha256_file
from distill_dist.errors import UserError
from distill_dist.hub import weights_digest
from distill_dist.report.run_record import (
    best_dev,
    by_number,
    find_runs,
    last_step,
    number_at,
    read_run,
    value_at,
)
from distill_dist.run_folder import BEST


def run_folder(path: Path, **files: Any) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        suffix = "yaml" if name == "config" else "json"
        (path / f"{name}.{suffix}").write_text(text, encoding="utf-8")
    return path


def test_runs_are_found_below_and_each_once(tmp_path: Path) -> None:
    deep = run_folder(tmp_path / "sweep" / "a" / "0", state={"state": "done"})
    # the model's own config is no run's
    (deep / "model").mkdir()
    (deep / "model" / "summary.json").write_text("{}")
    near = run_folder(tmp_path / "b", config="method: kd\n")
    run_folder(tmp_path / ".hidden", state={})
    (tmp_path / "empty").mkdir()
    assert find_runs([tmp_path, near]) == [near, deep]
    # a sweep has a summary of its own, and its trials are what counts
    run_folder(tmp_path / "c", summary={"best": 0}, trials={})
    trial = run_folder(tmp_path / "c" / "0-kd", state={})
    assert find_runs([tmp_path / "c"]) == [trial]


def test_what_holds_runs_is_none_and_neither_are_copies_of_a_configuration(tmp_path: Path) -> None:
    for marker in ("trials.json", "spent.json"):
        folder = tmp_path / marker[:-5]
        (folder / "block" / "run").mkdir(parents=True)
        for path in (folder / "summary.json", folder / marker, folder / "block" / "run" / "state.json"):
            path.write_text("{}")
    refused = tmp_path / "refused" / "jobs" / "20261128"
    refused.mkdir(parents=True)
    (refused / "config.yaml").write_text("run_dir: x")
    found = find_runs([tmp_path])
    assert found == [tmp_path / name / "block" / "run" for name in ("spent", "trials")]


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_a_place_without_runs_is_the_users_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        find_runs([tmp_path / name])


def test_a_finished_run(tmp_path: Path) -> None:
    summary = {
        "task": "sst2",
        "method": "kd",
        "seed": 3,
        "steps": 90,
        "student": {"accuracy": 0.9, "f1": None},
    }
    run = read_run(
        run_folder(
            tmp_path / "r",
            state={"state": "done", "time": 5.0},
            summary=summary,
            config="method: kd\ndata: {task: sst2}\n",
            versions={"torch": "2"},
            command={"command": ["python", "x y"]},
        )
    )
    assert (run.state, run.method, run.task, run.seed, run.done) == ("done", "kd", "sst2", 3, True)
    assert (last_step(run), best_dev(run), run.changed) == (90, 0.9, 5.0)
    assert (run.command, run.versions, run.problems) == (("python", "x y"), {"torch": "2"}, [])


def test_before_the_end_the_configuration_and_the_newest_files_tell(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "r", config="method: gkd\nseed: 1\ndata: {source: synthetic_nli}\n"))
    assert (run.method, run.task, run.seed, run.state, run.done) == (
        "gkd",
        "synthetic_nli",
        1,
        "unknown",
        False,
    )
    assert (last_step(run), best_dev(run)) == (None, None)
    for step in (90, 100):
        (run.path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (run.path / "model").mkdir()
    (run.path / "model" / "best_epoch.json").write_text('{"step": 90, "value": 0.7}')
    assert (last_step(run), best_dev(run)) == (100, 0.7)
    config = "method: gkd\nevaluate: {select_on: tune}\n"
    (run.path / "config.yaml").write_text(config)
    assert best_dev(read_run(run.path)) is None, "what is noted is of tune"


def test_an_evaluation_of_another_model_is_not_the_runs(tmp_path: Path) -> None:
    """The run went on, say, and found a better epoch."""
    path = run_folder(tmp_path / "r", config="method: kd\n")
    (path / "model").mkdir()
    (path / "model" / "model.safetensors").write_bytes(b"weights")
    (path / "model" / BEST).write_text(
        json.dumps({"sha256": sha256_file(path / "model" / "model.safetensors")})
    )
    record = {"models": {"student": {"sha256": weights_digest(path / "model")}}, "splits": {}}
    (path / "evaluation.json").write_text(json.dumps(record))
    assert (read_run(path).evaluation, read_run(path).problems) == (record, [])
    (path / "model" / BEST).write_text(json.dumps({"sha256": "0" * 64}))
    found = read_run(path)
    assert found.evaluation == {}
    assert found.problems == ["evaluation.json is of another model than the run's own"]


def test_a_run_that_has_ended_is_as_old_as_it_says(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "r", state={"state": "done", "time": 5.0})
    (path / "logs").mkdir()
    (path / "logs" / "rank-00000.log").write_text("copied just now")
    assert read_run(path).changed == 5.0
    (path / "state.json").write_text('{"state": "running", "time": 5.0}')
    assert read_run(path).changed > 5.0


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff", '"text"', "[" * 100_000], ids=range(6))
@pytest.mark.parametrize("name", ["state", "summary", "versions", "command", "evaluation"])
def test_damaged_files_are_named_and_not_fatal(tmp_path: Path, name: str, content: str) -> None:
    path = run_folder(tmp_path / "r", config="method: kd\n")
    (path / f"{name}.json").write_text(content, encoding="latin-1")
    run = read_run(path)
    assert [text.startswith(f"{name}.json") for text in run.problems] == [True]
    assert (run.method, run.seed, last_step(run), best_dev(run)) == ("kd", None, None, None)


@pytest.mark.parametrize("content", ["", "a: [", "- 1", "\xff", "[" * 100_000], ids=range(5))
def test_a_damaged_configuration_is_named_and_not_fatal(tmp_path: Path, content: str) -> None:
    path = run_folder(tmp_path / "r", state={"state": "done"})
    (path / "config.yaml").write_text(content, encoding="latin-1")
    run = read_run(path)
    assert [text.startswith("config.yaml") for text in run.problems] == [True]
    assert (run.method, run.seed, run.state) == ("?", None, "done")


def test_values_of_other_types_are_not_taken(tmp_path: Path) -> None:
    odd = {"method": 3, "task": None, "seed": "x", "steps": [], "student": {"accuracy": "high"}}
    run = read_run(run_folder(tmp_path / "r", summary=odd, versions=[], command={"command": "text"}))
    assert (run.method, run.task, run.seed, last_step(run), best_dev(run)) == ("?", "?", None, None, None)
    assert run.command == ()


@pytest.mark.parametrize("content", ["a: &b\n  c: *b\n", "a: &b [1]\nc: *b\n"], ids=["of itself", "harmless"])
def test_a_configuration_with_aliases_is_none_that_a_run_wrote(tmp_path: Path, content: str) -> None:
    run = read_run(run_folder(tmp_path / "r", config=content))
    assert run.config == {}
    assert run.problems == ["config.yaml cannot be read: it has aliases (*name), which no run writes"]
    assert read_run(run_folder(tmp_path / "s", config="a: '2 * 3'\n")).config == {"a": "2 * 3"}


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    whole, half = '{"task": "\\ud83d\\ude00"}', '{"task": "\\uD83D"}'
    assert read_run(run_folder(tmp_path / "r", summary=whole)).task == "\U0001f600"
    run = read_run(run_folder(tmp_path / "s", summary=half))
    assert run.summary == {}
    assert run.problems[0].startswith("summary.json cannot be read")


def test_a_yaml_tag_makes_no_object(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "r", config="a: !!python/object/apply:os.getcwd []\n"))
    assert run.config == {}
    assert run.problems[0].startswith("config.yaml cannot be read")


HOLD = """
import sys
from pathlib import Path
from distill_dist.durable import hold_lock
hold_lock(Path(sys.argv[1]))
print(1, flush=True)
sys.stdin.read()
"""


def test_a_run_whose_process_is_gone_is_lost(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "r", state={"state": "running"})
    assert read_run(path).state == "lost"
    command = [sys.executable, "-c", HOLD, str(path / ".lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert read_run(path).state == "running"
        # asked, not taken: the holder still has it
        assert read_run(path).state == "running"
        holder.kill()
    assert read_run(path).state == "lost"


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        ({"state": "failed", "refused": True, "reason": "UserError: no rows"}, "refused"),
        ({"state": "failed", "reason": "RuntimeError: odd"}, "failed"),
        ({"state": "stopped", "refused": True}, "stopped"),  # a signal before it began: it can go on
    ],
)
def test_a_run_that_never_began_was_refused(tmp_path: Path, state: dict[str, Any], seen: str) -> None:
    assert read_run(run_folder(tmp_path / "r", state=state)).state == seen


def test_ways_into_trees() -> None:
    tree = {"a": {"b": 1, "c": True, "d": None}}
    assert (value_at(tree, "a", "b"), value_at(tree, "a", "b", "x"), value_at(None, "a")) == (1, None, None)
    assert [number_at(tree, "a", name) for name in "bcdx"] == [1.0, None, None, None]


def test_numbers_in_names_count() -> None:
    assert sorted(["run-10", "run-9", "a", "run"], key=by_number) == ["a", "run", "run-9", "run-10"]
