from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from distill_dist.bench.saved_bytes import SavedBytes
from distill_dist.config.load import load_config
from distill_dist.config.schema import ShapeConfig
from distill_dist.slurm.memory import _activations, _student, estimate
from distill_dist.slurm.model_size import size_of_shape, size_on_disk

SHAPE = ShapeConfig(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=64,
)
ROOT = Path(__file__).resolve().parents[3]


def bert(attention: str = "eager") -> transformers.PreTrainedModel:
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=64, num_labels=3, attn_implementation=attention,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def test_parameters_are_counted_exactly(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path)
    real = sum(parameter.numel() for parameter in model.parameters())
    embeddings = sum(parameter.numel() for parameter in model.bert.embeddings.parameters())
    for found in (size_on_disk(tmp_path), size_of_shape(SHAPE, vocabulary=500, classes=3)):
        assert found is not None
        assert (found.total(), found.embeddings, found.layers) == (real, embeddings, 4)
        assert found.total(2) == real - 2 * sum(p.numel() for p in model.bert.encoder.layer[0].parameters())


def test_what_is_no_model_has_no_size(tmp_path: Path) -> None:
    assert size_on_disk(tmp_path) is None
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert size_on_disk(tmp_path) is None


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activations_are_not_underestimated(attention: str) -> None:
    """Of a plain forward. The formula also counts dropout's masks, and eager attention's scores: up to 1.7 times."""
    config = load_config(
        ROOT / "configs" / "demo.yaml", ["method=kd", "deepspeed_config=ds_configs/zero1.json"]
    )
    size = size_of_shape(SHAPE, vocabulary=500, classes=3)
    model = bert(attention)
    ids = torch.randint(0, 500, (8, config.data.max_length))
    with SavedBytes(model.parameters()) as saved:
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        live = saved.live
    assert output.logits.shape == (8, 3)
    estimated = _activations(config, size, 4, tokens=ids.numel(), number=4)
    assert 1.0 <= estimated / live <= 1.7


def test_zero_divides_what_it_divides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    bert().save_pretrained(tmp_path)
    base = [
        "student.layers=2",
        f"teacher.path={tmp_path}",
        f"run_dir={tmp_path}/run",
        "batch.micro_tokens=64",
    ]
    real = size_on_disk(tmp_path)
    assert real is not None
    total, frozen = real.total(2), real.embeddings
    for stage in range(4):
        config = load_config(
            ROOT / "configs" / "demo.yaml", [*base, f"deepspeed_config=ds_configs/zero{stage}.json"]
        )
        student, teacher, host = estimate(config, students=4)
        assert f"({total / 1e6:.1f} M parameters" in student
        assert teacher.startswith("teacher: about")
        assert "1024 MiB" in host
    found = {
        stage: _student(replace(config, deepspeed_config=f"ds_configs/zero{stage}.json"), real, 2, students=4)
        for stage in range(4)
    }
    trained = total - frozen
    assert found[0].weights == found[2].weights == 4 * total
    assert found[3].weights == total
    assert [found[stage].gradients for stage in range(4)] == [4 * trained, 4 * trained, trained, trained]
    assert [found[stage].moments for stage in range(4)] == [
        8 * trained,
        2 * trained,
        2 * trained,
        2 * trained,
    ]


def test_what_is_not_there_yet_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "gkd_qqp.yaml", ["teacher.path=nobody/nothing"])
    assert estimate(config, students=2)[:2] == [
        "student: unknown until 'nobody/nothing' can be read here",
        "teacher: unknown until 'nobody/nothing' can be read here",
    ]


def test_random_weights_take_their_vocabulary_from_what_was_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps({"labels": ["a", "b", "c"]}), encoding="utf-8")
    vocabulary = {f"word{number}": number for number in range(500)}
    text = json.dumps({"model": {"vocab": vocabulary}})
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(text, encoding="utf-8")
    config = load_config(ROOT / "configs" / "demo_teacher.yaml", [f"data.prepared={tmp_path}"])
    real = sum(parameter.numel() for parameter in bert().parameters())
    assert f"({real / 1e6:.1f} M parameters" in estimate(config, students=1)[0]
