"""Several teachers' signals as one: against METHOD.md §7 in numpy float64, and against the models themselves."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import ragged_batch, take_rows, tiny_encoder, undecided
from torch import Tensor

from distill_dist.errors import UserError
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.objectives.conflict import COSINE, DISAGREEMENT, conflict_sums, conflict_tags
from distill_dist.objectives.join_signals import Joining, at_classes, average_of, best_of, mean_logits
from distill_dist.records import JoinedSignal, NoiseSpec, SignalSpec, TeacherSignal
from distill_dist.teacher.compute import compute_signal

WEIGHTS, TAU = (0.5, 0.3, 0.2), 2.5
LENGTHS = (9, 3, 7, 12, 5, 8, 2, 6, 11, 4, 10, 3, 7, 5, 9, 6)
BATCH = ragged_batch(LENGTHS)
EVERYTHING = SignalSpec((1, 2), True, True, True, attribution_top_k=0, noise=NoiseSpec(0.2, 2, 3))
ROWS = (
    ("cls_states_BKH", "cls_state_norm_BK"),
    ("cls_gradients_BKVH", "cls_gradient_norm_BKV"),
    ("embedding_gradient_BLVH", "embedding_gradient_norm_BLV"),
)


def teacher(seed: int, *, classes: int = 3, **more: Any) -> EncoderParts:
    model = tiny_encoder(seed=seed, classes=classes, **more)
    return encoder_parts(undecided(model, ragged_batch(LENGTHS, classes=classes)).requires_grad_(False))


def asked(seed: int, spec: SignalSpec, labels_B: Tensor | None = None, *, classes: int = 3) -> TeacherSignal:
    return compute_signal(teacher(seed, classes=classes), *BATCH.inputs, spec, labels_B=labels_B)


def signals(spec: SignalSpec = EVERYTHING, *, classes: int = 3) -> list[TeacherSignal]:
    """Of three teachers that do not agree; float64."""
    labels_B = BATCH.labels_B % classes if spec.needs_labels else None
    found = [asked(seed, spec, labels_B, classes=classes) for seed in (1, 2, 3)]
    labels_MB = torch.stack([each.logits_BC.argmax(dim=-1) for each in found])
    assert (labels_MB != labels_MB[0]).any(), "they agree on all rows: this proves nothing"
    return found


def array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    found: np.ndarray = tensor.double().numpy()
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=-1, keepdims=True)


def close(found: Tensor | None, expected: np.ndarray, tolerance: float = 1e-12) -> bool:
    """Some hundred float64 operations."""
    assert array(found).shape == expected.shape
    return bool(np.abs(array(found) - expected).max() < tolerance)


def raw(signal: TeacherSignal, unit: str, norm: str) -> np.ndarray:
    return array(getattr(signal, unit)) * array(getattr(signal, norm))[..., None]


def unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms != 0)


# ------------------------------------------------------------------ average


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_probabilities_at_the_temperature_are_the_mean(temperature: float) -> None:
    logits = [each.logits_BC for each in signals()]
    found = array(mean_logits(logits, WEIGHTS, temperature))
    expected = sum(w * softmax(array(z) / temperature) for w, z in zip(WEIGHTS, logits, strict=True))
    assert np.abs(softmax(found / temperature) - expected).max() < 1e-14
    assert np.abs(softmax(found / 7) - expected).max() > 1e-3


def test_logits_far_apart_stay_finite_in_fp32() -> None:
    """The mean of two sure teachers that contradict each other is ½, although each p underflows alone."""
    logits = [torch.tensor([[300.0, -300.0]]), torch.tensor([[-300.0, 300.0]])]
    found = mean_logits(logits, (0.5, 0.5), 1.0)
    assert found.dtype == torch.float32
    assert found.softmax(dim=-1).tolist() == [[0.5, 0.5]]


def test_the_average_of_everything() -> None:
    given = signals()
    found = average_of(given, WEIGHTS, TAU)
    for name, norm in ROWS:
        mean = sum(w * raw(each, name, norm) for w, each in zip(WEIGHTS, given, strict=True))
        assert isinstance(mean, np.ndarray)
        assert close(getattr(found, name), unit(mean)), name
        assert close(getattr(found, norm), np.linalg.norm(mean, axis=-1)), norm
    attribution = sum(w * array(each.attribution_BLC) for w, each in zip(WEIGHTS, given, strict=True))
    assert isinstance(attribution, np.ndarray)
    assert close(found.attribution_BLC, unit(attribution.swapaxes(1, 2)).swapaxes(1, 2))
    noisy = sum(
        w * softmax(array(each.noisy_logits_BDC) / TAU) for w, each in zip(WEIGHTS, given, strict=True)
    )
    assert np.abs(softmax(array(found.noisy_logits_BDC) / TAU) - noisy).max() < 1e-14
    assert close(found.logits_BC, array(mean_logits([each.logits_BC for each in given], WEIGHTS, TAU)))
    padding_BL = BATCH.attention_mask_BL == 0
    assert found.embedding_gradient_BLVH is not None
    assert not found.embedding_gradient_BLVH[padding_BL].any()


def test_one_teacher_twice_is_itself() -> None:
    """Up to rounding; but for the logits' constant, which no softmax sees."""
    (one, *_) = signals()
    found = average_of([one, one], (0.25, 0.75), TAU)
    for field in fields(TeacherSignal):
        expected = array(getattr(one, field.name))
        if "logits" in field.name:
            expected = expected - TAU * np.log(np.exp(expected / TAU).sum(axis=-1, keepdims=True))
        assert close(getattr(found, field.name), expected), field.name


