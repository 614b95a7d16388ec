from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoders import tiny_encoder

from distill_dist.durable import sha256_file
from distill_dist.errors import Interrupted, UserError
from distill_dist.invocation import command_typed
from distill_dist.run_folder import RunFolder, versions


def state(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder.path / "state.json").read_text(encoding="utf-8"))
    assert found.pop("time") > 1e9
    return found


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "deep" / "run")


def run(folder: RunFolder, error: BaseException | None, *, writes: bool = True) -> None:
    with folder.verdict(writes=writes):
        if writes:
            assert state(folder)["state"] == "running"
        if error is not None:
            raise error


def test_a_copy_of_the_folder_is_not_the_folder(folder: RunFolder, tmp_path: Path) -> None:
    first = folder.claim()
    shutil.copytree(folder.path, tmp_path / "copy")
    second = folder.claim()
    assert first != second
    assert folder.has_mark(second, timeout_s=0)
    assert not RunFolder(tmp_path / "copy").has_mark(second, timeout_s=0)
    assert not RunFolder(tmp_path / "empty").has_mark(second, timeout_s=0)


def test_done(folder: RunFolder) -> None:
    run(folder, None)
    assert state(folder) == {"state": "done"}


def test_stopped_in_good_order(folder: RunFolder) -> None:
    with pytest.raises(Interrupted):
        run(folder, Interrupted("stopped by a signal after step 3"))
    assert state(folder) == {
        "state": "stopped",
        "resumable": True,
        "reason": "stopped by a signal after step 3",
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no"), "ValueError: no"),
        (UserError("bad key"), "UserError: bad key"),
    ],
)
def test_failed(folder: RunFolder, error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)):
        run(folder, error)
    assert state(folder) == {"state": "failed", "resumable": False, "reason": reason}


def test_another_rank_speaks_when_it_was_interrupted(folder: RunFolder) -> None:
    """The first may be the one that died."""
    folder.set_state("running", process=1)
    run(folder, None, writes=False)
    assert state(folder) == {"state": "running", "process": 1}
    with pytest.raises(Interrupted):
        run(folder, Interrupted("lost rank 0"), writes=False)
    assert state(folder)["state"] == "stopped"


def test_what_failed_on_any_rank_stands(folder: RunFolder) -> None:
    """Who lost the rank that failed, or hears from it what is wrong, says nothing over it."""
    hearsay = UserError("another student says what is wrong")
    hearsay.said = True
    for error in (Interrupted("lost rank 1"), hearsay):
        with contextlib.suppress(type(error)), folder.verdict(writes=True):
            with pytest.raises(ValueError, match="no"):
                run(folder, ValueError("no"), writes=False)
            raise error
        assert state(folder) == {"state": "failed", "resumable": False, "reason": "ValueError: no"}


def test_hearsay_is_a_verdict_until_the_other_speaks(folder: RunFolder) -> None:
    hearsay = UserError("another student says what is wrong")
    hearsay.said = True
    with pytest.raises(UserError):
        run(folder, hearsay)
    assert state(folder)["reason"] == "UserError: another student says what is wrong"
    with pytest.raises(UserError):
        run(folder, UserError("shard 3 is damaged"), writes=False)
    assert state(folder)["reason"] == "UserError: shard 3 is damaged"


def test_a_refused_run_leaves_its_verdict_but_not_over_an_earlier_one(folder: RunFolder) -> None:
    folder.refuse(UserError("teacher.path=nowhere: no such folder"))
    refused = {
        "state": "failed",
        "resumable": False,
        "reason": "UserError: teacher.path=nowhere: no such folder",
        "refused": True,
    }
    assert state(folder) == refused
    folder.refuse(UserError("another reason"))
    assert state(folder) == {**refused, "reason": "UserError: another reason"}
    folder.model.mkdir()
    with pytest.raises(UserError, match="no run of ours wrote"):
        folder.claim()  # a run that was refused wrote no model
    folder.model.rmdir()
    run(folder, None)
    folder.refuse(UserError("train.learning_rate: 0.001 -> 0.002"))
    assert state(folder) == {"state": "done"}


