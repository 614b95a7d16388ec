"""Every YAML of configs/ loads; the hub ones differ from the tested ones in names and sizes only."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from distill_dist.config.fields import schema_fields, value_at
from distill_dist.config.load import dump_config, load_config
from distill_dist.config.methods import method_name
from distill_dist.config.schema import RunConfig

REPOSITORY = Path(__file__).parents[3]
SHIPPED = sorted((REPOSITORY / "configs").glob("*.yaml"))
TASKS = ("sst2", "qqp", "mnli", "qnli")
STUDIES = {
    "cl": {"curriculum.order": "easy_to_hard", "curriculum.stratify": "label"},
    "sr": {"reliance.rule": "gate"},
    "cl_sr": {
        "curriculum.order": "easy_to_hard",
        "curriculum.stratify": "label",
        "reliance.rule": "gate",
    },
}
NAMED_BY_STUDY = re.compile(r"(kd|gkd|gkd_cls)_(cl_sr|cl|sr)_(.+)")

NAMES_AND_SIZES = {
    "run_dir",
    "data.source",
    "data.task",
    "data.path",
    "data.name",
    "data.splits",
    "data.tokenizer",
    "data.prepared",
    "student.path",
    "student.layers",
    "student.architecture",
    "teacher.path",
    "train.epochs",
}


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@cache
def load(name: str) -> RunConfig:
    return load_config(REPOSITORY / "configs" / f"{name}.yaml", [])


def test_the_promised_files_are_there() -> None:
    promised = {f"{kind}_{task}" for kind in ("gkd", "teacher") for task in TASKS}
    promised |= {f"gkd_{task}_distilbert" for task in TASKS}
    promised |= {f"{kind}_{task}_minilm" for kind in ("gkd", "teacher") for task in ("sst2", "mnli")}
    promised |= {f"{kind}_{study}_mnli" for kind in ("kd", "gkd", "gkd_cls") for study in STUDIES}
    promised |= {f"{kind}_cl_sr_{task}" for kind in ("kd", "gkd_cls") for task in TASKS}
    promised |= {f"{kind}_cl_sr_{task}_minilm" for kind in ("kd", "gkd_cls") for task in ("sst2", "mnli")}
    assert promised <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path, [])
    dumped = tmp_path / "resolved.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load_config(dumped, []) == config
    text = path.read_text(encoding="utf-8")
    for word in text.split():
        if word.startswith("configs/") and word.rstrip(").,:").endswith(".yaml"):
            assert (REPOSITORY / word.rstrip(").,:")).is_file(), f"{path.name} names {word}"


def test_a_method_is_called_as_its_file_is() -> None:
    seen = 0
    for path in SHIPPED:
        if named := NAMED_BY_STUDY.fullmatch(path.stem):
            assert method_name(load(path.stem)) == f"{named[1]}_{named[2]}"
            seen += 1
    assert seen >= 9
    assert method_name(load("gkd_mnli")) == "gkd_cls"


def _differing(a: RunConfig, b: RunConfig) -> set[str]:
    return {key for key in schema_fields() if value_at(a, key) != value_at(b, key)}


@pytest.mark.parametrize("task", TASKS)
def test_hub_configs_differ_from_the_tested_ones_in_names_and_sizes(task: str) -> None:
    tested, tested_teacher = load("gkd_sst2_minilm"), load("teacher_sst2_minilm")
    for name in (f"gkd_{task}", f"gkd_{task}_distilbert"):
        differing = _differing(load(name), tested)
        assert {"run_dir", "data.path"} <= differing
        assert differing <= NAMES_AND_SIZES
    # the published teachers are tuned at 2e-5 (METHOD.md §1)
    assert _differing(load(f"teacher_{task}"), tested_teacher) <= NAMES_AND_SIZES | {"train.learning_rate"}


@pytest.mark.parametrize("task", TASKS)
def test_hub_configs_are_the_published_recipe(task: str) -> None:
    # METHOD.md §1, "Published defaults" and "Starting values"
    student, teacher = load(f"gkd_{task}"), load(f"teacher_{task}")
    assert (student.train.learning_rate, teacher.train.learning_rate) == (5e-5, 2e-5)
    assert (student.train.epochs, teacher.train.epochs) == (4, 4)
    assert (student.batch.size, teacher.batch.size) == (32, 32)
    assert student.data.max_length == 128
    assert (student.weight.kd, student.weight.patience, student.weight.gradient) == (0.5, 100.0, 0.1)
    assert (student.objective.temperature, student.objective.kd_scale) == (5.0, "mean")
    assert (student.student.dropout, student.student.freeze_embeddings) == (0.0, True)
    assert (student.student.layers, student.student.layer_copy) == (6, "first")


@pytest.mark.parametrize("task", TASKS)
def test_students_start_from_their_teachers_run_on_the_same_rows(task: str) -> None:
    teacher = load(f"teacher_{task}")
    for name in (f"gkd_{task}", f"gkd_{task}_distilbert"):
        student = load(name)
        assert student.teacher.path == f"{teacher.run_dir}/model"
        assert student.student.path == student.teacher.path
        assert student.data == teacher.data


def test_the_example_for_own_rows_differs_from_the_tested_one_in_names() -> None:
    student, teacher = load("gkd_own_rows"), load("teacher_own_rows")
    assert (student.data, student.teacher.path) == (teacher.data, f"{teacher.run_dir}/model")
    own = {"data.source", "data.text_columns", "data.label_column", "data.labels"}
    assert _differing(student, load("gkd_sst2_minilm")) <= NAMES_AND_SIZES | own
    assert _differing(teacher, load("teacher_sst2_minilm")) <= NAMES_AND_SIZES | own | {"train.learning_rate"}


@pytest.mark.parametrize("name", [path.stem for path in SHIPPED if NAMED_BY_STUDY.fullmatch(path.stem)])
def test_a_study_is_its_plain_run_but_for_what_its_name_says(name: str) -> None:
    """METHOD.md §4: KD, KD-CL, KD-SR, KD-CL-SR; each with GKD and GKD-CLS as well."""
    match = NAMED_BY_STUDY.fullmatch(name)
    assert match is not None
    method, study, task = match.groups()
    config, plain = load(name), load(f"gkd_{task}")
    assert config.method == method
    assert config.run_dir == f"runs/{name}"
    derived = {
        "method",
        "student.dropout",
        "student.freeze_embeddings",
        "objective.kd_scale",
        "weight.gradient",
    }
    assert _differing(config, plain) - derived == {"run_dir", *STUDIES[study]}
    assert {key: value_at(config, key) for key in STUDIES[study]} == STUDIES[study]
    if method == plain.method:
        assert not _differing(config, plain) & derived
    # what the method derives, not what the base's method would have
    gradients = method != "kd"
    assert (config.student.dropout, config.objective.kd_scale) == (
        (0.0, "mean") if gradients else (0.1, "sum")
    )
    assert config.weight.gradient == {"kd": None, "gkd": 0.5, "gkd_cls": 0.1}[method]
    assert (config.reliance.initial, config.reliance.maximum) == (config.weight.kd, config.weight.kd)


def test_names_of_studies_are_told_apart() -> None:
    found = {path.stem for path in SHIPPED if NAMED_BY_STUDY.fullmatch(path.stem)}
    assert {"kd_cl_sr_mnli", "gkd_cls_cl_sr_sst2_minilm", "gkd_cls_sr_mnli"} <= found
    assert not {"gkd_mnli", "gkd_sst2_minilm", "gkd_own_rows", "demo"} & found
