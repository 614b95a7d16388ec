from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import FAMILIES, ragged_batch, take_rows, tiny_encoder
from torch import Tensor

from distill_dist.models.build import load_classifier, set_attention
from distill_dist.models.encoder import encoder_parts
from distill_dist.records import Batch, NoiseSpec, SignalSpec
from distill_dist.teacher import row_keys as module
from distill_dist.teacher.row_codec import WireTypes
from distill_dist.teacher.row_keys import row_keys, signal_context, teacher_fingerprint

CONTEXT = b"a teacher and a question"
LENGTHS = (9, 3, 12, 1, 7)


def lengths_of(batch: Batch) -> Tensor:
    return batch.attention_mask_BL.sum(dim=1)


def keys_of(batch: Batch, *, labels: bool = False, context: bytes = CONTEXT) -> list[bytes]:
    labels_B = batch.labels_B if labels else None
    return row_keys(batch.input_ids_BL, lengths_of(batch), batch.token_type_ids_BL, labels_B, context=context)


def key_of(ids: list[int], types: list[int], *, label: int | None = None, context: bytes = CONTEXT) -> bytes:
    labels_B = None if label is None else torch.tensor([label])
    (key,) = row_keys(
        torch.tensor([ids]), torch.tensor([len(ids)]), torch.tensor([types]), labels_B, context=context
    )
    return key


def test_rows_have_keys_of_their_own() -> None:
    keys = keys_of(ragged_batch(LENGTHS))
    assert {len(key) for key in keys} == {16}
    assert len(set(keys)) == len(LENGTHS)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("rows", [[1, 0], [3], [4, 1, 2], [1, 3]])
def test_neighbours_and_padding_change_no_key(rows: list[int], labels: bool) -> None:
    batch = ragged_batch(LENGTHS)
    whole = keys_of(batch, labels=labels)
    assert keys_of(take_rows(batch, rows), labels=labels) == [whole[row] for row in rows]
    padding_BL = batch.attention_mask_BL == 0
    other = replace(
        batch,
        input_ids_BL=batch.input_ids_BL.masked_fill(padding_BL, 33),
        token_type_ids_BL=batch.token_type_ids_BL.masked_fill(padding_BL, 1),
    )
    assert keys_of(other, labels=labels) == whole


def test_the_integers_of_the_wire_have_the_keys_of_a_batch() -> None:
    batch = ragged_batch(LENGTHS)
    found = row_keys(
        batch.input_ids_BL.to(torch.int32),
        lengths_of(batch).to(torch.int32),
        batch.token_type_ids_BL.to(torch.uint8),
        batch.labels_B.to(torch.int32),
        context=CONTEXT,
    )
    assert found == keys_of(batch, labels=True)


def test_everything_that_is_given_counts() -> None:
    keys = [
        key_of([5, 6, 7], [0, 0, 1]),
        key_of([5, 6, 8], [0, 0, 1]),  # a token
        key_of([6, 5, 7], [0, 0, 1]),  # their order
        key_of([5, 6, 7], [0, 1, 1]),  # a type
        key_of([5, 6], [0, 0]),  # a token less
        key_of([5, 6, 7, 0], [0, 0, 1, 0]),  # a token that looks like padding
        key_of([5, 6, 7], [0, 0, 1], label=0),  # a label
        key_of([5, 6, 7], [0, 0, 1], label=1),
        key_of([5, 6, 7], [0, 0, 1], context=b"another"),
    ]
    assert len(set(keys)) == len(keys)


def test_no_field_is_read_as_a_part_of_its_neighbour() -> None:
    """Without lengths the bytes of each pair would be the same."""
    # 1 2 | 3 0 against 1 | 2 | 3, whose label has the width of two tokens
    assert key_of([1, 2], [3, 0]) != key_of([1], [2], label=3)
    # 2 tokens: 7 1 | 4 5 against a context that ends in 2, 7 and 1 token: 4 | 5
    longer = CONTEXT + struct.pack("<II", 2, 7)
    assert key_of([7, 1], [4, 5]) != key_of([4], [5], context=longer)


