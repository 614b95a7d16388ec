from __future__ import annotations

import itertools
import math
import struct
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from tiny_encoders import ragged_batch, tiny_encoder
from torch import Tensor

from distill_dist.config.schema_teacher import WireType
from distill_dist.models.encoder import encoder_parts
from distill_dist.objectives.alignment import unit_rows
from distill_dist.records import NoiseSpec, SignalSpec, TeacherSignal
from distill_dist.teacher.compute import compute_signal
from distill_dist.teacher.row_codec import ROW_VERSION, WIRE_TYPES, RowCodec, WireTypes, cosine_errors

LENGTHS = (9, 3, 12, 1)
NOISE = NoiseSpec(0.1, 2, 0)
EVERYTHING = SignalSpec(
    (2, 4),
    cls_states=True,
    cls_gradients=True,
    embedding_gradient=True,
    signal="all_classes",
    attribution_top_k=0,
    noise=NOISE,
)
HEADER = 12  # version, 7 bytes of digest, tokens
UNIT_FIELDS = ("cls_states_BKH", "cls_gradients_BKVH", "embedding_gradient_BLVH")


def test_the_configuration_offers_every_type() -> None:
    assert get_args(WireType) == WIRE_TYPES


def codec_of(
    spec: SignalSpec = EVERYTHING, wire_type: str = "fp32", classes: int = 3, width: int = 16
) -> RowCodec:
    return RowCodec(spec, classes, width, width, WireTypes(wire_type, wire_type, wire_type))


