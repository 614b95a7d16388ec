"""Two teachers at once: in the student's process and behind three teacher ranks, in every way of joining them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import undocumented_keys, undocumented_tags
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Started, World, last_json, launch, running, start_ranks, trace
from transformers import AutoModelForSequenceClassification

from distill_dist.data.collate import collate
from distill_dist.data.shards import open_split
from e2e.test_mistakes import assert_one_message, other_vocabulary
from e2e.test_teacher_cache import counters_of

pytestmark = pytest.mark.timeout(600)
STEPS = 50


@pytest.fixture(scope="module")
def second(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first teacher with noise on every weight, and a bias by which it gives half of the rows to class 0.

    Trained a second time it would predict what the first one does on every row.
    """
    folder = tmp_path_factory.mktemp("second") / "model"
    shutil.copytree(world.teacher_run / "model", folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    rows = collate(open_split(world.prepared, "train").read(np.arange(64)), pad_token_id=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * weight.std(unbiased=False) * torch.randn(weight.shape, generator=generator)
        ids_BL, mask_BL, types_BL = rows.inputs
        logits_BC = model(input_ids=ids_BL, attention_mask=mask_BL, token_type_ids=types_BL).logits
        model.classifier.bias[0] += (logits_BC[:, 1:].amax(dim=1) - logits_BC[:, 0]).median()
    model.save_pretrained(folder)
    return folder


def arguments_of(world: World, second: Path, run_dir: Path, *more: str) -> list[str]:
    """One epoch of GKD-CLS; the student is cut from the first teacher."""
    pool = f"teachers=[{{path: {world.teacher_run}/model, weight: 2}}, {{path: {second}}}]"
    whole = world.student(run_dir, "method=gkd_cls", "train.trace=true", "train.epochs=1", pool, *more)
    return [argument for argument in whole if not argument.startswith("teacher.path=")]


def ran(arguments: list[str], *, size: int, logs: Path) -> Started:
    with running(start_ranks(arguments, size=size, logs=logs)) as ranks:
        assert ranks.wait() == [0] * size, ranks.text()
    return ranks


def test_in_process_and_behind_three_ranks(world: World, second: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    ran(arguments_of(world, second, here), size=1, logs=tmp_path / "logs-here")
    ran(arguments_of(world, second, there, "cluster.teachers=3"), size=4, logs=tmp_path / "logs-there")
    assert len(trace(here)) == STEPS
    assert trace(here) == trace(there)
    summaries = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in (here, there)]
    for key in ("student", "loyalty", "conflict", "best_step"):
        assert summaries[0][key] == summaries[1][key], key
    # ranks 1 and 3 serve the first model, rank 2 the second; every row of an epoch, and dev for two questions
    rows = [counters_of(there, rank)["computed_rows"] for rank in (1, 2, 3)]
    assert rows[1] == rows[0] + rows[2] >= 400
    assert min(rows) > 0
    assert_told(there, second)
    done = launch("evaluate.py", ["--run", str(there)], logs=tmp_path / "logs-evaluate")
    assert done.processes[0].returncode == 0, done.text()
    found, summary = last_json(done.stdout()), summaries[1]
    assert found["teacher"]["accuracy"] == summary["teacher"]["accuracy"]
    assert found["loyalty"]["ll"] == summary["loyalty"]["ll"]

    swapped = f"teachers=[{{path: {second}}}, {{path: {world.teacher_run}/model}}]"
    again = launch("train.py", [*arguments_of(world, second, here), swapped], logs=tmp_path / "logs-again")
    assert again.processes[0].returncode == 2, again.text()
    assert "was written by another run" in again.stderr()
    assert "teachers: [{'path'" in again.stderr()


def assert_told(run_dir: Path, second: Path) -> None:
    """What the summary, TensorBoard and the log say of the two."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    teacher, conflict = summary["teacher"], summary["conflict"]
    models = teacher["models"]
    assert teacher["combine"] == "average"
    assert [model["weight"] for model in models] == pytest.approx([2 / 3, 1 / 3])
    assert models[1]["path"] == str(second)
    assert teacher["parameters"] == sum(model["parameters"] for model in models)
    assert 0 < models[0]["loss"] != models[1]["loss"] > 0
    # who disagree on a dev row cannot both be right, so accuracies differ by no more
    assert abs(models[0]["accuracy"] - models[1]["accuracy"]) <= teacher["label_disagreement"] < 1
    assert 0 < conflict["label_disagreement"] < 1
    assert -1 < conflict["gradient_cosine"] < 1
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert undocumented_keys(summary) == []
    tags = set(events.Tags()["scalars"])
    assert undocumented_tags(tags) == []
    assert {f"wire/bytes_per_row/teacher_{model}" for model in (0, 1)} <= tags
    assert all(model["wire_report"]["bytes_per_row"] > 100 for model in models)
    shares = events.Scalars("conflict/label_disagreement")
    assert [event.step for event in shares] == list(range(5, STEPS + 1, 5))
    # intervals of 5 steps of 8 rows, all rows once
    assert math.isclose(
        sum(e.value for e in shares) / len(shares), conflict["label_disagreement"], rel_tol=1e-5
    )
    assert events.Scalars("conflict/gradient_cosine")
    log = (run_dir / "logs" / "rank-00000.log").read_text(encoding="utf-8")
    assert f"step {STEPS}: conflict: the teachers' labels differ on" in log


@pytest.mark.parametrize("combine", [pytest.param("best", marks=pytest.mark.long), "separate"])
def test_other_ways_of_joining(world: World, second: Path, tmp_path: Path, combine: str) -> None:
    """With the probe before the first step; other losses than the average's."""
    here, there, average = tmp_path / "here", tmp_path / "there", tmp_path / "average"
    more = (f"teacher.combine={combine}", "train.max_steps=6")
    ran(arguments_of(world, second, here, *more), size=1, logs=tmp_path / "logs-here")
    ran(arguments_of(world, second, there, *more, "cluster.teachers=2"), size=4, logs=tmp_path / "logs-there")
    ran(arguments_of(world, second, average, more[1]), size=1, logs=tmp_path / "logs-average")
    # two students here, one there: the same global batches, up to the order of summation
    losses = [loss_of(trace(run)[0]["sums"]) for run in (here, average)]
    assert all(losses[0][name] != losses[1][name] for name in losses[0] if name != "cross_entropy")
    both = [loss_of(trace(there, student)[0]["sums"]) for student in (0, 1)]
    assert_own_losses(here, combine)
    for name, value in losses[0].items():
        assert both[0][name] + both[1][name] == pytest.approx(value, rel=1e-4), name


def assert_own_losses(run_dir: Path, combine: str) -> None:
    """Separate terms are shown for each teacher, and their weighted mean is the term."""
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert undocumented_tags(tags) == []
    own = {tag for tag in tags if tag.endswith(("/teacher_0", "/teacher_1")) and tag.startswith("loss/")}
    log = (run_dir / "logs" / "rank-00000.log").read_text(encoding="utf-8")
    if combine == "best":
        assert not own
        assert ": distillation: " not in log
        return
    for tag in {tag.rpartition("/")[0] for tag in own}:
        whole, first, second = (
            [event.value for event in events.Scalars(name)]
            for name in (tag, f"{tag}/teacher_0", f"{tag}/teacher_1")
        )
        assert first != second
        assert whole == pytest.approx(
            [(2 * a + b) / 3 for a, b in zip(first, second, strict=True)], rel=1e-5
        ), tag
    assert len(own) == 2 * 4
    assert ": distillation: " in log


def loss_of(sums: dict[str, float]) -> dict[str, float]:
    assert {"distillation", "patience", "gradient_embedding", "gradient_cls"} <= sums.keys()
    return sums


def test_a_filled_cache_teaches_for_every_model(world: World, second: Path, tmp_path: Path) -> None:
    cached = (f"teacher.cache_dir={tmp_path}/cache", "cluster.teachers=2", "train.max_steps=10")
    arguments = arguments_of(world, second, tmp_path / "run", *cached)
    done = launch("cache_teacher.py", arguments, logs=tmp_path / "logs-fill")
    assert done.processes[0].returncode == 0, done.text()
    found = last_json(done.stdout())
    # 400 rows of train, 60 of dev for logits and for saliency, of each model
    assert (found["rows"], found["cached"]) == (2 * 520, 0)
    assert len({about["fingerprint"] for about in found["teachers"]}) == 2
    ran(arguments, size=3, logs=tmp_path / "logs")
    for rank in (1, 2):
        counters = counters_of(tmp_path / "run", rank)
        assert counters.get("computed_rows", 0) == 0
        assert counters["disk_hits"] > 0


def test_a_teacher_of_another_vocabulary_is_refused(world: World, second: Path, tmp_path: Path) -> None:
    other = other_vocabulary(second, tmp_path / "other")
    arguments = arguments_of(world, other, tmp_path / "run", "cluster.teachers=2")
    with running(start_ranks(arguments, size=3, logs=tmp_path / "logs")) as ranks:
        assert_one_message(ranks, "teachers[1]: ", "vocabulary")
