"""Ranges and rules: each bad value and each bad pair is named; good neighbours pass."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest

from config.trees import problems
from distill_dist.config.check import RANGES, Need, Range
from distill_dist.config.fields import schema_fields, value_at
from distill_dist.config.load import load_config
from distill_dist.config.schema import RunConfig
from distill_dist.errors import UserError

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_the_good_tree_is_good() -> None:
    assert problems({}) == []


def test_every_number_of_the_schema_has_a_range() -> None:
    def holds_numbers(annotation: Any) -> bool:
        return annotation in (int, float) or bool({int, float} & set(typing.get_args(annotation)))

    numeric = {key for key, field in schema_fields().items() if holds_numbers(field.type)}
    assert len(numeric) > 30
    assert set(RANGES) == numeric


def test_defaults_lie_in_their_ranges() -> None:
    default = RunConfig()
    for key, allowed in RANGES.items():
        value = value_at(default, key)
        assert value in (None, (), {}) or value in allowed, key


@pytest.mark.parametrize("key", sorted(RANGES))
def test_a_number_below_or_above_its_range_is_named(key: str) -> None:
    allowed = RANGES[key]
    kind = typing.get_origin(schema_fields()[key].type)
    outside = [allowed.low if allowed.low_open else allowed.low - 1, float("nan"), float("inf")]
    if allowed.high != float("inf"):
        outside.append(allowed.high if allowed.high_open else allowed.high + 1)
    for number in outside:
        values = {key: (number,) if kind is tuple else {"dev": number} if kind is dict else number}
        expected = f"must be {allowed.words}"
        assert any(line.startswith(f"{key} = ") and expected in line for line in problems(values)), number


def test_ends_of_a_range() -> None:
    closed, half_open = Range(0, 1), Range(0, 1, low_open=True, high_open=True)
    assert [x in closed for x in (-0.1, 0, 1, 1.1)] == [False, True, True, False]
    assert [x in half_open for x in (0, 0.5, 1)] == [False, True, False]
    assert (closed.words, half_open.words) == ("0 to 1", "above 0 to below 1")
    assert (Range(1).words, Range(0, low_open=True).words) == ("at least 1", "above 0")


# (what is set, the key whose line must appear, a word of its remedy, a mended neighbour)
BAD_PAIRS: list[tuple[dict[str, Any], str, str, dict[str, Any]]] = [
    ({"run_dir": ""}, "run_dir", "required", {}),
    ({"run_dir": "a/b", "data.prepared": "a/b/"}, "run_dir", "data.prepared", {"run_dir": "a/c"}),
    ({"run_dir": "a/b/c", "data.prepared": "a/b"}, "run_dir", "data.prepared", {"run_dir": "a/bc"}),
    ({"run_dir": "a", "data.prepared": "a/b"}, "run_dir", "around", {"data.prepared": "ab"}),
    ({"data.prepared": ""}, "data.prepared", "required", {}),
    ({"data.path": ""}, "data.path", "tsv", {"data.source": "synthetic_nli"}),
    ({"data.tokenizer": ""}, "data.tokenizer", "tsv", {"data.source": "synthetic_nli"}),
    ({"data.splits": {"train": "a"}}, "data.splits", "'dev'", {"data.splits": {"train": "a", "dev": "b"}}),
    ({"data.splits": {"dev": "a"}}, "data.splits", "'train'", {}),
    ({"data.splits": {"train": "a", "dev": "b", "../x": "c"}}, "data.splits", "'../x'", {}),
    ({"data.splits": {"train": "a", "dev": "b", "tokenizer": "c"}}, "data.splits", "taken", {}),
    (
        {"data.splits": {"train": "a", "dev": "b", "-x": "c"}},
        "data.splits",
        "'-x'",
        {"data.splits": {"train": "a", "dev": "b", "x-2": "c"}},
    ),
    ({"data.splits": {"train": "a", "dev": "b", "x" * 256: "c"}}, "data.splits", "at most 100", {}),
    ({"data.splits": {"train": "a", "dev": ""}}, "data.splits", "'dev' names no", {}),
    ({"data.splits": {"train": "a"}}, "data.splits", "hold_out.dev", {"data.hold_out": {"dev": 9}}),
    ({"data.hold_out": {"dev": 9}}, "data.hold_out", "data.splits as well", {"data.hold_out": {"other": 9}}),
    ({"data.hold_out": {"../x": 9}}, "data.hold_out", "'../x'", {"data.hold_out": {"x": 9}}),
    ({"data.hold_out": {f"s{number}": 1 for number in range(101)}}, "data.hold_out", "at most 100", {}),
    ({"evaluate.select_on": "tune"}, "evaluate.select_on", "'tune'", {"data.hold_out": {"tune": 9}}),
    ({"evaluate.select_on": "train"}, "evaluate.select_on", "there are dev", {"evaluate.select_on": "dev"}),
    (
        {"evaluate.at_end": ("dev", "x")},
        "evaluate.at_end",
        "'x'",
        {"data.hold_out": {"x": 9}, "evaluate.at_end": ("x",)},
    ),
    ({"evaluate.at_end": ("dev",)}, "evaluate.at_end", "select_on", {"evaluate.at_end": ()}),
    ({"evaluate.skip": ("x",)}, "evaluate.skip", "'x'", {"data.hold_out": {"x": 9}}),
    (
        {"evaluate.skip": ("dev",), "evaluate.select_on": "x", "data.hold_out": {"x": 9}},
        "evaluate.skip",
        "'dev'",
        {"evaluate.skip": ()},
    ),
    (
        {"evaluate.skip": ("x",), "evaluate.select_on": "x", "data.hold_out": {"x": 9}},
        "evaluate.skip",
        "'x' is scored",
        {"evaluate.select_on": "dev"},
    ),
    ({"data.text_columns": ("a", "b", "c")}, "data.text_columns", "two", {"data.text_columns": ("a", "b")}),
    ({"data.text_columns": ("a", "a")}, "data.text_columns", "different", {"data.text_columns": ("a",)}),
    ({"data.labels": ("a", "a")}, "data.labels", "different", {"data.labels": ("a", "b")}),
    ({"data.labels": ("a", "b ")}, "data.labels", "blanks", {"data.labels": ("a", "b")}),
    ({"data.task": "qqp", "data.labels": ("a", "b", "c")}, "data.labels", "F1", {"data.task": "sst2"}),
    (
        {"data.text_columns": ("a", "b"), "data.label_column": "b"},
        "data.label_column",
        "data.text_columns",
        {"data.label_column": "c"},
    ),
    ({"data.labels": ("a",)}, "data.labels", "two", {"data.labels": ()}),
    ({"data.task": "custom"}, "data.text_columns", "custom", {"data.task": "qqp"}),
    ({"data.task": "custom"}, "data.label_column", "custom", {"data.source": "synthetic_nli"}),
    (
        {"data.task": "custom", "data.text_columns": ("t",), "data.label_column": "l"},
        "data.labels",
        "custom",
        {"data.labels": ("a", "b")},
    ),
    ({"teacher.path": ""}, "teacher.path", "gkd_cls", {"method": "finetune"}),
    ({"student.path": "", "student.layers": None}, "student.freeze_embeddings", "gkd_cls", {"method": "kd"}),
    ({"student.path": ""}, "student.layers", "num_hidden_layers", {"student.layers": None, "method": "kd"}),
    (
        {"student.path": "", "method": "kd", "student.layers": None, "student.architecture": "distilbert"},
        "student.architecture",
        "student.path",
        {"student.path": "m"},
    ),
    (
        {"student.path": "", "method": "kd", "student.layers": None, "student.shape.hidden_size": 130},
        "student.shape.hidden_size",
        "= 4",
        {"student.shape.hidden_size": 132},
    ),
    (
        {"student.path": "", "method": "kd", "student.layers": None, "student.layer_copy": "list"},
        "student.layer_copy",
        "student.path",
        {"student.layer_copy": "first"},
    ),
    (
        {"student.path": "", "method": "kd", "student.layers": None, "student.architecture": "electra"},
        "student.architecture",
        "student.path",
        {"student.path": "m"},
    ),
    # an ELECTRA's layers are those of the shape, whatever the teacher has
    (
        {"student.architecture": "electra", "student.shape.num_hidden_layers": 1},
        "objective.student_layers",
        "one layer",
        {"student.shape.num_hidden_layers": 2},
    ),
    (
        {
            "student.architecture": "electra",
            "student.shape.num_hidden_layers": 2,
            "objective.teacher_layers": (2, 4),
            "objective.student_layers": (1, 3),
        },
        "objective.student_layers",
        "2 layers",
        {"student.architecture": "same"},
    ),
    ({"student.layer_copy": "list"}, "student.layer_list", "= 3", {"student.layer_list": (1, 3, 5)}),
    (
        {"student.layer_copy": "list", "student.layer_list": (1, 3, 5), "student.layers": None},
        "student.layer_list",
        "null",
        {"student.layers": 3},
    ),
    (
        {"student.layer_copy": "list", "student.layer_list": (1, 3, 3)},
        "student.layer_list",
        "increasing",
        {"student.layer_list": (1, 3, 4)},
    ),
    ({"student.layer_list": (1, 2, 3)}, "student.layer_list", "layer_copy", {"student.layer_copy": "list"}),
    (
        {"objective.teacher_layers": (2,)},
        "objective.teacher_layers",
        "[]",
        {"objective.student_layers": (1,)},
    ),
    (
        {"objective.teacher_layers": (4, 2), "objective.student_layers": (1, 2)},
        "objective.teacher_layers",
        "increasing",
        {"objective.teacher_layers": (2, 4)},
    ),
    (
        {"objective.teacher_layers": (2, 4), "objective.student_layers": (1, 4)},
        "objective.student_layers",
        "3 layers",
        {"objective.student_layers": (1, 3)},
    ),
    ({"student.layers": 1}, "objective.student_layers", "one layer", {"method": "gkd"}),
    ({"batch.pad_to": 64}, "batch.pad_to", "data.max_length = 128", {"batch.pad_to": 128}),
    ({"batch.micro_tokens": 127}, "batch.micro_tokens", "data.max_length = 128", {"batch.micro_tokens": 128}),
    (
        {"batch.micro_tokens": 200, "batch.pad_to": 256},
        "batch.micro_tokens",
        "batch.pad_to = 256",
        {"batch.micro_tokens": 256},
    ),
    ({"teacher.lease_s": 60.0}, "teacher.lease_s", "deadline_s = 60.0", {"teacher.lease_s": 60.5}),
    (
        {"teacher.batch_tokens": 127},
        "teacher.batch_tokens",
        "data.max_length = 128",
        {"teacher.batch_tokens": 128},
    ),
    ({"teacher.cache_dir_mib": 5}, "teacher.cache_dir_mib", "there is none", {"teacher.cache_dir": "cache"}),
    (
        {"teacher.wire.states": "int8", "cluster.teachers": 0},
        "teacher.wire",
        "no teacher.cache_dir",
        {"teacher.cache_dir": "cache"},
    ),
    (
        {"teacher.shards": 2, "cluster.teachers": 3},
        "teacher.shards",
        "multiple of 2",
        {"cluster.teachers": 4},
    ),
    ({"teacher.shards": 2, "cluster.teachers": 0}, "teacher.shards", "has none", {"cluster.teachers": 2}),
    (
        {"teacher.offload": True, "cluster.teachers": 0},
        "teacher.offload",
        "has none",
        {"cluster.teachers": 1},
    ),
    ({"method": "finetune", "cluster.teachers": 1}, "cluster.teachers", "finetune", {"cluster.teachers": 0}),
]


@pytest.mark.parametrize(
    ("key", "value"),
    [("run_dir", "a\0b"), ("data.splits", {"train": "t", "dev": "d\0"}), ("data.labels", ("yes", "n\0"))],
)
def test_a_nul_character_is_named(key: str, value: Any) -> None:
    (line,) = [line for line in problems({key: value}) if "NUL" in line]
    assert line.startswith(f"{key} = ")


@pytest.mark.parametrize(("values", "key", "word", "mended"), BAD_PAIRS)
def test_bad_pair(values: dict[str, Any], key: str, word: str, mended: dict[str, Any]) -> None:
    found = [line for line in problems(values) if line.startswith(f"{key} = ")]
    assert any(word in line for line in found), problems(values)
    if mended:
        assert not [line for line in problems({**values, **mended}) if line.startswith(f"{key} = ")]


@pytest.mark.parametrize("key", ["teacher.path", "student.path"])
def test_a_run_does_not_overwrite_the_models_it_reads(tmp_path: Path, key: str) -> None:
    model = tmp_path / "teacher" / "model"
    model.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "teacher")
    for run_dir in (model, tmp_path / "teacher", tmp_path / "link", tmp_path / "teacher" / ".." / "teacher"):
        (line,) = problems({key: str(model), "run_dir": str(run_dir)})
        assert line.startswith(f"{key} = ")
        assert "run_dir" in line
    for run_dir in (tmp_path / "student", model / "student", tmp_path / "teach"):
        assert problems({key: str(model), "run_dir": str(run_dir)}) == []
    # a hub name is no folder of ours, wherever the run goes
    assert problems({key: "owner/model", "run_dir": "owner"}) == []


def test_links_do_not_hide_that_the_run_goes_into_its_data(tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "prepared")
    data = {"data.prepared": str(tmp_path / "prepared")}
    assert problems({**data, "run_dir": str(tmp_path / "other" / "x")}) == []
    (line,) = problems({**data, "run_dir": str(tmp_path / "link" / "x")})
    assert line.startswith("run_dir = ")


def test_numbers_beyond_all_use_are_refused() -> None:
    for key, number in (
        ("cluster.threads", 10**6),
        ("cluster.collective_s", 1e300),
        ("student.shape.hidden_size", 10**12),
        ("student.shape.num_hidden_layers", 10**6),
        ("batch.size", 10**30),
    ):
        assert any(line.startswith(f"{key} = ") for line in problems({key: number})), key


def test_prepare_and_evaluate_ask_for_less() -> None:
    needless = {"run_dir": "", "teacher.path": "", "deepspeed_config": "absent.json", "cluster.teachers": 2}
    assert len(problems(needless)) == 3
    assert problems(needless, need="prepare") == []
    assert problems(needless, need="evaluate") == []
    (line,) = problems(needless, need="cache")  # nothing is trained: no run folder, no DeepSpeed
    assert line.startswith("teacher.path = ''")
    for need in typing.get_args(Need):
        assert problems({"data.prepared": ""}, need=need) != []
        assert problems({"batch.size": 0}, need=need) != []


def test_the_deepspeed_file_is_checked_with_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stge": 1}, "fp16": {}}')
    lines = problems({"deepspeed_config": str(path), "run_dir": ""})
    assert len(lines) == 3
    assert any("stge" in line for line in lines)


def test_load_config_reports_all_problems_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, ["batch.size=0", "train.epochs=0", "data.max_length=9000"])
    message = str(caught.value)
    for part in (
        "batch.size = 0",
        "train.epochs = 0",
        "data.max_length = 9000: must be 8 to 8192",
        "run_dir",
    ):
        assert part in message