# ------------------------------------------------------------------ whose class


@pytest.mark.parametrize("classes", [2, 3])
def test_gradients_of_chosen_classes_are_those_of_that_label(classes: int) -> None:
    """Out of all classes, which of two are one: as if the teacher had been asked for these labels."""
    spec = replace(EVERYTHING, signal="all_classes")
    chosen_B = BATCH.labels_B % classes
    found = at_classes(signals(spec, classes=classes)[0], chosen_B[:, None])
    expected = asked(1, replace(spec, signal="label"), chosen_B, classes=classes)
    for name, norm in ROWS:
        assert close(getattr(found, name), array(getattr(expected, name)), 1e-10), name
        assert close(getattr(found, norm), array(getattr(expected, norm)), 1e-10), norm


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("signal", ["own_max", "teacher_max"])
@pytest.mark.parametrize("how", ["average", "separate"])
def test_the_class_is_the_one_they_predict_together(classes: int, signal: str, how: str) -> None:
    spec = replace(EVERYTHING, signal=signal)
    joining = Joining(how, WEIGHTS, TAU)
    assert joining.asked(spec) == replace(spec, signal="all_classes")
    given = signals(joining.asked(spec), classes=classes)
    found = joining(given, spec, BATCH)
    together_B = mean_logits([each.logits_BC for each in given], WEIGHTS, TAU).argmax(dim=-1)
    own = [each.logits_BC.argmax(dim=-1) for each in given]
    assert any(not torch.equal(each, together_B) for each in own), "nobody is outvoted: this proves nothing"
    by_label = replace(spec, signal="label")
    outvoted = [asked(seed, by_label, together_B, classes=classes) for seed in (1, 2, 3)]
    expected = average_of(outvoted, WEIGHTS, TAU)
    assert close(found.embedding_gradient_BLVH, array(expected.embedding_gradient_BLVH), 1e-10)
    assert close(found.cls_gradients_BKVH, array(expected.cls_gradients_BKVH), 1e-10)
    assert len(found.members) == (3 if how == "separate" else 0)
    for seed, member in zip((1, 2, 3), found.members, strict=False):
        expected = asked(seed, spec, classes=classes) if signal == "own_max" else outvoted[seed - 1]
        assert close(member.embedding_gradient_BLVH, array(expected.embedding_gradient_BLVH), 1e-10)
        assert close(member.cls_gradients_BKVH, array(expected.cls_gradients_BKVH), 1e-10)


@pytest.mark.parametrize(
    ("how", "spec"),
    [
        ("best", EVERYTHING),
        ("average", replace(EVERYTHING, signal="label")),
        ("average", replace(EVERYTHING, signal="all_classes")),
        ("separate", replace(EVERYTHING, signal="label")),
        ("average", SignalSpec()),
        ("average", SignalSpec(attribution_top_k=0)),
    ],
)
def test_elsewhere_everybody_is_asked_the_same(how: str, spec: SignalSpec) -> None:
    joining = Joining(how, WEIGHTS, TAU)
    assert joining.asked(spec) == spec
    given = signals(spec)
    found = joining(given, spec, BATCH)
    if how != "best":
        plain = average_of(given, WEIGHTS, TAU)
        for field in fields(TeacherSignal):
            value = getattr(plain, field.name)
            assert value is None or torch.equal(getattr(found, field.name), value), field.name
    if how == "separate":
        assert found.members == tuple(given)


# ------------------------------------------------------------------ best


def test_each_row_is_that_of_the_teacher_with_the_lowest_loss() -> None:
    given = signals()
    losses_MB = np.stack(
        [
            -np.log(softmax(array(each.logits_BC)))[range(len(LENGTHS)), BATCH.labels_B.numpy()]
            for each in given
        ]
    )
    chosen = losses_MB.argmin(axis=0)
    assert len(set(chosen.tolist())) > 1, "one is the best of all rows: this proves nothing"
    found = best_of(given, BATCH.labels_B)
    for field in fields(TeacherSignal):
        for row, number in enumerate(chosen):
            assert torch.equal(getattr(found, field.name)[row], getattr(given[number], field.name)[row]), (
                field.name
            )


