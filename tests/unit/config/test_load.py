"""load_config: defaults <- YAML <- overrides; every way to be wrong gives one message."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_dist.config.load import dump_config, load_config, resolve_defaults
from distill_dist.config.schema import (
    CurriculumConfig,
    ObjectiveConfig,
    RelianceConfig,
    RunConfig,
    StudentConfig,
    WeightConfig,
)
from distill_dist.errors import UserError

REPOSITORY = Path(__file__).parents[3]
SMALLEST = """
method: finetune
run_dir: runs/x
data: {source: synthetic_nli, prepared: prepared/x}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a YAML and returns its path; the working directory is the repository (ds_configs/ is there)."""
    monkeypatch.chdir(REPOSITORY)

    def write_yaml(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_yaml


def message_of(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "Traceback" not in message
    assert "full_key" not in message  # omegaconf's own notes are for its developers
    return message


def test_command_line_wins_over_file_and_file_over_default(write: Write) -> None:
    path = write(SMALLEST + "batch: {size: 64, length_window: 3}\n")
    default = RunConfig()
    config = load_config(path, ["batch.size=16", "student.layers=null"])
    assert default.batch.size not in (16, 64)
    assert default.batch.length_window != 3
    assert (config.batch.size, config.batch.length_window) == (16, 3)
    assert config.train == default.train


def test_result_is_a_frozen_tree_of_the_schema(write: Write) -> None:
    config = load_config(
        write(SMALLEST), ["objective.teacher_layers=[2,4]", "objective.student_layers=[1,2]"]
    )
    assert type(config) is RunConfig
    assert config.objective.teacher_layers == (2, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.batch.size = 3  # type: ignore[misc]


def test_overrides_alone_are_enough(write: Write) -> None:
    overrides = ["method=finetune", "run_dir=r", "data.source=synthetic_nli", "data.prepared=p"]
    config = load_config(None, overrides)
    assert config == load_config(write("method: finetune\nrun_dir: r\n"), overrides[2:])


def test_splits_of_the_file_replace_the_default_and_overrides_add(write: Write) -> None:
    path = write(SMALLEST.replace("prepared/x}", "prepared/x, splits: {train: a, dev: b, extra: c}}"))
    assert load_config(path, []).data.splits == {"train": "a", "dev": "b", "extra": "c"}
    added = load_config(path, ["data.splits.more=d"]).data.splits
    assert added == {"train": "a", "dev": "b", "extra": "c", "more": "d"}
    only_train = write(SMALLEST.replace("prepared/x}", "prepared/x, splits: {train: a}}"))
    assert "data.splits = {'train': 'a'}: 'dev' is missing" in message_of(only_train)


def test_no_configuration_leaves_anything_to_the_next(write: Write) -> None:
    first = load_config(write(SMALLEST), ["seed=3", "data.splits.extra=more", "batch.size=7"])
    assert (first.seed, first.data.splits["extra"], first.batch.size) == (3, "more", 7)
    second, default = load_config(write(SMALLEST), []), RunConfig()
    assert (second.seed, second.data.splits, second.batch.size) == (
        default.seed,
        default.data.splits,
        default.batch.size,
    )


def test_interpolations(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_TEST_ROOT", "/data")
    monkeypatch.delenv("DISTILL_TEST_NONE", raising=False)
    text = SMALLEST + "teacher: {path: some/model}\nstudent:\n  path: ${teacher.path}\n"
    config = load_config(write(text), ["run_dir=${oc.env:DISTILL_TEST_ROOT}/${oc.env:DISTILL_TEST_NONE,y}"])
    assert config.student.path == "some/model"
    assert config.run_dir == "/data/y"


@pytest.mark.parametrize(
    ("yaml_text", "parts"),
    [
        ("batch: {sze: 3}", ["batch.sze = 3", "nearest valid name: batch.size"]),
        ("train: {lr: 3}", ["train.lr = 3", "nearest valid name: train.learning_rate"]),
        ("temperature: 3", ["temperature = 3", "nearest valid name: objective.temperature"]),
        ("batch: {zzzz: 3}", ["batch.zzzz = 3", "batch has size, micro_tokens"]),
        ("batch.size: 3", ["batch.size = 3", "batch: {size: …}"]),
        ("batch: 3", ["batch = 3", "a section", "batch.size"]),
        ("batch:", ["batch = null", "a section"]),
        ("batch: {size: \uff11}", ["batch.size = '\uff11'", "a whole number"]),
        ("train: {learning_rate: \uff11}", ["train.learning_rate = '\uff11'", "a number"]),
        ("student: {layer_list: [\uff11]}", ["student.layer_list", "whole numbers"]),
        ("batch: {size: many}", ["batch.size = 'many'", "a whole number"]),
        ("batch: {size: 1.5}", ["batch.size = 1.5", "a whole number"]),
        ("batch: {size: true}", ["batch.size = True", "a whole number"]),
        ("batch: {size: null}", ["batch.size = null", "null is not allowed", "a whole number"]),
        ("batch: {size: [1]}", ["batch.size = [1]", "a whole number"]),
        ("student: {layers: None}", ["student.layers = 'None'", "a whole number, or null", "YAML's word"]),
        ("method: gkdcls", ["method = 'gkdcls'", "finetune, kd, pkd, gkd, gkd_cls", "nearest: gkd_cls"]),
        ("data: {labels: [yes, no]}", ["data.labels = [True, False]", "quotes"]),
        ("data: {labels: a}", ["data.labels = 'a'", "a list of texts"]),
        ("data: {splits: {train: [x]}}", ["data.splits", "a mapping from text to text"]),
        ("student: {layer_list: {a: 1}}", ["student.layer_list", "a list of whole numbers"]),
        ("student: {layer_list: [1, x]}", ["student.layer_list = [1, 'x']", "a list of whole numbers"]),
        ("run_dir: ???", ["run_dir = '???'"]),
        ("evaluate: {saliency: maybe}", ["evaluate.saliency = 'maybe'", "true or false"]),
        ("run_dir: ${teachr.path}", ["run_dir = '${teachr.path}'", "teachr.path"]),
        ("run_dir: ${oc.env:DISTILL_NO_SUCH}", ["run_dir", "DISTILL_NO_SUCH"]),
        ("run_dir: ${run_dir}", ["run_dir", "Recursive"]),
        ("run_dir: ${nonsense:1}", ["run_dir", "nonsense"]),
        ("run_dir: ${", ["run_dir"]),
        ("run_dir: abc\nbatch:\n  size: ${run_dir}", ["batch.size = '${run_dir}'", "a whole number"]),
        ("run_dir: abc\nstudent: {layer_list: ['${run_dir}']}", ["student.layer_list", "whole numbers"]),
        ("null: 3", ["run.yaml"]),
        ("3: 3", ["3 = 3", "no such field"]),
        ("- a", ["run.yaml", "a mapping"]),
        ("a: [1", ["run.yaml", "not valid YAML", "line"]),
        ("method: kd\nseed: 1\nmethod: gkd", ["run.yaml", "line 3", "duplicate key method"]),
        ("\tx: 3", ["run.yaml", "line 1, column 1"]),
        ("x: !!python/object/apply:os.getcwd []", ["run.yaml", "not valid YAML"]),
    ],
)
def test_wrong_yaml(write: Write, yaml_text: str, parts: list[str]) -> None:
    message = message_of(write(yaml_text))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("batch.size", ["'batch.size'", "key=value", "batch.size=…"]),
        ("configs/demo.yaml", ["a configuration is given as --config configs/demo.yaml"]),
        ("=3", ["'=3'", "dotted name"]),
        ("batch..size=3", ["'batch..size=3'", "dotted name"]),
        ("student.layer_list[0]=3", ["dotted name"]),
        ("run_dir=", ["'run_dir='", "nothing stands after '='", "run_dir=null"]),
        ("batch.sze=3", ["batch.sze = 3", "batch.size"]),
        ("student.layer_list=[1,2", ["student.layer_list=[1,2", "not valid YAML"]),
        ("run_dir=${", ["run_dir=${"]),
        ("data.splits.train.x=3", ["data.splits"]),
        ("batch.size=null", ["batch.size = null", "null is not allowed"]),
    ],
)
def test_wrong_override(write: Write, override: str, parts: list[str]) -> None:
    message = message_of(write(SMALLEST), override)
    for part in parts:
        assert part in message


def test_all_problems_are_in_one_message(write: Write) -> None:
    message = message_of(write("methd: kd\nbatch: {size: x, sze: 1}"), "train.epoch=3")
    assert "4 problems" in message
    for key in ("methd", "batch.size", "batch.sze", "train.epoch"):
        assert f"\n  {key} = " in message


def test_file_not_there_and_not_text(write: Write, tmp_path: Path) -> None:
    assert "no such file" in message_of(tmp_path / "absent.yaml")
    assert str(tmp_path) in message_of(tmp_path)  # a folder
    path = write("")
    path.write_bytes(b"run_dir: \xff\n")
    assert "UTF-8" in message_of(path)


def test_a_text_that_yaml_reads_as_a_number_stays_what_omegaconf_makes_of_it(write: Write) -> None:
    assert load_config(write(SMALLEST), ["run_dir=2020-01-01"]).run_dir == "2020-01-01"
    assert load_config(write(SMALLEST), ["train.learning_rate=2e-5"]).train.learning_rate == 2e-5


@pytest.mark.parametrize("method", ["finetune", "kd", "pkd", "gkd", "gkd_cls"])
def test_resolved_defaults_are_the_methods_own(method: str) -> None:
    # METHOD.md §1: the gradient methods' published recipe; §2: why dropout is off
    gradients = method in ("gkd", "gkd_cls")
    config = resolve_defaults(RunConfig(method=method))  # type: ignore[arg-type]
    assert config.student.dropout == (0.0 if gradients else 0.1)
    assert config.student.freeze_embeddings is gradients
    assert config.student.attention == "auto"  # the model's family decides as well
    assert config.objective.kd_scale == ("mean" if gradients else "sum")
    assert config.weight.gradient == {"gkd": 0.5, "gkd_cls": 0.1}.get(method)
    assert config.student.layers is None
    assert resolve_defaults(config) == config


def test_resolving_keeps_what_the_user_set() -> None:
    chosen = RunConfig(
        method="kd",
        student=StudentConfig(dropout=0.0, freeze_embeddings=True),
        objective=ObjectiveConfig(kd_scale="mean"),
        weight=WeightConfig(gradient=0.7),
        curriculum=CurriculumConfig(pacing="competence", start=0.5),
        reliance=RelianceConfig(initial=0.0, maximum=1.0),
    )
    assert resolve_defaults(chosen) == chosen
    assert resolve_defaults(RunConfig(method="kd")) != chosen


@pytest.mark.parametrize(
    ("pacing", "start"), [("competence", 0.01), ("fixed_exponential", 0.04), ("linear", 0.2)]
)
def test_a_pacing_has_its_own_start(pacing: str, start: float) -> None:
    """METHOD.md §3: c₀ = 0.01 and 0.04; the others share one."""
    config = resolve_defaults(RunConfig(curriculum=CurriculumConfig(pacing=pacing)))  # type: ignore[arg-type]
    assert config.curriculum.start == start
    assert resolve_defaults(config) == config
    kept = RunConfig(curriculum=CurriculumConfig(pacing=pacing, start=0.3))  # type: ignore[arg-type]
    assert resolve_defaults(kept).curriculum.start == 0.3


def test_reliance_is_the_weights_where_nothing_is_said() -> None:
    found = resolve_defaults(RunConfig(weight=WeightConfig(kd=0.3))).reliance
    assert (found.initial, found.minimum, found.maximum) == (0.3, 0.0, 0.3)
    chosen = RunConfig(weight=WeightConfig(kd=0.3), reliance=RelianceConfig(maximum=0.9))
    assert (resolve_defaults(chosen).reliance.initial, resolve_defaults(chosen).reliance.maximum) == (
        0.3,
        0.9,
    )
    without = resolve_defaults(RunConfig(weight=WeightConfig(kd=0.0))).reliance
    assert (without.initial, without.maximum) == (0.0, None), (
        "no λ_max is 0: it stays for the check to refuse"
    )
    initial = resolve_defaults(RunConfig(reliance=RelianceConfig(initial=0.0)))
    assert initial.reliance.initial == 0.0, "0 is a value"


def test_dump_round_trip(write: Write) -> None:
    overrides = [
        "data.splits={train: 'a: b', dev: '#x', third: '0'}",
        "data.labels=['yes', '1', 'null', 'ä']",
        "student.layers=2",
        "student.path=m",
        "train.learning_rate=1e-7",
        "run_dir='1e5'",
    ]
    config = load_config(write(SMALLEST), overrides)
    assert config.data.labels == ("yes", "1", "null", "ä")
    assert load_config(write(dump_config(config)), []) == config


def test_dump_refuses_what_it_could_not_read_back() -> None:
    with pytest.raises(UserError, match=r"run_dir.*\$"):
        dump_config(RunConfig(run_dir="a${b}"))
