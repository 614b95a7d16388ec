"""Gradients at inner points against Hugging Face's own ``output_hidden_states`` and plain autograd, float64.

Tolerance: the hooked forward adds exact zeros, so only the order of the backward's additions differs: 1e-12.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_encoders import FAMILIES, forward, pad_token, ragged_batch, tiny_encoder
from torch import Tensor, nn

from distill_dist.errors import UserError
from distill_dist.models.encoder import encoder_parts
from distill_dist.models.hooks import InnerPoints, gradients_at, watch_points
from distill_dist.records import Batch

LAYERS = (1, 3)
LENGTHS = (8, 3, 6)


def scalar(logits_BC: Tensor) -> Tensor:
    """Anything smooth that mixes the classes."""
    return (logits_BC.sin() * torch.arange(1, 1 + logits_BC.shape[1])).sum()


def hooked(model: Any, batch: Batch, *, create_graph: bool = False) -> tuple[Tensor, Tensor, InnerPoints]:
    parts = encoder_parts(model)
    with watch_points(parts, layers=LAYERS, embedding_gradient=True, cls_gradients=True) as points:
        logits_BC = parts.logits_BC(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
        found = gradients_at(scalar(logits_BC), points, layers=LAYERS, create_graph=create_graph)
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1], points


def by_autograd(model: Any, batch: Batch, *, create_graph: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    output = forward(model, batch, output_hidden_states=True)
    points = [output.hidden_states[layer] for layer in (0, *LAYERS)]
    embedding, *layers = torch.autograd.grad(scalar(output.logits), points, create_graph=create_graph)
    states = torch.stack([point[:, 0] for point in points[1:]], dim=1)
    return embedding, torch.stack([gradient[:, 0] for gradient in layers], dim=1), states


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_states_equal_autograd(family: str) -> None:
    model = tiny_encoder(family, layers=4)
    batch = ragged_batch(LENGTHS, pad=pad_token(family))
    embedding_BLH, cls_BKH, points = hooked(model, batch)
    expected_BLH, expected_BKH, states_BKH = by_autograd(model, batch)
    assert expected_BLH.norm() > 0.1
    assert (expected_BKH[:, 0] - expected_BKH[:, 1]).norm() > 0.1
    assert torch.allclose(embedding_BLH, expected_BLH, rtol=0, atol=1e-12)
    assert torch.allclose(cls_BKH, expected_BKH, rtol=0, atol=1e-12)
    found = torch.stack([points.cls_states_BH[layer] for layer in LAYERS], dim=1)
    assert torch.equal(found, states_BKH)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_has_exactly_no_gradient(family: str) -> None:
    batch = ragged_batch(LENGTHS, pad=pad_token(family))
    embedding_BLH, _, _ = hooked(tiny_encoder(family, layers=4), batch)
    assert torch.equal((embedding_BLH != 0).any(dim=-1), batch.attention_mask_BL.bool())


@pytest.mark.parametrize("family", FAMILIES)
def test_second_derivative_reaches_trainable_embeddings(family: str) -> None:
    model = tiny_encoder(family, layers=4)
    batch = ragged_batch(LENGTHS, pad=pad_token(family))
    parameters = list(model.parameters())
    found, expected = (
        torch.autograd.grad(e.sin().sum() + c.sin().sum(), parameters, allow_unused=True)
        for e, c, _ in (
            hooked(model, batch, create_graph=True),
            by_autograd(model, batch, create_graph=True),
        )
    )
    words = model.get_input_embeddings().weight
    place = next(i for i, parameter in enumerate(parameters) if parameter is words)
    assert expected[place] is not None
    assert expected[place].norm() > 0.1
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            # a second backward sums ~1e3 terms of size up to 1e2
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_electra_with_a_narrower_embedding() -> None:
    """The gradient at E has E's width, the layers' have theirs."""
    model = tiny_encoder("electra", layers=4, embedding_size=12)
    embedding_BLH, cls_BKH, _ = hooked(model, ragged_batch(LENGTHS))
    assert embedding_BLH.shape == (3, 8, 12)
    assert cls_BKH.shape == (3, 2, 16)
    assert (embedding_BLH[0] != 0).any(-1).all()


def test_frozen_embeddings_have_gradients_at_their_output() -> None:
    model = tiny_encoder(layers=4)
    batch = ragged_batch(LENGTHS)
    expected, _, _ = by_autograd(model, batch)
    model.requires_grad_(False)
    assert torch.allclose(hooked(model, batch)[0], expected, rtol=0, atol=1e-12)


def test_hooks_are_gone_afterwards_also_after_an_error() -> None:
    model = tiny_encoder(layers=4)
    parts = encoder_parts(model)
    before = num_hooks(model)
    with watch_points(parts, layers=LAYERS, embedding_gradient=True, cls_gradients=False):
        assert num_hooks(model) == before + 3
    assert num_hooks(model) == before

    def fail() -> None:
        with watch_points(parts, layers=LAYERS, embedding_gradient=True, cls_gradients=True):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert num_hooks(model) == before


def test_only_what_was_asked_for_is_recorded() -> None:
    model, batch = tiny_encoder(layers=4), ragged_batch(LENGTHS)
    parts = encoder_parts(model)
    inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
    with watch_points(parts, layers=(), embedding_gradient=False, cls_gradients=True) as points:
        logits_BC = parts.logits_BC(*inputs)
    assert points == InnerPoints()
    assert gradients_at(scalar(logits_BC), points, layers=(), create_graph=False) == (None, None)
    with watch_points(parts, layers=(2,), embedding_gradient=False, cls_gradients=False) as points:
        logits_BC = parts.logits_BC(*inputs)
    assert list(points.cls_states_BH) == [2]
    assert gradients_at(scalar(logits_BC), points, layers=(2,), create_graph=False) == (None, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_itself_does_not_change_even_under_dropout(family: str) -> None:
    model = tiny_encoder(family, layers=4, dropout=0.2).train()
    parts, batch = encoder_parts(model), ragged_batch(LENGTHS, pad=pad_token(family))
    inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
    logits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        logits.append(forward(model, batch).logits)
    torch.manual_seed(1)
    with watch_points(parts, layers=LAYERS, embedding_gradient=True, cls_gradients=True):
        found = parts.logits_BC(*inputs)
    assert not torch.allclose(logits[0], logits[1])
    assert torch.equal(found, logits[0])


def test_parts_of_supported_families() -> None:
    found = {family: encoder_parts(tiny_encoder(family, layers=4)) for family in FAMILIES}
    assert {family: parts.takes_token_types for family, parts in found.items()} == {
        "bert": True,
        "distilbert": False,
        "roberta": True,
        "electra": True,
    }
    assert {len(parts.layers) for parts in found.values()} == {4}
    assert {parts.hidden_size for parts in found.values()} == {16}


def test_other_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="Linear does not have the parts of a supported encoder"):
        encoder_parts(nn.Linear(2, 2))


def test_logits_of_half_precision_models_come_in_fp32() -> None:
    model, batch = tiny_encoder(dtype=torch.bfloat16), ragged_batch(LENGTHS)
    assert forward(model, batch).logits.dtype == torch.bfloat16
    inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
    assert encoder_parts(model).logits_BC(*inputs).dtype == torch.float32
