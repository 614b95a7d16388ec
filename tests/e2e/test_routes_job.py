"""Matched gradients through the launchers: ZeRO 3, the other route, narrower students, the probe's refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Started, World, running, start_deepspeed, start_ranks, state
from transformers import AutoModelForSequenceClassification

from e2e.conftest import Reference
from e2e.test_interrupted import newest_checkpoint

pytestmark = pytest.mark.timeout(600)
TEACHER = ("cluster.teachers=1", "method=gkd_cls")


def summary(run_dir: Path) -> dict[str, Any]:
    found = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def small_zero3(folder: Path) -> str:
    """ZeRO 3 in which no weight is small enough to stay whole; offloaded to the CPU, as where it is needed."""
    path = folder / "zero3.json"
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    }
    path.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    return f"deepspeed_config={path}"


def finished(started: Started) -> Started:
    """It ended well."""
    with running(started):
        assert set(started.wait()) == {0}, started.text()
    return started


@pytest.mark.parametrize(
    "route", ["double_backward", pytest.param("central_difference", marks=pytest.mark.long)]
)
def test_zero_3_gives_the_run_of_zero_1(
    world: World, reference: Reference, tmp_path: Path, route: str
) -> None:
    arguments = [*TEACHER, small_zero3(tmp_path), f"alignment.route={route}"]
    finished(start_ranks(world.student(tmp_path / "run", *arguments), size=3, logs=tmp_path / "logs"))
    found, expected = summary(tmp_path / "run"), summary(reference.run_dir)
    assert (found["zero_stage"], found["steps"]) == (3, expected["steps"])
    assert found["alignment"]["route"] == route
    assert found["alignment"]["probe"]["aligned_error"] < 0.02
    # AdamW enlarges the last bits, and what a difference leaves out, over 100 steps; a lost moment does more
    assert found["best_step"] == expected["best_step"]
    assert found["student"]["loss"] == pytest.approx(expected["student"]["loss"], rel=0.01)
    assert found["loyalty"]["pl"] == pytest.approx(expected["loyalty"]["pl"], abs=0.01)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert sum(p.numel() for p in model.parameters()) == found["student"]["parameters"]


@pytest.mark.long
def test_a_run_at_zero_3_stopped_and_resumed_is_the_undisturbed_one(world: World, tmp_path: Path) -> None:
    common = (*TEACHER, small_zero3(tmp_path), "train.epochs=1", "evaluate.saliency=false")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    finished(start_ranks(world.student(whole, *common), size=3, logs=tmp_path / "logs-1"))
    for number, more in ((2, ["train.max_steps=20"]), (3, [])):
        finished(start_ranks(world.student(halves, *common, *more), size=3, logs=tmp_path / f"logs-{number}"))
    one, other = (newest_checkpoint(folder) for folder in (whole, halves))
    assert one[0] == other[0] == 50
    assert one[1].keys() == other[1].keys()
    assert any(name.startswith("exp_avg_sq/") for name in one[1])
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_a_narrower_student_with_every_other_term(world: World, tmp_path: Path) -> None:
    """ELECTRA's shape on the teacher's embeddings, every class, attributions and noise, labels over the wire."""
    arguments = world.student(
        tmp_path / "run", *TEACHER, "student.architecture=electra", "student.layers=null",
        "student.shape.hidden_size=16", "student.shape.num_hidden_layers=2", "student.shape.num_attention_heads=2",
        "student.shape.intermediate_size=32", "alignment.signal=all_classes", "weight.attribution=0.5",
        "weight.noise=0.5", "train.max_steps=20",
    )  # fmt: skip
    finished(start_deepspeed(arguments, size=3, logs=tmp_path / "logs"))
    found = summary(tmp_path / "run")
    assert found["alignment"]["signal"] == "all_classes"
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not any("width_maps" in name for name in weights)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "model", output_loading_info=True
    )
    assert (model.config.model_type, model.config.hidden_size) == ("electra", 16)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    # and it goes on, maps and all
    more = [argument for argument in arguments if not argument.startswith("train.max_steps")]
    finished(start_deepspeed([*more, "train.max_steps=30"], size=3, logs=tmp_path / "logs-2"))
    assert summary(tmp_path / "run")["steps"] == 30


def test_the_probe_stops_a_run_above_its_tolerance(world: World, tmp_path: Path) -> None:
    arguments = world.student(
        tmp_path / "run", *TEACHER, "alignment.route=central_difference", "alignment.tolerance=1e-9"
    )
    with running(start_ranks(arguments, size=3, logs=tmp_path / "logs")) as ranks:
        codes = ranks.wait()
    assert codes[:2] == [2, 2], ranks.text()
    text = ranks.stderr(0)
    assert "Traceback" not in ranks.text()
    for word in ("the probe found a wrong gradient", "central_difference", "ZeRO 1", "student.attention"):
        assert word in text, ranks.text()
    assert state(tmp_path / "run")["state"] == "failed"
    assert not (tmp_path / "run" / "checkpoints").exists() or not any(
        (tmp_path / "run" / "checkpoints").iterdir()
    )