def test_ctrl_c_can_be_resumed(folder: RunFolder) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, KeyboardInterrupt())
    assert state(folder) == {"state": "stopped", "resumable": True, "reason": "KeyboardInterrupt"}


def test_a_full_disk_can_be_resumed(folder: RunFolder) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/somewhere/events")
    with pytest.raises(Interrupted, match="nothing more can be written to /somewhere/events: No space left"):
        run(folder, error)
    assert (state(folder)["state"], state(folder)["resumable"]) == ("stopped", True)
    with pytest.raises(FileNotFoundError):
        run(folder, FileNotFoundError(errno.ENOENT, "No such file"))
    assert state(folder)["state"] == "failed"


def test_a_verdict_that_cannot_be_written_hides_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, value: Any) -> None:
        if value["state"] != "running":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distill_dist.run_folder.write_json", full)
    with pytest.raises(Interrupted, match="why"), folder.verdict(writes=True):
        raise Interrupted("why")
    assert "No space left" in caplog.text


def test_a_strangers_model_is_refused(folder: RunFolder) -> None:
    folder.model.mkdir()
    with pytest.raises(UserError, match=r"run_dir=.* holds a folder `model` that no run of ours wrote"):
        folder.claim()
    (folder.path / "config.yaml").write_text("name: theirs\n", encoding="utf-8")
    with pytest.raises(UserError, match="no run of ours wrote"):
        folder.claim()
    folder.describe(config_yaml="run_dir: x\n", deepspeed_json={})
    folder.claim()
    (folder.path / "config.yaml").unlink()
    folder.set_state("stopped")
    folder.claim()


def test_claiming_tidies_up(folder: RunFolder) -> None:
    folder.set_state("running")
    folder.checkpoints.mkdir()
    dead = 2**22 + 1  # above the largest process id that Linux gives
    left = (
        folder.path / ".model.old",
        folder.path / f".model.{dead}.tmp",
        folder.checkpoints / ".step-00000020.old",
        folder.checkpoints / f".step-00000040.{dead}.tmp",
    )
    for path in left:
        path.mkdir()
    state_json = folder.path / f".state.json.{dead}.tmp"
    state_json.write_text("", encoding="utf-8")
    folder.claim()
    assert not any(path.exists() for path in (*left, state_json))
    assert folder.model.is_dir()
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000020"]


def test_a_run_that_died_without_a_word_gets_its_verdict(folder: RunFolder) -> None:
    folder.set_state("running", process=123)
    folder.claim()
    assert state(folder) == {
        "state": "stopped",
        "resumable": True,
        "reason": "process 123 ended without a word",
    }


