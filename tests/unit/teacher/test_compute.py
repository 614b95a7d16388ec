"""A signal depends on its sample alone: DESIGN, invariant 3."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from reference import classes_of, noisy_logits, row_of
from tiny_encoders import pad_token, ragged_batch, take_rows, tiny_encoder, undecided
from torch import Tensor

from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.records import Batch, NoiseSpec, SignalSpec, TeacherSignal
from distill_dist.teacher.compute import (
    MIN_LENGTH,
    MIN_ROWS,
    NotSane,
    check_sane,
    compute_signal,
    describe_model,
)

NOISE = NoiseSpec(0.1, 2, 0)
EVERYTHING = SignalSpec(
    (2, 4), cls_states=True, cls_gradients=True, embedding_gradient=True, attribution_top_k=0, noise=NOISE
)
SIGNALS = ("own_max", "teacher_max", "label", "all_classes")
LENGTHS = (9, 3, 7, 12, 5, 8, 4, 11, 6, 21)


def teacher(dtype: torch.dtype = torch.float32, **more: Any) -> EncoderParts:
    return encoder_parts(tiny_encoder(layers=4, seed=2, dtype=dtype, **more).requires_grad_(False))


def signal_of(parts: EncoderParts, batch: Batch, spec: SignalSpec = EVERYTHING) -> TeacherSignal:
    labels_B = batch.labels_B if spec.needs_labels else None
    return compute_signal(parts, *batch.inputs, spec, labels_B=labels_B)


def rows_of(signal: TeacherSignal, row: int, length: int) -> list[Tensor]:
    found = []
    for field in fields(signal):
        value = getattr(signal, field.name)[row]
        found.append(value[:length] if "_BL" in field.name else value)
    return found


@pytest.mark.parametrize("field", [field.name for field in fields(TeacherSignal)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_every_number_that_is_asked_for_is_looked_at(field: str, value: float) -> None:
    signal = signal_of(teacher(), ragged_batch(LENGTHS))
    check_sane(signal)
    values = getattr(signal, field).clone()
    values.view(-1)[-1] = value
    words = field.rpartition("_")[0].removesuffix("_norm").replace("_", " ")
    with pytest.raises(NotSane, match=f"^its {words} are not finite: "):
        check_sane(replace(signal, **{field: values}))
    check_sane(TeacherSignal(signal.logits_BC))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("attribution", [None, 0, 3])
@pytest.mark.parametrize("signal", SIGNALS)
def test_against_one_row_at_a_time_in_the_probability_form(
    signal: str, attribution: int | None, classes: int
) -> None:
    """float64 on both sides, as in test_student.py: 1e-10. Of two classes one view stands for both."""
    batch = ragged_batch(LENGTHS, classes=classes)
    reference = undecided(tiny_encoder(layers=4, seed=2, classes=classes), batch)
    spec = replace(EVERYTHING, signal=signal, attribution_top_k=attribution)
    found = signal_of(encoder_parts(copy.deepcopy(reference).requires_grad_(False)), batch, spec)
    picked = set()
    for row, length in enumerate(LENGTHS):
        single = take_rows(batch, [row])
        expected = row_of(reference, single, (2, 4), create_graph=False)
        chosen = classes_of(signal, expected, expected, int(batch.labels_B[row]))
        chosen = chosen[:1] if classes == 2 else chosen
        picked.update(chosen)
        at_e = expected.embedding_directions_LVH(chosen)
        p_C = expected.logits_C.softmax(dim=-1)
        # ∇p_c = p_c(1 − p_c)·∇margin
        cls_norms_KC = torch.stack(expected.cls_gradients).norm(dim=-1) / (p_C * (1 - p_C))
        wanted: dict[str, Tensor] = {
            "logits_BC": expected.logits_C,
            "cls_states_BKH": torch.nn.functional.normalize(torch.stack(expected.states), dim=-1),
            "cls_state_norm_BK": torch.stack(expected.states).norm(dim=-1),
            "cls_gradient_norm_BKV": cls_norms_KC[:, chosen],
            "cls_gradients_BKVH": torch.stack(expected.cls_directions(chosen)),
            "embedding_gradient_BLVH": at_e,
            "noisy_logits_BDC": torch.stack(noisy_logits(reference, single, NOISE)),
        }
        if attribution is not None:
            wanted["attribution_BLC"] = expected.attribution_LC(attribution)[:, : 1 if classes == 2 else 3]
        for name, theirs in wanted.items():
            ours = getattr(found, name)[row]
            ours = ours[:length] if "_BL" in name else ours
            assert ours.shape == theirs.shape, name
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-10), name
    assert len(picked) == (1 if (signal, classes) == ("all_classes", 2) else classes)


def test_signals_are_different_things() -> None:
    """The comparison above could not tell them apart if they were not."""
    batch = ragged_batch(LENGTHS)
    own, label = (
        signal_of(teacher(), batch, replace(EVERYTHING, signal=signal)).embedding_gradient_BLVH
        for signal in ("own_max", "label")
    )
    assert own is not None
    assert label is not None
    differs_B = (own - label).flatten(1).norm(dim=1) > 0.1
    assert 0 < differs_B.sum() < len(LENGTHS)


def test_attribution_changes_nothing_else() -> None:
    """Its backward of every class takes the place of the signal's own."""
    batch = ragged_batch(LENGTHS)
    for signal in ("own_max", "label"):
        spec = replace(EVERYTHING, signal=signal)
        with_it = signal_of(teacher(torch.float64), batch, spec)
        without = signal_of(teacher(torch.float64), batch, replace(spec, attribution_top_k=None))
        for name in ("embedding_gradient_BLVH", "embedding_gradient_norm_BLV", "cls_gradients_BKVH"):
            assert torch.allclose(getattr(with_it, name), getattr(without, name), rtol=0, atol=1e-12), name