def test_the_label_decides() -> None:
    """A teacher that is right, whatever the others say and whatever its weight; of equal ones the first."""
    logits = [torch.tensor([[5.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])]
    first, second = (TeacherSignal(each, attribution_BLC=each[:, None]) for each in logits)
    batch = replace(take_rows(BATCH, [0, 1]), labels_B=torch.tensor([1, 0]))
    found = Joining("best", (0.999, 0.001), TAU)([first, second], SignalSpec(), batch)
    assert found.logits_BC.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    other = replace(batch, labels_B=torch.tensor([0, 1]))
    assert Joining("best", WEIGHTS[:2], TAU)([first, second], SignalSpec(), other).logits_BC.tolist() == [
        [5.0, 0.0],
        [1.0, 0.0],
    ]


# ------------------------------------------------------------------ conflict


def test_disagreement_and_cosine_by_hand() -> None:
    logits = [torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]) for _ in range(3)]
    logits[2] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    directions = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])]
    batch = take_rows(ragged_batch((3, 2, 1)), [0, 1], fillers=1)
    given = []
    for each, direction in zip(logits, directions, strict=True):
        rows_BLVH = direction.expand(3, 3, 1, 2).clone()
        rows_BLVH[0, 1] = directions[0]  # one token of three on which all are one
        rows_BLVH = rows_BLVH * batch.attention_mask_BL[..., None, None]
        norms_BLV = batch.attention_mask_BL[..., None].float()
        given.append(
            TeacherSignal(each, embedding_gradient_BLVH=rows_BLVH, embedding_gradient_norm_BLV=norms_BLV)
        )
    spec = SignalSpec(embedding_gradient=True, signal="label")
    found = Joining("average", WEIGHTS, TAU)(given, spec, batch)
    assert found.disagreement_B is not None
    assert found.gradient_cosine_B is not None
    assert found.disagreement_B.tolist() == [0.0, 1.0, 0.0]
    # pairs have cosines 0, −1, 0; on one token of the first row 1
    assert found.gradient_cosine_B.tolist() == pytest.approx([(2 * -1 / 3 + 1) / 3, -1 / 3, -1 / 3])
    sums = {
        name: (total.item(), count.item()) for name, (total, count) in conflict_sums(found, batch).items()
    }
    assert sums[DISAGREEMENT] == (1.0, 2)  # the filler counts for nothing
    assert sums[COSINE] == (pytest.approx(1 / 9 - 1 / 3), 2)


def test_cosine_at_cls_where_only_that_is_there() -> None:
    spec = SignalSpec((1, 2), cls_gradients=True, signal="label")
    given = signals(spec)
    found = Joining("average", WEIGHTS, TAU)(given, spec, BATCH)
    units = [array(each.cls_gradients_BKVH)[:, :, 0] for each in given]
    pairs = [(units[a] * units[b]).sum(axis=-1).mean(axis=1) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert close(found.gradient_cosine_B, np.mean(pairs, axis=0))
    assert set(conflict_sums(found, BATCH)) == {DISAGREEMENT, COSINE} == set(conflict_tags(spec))
    bare = Joining("average", WEIGHTS, TAU)(signals(SignalSpec()), SignalSpec(), BATCH)
    assert set(conflict_sums(bare, BATCH)) == {DISAGREEMENT} == set(conflict_tags(SignalSpec()))
    assert conflict_tags(None) == ()
    assert conflict_sums(given[0], BATCH) == conflict_sums(None, BATCH) == {}


def test_rows_add_up() -> None:
    """One batch = ragged micro-batches, whatever the joining; to the last bits of other padding."""
    spec = EVERYTHING
    for how in ("average", "best", "separate"):
        joining = Joining(how, WEIGHTS, TAU)
        whole = conflict_sums(joining(signals(joining.asked(spec)), spec, BATCH), BATCH)
        parts: dict[str, list[float]] = {}
        for rows in ([0, 1, 9, 15], [2], [3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14]):
            part = take_rows(BATCH, rows)
            given = [compute_signal(teacher(seed), *part.inputs, joining.asked(spec)) for seed in (1, 2, 3)]
            for name, (total, count) in conflict_sums(joining(given, spec, part), part).items():
                parts.setdefault(name, []).append(total.item())
                assert count.item() == len(rows)
        for name, (total, _) in whole.items():
            assert sum(parts[name]) == pytest.approx(total.item(), abs=1e-10)


# ------------------------------------------------------------------ the record


def test_a_joined_signal_moves_with_its_members() -> None:
    found = Joining("separate", WEIGHTS, TAU)(signals(SignalSpec()), SignalSpec(), BATCH)
    moved = found.to("meta")
    assert isinstance(moved, JoinedSignal)
    assert moved.logits_BC.is_meta
    assert moved.disagreement_B is not None
    assert moved.disagreement_B.is_meta
    assert [member.logits_BC.is_meta for member in moved.members] == [True, True, True]


def test_different_widths_are_refused() -> None:
    spec = SignalSpec(embedding_gradient=True)
    wide = compute_signal(teacher(2, hidden=32), *BATCH.inputs, spec)
    given = [asked(1, spec), wide]
    for how in ("average", "best", "separate"):
        with pytest.raises(UserError, match=r"\[16, 32\] wide.*saliency=false"):
            Joining(how, WEIGHTS[:2], TAU)(given, spec, BATCH)
    logits = [TeacherSignal(each.logits_BC) for each in given]
    assert Joining("average", WEIGHTS[:2], TAU)(logits, SignalSpec(), BATCH).logits_BC.shape == (16, 3)
