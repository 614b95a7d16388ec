"""A signal depends on its sample alone: DESIGN, invariant 3."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from reference import row_of
from tiny_encoders import pad_token, ragged_batch, take_rows, tiny_encoder
from torch import Tensor

from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.records import Batch, SignalSpec, TeacherSignal
from distill_dist.teacher.compute import MIN_LENGTH, MIN_ROWS, compute_signal, describe_model

EVERYTHING = SignalSpec((2, 4), cls_states=True, cls_gradients=True, embedding_gradient=True)
LENGTHS = (9, 3, 7, 12, 5, 8, 4, 11, 6, 21)


def teacher(dtype: torch.dtype = torch.float32) -> EncoderParts:
    return encoder_parts(tiny_encoder(layers=4, seed=2, dtype=dtype).requires_grad_(False))


def signal_of(parts: EncoderParts, batch: Batch) -> TeacherSignal:
    inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
    return compute_signal(parts, *inputs, EVERYTHING)


def rows_of(signal: TeacherSignal, row: int, length: int) -> list[Tensor]:
    found = []
    for field in fields(signal):
        value = getattr(signal, field.name)[row]
        found.append(value[:length] if "_BL" in field.name else value)
    return found


def test_against_one_row_at_a_time_in_the_probability_form() -> None:
    """float64 on both sides, as in test_student.py: 1e-10."""
    parts, batch = teacher(torch.float64), ragged_batch(LENGTHS)
    found = signal_of(parts, batch)
    reference = tiny_encoder(layers=4, seed=2)
    for row, length in enumerate(LENGTHS):
        expected = row_of(reference, take_rows(batch, [row]), (2, 4), create_graph=False)
        wanted = [
            expected.logits_C,
            torch.stack(expected.states),
            torch.stack(expected.cls_directions),
            expected.embedding_directions_LH,
        ]
        for ours, theirs in zip(rows_of(found, row, length), wanted, strict=False):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


def test_norm_is_that_of_the_margins_gradient() -> None:
    """Two forward passes a step apart: the central difference along the gradient gives its norm."""
    model = tiny_encoder(layers=4, seed=2)
    batch = take_rows(ragged_batch(LENGTHS), [0])
    found = signal_of(encoder_parts(model.requires_grad_(False)), batch)
    assert found.embedding_gradient_BLH is not None
    assert found.embedding_gradient_norm_BL is not None
    step, shift = 1e-5, torch.zeros_like(found.embedding_gradient_BLH)
    shift[:, 4] = step * found.embedding_gradient_BLH[:, 4]
    margins = []
    for sign in (1, -1):
        hook = model.bert.embeddings.register_forward_hook(lambda _, __, out, s=sign: out + s * shift)
        z = model(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL).logits[0]
        hook.remove()
        c = found.logits_BC[0].argmax()
        margins.append(z[c] - torch.cat([z[:c], z[c + 1 :]]).logsumexp(0))
    slope = (margins[0] - margins[1]).item() / (2 * step)
    # error of a central difference: step² × third derivative ≈ 1e-10 × 1e3
    assert found.embedding_gradient_norm_BL[0, 4].item() == pytest.approx(slope, rel=1e-5)


def test_rows_are_unit_and_padding_is_zero() -> None:
    batch = ragged_batch(LENGTHS)
    found = signal_of(teacher(), batch)
    assert found.embedding_gradient_BLH is not None
    assert found.embedding_gradient_norm_BL is not None
    real_BL = batch.attention_mask_BL.bool()
    assert (found.embedding_gradient_BLH[real_BL].norm(dim=-1) - 1).abs().max() < 1e-6
    assert (found.embedding_gradient_BLH[~real_BL] == 0).all()
    assert torch.equal(found.embedding_gradient_norm_BL > 0, real_BL)
    for rows in (found.cls_states_BKH, found.cls_gradients_BKH):
        assert rows is not None
        assert rows.shape == (10, 2, 16)
        assert (rows.norm(dim=-1) - 1).abs().max() < 1e-6


def test_no_graph_is_kept() -> None:
    found = signal_of(teacher(), ragged_batch(LENGTHS))
    assert not any(getattr(found, field.name).requires_grad for field in fields(found))


SUBSETS = ([3, 0, 1, 2, 4, 5, 6, 7, 8, 9], [8, 7, 6, 5, 4, 2, 1, 0], [9, 1, 3], [1, 3, 5], [6], [1], [2, 3])


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("rows", SUBSETS)
def test_a_row_is_the_same_to_the_bit_whatever_its_neighbours(rows: list[int], family: str) -> None:
    """Other order, other padding, fewer and shorter rows than the kernels' vectors: not one bit changes."""
    model = tiny_encoder(family, layers=4, seed=2, dtype=torch.float32, hidden=64)
    parts, batch = encoder_parts(model.requires_grad_(False)), ragged_batch(LENGTHS, pad=pad_token(family))
    whole, part = signal_of(parts, batch), signal_of(parts, take_rows(batch, rows))
    assert len(part.logits_BC) == len(rows)
    for place, row in enumerate(rows):
        first, second = rows_of(whole, row, LENGTHS[row]), rows_of(part, place, LENGTHS[row])
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), row