def test_norm_is_that_of_the_margins_gradient() -> None:
    """Two forward passes a step apart: the central difference along the gradient gives its norm."""
    model = tiny_encoder(layers=4, seed=2)
    batch = take_rows(ragged_batch(LENGTHS), [0])
    found = signal_of(encoder_parts(model.requires_grad_(False)), batch)
    assert found.embedding_gradient_BLVH is not None
    assert found.embedding_gradient_norm_BLV is not None
    step, shift = 1e-5, torch.zeros_like(found.embedding_gradient_BLVH)
    shift[:, 4] = step * found.embedding_gradient_BLVH[:, 4]
    shift_BLH = shift[:, :, 0]
    margins = []
    for sign in (1, -1):
        hook = model.bert.embeddings.register_forward_hook(lambda _, __, out, s=sign: out + s * shift_BLH)
        z = model(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL).logits[0]
        hook.remove()
        c = found.logits_BC[0].argmax()
        margins.append(z[c] - torch.cat([z[:c], z[c + 1 :]]).logsumexp(0))
    slope = (margins[0] - margins[1]).item() / (2 * step)
    # error of a central difference: step² × third derivative ≈ 1e-10 × 1e3
    assert found.embedding_gradient_norm_BLV[0, 4, 0].item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(("signal", "views"), [("own_max", 1), ("all_classes", 3)])
def test_rows_are_unit_and_padding_is_zero(signal: str, views: int) -> None:
    batch = ragged_batch(LENGTHS)
    found = signal_of(teacher(), batch, replace(EVERYTHING, signal=signal))
    assert found.attribution_BLC is not None
    assert found.embedding_gradient_BLVH is not None
    assert found.embedding_gradient_norm_BLV is not None
    real_BL = batch.attention_mask_BL.bool()
    assert (found.embedding_gradient_BLVH[real_BL].norm(dim=-1) - 1).abs().max() < 1e-6
    assert (found.embedding_gradient_BLVH[~real_BL] == 0).all()
    assert torch.equal(found.embedding_gradient_norm_BLV > 0, real_BL[..., None].expand(-1, -1, views))
    for rows, shape in ((found.cls_states_BKH, (10, 2, 16)), (found.cls_gradients_BKVH, (10, 2, views, 16))):
        assert rows is not None
        assert rows.shape == shape
        assert (rows.norm(dim=-1) - 1).abs().max() < 1e-6
    assert torch.equal(found.attribution_BLC > 0, real_BL[..., None].expand(-1, -1, 3))
    assert (found.attribution_BLC.norm(dim=1) - 1).abs().max() < 1e-6


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
    spec = replace(EVERYTHING, signal="label")
    whole, part = signal_of(parts, batch, spec), signal_of(parts, take_rows(batch, rows), spec)
    assert len(part.logits_BC) == len(rows)
    for place, row in enumerate(rows):
        first, second = rows_of(whole, row, LENGTHS[row]), rows_of(part, place, LENGTHS[row])
        names = [field.name for field in fields(part)]
        assert [n for n, a, b in zip(names, first, second, strict=True) if not torch.equal(a, b)] == [], row


@pytest.mark.parametrize("length", [5, 17, 24, 31])
def test_a_row_is_the_same_to_the_bit_however_far_it_is_padded(length: int) -> None:
    model = tiny_encoder("bert", layers=4, seed=2, dtype=torch.float32, hidden=64)
    parts = encoder_parts(model.requires_grad_(False))
    alone = ragged_batch((length,))
    expected = rows_of(signal_of(parts, alone), 0, length)
    seen = 0
    for other in range(length + 1, 41):
        beside = ragged_batch((other, length, 3))
        inputs = [values.clone() for values in beside.inputs]
        for values, own in zip(inputs, alone.inputs, strict=True):
            values[1, :length] = own[0]
        batch = replace(
            beside, input_ids_BL=inputs[0], attention_mask_BL=inputs[1], token_type_ids_BL=inputs[2]
        )
        found = rows_of(signal_of(parts, batch), 1, length)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), other
        seen += 1
    assert seen == 40 - length


