"""A copied student must compute what its source computes, layer for layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_encoders import FAMILIES, forward, pad_token, ragged_batch, tiny_encoder
from torch import Tensor

from distill_dist.errors import UserError
from distill_dist.models.copy_weights import copy_into_distilbert, copy_into_electra, copy_into_same
from distill_dist.models.encoder import encoder_parts, layer_list
from distill_dist.records import Batch

CLASSES = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
LENGTHS = (8, 3, 6)


def hidden(model: Any, batch: Batch) -> tuple[Tensor, ...]:
    """E and every layer's output, dropout off."""
    with torch.no_grad():
        return forward(model.eval(), batch, output_hidden_states=True).hidden_states


def same_weights(first: Any, second: Any) -> bool:
    weights = second.state_dict()
    return all(torch.equal(tensor, weights[name]) for name, tensor in first.state_dict().items())


# Models that have parts besides embeddings, layers and pooler, or a first layer unlike the others.
SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "electra with narrow embeddings": ("electra", {"embedding_size": 12}),
    "deberta with a convolution": ("deberta-v2", {"conv_kernel_size": 3}),
}
CASES = (*FAMILIES, *SPECIAL)
FIRST_IS_SPECIAL = ("modernbert", "deberta with a convolution")


def example(case: str, **more: Any) -> tuple[Any, Batch]:
    family, special = SPECIAL.get(case, (case, {}))
    model = tiny_encoder(family, layers=5, dtype=torch.float32, **{**special, **more})
    return model, ragged_batch(LENGTHS, pad=pad_token(family))


@pytest.mark.parametrize("case", CASES)
def test_the_first_layers_compute_the_sources_states_exactly(case: str) -> None:
    source, batch = example(case)
    student = copy_into_same(source, (1, 2, 3), CLASSES, pooler=False)
    theirs, ours = hidden(source, batch), hidden(student, batch)
    assert len(ours) == 4
    # ModernBERT's last state is the normalised one, which is not the source's third
    exact = 3 if case == "modernbert" else 4
    assert all(torch.equal(a, b) for a, b in zip(ours[:exact], theirs[:exact], strict=True))
    assert not torch.equal(ours[3], theirs[4])


@pytest.mark.parametrize("case", CASES)
def test_all_layers_compute_all_states_exactly(case: str) -> None:
    source, batch = example(case)
    student = copy_into_same(source, (1, 2, 3, 4, 5), CLASSES, pooler=True)
    assert all(torch.equal(a, b) for a, b in zip(hidden(student, batch), hidden(source, batch), strict=True))
    other, _ = example(case, seed=1)
    assert not torch.equal(hidden(student, batch)[5], hidden(other, batch)[5])


@pytest.mark.parametrize("layers", [(2, 4), (5, 1, 3), (1, 4, 3)])
@pytest.mark.parametrize("case", CASES)
def test_chosen_layers_lie_in_their_order(case: str, layers: tuple[int, ...]) -> None:
    source, _ = example(case)
    if case in FIRST_IS_SPECIAL and layers[0] != 1:
        with pytest.raises(UserError, match=r"layers \[\d, .* has to stay the first.*layer_copy=first"):
            copy_into_same(source, layers, CLASSES, pooler=False)
        return
    student = copy_into_same(source, layers, CLASSES, pooler=False)
    theirs, ours = layer_list(source), layer_list(student)
    assert len(ours) == len(layers)
    for place, layer in enumerate(layers):
        assert same_weights(ours[place], theirs[layer - 1])
    assert not same_weights(ours[1], theirs[1])
    assert same_weights(encoder_parts(student).embeddings, encoder_parts(source).embeddings)


@pytest.mark.parametrize("case", CASES)
def test_what_the_layers_share_is_copied(case: str) -> None:
    """Everything in the base model besides layers and pooler: relative positions, projections, normalisations."""
    source, _ = example(case)
    student = copy_into_same(source, (1, 2), CLASSES, pooler=False)
    theirs, ours = source.base_model.state_dict(), student.base_model.state_dict()
    shared = {
        name for name in theirs if "layer." not in name and "layers." not in name and "pooler" not in name
    }
    names = {
        "electra with narrow embeddings": {"embeddings_project.weight", "embeddings_project.bias"},
        "deberta-v2": {"encoder.rel_embeddings.weight", "encoder.LayerNorm.weight"},
        "deberta with a convolution": {"encoder.rel_embeddings.weight", "encoder.conv.conv.weight"},
        "modernbert": {"final_norm.weight"},
    }
    assert names.get(case, set()) <= shared
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)


