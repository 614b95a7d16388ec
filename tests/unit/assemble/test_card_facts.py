"""What the card says of data, settings and limits, for runs of several kinds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill_dist.assemble import card_facts
from distill_dist.assemble.card_facts import architecture, gather
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import Manifest, SplitEntry, manifest_hash
from distill_dist.export.facts import CardFacts
from distill_dist.report.run_record import RunRecord

SCORES = {"accuracy": 0.9, "loss": 0.3, "f1": 0.8, "ll": 0.95, "pl": 0.9}
SUMMARY = {
    "task": "qqp", "steps": 100, "best_step": 50, "splits": {"dev": SCORES, "tune": SCORES},
    "teacher": {"accuracy": 0.92, "f1": 0.83, "parameters": 10}, "loyalty": {"ll": 0.95, "sl_spearman_norm": None},
}  # fmt: skip
HUB = {"path": "owner/rows", "revision": "abc", "name": "qqp", "split": "train"}


def config_of(*more: str, task: str = "qqp") -> RunConfig:
    data = ("data.source=hub", f"data.task={task}", "data.path=owner/rows", "data.prepared=p")
    paths = ("run_dir=r", "student.path=owner/base", "teacher.path=/srv/teacher/model", "student.layers=2")
    return load_config(None, [*data, *paths, *more], need="evaluate")


def manifest_of(**identities: dict[str, Any]) -> Manifest:
    splits = {name: SplitEntry(100, 900, 7, {}, {}, {}, {}, ()) for name in identities}
    request = {"splits": identities, "source": "hub"}
    return Manifest("qqp", "f1", ("no", "yes"), 128, 0, 100, "f", splits, request)


def facts_of(config: RunConfig, manifest: Manifest | None, evaluation: Any = None, **more: Any) -> CardFacts:
    run = RunRecord(Path("r"), "done", "", 0.0, SUMMARY, {}, started_in="/srv/work")
    given: dict[str, Any] = {
        "name": "n", "labels": ("no", "yes"), "parameters": 1, "sha256": "s", "lower_cases": True,
        "architecture": "bert, 1 layer of width 8",
        "teachers": {"/srv/teacher/model": "there"},
    }  # fmt: skip
    return gather(config, run, evaluation, manifest, **{**given, **more})


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache and the teacher's folder hold."""
    monkeypatch.setattr(card_facts, "is_hub_model", lambda path: path == "owner/base")
    monkeypatch.setattr(card_facts, "weights_digest", lambda folder: f"digest of {folder}")


def test_rows_of_the_hub_and_what_was_drawn_of_them() -> None:
    drawn = {"hold_out": {"tune": 5}, "max_rows": 2000, "seed": 3}
    manifest = manifest_of(
        train={**HUB, "drawn": {**drawn, "part": ""}},
        dev={**HUB, "split": "validation"},
        tune={**HUB, "drawn": {**drawn, "part": "tune"}},
    )
    found = facts_of(config_of(), manifest)
    assert (found.dataset, found.dataset_config, found.dataset_revision) == ("owner/rows", "qqp", "abc")
    assert found.base_model == "owner/base"
    origins = {each.name: each.origin for each in found.sources}
    assert origins["dev"] == "hub: owner/rows, qqp, split validation, revision abc"
    assert origins["train"] == (
        "hub: owner/rows, qqp, split train, revision abc, without the rows of tune, at most 2,000 of its rows, seed 3"
    )
    assert origins["tune"] == "drawn out of hub: owner/rows, qqp, split train, revision abc, seed 3"
    assert found.manifest == manifest_hash(manifest)
    assert {each.name: each.of_hub for each in found.splits} == {
        "dev": "validation",
        "tune": "train, rows drawn out as tune",
    }


def test_local_rows_are_no_data_set_of_the_hub() -> None:
    manifest = manifest_of(
        train={"file": "/home/user/rows/train.tsv", "sha256": "d"}, dev={"files": "e", "split": "v"}
    )
    found = facts_of(config_of("student.path=/srv/base"), manifest)
    assert (found.dataset, found.base_model) == (None, None)
    assert {each.of_hub for each in found.splits} == {None}
    origins = [each.origin for each in found.sources]
    assert origins[0] == "…/rows/train.tsv (hub), sha256 d"
    assert origins[1] == "a folder in the hub's layout, split v, sha256 e"


def test_figures_of_the_run_where_nothing_was_evaluated() -> None:
    config = config_of("evaluate.select_on=tune", "data.hold_out={tune: 5}")
    found = facts_of(config, manifest_of(train=HUB, dev=HUB, tune=HUB))
    dev, tune = found.splits
    assert (dev.name, tune.name, found.intervals) == ("dev", "tune", None)
    assert (found.metric, dev.student["f1"].value, dev.teacher["f1"].value) == ("f1", 0.8, 0.83)
    assert dev.loyalty.keys() == {"ll", "pl"}
    assert tune.teacher == {}
    limits = " ".join(found.limits)
    assert "Figures on `tune` are optimistic: the best of up to 4 epochs was chosen by them" in limits
    assert "`dev` chose nothing inside the run" in limits
    once = facts_of(config_of("train.epochs=1"), manifest_of(train=HUB, dev=HUB))
    assert "Figures on `dev` are optimistic: settings may have been chosen by them; " in " ".join(once.limits)
    assert dict(once.settings)["step of this model"] == "50"
    assert "100 rows of `dev` leave a standard error of 3.0 points" in limits
    assert "have no intervals" in limits
    assert "7 of the 100 training rows were cut" in limits
    assert "makes all letters small" in limits
    assert "Trained on 100 rows of `qqp` alone" in limits
    assert "Rows of `tune` were drawn out of the training rows before the training" in limits