def test_no_row_is_padded_beyond_what_the_model_reads() -> None:
    model = tiny_encoder("bert", layers=4, dtype=torch.float32)
    parts, positions = encoder_parts(model.requires_grad_(False)), model.config.max_position_embeddings
    model.config.max_position_embeddings = 21
    assert signal_of(parts, ragged_batch((21, 4))).logits_BC.shape == (2, 3)
    assert positions > 21


def test_small_batches_are_filled_up_and_cut_back() -> None:
    parts, batch = teacher(), take_rows(ragged_batch(LENGTHS), [0, 1, 2])
    spec = replace(EVERYTHING, signal="label", attribution_top_k=2, noise=None)
    seen: list[tuple[int, ...]] = []
    hook = parts.embeddings.register_forward_hook(lambda _, __, output: seen.append(output.shape[:2]))
    inputs = (batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
    found = [
        compute_signal(
            parts, *inputs, spec, labels_B=batch.labels_B, min_rows=rows, min_length=length, length_step=step
        )
        for rows, length, step in ((1, 1, 1), (4, 1, 1), (1, 14, 1), (1, 1, 12), (MIN_ROWS, MIN_LENGTH, 8))
    ]
    hook.remove()
    assert seen == [(3, 9), (4, 9), (3, 14), (3, 12), (16, 16)]
    for signal in found:
        assert signal.logits_BC.shape == (3, 3)
        assert signal.cls_gradients_BKVH is not None
        assert signal.cls_gradients_BKVH.shape == (3, 2, 1, 16)
        assert signal.embedding_gradient_BLVH is not None
        assert signal.embedding_gradient_BLVH.shape == (3, 9, 1, 16)
        assert signal.embedding_gradient_norm_BLV is not None
        assert signal.embedding_gradient_norm_BLV.shape == (3, 9, 1)
        assert signal.attribution_BLC is not None
        assert signal.attribution_BLC.shape == (3, 9, 3)
        # last bits only: fp32, values below 2, gradients pass ~1e3 operations
        assert torch.allclose(signal.logits_BC, found[0].logits_BC, rtol=0, atol=1e-5)
        assert found[0].embedding_gradient_BLVH is not None
        difference = signal.embedding_gradient_BLVH - found[0].embedding_gradient_BLVH
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
        SignalSpec(attribution_top_k=0),
        SignalSpec(noise=NOISE),
    ):
        found = compute_signal(parts, *inputs, spec)
        assert (found.cls_states_BKH is not None) == spec.cls_states
        assert (found.cls_state_norm_BK is not None) == spec.cls_states
        assert (found.cls_gradients_BKVH is not None) == spec.cls_gradients
        assert (found.cls_gradient_norm_BKV is not None) == spec.cls_gradients
        assert (found.embedding_gradient_BLVH is not None) == spec.embedding_gradient
        assert (found.embedding_gradient_norm_BLV is not None) == spec.embedding_gradient
        assert (found.attribution_BLC is not None) == (spec.attribution_top_k is not None)
        assert (found.noisy_logits_BDC is not None) == (spec.noise is not None)
        # a graph costs the memory of every layer; a draw of noise is a forward without one
        assert graphs == [spec.gradients, *([False] * NOISE.draws if spec.noise else [])]
        assert torch.allclose(found.logits_BC, signal_of(parts, batch).logits_BC, rtol=0, atol=1e-6)
        graphs.clear()


@pytest.mark.parametrize(
    ("spec", "classes", "backwards"),
    [
        (SignalSpec(), 3, 0),
        (SignalSpec((2, 4), cls_states=True, noise=NOISE), 3, 0),
        (SignalSpec((2, 4), True, True, True), 3, 1),
        (SignalSpec((2, 4), True, True, True, signal="all_classes"), 3, 3),
        (SignalSpec((2, 4), True, True, True, signal="all_classes"), 2, 1),
        (SignalSpec((2, 4), True, True, True, attribution_top_k=0), 3, 3),
        (SignalSpec(attribution_top_k=0), 2, 1),
    ],
)
def test_one_backward_gives_all_positions(
    spec: SignalSpec, classes: int, backwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real_grad = torch.autograd.grad

    def count(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return real_grad(*arguments, **named)

    monkeypatch.setattr(torch.autograd, "grad", count)
    compute_signal(teacher(classes=classes), *ragged_batch(LENGTHS).inputs, spec)
    assert len(calls) == backwards


def test_description() -> None:
    parts = teacher()
    assert describe_model(parts) == {"parameters": sum(p.numel() for p in parts.model.parameters())}