def random_signal(
    spec: SignalSpec = EVERYTHING,
    *,
    classes: int = 3,
    width: int = 16,
    lengths: tuple[int, ...] = LENGTHS,
    seed: int = 0,
) -> TeacherSignal:
    """What a teacher of this width could answer; of two classes one view stands for both."""
    generator = torch.Generator().manual_seed(seed)
    rows, length, layers = len(lengths), max(lengths), len(spec.layers)
    every = 1 if classes == 2 else classes
    views = every if spec.signal == "all_classes" else 1
    padding_BL = torch.arange(length) >= torch.tensor(lengths)[:, None]

    def numbers(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    def of_tokens(*shape: int) -> Tensor:
        return numbers(length, *shape).masked_fill(padding_BL[..., *[None] * len(shape)], 0.0)

    parts: dict[str, Tensor] = {}
    if spec.cls_states:
        parts["cls_states_BKH"], parts["cls_state_norm_BK"] = unit_rows(numbers(layers, width))
    if spec.cls_gradients:
        found = unit_rows(numbers(layers, views, width))
        parts["cls_gradients_BKVH"], parts["cls_gradient_norm_BKV"] = found
    if spec.embedding_gradient:
        found = unit_rows(of_tokens(views, width))
        parts["embedding_gradient_BLVH"], parts["embedding_gradient_norm_BLV"] = found
    if spec.attribution_top_k is not None:
        parts["attribution_BLC"] = of_tokens(every)
    if spec.noise is not None:
        parts["noisy_logits_BDC"] = numbers(spec.noise.draws, classes)
    return TeacherSignal(numbers(classes), **parts)


def differences(before: TeacherSignal, after: TeacherSignal) -> list[str]:
    """The fields that are not the same to the bit, the sign of a zero included."""
    found = []
    for field in fields(TeacherSignal):
        a, b = getattr(before, field.name), getattr(after, field.name)
        if a is None or b is None:
            same = a is b
        else:
            same = a.dtype == b.dtype == torch.float32 and torch.equal(
                a.view(torch.int32), b.view(torch.int32)
            )
        if not same:
            found.append(field.name)
    return found


def take(signal: TeacherSignal, rows: list[int], *, length: int) -> TeacherSignal:
    """Some rows, cut or padded to ``length`` tokens; the new padding holds 7, which nobody may read."""
    parts = {}
    for field in fields(signal):
        value = getattr(signal, field.name)
        if value is not None and "_BL" in field.name:
            longer = torch.full((len(value), length, *value.shape[2:]), 7.0)
            kept = min(length, value.shape[1])
            longer[:, :kept] = value[:, :kept]
            value = longer
        parts[field.name] = None if value is None else value[rows]
    return TeacherSignal(**parts)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("signal", ["own_max", "all_classes"])
def test_fp32_comes_back_to_the_bit_whichever_fields_there_are(signal: str, classes: int) -> None:
    seen = set()
    for states, cls, embedding, attribution, noise in itertools.product((False, True), repeat=5):
        spec = SignalSpec(
            (1, 3, 4), states, cls, embedding, signal, 0 if attribution else None, NOISE if noise else None
        )
        sent = random_signal(spec, classes=classes)
        codec = codec_of(spec, classes=classes)
        rows = codec.encode(sent, torch.tensor(LENGTHS))
        assert [len(row) for row in rows] == [codec.row_bytes(length) for length in LENGTHS]
        assert differences(sent, codec.decode(rows)) == [], spec
        seen.add(tuple(getattr(sent, field.name) is None for field in fields(sent)))
    assert len(seen) == 32


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("signal", ["own_max", "teacher_max", "label", "all_classes"])
def test_what_a_teacher_computes_fits(signal: str, classes: int) -> None:
    parts = encoder_parts(tiny_encoder(layers=4, dtype=torch.float32, classes=classes).requires_grad_(False))
    batch, spec = ragged_batch(LENGTHS, classes=classes), replace(EVERYTHING, signal=signal)
    sent = compute_signal(parts, *batch.inputs, spec, labels_B=batch.labels_B)
    assert all(getattr(sent, field.name) is not None for field in fields(sent))
    codec = RowCodec(spec, classes, parts.hidden_size, parts.embedding_size)
    rows = codec.encode(sent, batch.attention_mask_BL.sum(dim=1))
    assert differences(sent, codec.decode(rows)) == []


def test_the_widths_of_embedding_and_layers_are_their_own() -> None:
    narrow, wide = random_signal(width=8), random_signal(width=24)
    sent = replace(wide, embedding_gradient_BLVH=narrow.embedding_gradient_BLVH)
    codec = RowCodec(EVERYTHING, 3, 24, 8)
    assert differences(sent, codec.decode(codec.encode(sent, torch.tensor(LENGTHS)))) == []


@pytest.mark.parametrize(("wire_type", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)])
def test_a_row_has_its_numbers_and_no_padding(wire_type: str, size: int) -> None:
    """3 logits, 2 layers of a state and 3 gradients with norms, 2 × 3 noisy logits; per token 3 gradients."""
    of_row = 4 * 3 + 2 * (16 * size + 4) + 2 * 3 * (16 * size + 4) + 4 * 2 * 3
    of_token = 3 * (16 * size + 4) + 4 * 3
    rows = codec_of(wire_type=wire_type).encode(random_signal(), torch.tensor(LENGTHS))
    assert [len(row) for row in rows] == [HEADER + of_row + length * of_token for length in LENGTHS]


def test_the_bytes_of_a_row() -> None:
    """Written out: a change here needs another ROW_VERSION. int8 rounds: 127 · 0.43589 / 0.9 = 61.51."""
    spec = SignalSpec((4,), cls_states=True, embedding_gradient=True)
    codec = RowCodec(spec, 2, 4, 2, WireTypes(states="int8", embedding_gradients="fp16"))
    sent = TeacherSignal(
        logits_BC=torch.tensor([[1.5, -2.0]]),
        cls_states_BKH=torch.tensor([[[0.9, -0.4358899, 0.0, 0.0]]]),
        cls_state_norm_BK=torch.tensor([[7.0]]),
        embedding_gradient_BLVH=torch.tensor([[[[1.0, 0.0]], [[0.0, -1.0]], [[0.0, 0.0]]]]),
        embedding_gradient_norm_BLV=torch.tensor([[[3.0], [4.0], [0.0]]]),
    )
    (row,) = codec.encode(sent, torch.tensor([2]))
    assert row[:1] + row[8:] == b"".join(
        (
            struct.pack("<BI", 1, 2),
            struct.pack("<2f4bf", 1.5, -2.0, 127, -62, 0, 0, 7.0),
            struct.pack("<2ef", 1.0, 0.0, 3.0),
            struct.pack("<2ef", 0.0, -1.0, 4.0),
        )
    )


