"""A teacher with a tokenizer of its own is asked, keyed and run by its own tokens; the student by its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from tiny_decoders import tiny_decoder
from tiny_encoders import ragged_batch, tiny_encoder

from distill_dist.models.decoder import teacher_parts
from distill_dist.models.encoder import encoder_parts
from distill_dist.records import Batch, SignalSpec
from distill_dist.teacher.compute import compute_signal
from distill_dist.teacher.local import LocalTeacher
from distill_dist.teacher.row_codec import RowCodec, WireTypes
from distill_dist.teacher.row_computer import RowComputer
from distill_dist.teacher.row_keys import row_keys, teacher_fingerprint
from distill_dist.teacher.sanity import drift, fault
from distill_dist.teacher.wire import join_requests, pack_request

CPU = torch.device("cpu")
OURS, THEIRS = (4, 9, 6), (13, 5, 8)


def both(*, seed: int = 0, teacher_seed: int = 7) -> Batch:
    """Rows of other lengths, other ids and another longest one to the teacher than to the student."""
    ours, theirs = ragged_batch(OURS, seed=seed), ragged_batch(THEIRS, seed=teacher_seed)
    return replace(
        ours,
        teacher_input_ids_BL=theirs.input_ids_BL,
        teacher_attention_mask_BL=theirs.attention_mask_BL,
        teacher_token_type_ids_BL=torch.zeros_like(theirs.token_type_ids_BL),
    )


def keys_of(batch: Batch) -> list[bytes]:
    asked = pack_request(batch, labels=False)
    return row_keys(asked.input_ids_BL, asked.lengths_B, asked.token_type_ids_BL, None, context=b"c")


def test_a_request_holds_the_teachers_tokens_and_its_key_is_theirs_alone() -> None:
    batch = both()
    asked = pack_request(batch, labels=True)
    assert asked.lengths_B.tolist() == list(THEIRS)
    for ours, theirs in zip(asked.unpack(CPU), batch.teacher_inputs, strict=True):
        assert torch.equal(ours, theirs)
    assert asked.labels_B is not None
    assert keys_of(batch) == keys_of(both(seed=1))
    assert not set(keys_of(batch)) & set(keys_of(both(teacher_seed=8)))
    alone = replace(
        batch, teacher_input_ids_BL=None, teacher_attention_mask_BL=None, teacher_token_type_ids_BL=None
    )
    assert torch.equal(pack_request(alone, labels=False).input_ids_BL.long(), batch.input_ids_BL)


def _answers(teacher: LocalTeacher, batch: Batch) -> Iterator[torch.Tensor]:
    for _, (signal,) in teacher.signals([batch], lambda item: (item,), SignalSpec(), ahead=0):
        yield signal.logits_BC


def test_the_teacher_in_process_reads_its_own_tokens_and_the_student_itself_the_students() -> None:
    batch = both()
    decoder = teacher_parts(tiny_decoder(words=40), pad_token_id=1)
    (theirs,) = _answers(LocalTeacher(decoder, CPU), batch)
    assert torch.equal(theirs, compute_signal(decoder, *batch.teacher_inputs, SignalSpec()).logits_BC)
    assert not torch.allclose(theirs, compute_signal(decoder, *batch.inputs, SignalSpec()).logits_BC)
    encoder = encoder_parts(tiny_encoder(dtype=torch.float32))
    (ours,) = _answers(LocalTeacher(encoder, CPU, is_student=True), batch)
    assert torch.equal(ours, compute_signal(encoder, *batch.inputs, SignalSpec()).logits_BC)


def test_a_decoder_behind_rows_says_what_it_says_in_process() -> None:
    """Whatever rows of other students stand beside it in a request: those are padded with 0, a token of its own."""
    decoder = teacher_parts(tiny_decoder(words=40), pad_token_id=1)
    fingerprint = teacher_fingerprint(decoder, tokenizer="t")
    compute = RowComputer(decoder, CPU, types=WireTypes(), fingerprint=fingerprint)
    about = compute.describe()
    codec = RowCodec(
        SignalSpec(), about["classes"], about["hidden_size"], about["embedding_size"], WireTypes()
    )
    batch = both()
    asked = replace(pack_request(batch, labels=False), keys_B=(b"1", b"2", b"3"))
    other = pack_request(ragged_batch((31, 2)), labels=False)
    rows = compute(join_requests([other, asked.take([1, 2]), asked.take([0])]), SignalSpec())
    expected = compute_signal(decoder, *batch.teacher_inputs, SignalSpec()).logits_BC
    assert torch.equal(codec.decode(rows).logits_BC[2:], expected[[1, 2, 0]])


def test_a_decoder_is_probed_by_its_logits_alone() -> None:
    """Without gradients, whose backward a large one could not afford; its host compares what it says later on."""
    decoder = teacher_parts(tiny_decoder(words=40).requires_grad_(False), pad_token_id=1)
    compute = RowComputer(decoder, CPU, types=WireTypes(), fingerprint="f" * 64)
    rows = pack_request(both(), labels=False)
    said = compute.introduce(rows)
    assert said["probe"]["saliency"] == []
    assert said["wire_report"] == {}
    expected = compute_signal(decoder, *both().teacher_inputs, SignalSpec()).logits_BC
    assert said["probe"]["logits"] == expected.tolist()
    assert fault(compute.probe(rows)) is None
    assert drift(compute.probe(rows), compute.probe(rows)) is None


def test_another_tokenizer_or_another_padding_token_is_another_teacher() -> None:
    found = {
        teacher_fingerprint(teacher_parts(tiny_decoder(words=40), pad_token_id=pad), tokenizer=tokenizer)
        for pad in (1, 2)
        for tokenizer in ("s", "t")
    }
    assert len(found) == 4
