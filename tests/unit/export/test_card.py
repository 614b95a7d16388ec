"""The model card: front matter that the hub's own library reads back, sections, and text that cannot break it."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from distill_dist.export.card import METHODS, model_card
from distill_dist.export.facts import CardFacts, Measured
from distill_dist.objectives import objective
from export.facts_cases import DEV, LATENCY, ONNX, facts

SECTIONS = ["Use", "Method", "Data", "Teacher", "Results", "Command", "Versions", "Limits"]
EVIL = "x\n---\nlicense: mit\n```\n| a | `b` \\| <script> # [c](d)\u2028\x00"


def saved(tmp_path: Path, given: CardFacts) -> ModelCard:
    """Written and read back, as the hub reads it."""
    model_card(given).save(tmp_path / "README.md")
    return ModelCard.load(tmp_path / "README.md")


def sections(card: ModelCard) -> list[str]:
    outside = re.sub(r"^(```+).*?^\1$", "", card.text, flags=re.M | re.S)
    return re.findall(r"^## (.*)$", outside, re.M)


def test_front_matter_and_sections(tmp_path: Path) -> None:
    card = saved(tmp_path, facts(onnx=ONNX, latency=LATENCY))
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "text-classification"
    assert data["library_name"] == "transformers"
    assert data["metrics"] == ["accuracy"]
    assert {"distillation", "gkd"} <= set(data["tags"])
    assert "base_model" not in data
    assert "datasets" not in data
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.91, "dev")
    assert result.metric_args == {"interval_95": [0.89, 0.93]}
    assert sections(card) == [*SECTIONS[:5], "Speed and size", "ONNX", *SECTIONS[5:]]
    assert "0.910 (0.890 to 0.930)" in card.text
    assert "0.960 (0.950 to 0.970)" in card.text
    assert "22,700,000 parameters" in card.text
    assert "(`bert, 6 layers of width 384`), sha256 of its weights: `0101" in card.text
    *_, program = re.findall(r"```python\n(.*?)```", card.text, re.S)
    ast.parse(program)
    assert 'onnxruntime.InferenceSession("onnx/model.onnx")' in program
    command = "deepspeed --num_gpus 3 launcher/train.py --config configs/a.yaml 'run_dir=…/x/y'"
    assert command in card.text
    assert "/home" not in card.content
    assert "/home/user" not in card.content


def test_what_is_of_the_hub_is_named(tmp_path: Path) -> None:
    given = facts(
        base_model="owner/base", dataset="owner/rows", dataset_config="sst2", dataset_revision="abc",
        splits=(replace(DEV, of_hub="validation"),),
    )  # fmt: skip
    card = saved(tmp_path, given)
    assert card.data.base_model == "owner/base"
    assert card.data.datasets == ["owner/rows"]
    (result,) = card.data.eval_results
    assert result.dataset_split == "validation"
    assert (result.dataset_type, result.dataset_config, result.dataset_revision) == (
        "owner/rows",
        "sst2",
        "abc",
    )


@pytest.mark.parametrize("columns", [("sentence",), ("premise", "hypo'\"thesis\n"), ("|",)])
def test_the_snippet_is_a_program(tmp_path: Path, columns: tuple[str, ...]) -> None:
    card = saved(tmp_path, facts(columns=columns, name='a "b" c'))
    (program,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    tree = ast.parse(program)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (classify,) = [call for call in calls if getattr(call.func, "id", "") == "classify"]
    given = ast.literal_eval(classify.args[0])
    assert set(given) == {"text", "text_pair"} if len(columns) == 2 else isinstance(given, str)
    assert [keyword.arg for keyword in classify.keywords] == ["truncation"]
    (pipeline,) = [call for call in calls if getattr(call.func, "id", "") == "pipeline"]
    assert ast.literal_eval(pipeline.keywords[0].value) == 'a "b" c'


def test_nothing_from_a_run_breaks_it(tmp_path: Path) -> None:
    evil = facts(
        name=EVIL,
        task=EVIL,
        columns=(EVIL, EVIL),
        labels=(EVIL, "y"),
        settings=(("temperature", EVIL),),
        splits=(replace(DEV, classes={EVIL: {"precision": Measured(0.5)}}, loyalty={EVIL: Measured(1.0)}),),
        sources=tuple(replace(each, origin=EVIL) for each in facts().sources),
        teachers=tuple(replace(each, path=EVIL) for each in facts().teachers),
        command=("python", EVIL),
        versions={EVIL: EVIL},
        latency=replace(LATENCY, processor=EVIL),
    )
    card = saved(tmp_path, evil)
    assert sections(card) == [*SECTIONS[:5], "Speed and size", *SECTIONS[5:]]
    assert "license" not in card.data.to_dict()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == yaml.safe_load(model_card(evil).data.to_yaml())
    body = re.sub(r"^(```+).*?^\1$", "", card.text, flags=re.M | re.S)
    assert "<script>" not in body
    tables = re.findall(r"(?:^\|.*\n?)+", body, re.M)
    for rows in tables:
        assert len({line.count("|") for line in rows.strip().splitlines()}) == 1, rows
    assert len(tables) == 6


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = facts(
        splits=(), intervals=None, sources=(), manifest=None, teachers=(), teacher_parameters=None,
        command=(), versions={},
    )  # fmt: skip
    card = saved(tmp_path, bare)
    assert card.data.eval_results is None
    assert sections(card) == SECTIONS
    assert "were not at hand" in card.text
    assert card.text.count("Not recorded.") == 2
    gone = saved(tmp_path, facts(intervals=None, teacher_missing=True, splits=(replace(DEV, teacher={}),)))
    assert "without intervals" in gone.text
    assert "| `onnx/model.onnx` |  | 1.0000 |" in saved(tmp_path, facts(onnx=replace(ONNX, dev={}))).text
    assert "not at hand when this was exported" in gone.text


def test_every_method_is_told() -> None:
    assert METHODS.keys() == set(objective.METHODS)


def test_saliency_of_some_rows_is_not_that_of_all(tmp_path: Path) -> None:
    loyalty = {"ll": Measured(0.9), "sl_spearman_norm": Measured(0.8)}
    some = saved(tmp_path, facts(splits=(replace(DEV, loyalty=loyalty, saliency_rows=250),)))
    (line,) = [line for line in some.text.splitlines() if "Spearman, norm" in line]
    assert "(250 of the rows, evenly spaced)" in line
    assert some.text.count("of the rows, evenly spaced") == 1
    assert "evenly spaced" not in saved(tmp_path, facts(splits=(replace(DEV, loyalty=loyalty),))).text