@pytest.mark.parametrize("wire_type", WIRE_TYPES)
def test_padding_comes_back_as_zeros(wire_type: str) -> None:
    codec = codec_of(wire_type=wire_type)
    rows = codec.encode(random_signal(), torch.tensor(LENGTHS))
    short, long = codec.decode(rows), codec.decode(rows, length=20)
    for name in ("embedding_gradient_BLVH", "embedding_gradient_norm_BLV", "attribution_BLC"):
        a, b = getattr(short, name), getattr(long, name)
        assert (a.shape[1], b.shape[1]) == (12, 20)
        assert torch.equal(a, b[:, :12])
        for row, length in enumerate(LENGTHS):
            assert (b[row, :length] != 0).any(dim=-1).all()
            assert (b[row, length:] == 0).all()
    with pytest.raises(ValueError, match="a row has 12 tokens, expected at most 11"):
        codec.decode(rows, length=11)


@pytest.mark.parametrize("wire_type", WIRE_TYPES)
@pytest.mark.parametrize("spec", [EVERYTHING, SignalSpec((2, 4), cls_states=True)])
def test_a_row_depends_on_itself_alone(spec: SignalSpec, wire_type: str) -> None:
    """Both ways, to the bit: what is stored, and what a student reads."""
    codec, sent = codec_of(spec, wire_type), random_signal(spec)
    whole = codec.encode(sent, torch.tensor(LENGTHS))
    assert len(set(whole)) == len(whole)
    decoded = codec.decode(whole)
    for rows in ([2, 0], [1], [3, 1], [3]):
        longest = max(LENGTHS[row] for row in rows)
        lengths_B = torch.tensor([LENGTHS[row] for row in rows])
        for length in (longest, longest + 5):
            part = codec.encode(take(sent, rows, length=length), lengths_B)
            assert part == [whole[row] for row in rows]
        again = codec.decode([whole[row] for row in rows])
        assert differences(take(decoded, rows, length=longest), again) == []


def error_bound(wire_type: str, unit_NH: Tensor) -> Tensor:
    """See the test below: ‖e‖ [N] at most."""
    width = unit_NH.shape[-1]
    if wire_type == "int8":
        return math.sqrt(width) * unit_NH.abs().amax(dim=-1) / 254
    digits, tiny = {"fp16": (11, 2.0**-25), "bf16": (8, 2.0**-134)}[wire_type]
    return torch.full((len(unit_NH),), 2.0**-digits + math.sqrt(width) * tiny)


@pytest.mark.parametrize("wire_type", ["fp16", "bf16", "int8"])
def test_rounding_errors_are_bounded_and_norms_are_one(wire_type: str) -> None:
    """A unit row x comes back in the direction of x + e, and 1 − cos ≤ ‖e‖² / (1 + √(1 − ‖e‖²)).

    Rounding to p binary digits moves a number by at most 2⁻ᵖ of itself, or by half of the smallest step near
    zero (2⁻²⁵ in fp16): ‖e‖ ≤ 2⁻ᵖ + √H·2⁻²⁵, p = 11 in fp16 and 8 in bf16. int8 moves each by at most half a
    step of max|x| / 127: ‖e‖ ≤ √H·max|x| / 254. The norm is a root of H squares summed in fp32: it is off by
    H/2·2⁻²⁴ in the worst order, and by less than twice that with the root's and the division's own rounding.
    What is left is above the bound's hundredth, or nothing was rounded.
    """
    sent = random_signal(width=384, seed=3)
    codec = codec_of(wire_type=wire_type, width=384)
    found = codec.decode(codec.encode(sent, torch.tensor(LENGTHS)))
    errors = cosine_errors(sent, found)
    assert set(errors) == set(UNIT_FIELDS)
    for name in UNIT_FIELDS:
        before = getattr(sent, name).flatten(end_dim=-2)
        before = before[(before != 0).any(dim=-1)]
        squared = error_bound(wire_type, before.double()).square()
        bound = squared / (1 + (1 - squared).sqrt())
        assert errors[name].shape == bound.shape
        assert (errors[name] <= bound).all(), name
        assert (errors[name] > bound / 100).all(), name
        norms = getattr(found, name).double().norm(dim=-1)
        assert (norms[norms != 0] - 1).abs().max() < 384 * 2.0**-24
    untouched = {field.name for field in fields(sent)} - set(UNIT_FIELDS)
    assert set(differences(sent, found)) == set(UNIT_FIELDS)
    assert len(untouched) == 6