def test_small_batches_are_filled_up_and_cut_back() -> None:
    parts, batch = teacher(), take_rows(ragged_batch(LENGTHS), [0, 1, 2])
    seen: list[tuple[int, ...]] = []
    hook = parts.embeddings.register_forward_hook(lambda _, __, output: seen.append(output.shape[:2]))
    inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
    found = [
        compute_signal(parts, *inputs, EVERYTHING, min_rows=rows, min_length=length)
        for rows, length in ((1, 1), (4, 1), (1, 14), (MIN_ROWS, MIN_LENGTH))
    ]
    hook.remove()
    assert seen == [(3, 9), (4, 9), (3, 14), (16, 16)]
    for signal in found:
        assert signal.logits_BC.shape == (3, 3)
        assert signal.cls_gradients_BKH is not None
        assert signal.cls_gradients_BKH.shape == (3, 2, 16)
        assert signal.embedding_gradient_BLH is not None
        assert signal.embedding_gradient_BLH.shape == (3, 9, 16)
        assert signal.embedding_gradient_norm_BL is not None
        assert signal.embedding_gradient_norm_BL.shape == (3, 9)
        # last bits only: fp32, values below 2, gradients pass ~1e3 operations
        assert torch.allclose(signal.logits_BC, found[0].logits_BC, rtol=0, atol=1e-5)
        assert found[0].embedding_gradient_BLH is not None
        difference = signal.embedding_gradient_BLH - found[0].embedding_gradient_BLH
        assert difference.abs().max() < 1e-4


def test_only_what_was_asked_for_is_computed() -> None:
    parts, batch = teacher(), ragged_batch(LENGTHS)
    inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
    graphs: list[bool] = []
    parts.embeddings.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    for spec in (
        SignalSpec(),
        SignalSpec((2,), cls_states=True),
        SignalSpec((2,), cls_gradients=True),
        SignalSpec(embedding_gradient=True),
    ):
        found = compute_signal(parts, *inputs, spec)
        assert (found.cls_states_BKH is not None) == spec.cls_states
        assert (found.cls_gradients_BKH is not None) == spec.cls_gradients
        assert (found.embedding_gradient_BLH is not None) == spec.embedding_gradient
        assert (found.embedding_gradient_norm_BL is not None) == spec.embedding_gradient
        assert graphs.pop() == spec.gradients  # a graph costs the memory of every layer
        assert torch.allclose(found.logits_BC, signal_of(parts, batch).logits_BC, rtol=0, atol=1e-6)


def test_description() -> None:
    parts = teacher()
    assert describe_model(parts) == {"parameters": sum(p.numel() for p in parts.model.parameters())}
