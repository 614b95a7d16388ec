"""What travels: rows of token ids in any grouping, encoded rows back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_encoders import ragged_batch, tiny_encoder

from distill_dist.models.encoder import encoder_parts
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import compute_signal
from distill_dist.teacher.row_codec import RowCodec, WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.wire import Request, join_requests, pack_request, pack_rows

LENGTHS = (9, 3, 7, 12, 5)
CPU = torch.device("cpu")


def request(*, labels: bool = True) -> Request:
    packed = pack_request(ragged_batch(LENGTHS), labels=labels)
    return replace(packed, keys_B=tuple(bytes([row]) * 16 for row in range(len(LENGTHS))))


@pytest.mark.parametrize("labels", [True, False])
def test_a_request_is_the_batch(labels: bool) -> None:
    batch, packed = ragged_batch(LENGTHS), request(labels=labels)
    for ours, theirs in zip(packed.unpack(CPU), batch.inputs, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.int64
    assert (packed.labels_B is None) != labels
    assert not labels or torch.equal(packed.labels_B.long(), batch.labels_B)  # type: ignore[union-attr]


def test_rows_are_taken_in_any_order_and_padded_to_the_longest() -> None:
    whole, part = request(), request().take([2, 1])
    assert part.input_ids_BL.shape == (2, 7)
    assert part.lengths_B.tolist() == [7, 3]
    assert part.keys_B == (whole.keys_B[2], whole.keys_B[1])
    assert torch.equal(part.input_ids_BL, whole.input_ids_BL[[2, 1], :7])
    assert torch.equal(part.token_type_ids_BL, whole.token_type_ids_BL[[2, 1], :7])
    assert part.labels_B is not None
    assert whole.labels_B is not None
    assert torch.equal(part.labels_B, whole.labels_B[[2, 1]])


@pytest.mark.parametrize("labels", [True, False])
def test_parts_are_joined_again(labels: bool) -> None:
    whole = request(labels=labels)
    joined = join_requests([whole.take([0]), whole.take([1, 2]), whole.take([3, 4])])
    assert joined.keys_B == whole.keys_B
    for name in ("input_ids_BL", "lengths_B", "token_type_ids_BL"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
    assert (joined.labels_B is None) != labels
    assert join_requests([whole]) is whole


def test_an_answer_is_its_rows() -> None:
    rows = [b"one", b"", b"three"]
    assert [bytes(row) for row in pack_rows(rows).rows()] == rows


def test_a_computer_encodes_what_the_model_says() -> None:
    parts = encoder_parts(tiny_encoder(dtype=torch.float32).requires_grad_(False))
    types = WireTypes(embedding_gradients="int8")
    compute = RowComputer(parts, CPU, types=types, fingerprint="f" * 64)
    spec = SignalSpec((1, 2), cls_states=True, embedding_gradient=True, signal="label")
    asked, batch = request(), ragged_batch(LENGTHS)
    about = compute.describe()
    codec = RowCodec(spec, about["classes"], about["hidden_size"], about["embedding_size"], types)
    found = codec.decode(compute(asked, spec))
    expected = compute_signal(parts, *batch.inputs, spec, labels_B=batch.labels_B)
    assert torch.equal(found.logits_BC, expected.logits_BC)
    assert found.cls_states_BKH is not None
    assert expected.cls_states_BKH is not None
    assert torch.equal(found.cls_states_BKH, expected.cls_states_BKH)
    assert found.embedding_gradient_BLVH is not None
    assert not torch.equal(found.embedding_gradient_BLVH, expected.embedding_gradient_BLVH)  # type: ignore[arg-type]
    assert about["wire"] == {"states": "fp32", "cls_gradients": "fp32", "embedding_gradients": "int8"}
    assert about["fingerprint"] == "f" * 64