@pytest.mark.parametrize(
    ("kind", "name"),
    [("states", UNIT_FIELDS[0]), ("cls_gradients", UNIT_FIELDS[1]), ("embedding_gradients", UNIT_FIELDS[2])],
)
def test_a_wire_type_is_that_of_its_field_alone(kind: str, name: str) -> None:
    sent, codec = random_signal(), RowCodec(EVERYTHING, 3, 16, 16, WireTypes(**{kind: "bf16"}))
    assert differences(sent, codec.decode(codec.encode(sent, torch.tensor(LENGTHS)))) == [name]


@pytest.mark.parametrize("wire_type", WIRE_TYPES)
def test_zero_rows_stay_zero(wire_type: str) -> None:
    sent = random_signal()
    assert sent.cls_gradients_BKVH is not None
    assert sent.embedding_gradient_BLVH is not None
    sent.cls_gradients_BKVH[1, 0, 2] = 0.0
    sent.embedding_gradient_BLVH[2, 5] = 0.0
    codec = codec_of(wire_type=wire_type)
    found = codec.decode(codec.encode(sent, torch.tensor(LENGTHS)))
    for name in UNIT_FIELDS:
        before, after = getattr(sent, name), getattr(found, name)
        assert torch.equal((after == 0).all(dim=-1), (before == 0).all(dim=-1)), name
        assert after.isfinite().all()


def test_int8_keeps_the_largest_number_and_its_sign() -> None:
    """One number alone is the largest: it comes back as ±1, although −128 has no positive counterpart."""
    spec = SignalSpec((2, 4), cls_states=True)
    states_BKH = torch.zeros(1, 2, 16)
    states_BKH[0, 0, 3], states_BKH[0, 1, 9] = -1.0, 1.0
    sent = TeacherSignal(torch.zeros(1, 3), states_BKH, torch.ones(1, 2))
    codec = codec_of(spec, "int8")
    found = codec.decode(codec.encode(sent, torch.tensor([5])))
    assert differences(sent, found) == []


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_int8_cannot_carry_are_refused(number: float) -> None:
    sent = random_signal()
    assert sent.cls_states_BKH is not None
    sent.cls_states_BKH[1, 1, 3] = number
    with pytest.raises(ValueError, match="not finite: int8 cannot carry it"):
        codec_of(wire_type="int8").encode(sent, torch.tensor(LENGTHS))
    codec = codec_of()
    assert differences(sent, codec.decode(codec.encode(sent, torch.tensor(LENGTHS)))) == []


def test_an_unknown_wire_type_is_refused() -> None:
    with pytest.raises(ValueError, match="cls_gradients='fp8' is none of fp32, fp16, bf16, int8"):
        WireTypes(cls_gradients="fp8")


