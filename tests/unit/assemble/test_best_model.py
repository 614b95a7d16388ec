from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from distill_dist.assemble.best_model import check_best
from distill_dist.durable import sha256_file, write_json
from distill_dist.errors import UserError


def exported(model: Path, *, step: int) -> dict[str, Any]:
    model.mkdir(exist_ok=True)
    weights = model / "model.safetensors"
    weights.write_bytes(b"weights of step %d" % step)
    record = {"step": step, "value": step / 1000, "sha256": sha256_file(weights)}
    write_json(model / "best_epoch.json", record)
    return record


def test_whole_or_none_yet(tmp_path: Path) -> None:
    best = exported(tmp_path / "model", step=50)
    assert check_best({"step": 100, "best": best}, tmp_path / "model", max_steps=0) == best
    assert check_best({"step": 10, "best": None}, tmp_path / "nowhere", max_steps=0) is None


@pytest.mark.parametrize("how", ["flip", "delete", "another run's"])
def test_damage_is_named_before_training(tmp_path: Path, how: str) -> None:
    best = exported(tmp_path / "model", step=50)
    path = tmp_path / "model" / "model.safetensors"
    if how == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif how == "delete":
        path.unlink()
    else:
        exported(tmp_path / "model", step=40)
    with pytest.raises(UserError, match=rf"{path}, the best epoch so far, is damaged or missing"):
        check_best({"step": 50, "best": best}, tmp_path / "model", max_steps=0)


def test_an_export_whose_checkpoint_never_came_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = exported(tmp_path / "model", step=50)
    exported(tmp_path / "model", step=100)
    progress = {"step": 90, "best": best}
    with caplog.at_level(logging.WARNING):
        assert check_best(progress, tmp_path / "model", max_steps=0) is None
    assert "is of step 100, which is still to come" in caplog.text
    with pytest.raises(UserError):
        check_best(progress, tmp_path / "model", max_steps=90)  # no step will write it again
