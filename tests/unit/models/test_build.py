from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import FAMILIES, WITH_SDPA, forward, pad_token, ragged_batch, tiny_encoder
from torch import nn

from distill_dist.errors import UserError
from distill_dist.models.build import (
    load_classifier,
    load_teacher,
    random_student,
    set_attention,
    set_dropout,
    student_from,
)
from distill_dist.models.encoder import encoder_parts

NAMES = ("entailment", "neutral", "contradiction")
SHAPE = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def saved(folder: Path, *, names: tuple[str, ...] | None = None, family: str = "bert") -> str:
    model = tiny_encoder(family, layers=3, dtype=torch.float32)
    if names is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(folder)
    return str(folder)


def same(first: nn.Module, second: nn.Module) -> bool:
    weights = second.state_dict()
    return all(torch.equal(tensor, weights[name]) for name, tensor in first.state_dict().items())


def test_a_teacher_is_frozen_and_the_one_on_disk(tmp_path: Path) -> None:
    path = saved(tmp_path / "teacher", names=NAMES)
    teacher = load_teacher(path, labels=NAMES, attention="eager")
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training
    assert teacher.config._attn_implementation == "eager"
    assert same(teacher, tiny_encoder("bert", layers=3, dtype=torch.float32))
    assert not same(teacher, tiny_encoder("bert", layers=3, seed=1, dtype=torch.float32))


def test_a_teacher_with_nameless_classes_is_taken_by_their_number(tmp_path: Path) -> None:
    path = saved(tmp_path / "teacher")
    assert load_teacher(path, labels=NAMES, attention="sdpa").config.num_labels == 3
    with pytest.raises(UserError, match="LABEL_0"):
        load_teacher(path, labels=("no", "yes"), attention="sdpa")


@pytest.mark.parametrize("labels", [("no", "yes"), (NAMES[1], NAMES[0], NAMES[2]), (*NAMES, "other")])
def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, labels: tuple[str, ...]) -> None:
    path = saved(tmp_path / "teacher", names=NAMES)
    with pytest.raises(UserError, match="the order counts") as caught:
        load_teacher(path, labels=labels, attention="eager")
    assert all(name in str(caught.value) for name in (path, *NAMES, *labels))


def test_an_untrained_head_is_refused(tmp_path: Path) -> None:
    tiny_encoder("bert", dtype=torch.float32).bert.save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match=r"not a fine-tuned classifier.*classifier\.(bias|weight)"):
        load_classifier(str(tmp_path / "encoder"), attention="eager")


def test_no_model_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "empty" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no model could be loaded from .*empty': "):
        load_classifier(str(tmp_path / "empty"), attention="eager")
    (tmp_path / "empty" / "model" / "config.json").touch()
    with pytest.raises(
        UserError, match=r"no model could be loaded from .*empty' \(did you mean '.*empty/model'\?\): "
    ):
        load_classifier(str(tmp_path / "empty"), attention="eager")
    path = saved(tmp_path / "torn")
    weights = Path(path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"no model could be loaded from .*torn"):
        load_classifier(path, attention="eager")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 24),
        ("hidden_size", "x"),
        ("num_attention_heads", 0),
        ("hidden_act", "no"),
        ("id2label", [1]),
    ],
)
def test_a_damaged_configuration_is_one_clear_message(tmp_path: Path, key: str, value: Any) -> None:
    path = saved(tmp_path / "model")
    config = Path(path) / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text(encoding="utf-8")), key: value}), encoding="utf-8"
    )
    with pytest.raises(UserError, match=rf"no model could be loaded from '{path}': \S"):
        load_classifier(path, attention="eager")


def test_a_message_calls_the_model_what_the_user_calls_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", names=NAMES)
    with pytest.raises(UserError, match=r"^the student at .*model' knows the classes"):
        load_teacher(path, labels=("no", "yes"), attention="eager", what="the student")


KERNELS = [*((family, "eager") for family in FAMILIES), *((family, "sdpa") for family in WITH_SDPA)]


@pytest.mark.parametrize(("family", "attention"), KERNELS)
def test_dropout_of_zero_is_really_zero(family: str, attention: str) -> None:
    """In train mode two forwards agree to the bit, whatever the random numbers; with 0.1 they do not."""
    batch = ragged_batch((8, 3, 6), pad=pad_token(family))

    def twice(probability: float) -> list[torch.Tensor]:
        model: Any = tiny_encoder(family, layers=4, dropout=0.3, attention=attention).train()
        set_dropout(model, probability)
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(forward(model, batch).logits)
        return found

    first, second = twice(0.1)
    assert not torch.allclose(first, second)
    first, second = twice(0.0)
    assert torch.equal(first, second)


