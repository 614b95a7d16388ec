"""Decoders as teachers: transformers' own logits of single rows, whatever stands beside and behind a row."""

from __future__ import annotations

import pytest
import torch
from tiny_decoders import tiny_decoder
from tiny_encoders import tiny_encoder
from torch import Tensor

from distill_dist.errors import UserError
from distill_dist.models.decoder import DECODERS, DecoderParts, is_decoder, teacher_parts
from distill_dist.models.encoder import EncoderParts
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import compute_signal

END = 1
LENGTHS = (9, 3, 33, 7, 12, 1, 5, 50, 21)


def rows_of(lengths: tuple[int, ...], words: int = 300) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, words, (length,), generator=generator) for length in lengths]


def padded(rows: list[Tensor], filler: int = 0, width: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, types) with ``filler`` on padding."""
    width = max(width, *(len(row) for row in rows))
    ids_BL = torch.full((len(rows), width), filler)
    mask_BL = torch.zeros_like(ids_BL)
    for place, row in enumerate(rows):
        ids_BL[place, : len(row)], mask_BL[place, : len(row)] = row, 1
    return ids_BL, mask_BL, torch.zeros_like(ids_BL)


def logits_of(parts: EncoderParts, rows: list[Tensor], filler: int = 0, width: int = 0) -> Tensor:
    return compute_signal(parts, *padded(rows, filler, width), SignalSpec()).logits_BC


def parts_of(family: str, **more: object) -> EncoderParts:
    return teacher_parts(tiny_decoder(family, **more).requires_grad_(False), pad_token_id=END)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_transformers_own_of_single_unpadded_rows(family: str) -> None:
    """In fp32: these decoders round their norms and their softmax to it whatever the weights are. Logits below 10, each
    of some 50 roundings of 2^-24, give 3e-5; another token gives 0.01 and more."""
    model, plain = tiny_decoder(family), tiny_decoder(family, pad_token_id=END)
    rows = rows_of(LENGTHS)
    found_BC = logits_of(teacher_parts(model.requires_grad_(False), pad_token_id=END), rows)
    with torch.no_grad():
        own_BC = torch.cat([plain(input_ids=row[None]).logits for row in rows])
    assert torch.allclose(found_BC, own_BC, rtol=0, atol=3e-5)
    assert (found_BC[0] - found_BC[1]).abs().max() > 0.01
    assert own_BC.abs().max() < 10


@pytest.mark.parametrize("family", DECODERS)
def test_a_row_has_the_same_bits_whatever_stands_beside_and_behind_it(family: str) -> None:
    """DESIGN, invariant 3."""
    parts, rows = parts_of(family), rows_of(LENGTHS)
    together = logits_of(parts, rows)
    for place, row in enumerate(rows):
        assert torch.equal(logits_of(parts, [row])[0], together[place]), (family, len(row))
    assert torch.equal(logits_of(parts, rows[::-1]), together.flip(0))
    assert torch.equal(logits_of(parts, rows, filler=77, width=61), together), "what stands on padding"


def test_the_head_reads_the_token_before_padding() -> None:
    """A later token that changes moves the logits; one that its model pads with does not count, as in training."""
    parts, (row,) = parts_of("qwen2"), rows_of((6,))
    other = row.clone()
    other[-1] = 5 if row[-1] != 5 else 6
    assert not torch.allclose(logits_of(parts, [row]), logits_of(parts, [other]), atol=1e-3)
    ended = torch.cat([row, torch.tensor([END])])
    assert torch.equal(logits_of(parts, [row]), logits_of(parts, [ended]))
    only_ends = torch.tensor([END, END])
    assert torch.equal(logits_of(parts, [only_ends, row])[0], logits_of(parts, [only_ends])[0])


def test_the_models_own_padding_token_counts_and_the_tokenizers_where_it_has_none() -> None:
    def chosen(of_model: int | None) -> int:
        parts = teacher_parts(tiny_decoder(pad_token_id=of_model), pad_token_id=END)
        assert isinstance(parts, DecoderParts)
        assert parts.model.config.pad_token_id == parts.pad_token_id  # type: ignore[union-attr]
        return parts.pad_token_id

    assert (chosen(None), chosen(2)) == (END, 2)
    with pytest.raises(
        UserError, match=r"padding token 300 is none of the 300 that it embeds: set pad_token_id"
    ):
        teacher_parts(tiny_decoder(), pad_token_id=300)


def test_an_encoder_stays_an_encoder_and_other_decoders_are_refused() -> None:
    encoder = tiny_encoder()
    assert not is_decoder(encoder.config)
    assert not isinstance(teacher_parts(encoder, pad_token_id=0), DecoderParts)
    other = tiny_encoder()
    other.base_model_prefix = "nothing"
    with pytest.raises(UserError, match=r"may also be a Llama, Mistral, Qwen2 or Qwen3"):
        teacher_parts(other, pad_token_id=0)
