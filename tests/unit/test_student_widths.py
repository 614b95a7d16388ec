"""A student narrower than its teacher: ELECTRA's shape on the embeddings of a BERT, maps between the matched layers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import reference_loss
from student_cases import (
    LENGTHS,
    SIGNALS,
    STUDENT_LAYERS,
    Gradients,
    assert_second_order,
    counts_of,
    difference,
    gradients,
    models,
    norm_of,
    objective_of,
    relative_error,
    signal_of,
    step,
    weights_of,
)
from tiny_encoders import ragged_batch, tiny_encoder, undecided
from torch import nn

from distill_dist.models.build import set_attention, set_dropout, student_from
from distill_dist.models.encoder import encoder_parts
from distill_dist.models.width_maps import WidthMaps
from distill_dist.student import Route, StudentStep

TEACHER, STUDENT = 64, 32
BATCH = ragged_batch(LENGTHS)
SHAPE = {
    "hidden_size": STUDENT,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 2 * STUDENT,
    "initializer_range": 0.2,
}
ROUTES = (Route(), difference(True), difference(False))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(student of width 32, teacher of width 64), float64."""
    teacher = undecided(tiny_encoder(layers=4, seed=2, hidden=TEACHER), BATCH).float()
    folder = tmp_path_factory.mktemp("teacher")
    teacher.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = student_from(
            str(folder),
            architecture="electra",
            keep=None,
            how="first",
            chosen=(),
            labels=("a", "b", "c"),
            shape=SHAPE,
        )
    set_dropout(student, 0.0)
    set_attention(student, "eager")
    return undecided(student.double().eval(), BATCH), teacher.double().requires_grad_(False)


def maps() -> WidthMaps:
    """Away from its semi-orthogonal start, where AᵀA is the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        found = WidthMaps(len(STUDENT_LAYERS), teacher_width=TEACHER, student_width=STUDENT).double()
        with torch.no_grad():
            found.weight_KTS.add_(0.1 * torch.randn_like(found.weight_KTS))
    return found


def of_both(student: Any, width_maps: WidthMaps, loss: torch.Tensor) -> Gradients:
    return gradients(nn.ModuleDict({"student": student, "maps": width_maps}), loss)


def test_the_pair_differs_where_it_should(pair: tuple[Any, Any]) -> None:
    student, teacher = (encoder_parts(model) for model in pair)
    assert (student.hidden_size, teacher.hidden_size) == (STUDENT, TEACHER)
    assert student.embedding_size == teacher.embedding_size == TEACHER


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", ["pkd", "gkd_cls", "gkd_cls at cls", "gkd_cls at embedding", "everything"])
def test_value_and_gradient_follow_the_formula(pair: tuple[Any, Any], name: str, signal: str) -> None:
    """1e-10 as in test_student.py; the gradient of the maps too."""
    student, teacher = pair
    module, counts = maps(), counts_of(BATCH)
    # noise is drawn of the embedding's width, which the reference takes to be the model's
    without_noise: dict[str, Any] = {"noise": 0.0, "noise_spec": None}
    weights, objective = weights_of(name, signal=signal), objective_of(name, signal=signal)
    found = step(student, teacher, replace(objective, **without_noise), BATCH, maps=module).total(counts)
    trained = copy.deepcopy(teacher).requires_grad_(True)
    expected = reference_loss(
        student, trained, BATCH, replace(weights, **without_noise), maps_KTS=module.weight_KTS
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    ours, theirs = (of_both(student, module, loss) for loss in (found, expected))
    assert theirs["maps.weight_KTS"].norm() > 1e-3 * norm_of(theirs.values()) > 1e-4
    assert relative_error(ours, theirs) < 1e-10
    assert (ours["maps.weight_KTS"] - theirs["maps.weight_KTS"]).norm() < 1e-10 * theirs[
        "maps.weight_KTS"
    ].norm()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("signal", SIGNALS)
def test_both_routes_agree(pair: tuple[Any, Any], signal: str, frozen: bool) -> None:
    student, teacher = copy.deepcopy(pair)
    encoder_parts(student).embeddings.requires_grad_(not frozen)
    assert_second_order(student, teacher, objective_of("gkd_cls", signal=signal), BATCH, maps=maps())


def test_attribution_and_noise_need_no_equal_width(pair: tuple[Any, Any]) -> None:
    assert_second_order(*pair, objective_of("everything"), BATCH, maps=maps())
    assert_second_order(*pair, objective_of("kd + attribution"), BATCH)


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_patience_alone_trains_the_maps(pair: tuple[Any, Any], route: Route) -> None:
    """With it, its own gradient to the last bits, whatever else is matched; without it, none at all."""
    student, teacher = pair
    counts = counts_of(BATCH)

    def of_maps(**weights: float) -> torch.Tensor:
        module = maps()
        objective = replace(objective_of("gkd_cls"), **weights)  # type: ignore[arg-type]
        loss = step(student, teacher, objective, BATCH, route=route, maps=module).total(counts)
        assert loss.requires_grad
        return gradients(module, loss)["weight_KTS"]

    with_patience = of_maps(patience=1e-3)
    alone = of_maps(patience=1e-3, gradient=0.0)
    assert alone.norm() > 1e-9
    assert (with_patience - alone).norm() < 1e-12 * alone.norm()
    assert (of_maps(patience=0.0) == 0).all()


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_the_maps_turn_what_the_student_is_asked_for(pair: tuple[Any, Any], route: Route) -> None:
    """Without that, the term would ask the student for the teacher's directions in coordinates of nobody."""
    student, teacher = pair
    objective = replace(objective_of("gkd_cls at cls"), patience=0.0)
    values = []
    for sign in (1.0, -1.0):
        module = maps()
        with torch.no_grad():
            module.weight_KTS.mul_(sign)
        sums = step(student, teacher, objective, BATCH, route=route, maps=module).sums
        values.append(sums["gradient_cls"].item())
    # 2(1 − cos) + 2(1 + cos), for every row and layer
    assert sum(values) == pytest.approx(4 * len(LENGTHS) * len(STUDENT_LAYERS), rel=1e-12)
    assert abs(values[0] - values[1]) > 0.1