def dropouts(model: nn.Module) -> dict[str, float]:
    """Every dropout by its place, the numbers that attention reads at run time among them."""
    found = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    read = {name: getattr(module, "attention_dropout", None) for name, module in model.named_modules()}
    return {**found, **{f"{name}.attention": p for name, p in read.items() if isinstance(p, int | float)}}


@pytest.mark.parametrize("probability", [0.0, 0.2])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_survives_export(family: str, probability: float, tmp_path: Path) -> None:
    """What a run sets must stand in the exported configuration, or loading it for training brings 0.1 back.

    And a model built without dropout gets it everywhere where its family has one.
    """
    model = tiny_encoder(family, layers=4, dtype=torch.float32, dropout=0.3 if probability == 0 else 0.0)
    set_dropout(model, probability)
    model.save_pretrained(tmp_path / "model")
    again = load_classifier(str(tmp_path / "model"), attention="eager")
    assert set(dropouts(again).values()) == {probability}
    assert probability == 0 or dropouts(model) == dropouts(again)


def test_a_random_student_is_a_function_of_the_seed() -> None:
    def student(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return random_student(SHAPE, vocab_size=40, pad_token_id=0, labels=NAMES)

    assert not same(student(0), student(1))
    assert same(student(0), student(0))
    model: Any = student(0)
    assert model.config.num_hidden_layers == 2
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.vocab_size == 40


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UserError, match=r"student\.shape: "):
        random_student({**SHAPE, "model_type": "no-such-model"}, vocab_size=40, pad_token_id=0, labels=NAMES)


def test_student_from_copies_what_was_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "source")
    source = load_classifier(path, attention="eager")

    def student(keep: int | None, how: str = "first", architecture: str = "same") -> Any:
        return student_from(
            path, architecture=architecture, keep=keep, how=how, chosen=(3,), labels=("no", "yes")
        )

    whole, cut, even, listed = student(None), student(2), student(1, "even"), student(1, "list")
    assert same(whole.bert.pooler, source.bert.pooler)
    assert not same(cut.bert.pooler, source.bert.pooler)
    assert len(cut.bert.encoder.layer) == 2
    assert same(cut.bert.encoder.layer[1], source.bert.encoder.layer[1])
    assert same(even.bert.encoder.layer[0], source.bert.encoder.layer[2])
    assert same(listed.bert.encoder.layer[0], source.bert.encoder.layer[2])
    distil = student(2, architecture="distilbert")
    assert distil.config.model_type == "distilbert"
    assert {model.config.num_labels for model in (whole, cut, distil)} == {2}


@pytest.mark.parametrize("family", WITH_SDPA)
def test_attention_kernels_agree(family: str) -> None:
    """Only the kernel changes, not the function: float64, ~1e3 operations; ModernBERT's eager softmax is fp32."""
    model, batch = tiny_encoder(family), ragged_batch((8, 3, 6), pad=pad_token(family))
    set_attention(model, "eager")
    eager = forward(model, batch).logits
    set_attention(model, "sdpa")
    assert model.config._attn_implementation == "sdpa"
    tolerance = 1e-5 if family == "modernbert" else 1e-11
    assert torch.allclose(forward(model, batch).logits, eager, rtol=0, atol=tolerance)


def test_a_kernel_that_the_family_has_not_is_refused() -> None:
    """Hugging Face would go on with eager and say so in its log."""
    model = tiny_encoder("deberta-v2")
    set_attention(model, "eager")
    with pytest.raises(UserError, match=r"student\.attention=sdpa: a deberta-v2 has only the kernel eager"):
        set_attention(model, "sdpa")
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_student_of_any_family(family: str) -> None:
    shape = {**SHAPE, "model_type": family, "max_position_embeddings": 40}
    model: Any = random_student(shape, vocab_size=40, pad_token_id=pad_token(family), labels=NAMES)
    parts, batch = encoder_parts(model), ragged_batch((8, 3, 6), pad=pad_token(family))
    assert (len(parts.layers), parts.hidden_size) == (2, 16)
    assert forward(model, batch).logits.shape == (3, 3)


def test_an_electra_student_takes_the_embeddings_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "source")
    shape = {**SHAPE, "hidden_size": 8, "max_position_embeddings": 512}
    student = student_from(
        path, architecture="electra", keep=None, how="first", chosen=(), labels=NAMES, shape=shape
    )
    assert student.config.model_type == "electra"
    assert (student.config.hidden_size, student.config.embedding_size) == (8, 16)
    student.save_pretrained(tmp_path / "student")
    assert same(load_classifier(str(tmp_path / "student"), attention="sdpa"), student)
