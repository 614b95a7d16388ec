"""A copied student must compute what its source computes, layer for layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_encoders import forward, pad_token, ragged_batch, tiny_encoder
from torch import Tensor

from distill_dist.errors import UserError
from distill_dist.models.copy_weights import copy_into_distilbert, copy_into_same
from distill_dist.models.encoder import encoder_parts
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


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_the_first_layers_compute_the_sources_states_exactly(family: str) -> None:
    source = tiny_encoder(family, layers=5, dtype=torch.float32)
    student = copy_into_same(source, (1, 2, 3), CLASSES, pooler=False)
    batch = ragged_batch(LENGTHS, pad=pad_token(family))
    theirs, ours = hidden(source, batch), hidden(student, batch)
    assert len(ours) == 4
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs[:4], strict=True))
    assert not torch.equal(ours[3], theirs[4])


@pytest.mark.parametrize("layers", [(2, 4), (5, 1, 3)])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_chosen_layers_lie_in_their_order(family: str, layers: tuple[int, ...]) -> None:
    source = tiny_encoder(family, layers=5, dtype=torch.float32)
    student = copy_into_same(source, layers, CLASSES, pooler=False)
    theirs, ours = encoder_parts(source), encoder_parts(student)
    assert len(ours.layers) == len(layers)
    for place, layer in enumerate(layers):
        assert same_weights(ours.layers[place], theirs.layers[layer - 1])
    assert not same_weights(ours.layers[0], theirs.layers[0])
    assert same_weights(ours.embeddings, theirs.embeddings)


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
