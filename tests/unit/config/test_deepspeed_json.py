"""The DeepSpeed JSON: what passes, what is refused, and that the lists match DeepSpeed's own source."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from distill_dist.config import deepspeed_json
from distill_dist.config.deepspeed_json import load_deepspeed_json, zero_stage
from distill_dist.errors import UserError

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda p: p.name)
def test_shipped_files_load(path: Path) -> None:
    assert zero_stage(load_deepspeed_json(path)) == int(path.stem.removeprefix("zero")[0])


def message_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "ds.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_deepspeed_json(path)
    assert all(line.startswith(f"deepspeed_config {path}: ") for line in str(caught.value).splitlines())
    return str(caught.value)


def test_what_is_read_is_returned(tmp_path: Path) -> None:
    content = {
        "zero_optimization": {"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}}
    }
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    assert load_deepspeed_json(path) == content
    assert zero_stage(content) == 2
    assert zero_stage({}) == 0


def test_zero_3_has_keys_of_its_own(tmp_path: Path) -> None:
    content = {
        "zero_optimization": {"stage": 3, "stage3_max_live_parameters": 1, "offload_param": {"device": "cpu"}}
    }
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    assert load_deepspeed_json(path) == content
    assert zero_stage(content) == 3


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"zero_optimisation": {}}, ["zero_optimisation", "nearest valid name: zero_optimization"]),
        ({"xyz": 1}, ["xyz", "valid names: ", "zero_optimization"]),
        ({"zero_optimization": {"stge": 1}}, ["zero_optimization.stge", "zero_optimization.stage"]),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, ["offload_optimizer.device"]),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, ["offload_optimizer", "an object"]),
        ({"zero_optimization": 1}, ["zero_optimization", "an object"]),
        ({"zero_optimization": {"stage": 4}}, ["stage = 4", "0, 1, 2 or 3"]),
        ({"zero_optimization": {"stage": True}}, ["stage = true", "0, 1, 2 or 3"]),
        ({"zero_optimization": {"stage": 1.0}}, ["stage = 1.0", "0, 1, 2 or 3"]),
        ({"zero_optimization": {"stage": "auto"}}, ['stage = "auto"', "0, 1, 2 or 3"]),
        ({"zero_optimization": {"stage": [1]}}, ["stage = [1]", "0, 1, 2 or 3"]),
        (
            {"zero_optimization": {"stage3_max_live_parameters": 1}},
            ["stage3_max_live_parameters", "ZeRO 3 alone"],
        ),
        ({"train_batch_size": 32}, ["train_batch_size", "batch.size"]),
        ({"train_micro_batch_size_per_gpu": 4}, ["batch.micro_tokens"]),
        ({"gradient_accumulation_steps": 4}, ["batch.micro_tokens"]),
        ({"gradient_clipping": 1.0}, ["train.clip_norm"]),
        ({"fp16": {"enabled": True}}, ["train.precision"]),
        ({"bf16": {"enabled": True}}, ["train.precision"]),
        ({"optimizer": {}}, ["train.optimizer"]),
        ({"scheduler": {}}, ["train.warmup_share"]),
        ({"gradient_allreduce_op": "sum"}, ["scaling"]),
        ([], ["no object"]),
    ],
)
def test_refused(tmp_path: Path, content: Any, parts: list[str]) -> None:
    message = message_of(tmp_path, json.dumps(content))
    for part in parts:
        assert part in message


def test_all_problems_at_once(tmp_path: Path) -> None:
    message = message_of(tmp_path, '{"fp16": {}, "bf16": {}, "zero_optimization": {"stage": 4, "stge": 1}}')
    assert len(message.splitlines()) == 4


def test_broken_json_names_the_line_and_twice_the_key(tmp_path: Path) -> None:
    assert "line 2, column" in message_of(tmp_path, '{\n "a" 1}')
    assert "'a' stands twice" in message_of(tmp_path, '{"a": 1, "a": 2}')
    with pytest.raises(UserError, match="no such file"):
        load_deepspeed_json(tmp_path / "absent.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_deepspeed_json(tmp_path)


def test_owned_fields_name_fields_that_exist() -> None:
    from distill_dist.config.fields import schema_fields

    for owner in deepspeed_json._OWNED.values():
        if owner.startswith("the project"):
            continue
        for key in owner.replace(" and ", ", ").split(", "):
            assert key in schema_fields(), key


def _field_names(module: str, class_name: str) -> set[str]:
    """Field names and aliases of a DeepSpeed pydantic model, read from its source: nothing is imported."""
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / module).read_text(encoding="utf-8"))
    (model,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
    names: set[str] = set()
    for node in model.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
            for call in ast.walk(node):
                if isinstance(call, ast.keyword) and call.arg == "alias":
                    names.add(ast.literal_eval(call.value))
    return names


def test_lists_are_those_of_the_installed_deepspeed() -> None:
    listed = deepspeed_json._ZERO | deepspeed_json._ZERO_3 | deepspeed_json._ZERO_NOT_OFFERED
    assert not deepspeed_json._ZERO & deepspeed_json._ZERO_NOT_OFFERED
    assert _field_names("runtime/zero/config.py", "DeepSpeedZeroConfig") == listed
    offload = _field_names("runtime/zero/offload_config.py", "DeepSpeedZeroOffloadOptimizerConfig")
    assert offload == deepspeed_json._OFFLOAD_OPTIMIZER