def test_other_processes_agree() -> None:
    """Written down from another process: a change here makes every stored row unknown."""
    assert key_of([101, 2023, 102], [0, 0, 1], label=2).hex() == "d50e27691e199ce6ce2deb28b830bb68"


SPEC = SignalSpec((2, 4), cls_states=True, noise=NoiseSpec(0.1, 2, 0))


def test_whatever_changes_a_rows_bytes_changes_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field of the spec, its noise and the types, the teacher, and both versions."""
    assert SPEC.noise is not None
    specs = [
        SPEC,
        replace(SPEC, layers=(2, 3)),
        replace(SPEC, cls_states=False),
        replace(SPEC, cls_gradients=True),
        replace(SPEC, embedding_gradient=True),
        replace(SPEC, signal="label"),
        replace(SPEC, attribution_top_k=0),
        replace(SPEC, noise=None),
        *(
            replace(SPEC, noise=replace(SPEC.noise, **{k: v}))
            for k, v in {"std": 0.2, "draws": 3, "seed": 1}.items()
        ),
    ]
    contexts = [signal_context("a", spec, WireTypes()) for spec in specs]
    contexts += [
        signal_context("b", SPEC, WireTypes()),
        signal_context("a", SPEC, WireTypes(states="fp16")),
        signal_context("a", SPEC, WireTypes(cls_gradients="fp16")),
        signal_context("a", SPEC, WireTypes(embedding_gradients="fp16")),
    ]
    for version in ("SIGNAL_VERSION", "ROW_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(module, version, getattr(module, version) + 1)
            contexts.append(signal_context("a", SPEC, WireTypes()))
    assert len(set(contexts)) == len(contexts)
    assert signal_context("a", replace(SPEC), WireTypes()) == contexts[0]


def fingerprint(model: Any, tokenizer: str = "t") -> str:
    return teacher_fingerprint(encoder_parts(model), tokenizer=tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_in_another_folder_is_the_same_teacher(family: str, tmp_path: Path) -> None:
    model = tiny_encoder(family, dtype=torch.float32)
    expected = fingerprint(model)
    for name in ("here", "there"):
        model.save_pretrained(tmp_path / name)
        assert fingerprint(load_classifier(str(tmp_path / name), attention="eager")) == expected


def test_a_model_of_another_class_name_or_library_is_the_same_teacher() -> None:
    model = tiny_encoder()
    expected = fingerprint(model)
    model.config.architectures, model.config.transformers_version = ["Another"], "9.9.9"
    assert fingerprint(model) == expected


def nudge(model: Any) -> None:
    with torch.no_grad():
        model.classifier.bias[0] = torch.nextafter(model.classifier.bias[0], torch.tensor(9.0).double())


CHANGES: dict[str, Callable[[Any], object]] = {
    "one bit of one weight": nudge,
    "dtype": lambda model: model.float(),
    "activation": lambda model: setattr(model.config, "hidden_act", "relu"),
    "epsilon": lambda model: setattr(model.config, "layer_norm_eps", 1e-5),
    "attention kernel": lambda model: set_attention(model, "sdpa"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_teacher_has_another_fingerprint(change: str) -> None:
    model = tiny_encoder()
    expected = fingerprint(model)
    assert fingerprint(tiny_encoder()) == expected
    CHANGES[change](model)
    assert fingerprint(model) != expected


def test_names_shapes_dtypes_and_tokenizer_are_part_of_the_teacher() -> None:
    model = tiny_encoder()
    expected = fingerprint(model)
    assert fingerprint(model, "u") != expected
    weight = model.classifier.weight
    model.classifier.weight = torch.nn.Parameter(weight.detach().reshape(weight.shape[::-1]))
    assert fingerprint(model) != expected  # the same bytes in another shape
    model.classifier.weight = weight
    assert fingerprint(model) == expected
    kinds = []
    for zeros in (
        torch.zeros(0),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int32),
    ):  # of equal bytes the last two
        model.register_buffer("more", zeros)
        kinds.append(fingerprint(model))
    assert len({expected, *kinds}) == 4
