"""The bookkeeping of an objective: which terms, which weights, what each sum is divided by."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill_dist.objectives.alignment import direction_distance, unit_rows
from distill_dist.objectives.attribution import attribution_BLC
from distill_dist.objectives.objective import ALIGNED, METHODS, LossTerms, Objective, Terms, count_of
from distill_dist.records import Batch, BatchCounts, NoiseSpec, SignalSpec, StudentOutput, TeacherSignal

LENGTHS = (4, 2, 3)
VIEWS, DRAWS = 2, 3


def batch() -> Batch:
    lengths_B = torch.tensor(LENGTHS)
    mask_BL = (torch.arange(4) < lengths_B[:, None]).long()
    zeros_BL = torch.zeros(3, 4, dtype=torch.long)
    real_B = torch.ones(3, dtype=torch.bool)
    return Batch(torch.arange(3), zeros_BL, mask_BL, zeros_BL, torch.tensor([0, 1, 1]), real_B)


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_BLXX() -> Tensor:
    return batch().attention_mask_BL[..., None, None]


def attribution(seed: int) -> Tensor:
    gradients, embedding = rows(3, 4, 2, 5, seed=seed), rows(3, 4, 5, seed=seed + 1)
    return attribution_BLC(gradients, embedding, batch().attention_mask_BL, top_k=0)


def student() -> StudentOutput:
    found = (
        rows(3, 2, seed=0),
        rows(3, 2, 5, seed=1),
        rows(3, 2, VIEWS, 5, seed=2),
        rows(3, 4, VIEWS, 5, seed=3) * mask_BLXX(),
        attribution(4),
        rows(3, DRAWS, 2, seed=6),
    )
    return StudentOutput(*(tensor.requires_grad_(True) for tensor in found))


def teacher() -> TeacherSignal:
    embedding, norms = unit_rows(rows(3, 4, VIEWS, 5, seed=13) * mask_BLXX())
    return TeacherSignal(
        rows(3, 2, seed=10),
        cls_states_BKH=unit_rows(rows(3, 2, 5, seed=11))[0],
        cls_gradients_BKVH=unit_rows(rows(3, 2, VIEWS, 5, seed=12))[0],
        embedding_gradient_BLVH=embedding,
        embedding_gradient_norm_BLV=norms,
        attribution_BLC=attribution(14),
        noisy_logits_BDC=rows(3, DRAWS, 2, seed=16),
    )


PLAIN = Objective(METHODS["gkd_cls"], kd=0.4, patience=7.0, gradient=0.3, temperature=2.0)
EVERYTHING = replace(PLAIN, attribution=0.6, noise=0.8)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("finetune", {"cross_entropy": 1.0}),
        ("kd", {"cross_entropy": 0.6, "distillation": 0.4}),
        ("pkd", {"cross_entropy": 0.6, "distillation": 0.4, "patience": 7.0}),
        ("gkd", {"cross_entropy": 0.6, "distillation": 0.4, "gradient_embedding": 0.3}),
        (
            "gkd_cls",
            {"cross_entropy": 0.6, "distillation": 0.4, "patience": 7.0}
            | {"gradient_embedding": 0.3, "gradient_cls": 0.3},
        ),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"attribution": 0.6}, {"noise": 0.8}])
def test_weights_by_method(method: str, names: dict[str, float], beside: dict[str, float]) -> None:
    """Attribution and noisy inputs stand beside any method that distils."""
    if method == "finetune" and beside:
        return  # refused by the configuration: nobody teaches
    objective = replace(PLAIN, terms=METHODS[method], **beside)  # type: ignore[arg-type]
    term = {"attribution": "attribution", "noise": "noisy_distillation"}
    names = {**names, **{term[key]: weight for key, weight in beside.items()}}
    assert objective.weights == pytest.approx(names)
    found = objective(student(), teacher() if method != "finetune" else None, batch())
    assert set(found.sums) == set(names)
    assert objective.is_aligned == bool(names.keys() & set(ALIGNED))


@pytest.mark.parametrize(
    ("objective", "missing", "spec"),
    [
        (replace(PLAIN, gradient=0.0), {"gradient_embedding", "gradient_cls"}, SignalSpec((2, 4), True)),
        (replace(PLAIN, patience=0.0), {"patience"}, SignalSpec((2, 4), False, True, True)),
        (replace(PLAIN, kd=1.0), {"cross_entropy"}, SignalSpec((2, 4), True, True, True)),
        (replace(PLAIN, kd=0.0), {"distillation"}, SignalSpec((2, 4), True, True, True)),
    ],
)
def test_a_weight_of_zero_costs_nothing(objective: Objective, missing: set[str], spec: SignalSpec) -> None:
    objective = replace(objective, teacher_layers=(2, 4))
    assert PLAIN.weights.keys() - objective.weights.keys() == missing
    assert objective.signal_spec == spec
    assert set(objective(student(), teacher(), batch()).sums) == set(objective.weights)


def test_a_term_of_weight_zero_is_not_even_looked_at() -> None:
    """The tensors that it would compare need not be there."""
    bare = replace(PLAIN, gradient=0.0, patience=0.0)
    logits = StudentOutput(student().logits_BC), TeacherSignal(teacher().logits_BC)
    assert set(bare(*logits, batch()).sums) == {"cross_entropy", "distillation"}
    with pytest.raises(AssertionError):
        replace(bare, noise=1e-9)(*logits, batch())


NOISE = NoiseSpec(0.1, 2, 7)


def test_signal_spec_by_method() -> None:
    specs = {name: Objective(terms, teacher_layers=(2, 4)).signal_spec for name, terms in METHODS.items()}
    assert specs == {
        "finetune": None,
        "kd": SignalSpec(),
        "pkd": SignalSpec((2, 4), cls_states=True),
        "gkd": SignalSpec(embedding_gradient=True),
        "gkd_cls": SignalSpec((2, 4), True, True, True),
    }
    assert Objective(METHODS["kd"], kd=0.0).signal_spec is None  # nothing to ask, no teacher


@pytest.mark.parametrize(
    ("more", "spec"),
    [
        ({}, SignalSpec()),
        ({"attribution": 1.0}, SignalSpec(attribution_top_k=0)),
        ({"attribution": 1.0, "attribution_top_k": 9}, SignalSpec(attribution_top_k=9)),
        ({"attribution_top_k": 9}, SignalSpec()),
        ({"noise": 1.0, "noise_spec": NOISE}, SignalSpec(noise=NOISE)),
        ({"noise_spec": NOISE}, SignalSpec()),
    ],
)
def test_signal_spec_of_what_stands_beside(more: dict[str, Any], spec: SignalSpec) -> None:
    """A number that no term reads must not show in the spec: it is part of every cache key."""
    found = replace(Objective(METHODS["kd"]), **more).signal_spec
    assert found == spec
    assert spec.gradients == (spec.attribution_top_k is not None)


@pytest.mark.parametrize(
    ("terms", "layers", "states", "at_cls", "at_embedding"),
    [
        (Terms(True, False, True, False), (), False, False, True),
        (Terms(True, False, False, True), (2, 4), False, True, False),
        (Terms(True, True, True, False), (2, 4), True, False, True),
        (Terms(True, True, False, True), (2, 4), True, True, False),
    ],
)
def test_signal_spec_by_positions(
    terms: Terms, layers: tuple[int, ...], states: bool, at_cls: bool, at_embedding: bool
) -> None:
    found = Objective(terms, teacher_layers=(2, 4)).signal_spec
    assert found == SignalSpec(layers, states, at_cls, at_embedding)


def test_labels_travel_only_where_the_signal_reads_them() -> None:
    gkd = Objective(METHODS["gkd"], signal="label").signal_spec
    assert gkd is not None
    assert gkd.needs_labels
    for objective in (
        Objective(METHODS["gkd"], signal="teacher_max"),
        Objective(METHODS["gkd"], signal="label", gradient=0.0),
        Objective(METHODS["pkd"], signal="label"),
        Objective(METHODS["kd"], signal="label", attribution=1.0),  # of every class, whatever the label
    ):
        assert objective.signal_spec is not None
        assert not objective.signal_spec.needs_labels


def test_a_signal_that_nothing_reads_does_not_show_in_the_spec() -> None:
    """Else two runs of `kd` would share no cached logits, and a teacher would want labels that are not sent."""
    specs = {
        Objective(METHODS["kd"], signal=signal, attribution=1.0).signal_spec
        for signal in ("own_max", "teacher_max", "label", "all_classes")
    }
    assert len(specs) == 1


def test_total_divides_each_sum_by_its_own_count() -> None:
    found = EVERYTHING(student(), teacher(), batch())
    counts = BatchCounts(sequences=50, tokens=700)
    assert len(found.sums) == 7
    expected = sum(
        EVERYTHING.weights[name] * value.item() / (700 if name == "gradient_embedding" else 50)
        for name, value in found.sums.items()
    )
    assert found.total(counts).item() == pytest.approx(expected, rel=1e-13)
    assert [count_of(name, counts) for name in ("cross_entropy", "gradient_cls", "gradient_embedding")] == [
        50,
        50,
        700,
    ]


def test_shares_of_some_terms_add_up_to_the_total() -> None:
    found = EVERYTHING(student(), teacher(), batch())
    counts = BatchCounts(sequences=50, tokens=700)
    others = tuple(name for name in found.sums if name not in ALIGNED)
    shares = [found.share_of(names, counts).item() for names in (ALIGNED, others, tuple(found.sums))]
    assert min(shares[:2]) > 1e-3
    assert shares[0] + shares[1] == pytest.approx(shares[2], rel=1e-13)
    assert shares[2] == found.total(counts).item()
    assert found.share_of((), counts).item() == 0.0


def test_a_surrogate_gives_its_gradient_and_no_value() -> None:
    leaf = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    plain = LossTerms({"cross_entropy": 2 * leaf}, torch.zeros(()), {"cross_entropy": 1.0})
    counts = BatchCounts(sequences=4, tokens=9)
    found = replace(plain, surrogate=5 * leaf).total(counts)
    assert found.item() == plain.total(counts).item() == 1.5
    assert torch.autograd.grad(found, leaf)[0].item() == 0.5 + 5.0


def test_named_terms_alone() -> None:
    """What a difference needs before it knows the rest: logits and states may be of a graph that is gone."""
    whole = EVERYTHING(student(), teacher(), batch())
    found = EVERYTHING(student(), teacher(), batch(), names=ALIGNED)
    assert set(found.sums) == set(ALIGNED)
    for name, value in found.sums.items():
        assert torch.equal(value, whole.sums[name])
    assert torch.equal(found.zero_rows, whole.zero_rows)
    assert found.weights == whole.weights


@pytest.mark.parametrize("name", EVERYTHING.weights)
def test_rows_add_up(name: str) -> None:
    """One batch = its rows one by one."""
    value = EVERYTHING(student(), teacher(), batch()).sums[name].item()
    assert value != 0
    parts = []
    for row in range(3):
        real_B = torch.arange(3) == row
        parts.append(EVERYTHING(student(), teacher(), replace(batch(), is_real_B=real_B)).sums[name].item())
    assert all(part != 0 for part in parts)
    assert value == pytest.approx(sum(parts), rel=1e-13)


def test_views_are_averaged() -> None:
    """all_classes weighs as much as one class: the mean over V, summed over layers and tokens."""
    ours, theirs = student(), teacher()
    found = EVERYTHING(ours, theirs, batch()).sums
    one_by_one = {"gradient_cls": 0.0, "gradient_embedding": 0.0}
    for view in range(VIEWS):
        assert ours.cls_gradients_BKVH is not None
        assert theirs.cls_gradients_BKVH is not None
        assert ours.embedding_gradient_BLVH is not None
        assert theirs.embedding_gradient_BLVH is not None
        at_cls = direction_distance(
            ours.cls_gradients_BKVH[:, :, view], theirs.cls_gradients_BKVH[:, :, view]
        )
        at_e = direction_distance(
            ours.embedding_gradient_BLVH[:, :, view], theirs.embedding_gradient_BLVH[:, :, view]
        )
        one_by_one["gradient_cls"] += at_cls[0].sum().item() / VIEWS
        one_by_one["gradient_embedding"] += at_e[0].sum().item() / VIEWS
    for name, expected in one_by_one.items():
        assert found[name].item() == pytest.approx(expected, rel=1e-13)


def test_padding_and_fillers_have_no_gradient() -> None:
    outputs = student()
    real_B = torch.tensor([True, False, True])
    EVERYTHING(outputs, teacher(), replace(batch(), is_real_B=real_B)).total(BatchCounts(2, 7)).backward()
    per_token = ("embedding_gradient_BLVH", "attribution_BLC")
    for field in fields(outputs):
        leaf = getattr(outputs, field.name)
        moved = leaf.grad != 0
        assert not moved[1].any(), field.name
        if field.name in per_token:
            assert moved.flatten(2).any(-1).tolist() == [[True] * 4, [False] * 4, [True, True, True, False]]
        else:
            assert moved[[0, 2]].any(-1).all(), field.name


def test_zero_rows_count_real_positions_only() -> None:
    """Padding has no direction and is no error; a real token without one is, in any view."""
    signal = teacher()
    assert EVERYTHING(student(), signal, batch()).zero_rows.item() == 0
    assert signal.embedding_gradient_BLVH is not None
    assert signal.cls_gradients_BKVH is not None
    assert signal.attribution_BLC is not None
    signal.embedding_gradient_BLVH[0, 1, 1] = 0.0
    signal.cls_gradients_BKVH[2, 0, 1] = 0.0
    assert EVERYTHING(student(), signal, batch()).zero_rows.item() == 2
    signal.attribution_BLC[2, :, 0] = 0.0
    assert EVERYTHING(student(), signal, batch()).zero_rows.item() == 3
    filler = replace(batch(), is_real_B=torch.tensor([True, True, False]))
    assert EVERYTHING(student(), signal, filler).zero_rows.item() == 1


def test_gradcheck() -> None:
    outputs = student()

    def total(*tensors: Tensor) -> Tensor:
        logits, states, cls, embedding, saliency, noisy = tensors
        output = StudentOutput(logits, states, cls, embedding * mask_BLXX(), saliency, noisy)
        return EVERYTHING(output, teacher(), batch()).total(BatchCounts(3, 9))

    # padding rows of zero have no derivative to compare with: they are filled, then masked inside
    filled = replace(outputs, embedding_gradient_BLVH=rows(3, 4, VIEWS, 5, seed=3).requires_grad_(True))
    assert torch.autograd.gradcheck(total, tuple(getattr(filled, field.name) for field in fields(filled)))


def test_a_share_weighs_the_aligned_terms_alone() -> None:
    """alignment.share: the rows that are aligned stand for those that are not."""
    whole = EVERYTHING(student(), teacher(), batch())
    found = EVERYTHING(student(), teacher(), replace(batch(), alignment=2.5))
    for name, value in whole.sums.items():
        factor = 2.5 if name in ALIGNED else 1.0
        assert found.sums[name].item() == pytest.approx(factor * value.item(), rel=1e-14)
    assert found.weights == whole.weights


def test_a_batch_that_is_not_aligned_needs_no_gradient_of_anyone() -> None:
    bare_student = replace(
        student(), cls_gradients_BKVH=None, embedding_gradient_BLVH=None, attribution_BLC=None
    )
    bare_teacher = replace(
        teacher(), cls_gradients_BKVH=None, embedding_gradient_BLVH=None, attribution_BLC=None
    )
    found = EVERYTHING(bare_student, bare_teacher, replace(batch(), alignment=0.0))
    whole = EVERYTHING(student(), teacher(), batch())
    assert set(found.sums) == set(whole.sums) - set(ALIGNED)
    for name, value in found.sums.items():
        assert torch.equal(value, whole.sums[name])
    assert found.zero_rows.item() == 0


def test_terms_are_off_unless_named() -> None:
    assert Objective(Terms()).weights == {"cross_entropy": 1.0}