def one_row() -> bytes:
    return codec_of().encode(random_signal(), torch.tensor(LENGTHS))[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row[:-1], r"row 1 has {less} bytes, expected {size} for its 3 tokens"),
        (lambda row: row + b"\0", r"row 1 has {more} bytes, expected {size} for its 3 tokens"),
        (
            lambda row: row[:8] + b"\4" + row[9:],
            r"row 1 has {size} bytes, expected {longer} for its 4 tokens",
        ),
        (lambda row: row[:11], r"row 1 has 11 bytes, expected {empty} or more"),
        (lambda row: b"", r"row 1 has 0 bytes, expected {empty} or more"),
        (
            lambda row: bytes([row[0] + 1]) + row[1:],
            f"row 1 has version {ROW_VERSION + 1}, expected {ROW_VERSION}",
        ),
    ],
)
def test_bytes_that_do_not_fit_are_refused(change, message: str) -> None:
    codec, row = codec_of(), one_row()
    size = codec.row_bytes(3)
    sizes = {
        "size": size,
        "less": size - 1,
        "more": size + 1,
        "longer": codec.row_bytes(4),
        "empty": codec.row_bytes(0),
    }
    with pytest.raises(ValueError, match=message.format(**sizes)):
        codec.decode([row, change(row)])


def test_rows_of_another_codec_are_refused_even_where_their_sizes_agree() -> None:
    spec = SignalSpec((2, 4), cls_states=True, noise=NOISE)
    mine = RowCodec(spec, 3, 16, 16, WireTypes(states="fp16"))
    others = [
        replace(mine, spec=replace(spec, layers=(1, 4))),
        replace(
            mine,
            spec=replace(spec, cls_states=False, cls_gradients=True),
            types=WireTypes(cls_gradients="fp16"),
        ),
        replace(mine, spec=replace(spec, signal="label")),
        replace(mine, spec=replace(spec, noise=NoiseSpec(0.2, 2, 0))),
        replace(mine, types=WireTypes(states="bf16")),
        replace(mine, embedding_size=8),
    ]
    for other in others:
        assert other.row_bytes(5) == mine.row_bytes(5)
        rows = other.encode(random_signal(other.spec), torch.tensor(LENGTHS))
        with pytest.raises(
            ValueError, match=r"row 0 has the layout \w{14}, expected \w{14}: it was written for"
        ):
            mine.decode(rows)
    wider = replace(mine, hidden_size=32)
    with pytest.raises(ValueError, match="row 0 has the layout"):
        mine.decode(wider.encode(random_signal(spec, width=32), torch.tensor(LENGTHS)))


def test_rows_may_lie_in_somebody_elses_memory() -> None:
    """A message or a mapped file, at any alignment; what was decoded does not change with it."""
    codec, sent = codec_of(wire_type="fp16"), random_signal()
    rows = codec.encode(sent, torch.tensor(LENGTHS))
    message = bytearray(b"?" + b"".join(rows))
    ends = list(itertools.accumulate(map(len, rows), initial=1))
    views = [memoryview(message)[begin:end] for begin, end in itertools.pairwise(ends)]
    found = codec.decode(views)
    message[:] = bytes(len(message))
    assert differences(codec.decode(rows), found) == []


def test_no_rows_are_a_signal_of_no_rows() -> None:
    found = codec_of().decode([], length=4)
    assert found.logits_BC.shape == (0, 3)
    assert found.embedding_gradient_BLVH is not None
    assert found.embedding_gradient_BLVH.shape == (0, 4, 3, 16)


def test_cosine_errors_are_those_of_every_row_that_is_there() -> None:
    sent = random_signal(SignalSpec((2, 4), cls_states=True))
    assert sent.cls_states_BKH is not None
    turned_BKH = sent.cls_states_BKH.clone()
    turned_BKH[0, 0] *= -3.0  # the other way, whatever the length
    turned_BKH[1, 0] = 0.0  # lost
    sent.cls_states_BKH[2] = turned_BKH[2] = 0.0  # nothing to compare
    found = cosine_errors(sent, replace(sent, cls_states_BKH=turned_BKH))
    assert list(found) == ["cls_states_BKH"]
    # float64: 16 products, each rounded by 1e-16
    assert torch.allclose(
        found["cls_states_BKH"], torch.tensor([2.0, 0, 1, 0, 0, 0]).double(), rtol=0, atol=1e-14
    )