HOLDER = """
import os, sys, time
from pathlib import Path
from distill_dist.run_folder import RunFolder
RunFolder(Path(sys.argv[1])).claim()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def test_one_run_at_a_time_until_it_dies(folder: RunFolder) -> None:
    """Killed, it leaves no lock, not even where a child of it lives on."""
    command = [sys.executable, "-c", HOLDER, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(
                UserError, match=rf"in use by another run \(process {holder.pid} on {socket.gethostname()}\)"
            ):
                folder.claim()
            holder.kill()
            holder.wait()
            os.kill(child, 0)
            folder.claim()
        finally:
            holder.kill()
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"run_dir=.*/file/run cannot be made: Not a directory"):
        RunFolder(tmp_path / "file" / "run")


def test_what_runs_is_described(folder: RunFolder) -> None:
    folder.describe(config_yaml="seed: 0\n", deepspeed_json={"zero_optimization": {"stage": 1}})
    assert (folder.path / "config.yaml").read_text(encoding="utf-8") == "seed: 0\n"
    found = json.loads((folder.path / "deepspeed.json").read_text(encoding="utf-8"))
    assert found == {"zero_optimization": {"stage": 1}}
    assert json.loads((folder.path / "versions.json").read_text(encoding="utf-8")) == versions()
    started = json.loads((folder.path / "command.json").read_text(encoding="utf-8"))
    assert started["folder"] == os.getcwd()
    assert started["command"] == command_typed()
    first = {"command": ["deepspeed", "x"], "folder": "/somewhere"}
    (folder.path / "command.json").write_text(json.dumps(first), encoding="utf-8")
    for config, expected in (
        ("seed: 0\n", first),
        ("seed: 1\n", started),
    ):  # it goes on; it goes on otherwise
        folder.describe(config_yaml=config, deepspeed_json={})
        assert json.loads((folder.path / "command.json").read_text(encoding="utf-8")) == expected


def test_a_configuration_that_cannot_be_written_leaves_the_one_before(folder: RunFolder) -> None:
    folder.describe(config_yaml="seed: 0\n", deepspeed_json={})
    with pytest.raises(UnicodeEncodeError):  # in the middle of the write
        folder.describe(config_yaml="seed: 1\n" * 10_000 + "\udcff", deepspeed_json={})
    assert (folder.path / "config.yaml").read_text(encoding="utf-8") == "seed: 0\n"


def test_versions_name_what_computes() -> None:
    found = versions()
    assert {"python", "distill-dist", "torch", "deepspeed", "transformers", "webdataset"} <= found.keys()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_export_is_a_loadable_folder_with_the_given_weights(folder: RunFolder, tmp_path: Path) -> None:
    def save_tokenizer(place: Path) -> None:
        (place / "tokenizer.json").write_text("{}", encoding="utf-8")

    model = tiny_encoder(dtype=torch.float32)
    for factor in (1.0, 2.0):  # the second replaces the first
        weights = {name: factor * tensor.clone() for name, tensor in model.state_dict().items()}
        record = folder.export(model, weights, save_tokenizer, best={"step": 50, "value": factor})
    found = load_file(folder.model / "model.safetensors")
    assert torch.equal(found["classifier.weight"], 2 * model.classifier.weight)
    assert (folder.model / "tokenizer.json").read_text(encoding="utf-8") == "{}"
    assert (folder.model / "config.json").exists()
    assert json.loads((folder.model / "best_epoch.json").read_text(encoding="utf-8")) == record
    assert record == {
        "step": 50,
        "value": 2.0,
        "sha256": sha256_file(folder.model / "model.safetensors"),
        "files": {name: sha256_file(folder.model / name) for name in ("config.json", "tokenizer.json")},
    }
    again = type(model).from_pretrained(folder.model)
    assert torch.equal(again.classifier.weight, 2 * model.classifier.weight)


@pytest.fixture
def quiet_logging() -> Iterator[None]:
    """``log_to_file`` takes over the root logger; give it back."""
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level, logging.raiseExceptions = handlers, level, raising


@pytest.mark.usefixtures("quiet_logging")
@pytest.mark.parametrize("rank", [0, 3])
def test_a_log_per_rank(folder: RunFolder, rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder.log_to_file(rank)
    ours, theirs = logging.getLogger("distill_dist.trainer"), logging.getLogger("somebody")
    ours.info("a step")
    ours.warning("a warning")
    theirs.info("chatter")
    theirs.warning("their warning")
    text = (folder.path / "logs" / f"rank-0000{rank}.log").read_text(encoding="utf-8")
    assert [word in text for word in ("a step", "a warning", "chatter", "their warning")] == [
        True,
        True,
        False,
        True,
    ]
    console = capsys.readouterr().err
    assert ("a step" in console) == (rank == 0)
    assert f"[rank {rank}] a warning" in console
    assert "\x1b" not in console, "a file is not cleared"


@pytest.mark.usefixtures("quiet_logging")
def test_on_a_terminal_a_message_clears_the_progress_bar_first(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    folder.log_to_file(1)
    sys.stderr.write("\rtrain:  12%|#")  # of rank 0, on the same terminal
    logging.getLogger("distill_dist.trainer").warning("a warning")
    assert capsys.readouterr().err == "\rtrain:  12%|#\r\x1b[2K[rank 1] a warning\n"
    assert "\x1b" not in (folder.path / "logs" / "rank-00001.log").read_text(encoding="utf-8")