def test_identity_maps_change_nothing_at_equal_widths() -> None:
    student, teacher = models()
    module = WidthMaps(len(STUDENT_LAYERS), teacher_width=16, student_width=16).double()
    with torch.no_grad():
        module.weight_KTS.copy_(torch.eye(16).expand(2, 16, 16))
    objective, counts = objective_of("gkd_cls"), counts_of(BATCH)
    plain = gradients(student, step(student, teacher, objective, BATCH).total(counts))
    mapped = gradients(student, step(student, teacher, objective, BATCH, maps=module).total(counts))
    assert relative_error(mapped, plain) < 1e-12


def test_the_maps_are_called_and_not_read(pair: tuple[Any, Any]) -> None:
    """ZeRO 3 gathers a module's parameters around its own forward, and nowhere else."""
    student, teacher = pair
    module, calls = maps(), []
    module.register_forward_hook(lambda *call: calls.append(tuple(call[1][0].shape)))
    objective = objective_of("gkd_cls")
    signal = signal_of(teacher, objective, BATCH)
    for route, times in zip(ROUTES, (1, 1, 2), strict=True):
        StudentStep(encoder_parts(student), objective, route, module).loss_terms(
            BATCH, signal, counts_of(BATCH)
        )
        assert calls == [(len(LENGTHS), 2, STUDENT)] * times
        calls.clear()


def test_the_saved_teacher_is_the_one_that_teaches(pair: tuple[Any, Any], tmp_path: Path) -> None:
    """The student's embeddings are those of the teacher beside it, so E is one point for both."""
    student, teacher = (encoder_parts(model) for model in pair)
    ours, theirs = (parts.embeddings.state_dict() for parts in (student, teacher))
    assert torch.equal(ours["word_embeddings.weight"], theirs["word_embeddings.weight"])