def test_a_copied_layer_keeps_its_window() -> None:
    """ModernBERT's layers look far or near by their place; 1 and 4 look far here, and so they do in the copy."""
    source, batch = example("modernbert", local_attention=2)
    student = copy_into_same(source, (1, 4, 2), CLASSES, pooler=False)
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    assert student.config.layer_types == kinds
    assert [layer.attention_type for layer in layer_list(student)] == kinds
    assert [layer.attn.sliding_window is None for layer in layer_list(student)] == [True, True, False]
    assert source.config.layer_types == [*kinds[:1], kinds[2], kinds[2], kinds[0], kinds[2]]
    # its second state is the source's fourth layer at the source's first state
    with torch.no_grad():
        expected = through_layer(source, 3, hidden(source, batch)[1], batch)
    assert torch.equal(hidden(student, batch)[2], expected)


def through_layer(model: Any, index: int, state_BLH: Tensor, batch: Batch) -> Tensor:
    """What layer ``index`` (from 0) makes of ``state_BLH``, by putting it in the place of that layer's input."""
    seen: list[Tensor] = []
    layer = layer_list(model)[index]
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs: (state_BLH, *inputs[1:])),
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output)),
    ]
    forward(model, batch)
    for handle in handles:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize(("family", "name"), [("deberta-v2", "pooler"), ("modernbert", "head")])
def test_poolers_outside_the_base_are_copied_on_demand(family: str, name: str) -> None:
    source, _ = example(family)
    new, kept = (copy_into_same(source, (1, 2, 3, 4, 5), CLASSES, pooler=pooler) for pooler in (False, True))
    assert same_weights(getattr(kept, name), getattr(source, name))
    assert not same_weights(getattr(new, name), getattr(source, name))


def test_head_is_new_and_the_pooler_on_demand() -> None:
    source = tiny_encoder("bert", layers=3, dtype=torch.float32)
    new, kept = (copy_into_same(source, (1, 2, 3), CLASSES, pooler=pooler) for pooler in (False, True))
    assert same_weights(kept.bert.pooler, source.bert.pooler)
    assert not same_weights(new.bert.pooler, source.bert.pooler)
    for student in (new, kept):
        assert student.config.num_labels == 2
        assert student.config.id2label == {0: "no", 1: "yes"}
        assert student.classifier.weight.shape == (2, 16)
    assert source.config.num_labels == 3  # the source is as it was
    assert source.config.num_hidden_layers == 3


def test_a_copy_shares_no_memory_with_its_source() -> None:
    source = tiny_encoder("bert", layers=3, dtype=torch.float32)
    for student in (
        copy_into_same(source, (1,), CLASSES, pooler=True),
        copy_into_distilbert(source, (1,), CLASSES),
    ):
        theirs = {tensor.data_ptr() for tensor in source.state_dict().values()}
        assert not theirs & {tensor.data_ptr() for tensor in student.state_dict().values()}


def test_the_deep_copy_is_configured_to_its_depth() -> None:
    student = copy_into_same(
        tiny_encoder("bert", layers=5, dtype=torch.float32), (2, 4), CLASSES, pooler=False
    )
    assert student.config.num_hidden_layers == 2


# Two fp32 implementations of one function, hidden 16, at most 5 layers: each value is a sum of ~50 products
# of size 1, 6e-8 each, amplified by LayerNorm a few times.
DISTILBERT_TOLERANCE = 1e-5


@pytest.mark.parametrize("layers", [(1, 2, 3), (1, 2, 3, 4, 5)])
def test_distilbert_computes_berts_states_on_single_sentences(layers: tuple[int, ...]) -> None:
    source = tiny_encoder("bert", layers=5, dtype=torch.float32)
    student = copy_into_distilbert(source, layers, CLASSES)
    batch = ragged_batch(LENGTHS, segments=False)
    theirs, ours = hidden(source, batch), hidden(student, batch)
    assert len(ours) == len(layers) + 1
    real = batch.attention_mask_BL.bool()
    for a, b in zip(ours, theirs[: len(ours)], strict=True):
        assert (a - b)[real].abs().max() < DISTILBERT_TOLERANCE


def test_distilbert_misses_exactly_the_segments_difference_in_a_pair() -> None:
    source = tiny_encoder("bert", layers=3, dtype=torch.float32)
    student = copy_into_distilbert(source, (1, 2, 3), CLASSES)
    batch = ragged_batch(LENGTHS)
    difference = (hidden(source, batch)[0] - hidden(student, batch)[0]).abs().amax(-1)
    second = batch.token_type_ids_BL.bool()
    assert difference[second].min() > 0.01
    assert difference[~second].max() < DISTILBERT_TOLERANCE
    # folding the second segment's embedding in by hand closes the gap
    with torch.no_grad():
        table = source.bert.embeddings.token_type_embeddings.weight
        positions = student.distilbert.embeddings.position_embeddings.weight
        positions += table[1] - table[0]
    difference = (hidden(source, batch)[0] - hidden(student, batch)[0]).abs().amax(-1)
    assert difference[second].max() < DISTILBERT_TOLERANCE


