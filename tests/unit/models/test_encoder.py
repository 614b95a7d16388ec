"""What the six families have in common, read from their stock classifiers."""

from __future__ import annotations

import pytest
import torch
from tiny_encoders import FAMILIES, WITH_SDPA, forward, pad_token, ragged_batch, tiny_encoder
from torch import nn

from distill_dist.errors import UserError
from distill_dist.models.encoder import encoder_parts, layer_list


def test_parts_of_supported_families() -> None:
    found = {family: encoder_parts(tiny_encoder(family, layers=4)) for family in FAMILIES}
    no_segments = {"distilbert", "deberta-v2", "modernbert"}
    assert {family for family, parts in found.items() if not parts.takes_token_types} == no_segments
    assert {family for family, parts in found.items() if "sdpa" in parts.attention_kernels} == set(WITH_SDPA)
    for parts in found.values():
        assert len(parts.layers) == len(layer_list(parts.model)) == 4
        assert (parts.hidden_size, parts.embedding_size) == (16, 16)
        assert parts.pools_cls
        assert "eager" in parts.attention_kernels


def test_electras_embedding_may_be_narrower() -> None:
    parts = encoder_parts(tiny_encoder("electra", embedding_size=12))
    assert (parts.hidden_size, parts.embedding_size) == (16, 12)


def test_a_modernbert_may_pool_the_mean() -> None:
    assert not encoder_parts(tiny_encoder("modernbert", classifier_pooling="mean")).pools_cls
    assert encoder_parts(tiny_encoder("modernbert", classifier_pooling="cls")).pools_cls


def test_debertas_convolution_puts_out_its_first_state() -> None:
    model = tiny_encoder("deberta-v2", conv_kernel_size=3)
    parts = encoder_parts(model)
    assert parts.layers[0] is model.deberta.encoder.conv
    assert parts.layers[1] is layer_list(model)[1]


SEGMENTS = [(family, knows) for family in ("bert", "roberta", "electra", "deberta-v2") for knows in (1, 2)]


@pytest.mark.parametrize(("family", "knows"), [*SEGMENTS, ("distilbert", 1), ("modernbert", 1)])
def test_logits_are_the_models_own_with_segments_where_it_knows_them(family: str, knows: int) -> None:
    """The published RoBERTa knows one segment, and an id of 1 has no row in its table."""
    more = {"type_vocab_size": knows} if family not in ("distilbert", "modernbert") else {}
    parts = encoder_parts(tiny_encoder(family, **more))
    batch = ragged_batch((8, 3, 6), pad=pad_token(family), segments=knows == 2)
    inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
    assert torch.equal(parts.logits_BC(*inputs), forward(parts.model, batch).logits)
    flipped = (*inputs[:2], 1 - batch.token_type_ids_BL)
    assert torch.equal(parts.logits_BC(*inputs), parts.logits_BC(*flipped)) == (knows == 1)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.TransformerEncoderLayer(4, 1)])
def test_other_shapes_are_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match=r"does not have the parts of a supported encoder .*ModernBERT"):
        encoder_parts(model)


def test_logits_of_half_precision_models_come_in_fp32() -> None:
    model, batch = tiny_encoder(dtype=torch.bfloat16), ragged_batch((8, 3, 6))
    assert forward(model, batch).logits.dtype == torch.bfloat16
    inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
    assert encoder_parts(model).logits_BC(*inputs).dtype == torch.float32