def test_rows_prepared_anew_are_not_those_that_were_scored() -> None:
    split = {
        "rows": 3,
        "student": {"accuracy": 0.9, "ece": None},
        "intervals": {"student": {"accuracy": [0.8, 1.0]}},
    }
    settings = {"intervals": "percentile", "confidence": 0.95, "resamples": 7}
    teachers = [{"path": "/srv/teacher/model", "sha256": "scored"}]
    evaluation = {
        "splits": {"dev": split}, "settings": settings, "models": {"teachers": teachers}, "data": {"manifest": "old"},
    }  # fmt: skip
    found = facts_of(config_of(), manifest_of(train=HUB), evaluation)
    assert (found.manifest, found.sources) == ("old", ())
    assert found.intervals == "95% intervals over rows (percentile bootstrap, 7 draws)"
    assert found.splits[0].student.keys() == {"accuracy"}
    assert found.splits[0].student["accuracy"].interval == (0.8, 1.0)
    assert found.teachers[0].sha256 == "scored"
    gone = facts_of(config_of(), None, teachers={})
    assert gone.teacher_missing
    assert gone.teachers[0].sha256 is None
    assert facts_of(config_of(), None).teachers[0].sha256 == "digest of there"


@pytest.mark.parametrize(
    ("asked", "loyalty", "expected"),
    [(2, {"sl_spearman_norm": 0.5}, 2), (3, {"sl_spearman_norm": 0.5}, None), (2, {"ll": 0.5}, None),
     (None, {"sl_spearman_norm": 0.5}, None)],
)  # fmt: skip
def test_of_how_many_rows_saliency_is(
    asked: int | None, loyalty: dict[str, float], expected: int | None
) -> None:
    evaluation = {
        "splits": {"held_out": {"rows": 3, "student": {}, "loyalty": loyalty}},
        "settings": {
            "intervals": "percentile", "confidence": 0.95, "resamples": 7,
            **({} if asked is None else {"saliency_rows": asked}),
        },
        "models": {"teachers": []}, "data": {"manifest": "old"},
    }  # fmt: skip
    (split,) = facts_of(config_of(), None, evaluation).splits
    assert split.saliency_rows == expected


@pytest.mark.parametrize(
    ("overrides", "present", "absent"),
    [
        (["method=finetune"], ["seed"], ["temperature", "weight of matched gradients"]),
        (["method=kd"], ["divergence from the teacher"], ["weight of matched [CLS] states", "gradients matched at"]),
        (["method=pkd"], ["weight of matched [CLS] states"], ["gradients matched at"]),
        (["method=gkd"], ["gradients matched at", "gradient of a gradient by"], ["weight of matched [CLS] states"]),
        (["method=gkd_cls", "alignment.share=0.5"], ["share of rows with gradients"], ["curriculum"]),
        (["method=kd", "weight.attribution=1"], ["weight of matched attributions"], ["gradients matched at"]),
        (["method=kd", "weight.noise=1"], ["weight of distillation at noisy embeddings"], []),
        (["method=kd", "curriculum.order=easy_to_hard"], ["curriculum"], ["reliance on the teacher"]),
        (["method=kd", "reliance.rule=gate"], ["reliance on the teacher"], ["curriculum"]),
        (["method=kd", "teachers=[{path: a}, {path: b}]", 'teacher.path=""'], ["several teachers, joined by"], []),
    ],
)  # fmt: skip
def test_settings_are_those_that_the_method_reads(
    overrides: list[str], present: list[str], absent: list[str]
) -> None:
    settings = dict(facts_of(config_of(*overrides), None).settings)
    assert set(present) <= settings.keys()
    assert not set(absent) & settings.keys()
    assert settings["student starts from"] == "owner/base"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384}, "bert, 6 layers of width 384"),
        ({"model_type": "distilbert", "n_layers": 1, "dim": 64}, "distilbert, 1 layer of width 64"),
        ({"hidden_size": 3}, ""),
        ({}, ""),
    ],
)
def test_a_models_shape_in_words(config: dict[str, Any], said: str) -> None:
    assert architecture(config) == said


def test_which_layers_are_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    title = "layers whose [CLS] is matched (student with teacher)"
    assert title not in dict(facts_of(config_of("method=gkd"), None).settings)
    monkeypatch.setitem(SUMMARY, "matched_layers", {"teacher": [4, 8], "student": [1, 2]})
    settings = facts_of(config_of("method=gkd_cls"), None).settings
    assert dict(settings)[title] == "1 with 4, 2 with 8"


def test_how_the_student_was_made() -> None:
    of = {
        "projected": ["student.architecture=electra", "student.layers=null", "student.shape.hidden_size=64"],
        "random": ["method=finetune", 'student.path=""', "student.layers=null"],
    }
    said = {name: dict(facts_of(config_of(*more), None).settings)["student"] for name, more in of.items()}
    assert (
        said["projected"]
        == "the embeddings of that model, projected, and 4 random layers of width 64 (ELECTRA's shape)"
    )
    assert said["random"] == "4 random bert layers of width 128"
    generated = replace(config_of(), data=replace(config_of().data, source="synthetic_nli", task="custom"))
    assert "Its language is a generated one" in " ".join(facts_of(generated, None).limits)
