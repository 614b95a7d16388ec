from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoders import tiny_encoder

from distill_dist.errors import Interrupted, UserError
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
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
    ],
)
def test_failed(folder: RunFolder, error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)):
        run(folder, error)
    assert state(folder) == {"state": "failed", "resumable": False, "reason": reason}


def test_another_rank_speaks_only_when_it_was_interrupted(folder: RunFolder) -> None:
    """The first may be the one that died; a verdict of its own must not be overwritten."""
    folder.set_state("running", process=1)
    run(folder, None, writes=False)
    with pytest.raises(ValueError, match="no"):
        run(folder, ValueError("no"), writes=False)
    assert state(folder) == {"state": "running", "process": 1}
    with pytest.raises(Interrupted):
        run(folder, Interrupted("lost rank 0"), writes=False)
    assert state(folder)["state"] == "stopped"


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


def test_versions_name_what_computes() -> None:
    found = versions()
    assert {"python", "distill-dist", "torch", "deepspeed", "transformers", "webdataset"} <= found.keys()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_export_is_a_loadable_folder_with_the_given_weights(folder: RunFolder, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}", encoding="utf-8")
    model = tiny_encoder(dtype=torch.float32)
    for factor in (1.0, 2.0):  # the second replaces the first
        weights = {name: factor * tensor.clone() for name, tensor in model.state_dict().items()}
        folder.export(model, weights, tokenizer)
    found = load_file(folder.model / "model.safetensors")
    assert torch.equal(found["classifier.weight"], 2 * model.classifier.weight)
    assert (folder.model / "tokenizer.json").read_text(encoding="utf-8") == "{}"
    assert (folder.model / "config.json").exists()
    again = type(model).from_pretrained(folder.model)
    assert torch.equal(again.classifier.weight, 2 * model.classifier.weight)


@pytest.fixture
def quiet_logging() -> Iterator[None]:
    """``log_to_file`` takes over the root logger; give it back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level


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
