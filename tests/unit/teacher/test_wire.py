from __future__ import annotations

import pickle
from dataclasses import fields

import pytest
import torch
from tiny_encoders import ragged_batch, tiny_encoder

from distill_dist.models.encoder import encoder_parts
from distill_dist.records import Batch, NoiseSpec, SignalSpec, TeacherSignal
from distill_dist.teacher.compute import compute_signal
from distill_dist.teacher.wire import WireSignal, pack_request, pack_signal, unpack_signal

LENGTHS = (9, 3, 12, 1)
EVERYTHING = SignalSpec(
    (1, 2),
    cls_states=True,
    cls_gradients=True,
    embedding_gradient=True,
    signal="all_classes",
    attribution_top_k=0,
    noise=NoiseSpec(0.1, 2, 0),
)


def signal_of(batch: Batch, spec: SignalSpec) -> TeacherSignal:
    parts = encoder_parts(tiny_encoder(dtype=torch.float32).requires_grad_(False))
    return compute_signal(parts, batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL, spec)


@pytest.mark.parametrize(
    "spec",
    [
        SignalSpec(),
        SignalSpec((2,), cls_states=True),
        SignalSpec(embedding_gradient=True),
        SignalSpec(attribution_top_k=3),
        SignalSpec(noise=NoiseSpec(0.1, 1, 0)),
        EVERYTHING,
    ],
)
def test_a_signal_comes_back_to_the_bit(spec: SignalSpec) -> None:
    batch = ragged_batch(LENGTHS)
    sent = signal_of(batch, spec)
    found = unpack_signal(pack_signal(sent, batch.attention_mask_BL), batch.attention_mask_BL)
    if spec == EVERYTHING:
        assert all(getattr(sent, field.name) is not None for field in fields(TeacherSignal))
    for field in fields(TeacherSignal):
        before, after = getattr(sent, field.name), getattr(found, field.name)
        assert (before is None) == (after is None), field.name
        if before is not None:
            assert before.dtype == after.dtype
            assert torch.equal(before, after), field.name


def test_no_padding_travels() -> None:
    batch = ragged_batch(LENGTHS)
    wire = pack_signal(signal_of(batch, EVERYTHING), batch.attention_mask_BL)
    shapes = {field.name: tuple(getattr(wire, field.name).shape) for field in fields(WireSignal)}
    assert shapes == {
        "logits_BC": (4, 3),
        "cls_states_BKH": (4, 2, 16),
        "cls_gradients_BKVH": (4, 2, 3, 16),
        "embedding_gradient_NVH": (sum(LENGTHS), 3, 16),
        "embedding_gradient_norm_NV": (sum(LENGTHS), 3),
        "attribution_NC": (sum(LENGTHS), 3),
        "noisy_logits_BDC": (4, 2, 3),
    }
    for field in fields(WireSignal):
        tensor = getattr(wire, field.name)
        # a view would bring the storage of the batch that was filled up behind it
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), field.name


@pytest.mark.parametrize("lengths", [LENGTHS, (5, 5), (1,)])
def test_a_request_comes_back_as_it_was_asked(lengths: tuple[int, ...]) -> None:
    batch = ragged_batch(lengths)
    request = pack_request(batch, labels=False)
    ids, mask, segments = request.unpack(torch.device("cpu"))
    for found, sent in (
        (ids, batch.input_ids_BL),
        (mask, batch.attention_mask_BL),
        (segments, batch.token_type_ids_BL),
    ):
        assert found.dtype == torch.int64
        assert torch.equal(found, sent)
    assert request.input_ids_BL.element_size() == 4
    assert request.token_type_ids_BL.element_size() == 1


def test_labels_travel_where_they_are_asked_for() -> None:
    batch = ragged_batch(LENGTHS)
    assert pack_request(batch, labels=False).labels_B is None
    labels_B = pack_request(batch, labels=True).labels_B
    assert labels_B is not None
    assert labels_B.dtype == torch.int32
    assert labels_B.tolist() == batch.labels_B.tolist()


def test_a_spec_travels_too() -> None:
    """It is part of every cache key, on both sides of the wire."""
    again = pickle.loads(pickle.dumps(EVERYTHING))  # as RPC does
    assert again == EVERYTHING
    assert hash(again) == hash(EVERYTHING)