def test_distilbert_takes_layers_in_order() -> None:
    source = tiny_encoder("bert", layers=5, dtype=torch.float32)
    student = copy_into_distilbert(source, (4, 2), CLASSES)
    theirs = encoder_parts(source).layers
    ours = encoder_parts(student).layers
    assert torch.equal(
        ours[0].state_dict()["ffn.lin1.weight"], theirs[3].state_dict()["intermediate.dense.weight"]
    )
    assert torch.equal(
        ours[1].state_dict()["ffn.lin1.weight"], theirs[1].state_dict()["intermediate.dense.weight"]
    )
    assert student.config.num_labels == 2


def test_distilbert_refuses_what_it_cannot_equal() -> None:
    with pytest.raises(UserError, match=r"needs a BERT at student\.path, not a roberta"):
        copy_into_distilbert(tiny_encoder("roberta"), (1,), CLASSES)
    with pytest.raises(UserError, match="eps 1e-12, the source's is 1e-05"):
        copy_into_distilbert(tiny_encoder("bert", layer_norm_eps=1e-5), (1,), CLASSES)


SHAPE = {
    "model_type": "bert",  # what student.shape says by default; the architecture decides
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
}


@pytest.mark.parametrize("case", ["bert", "roberta", "electra", "electra with narrow embeddings"])
def test_an_electra_student_has_the_teachers_embedding_exactly(case: str) -> None:
    source, batch = example(case, layer_norm_eps=1e-3)
    student = copy_into_electra(source, SHAPE, CLASSES)
    real_BL = batch.attention_mask_BL.bool()
    theirs, ours = embedding_BLH(source, batch), embedding_BLH(student, batch)
    assert theirs[real_BL].norm() > 1
    assert torch.equal(ours[real_BL], theirs[real_BL])
    assert not torch.equal(ours[real_BL], embedding_BLH(example(case, seed=1)[0], batch)[real_BL])
    parts = encoder_parts(student)
    width = 12 if case == "electra with narrow embeddings" else 16
    assert (parts.embedding_size, parts.hidden_size, len(parts.layers)) == (width, 8, 2)
    assert student.electra.embeddings_project.weight.shape == (8, width)
    assert forward(student, batch).logits.shape == (3, 2)


def embedding_BLH(model: Any, batch: Batch) -> Tensor:
    seen: list[Tensor] = []
    handle = encoder_parts(model).embeddings.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        forward(model.eval(), batch)
    handle.remove()
    return seen[0]


def test_an_electra_student_reads_rows_as_long_as_its_teacher() -> None:
    """RoBERTa's table of 40 positions starts behind its padding token, 1."""
    assert copy_into_electra(example("bert")[0], SHAPE, CLASSES).config.max_position_embeddings == 40
    source, _ = example("roberta")
    student = copy_into_electra(source, SHAPE, CLASSES)
    assert student.config.max_position_embeddings == 38
    longest = ragged_batch((38,), pad=1)
    assert torch.equal(embedding_BLH(student, longest), embedding_BLH(source, longest))
    too_long = ragged_batch((39,), pad=1)
    for model in (source, student):
        with pytest.raises((IndexError, RuntimeError)):
            embedding_BLH(model, too_long)


def test_an_electra_student_may_be_as_wide_as_its_teacher() -> None:
    source, batch = example("bert")
    student = copy_into_electra(source, {**SHAPE, "hidden_size": 16}, CLASSES)
    assert not hasattr(student.electra, "embeddings_project")
    assert torch.equal(embedding_BLH(student, batch), embedding_BLH(source, batch))


def test_an_electra_student_shares_no_memory_and_is_random_by_the_seed() -> None:
    source, _ = example("roberta")
    students = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        students.append(copy_into_electra(source, SHAPE, CLASSES))
    theirs = {tensor.data_ptr() for tensor in source.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in students[0].state_dict().values()}
    assert same_weights(students[0], students[1])
    assert not same_weights(students[0].electra.encoder, students[2].electra.encoder)


@pytest.mark.parametrize("family", ["distilbert", "deberta-v2", "modernbert"])
def test_an_embedding_block_of_another_kind_is_refused(family: str) -> None:
    with pytest.raises(
        UserError, match=rf"needs a BERT, RoBERTa or ELECTRA .* cannot hold that of a {family}"
    ):
        copy_into_electra(example(family)[0], SHAPE, CLASSES)


def test_sizes_that_make_no_model_are_refused() -> None:
    with pytest.raises(UserError, match=r"student\.shape\.hidden_size=9 must be a multiple"):
        copy_into_electra(example("bert")[0], {**SHAPE, "hidden_size": 9}, CLASSES)
