"""From a configuration and two models to the objective: layers, positions, maps, and what cannot be aligned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from config.trees import good_with
from tiny_encoders import FAMILIES, tiny_encoder

from distill_dist.assemble.models import TeacherShape, teacher_shape
from distill_dist.assemble.objective import build_objective, build_width_maps
from distill_dist.config.schema import RunConfig, TeacherConfig
from distill_dist.errors import UserError
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.objectives.objective import Objective
from distill_dist.records import NoiseSpec

METHODS = ("finetune", "kd", "pkd", "gkd", "gkd_cls")
TEACHER = TeacherShape(layers=12, hidden_size=16, embedding_size=16, pools_cls=True)
WIDE = replace(TEACHER, hidden_size=64, embedding_size=64)
NARROW = {"hidden": 16, "embedding_size": 64}  # an ELECTRA on the embedding of a teacher of 64


def student(family: str = "bert", *, layers: int = 6, **more: Any) -> EncoderParts:
    return encoder_parts(tiny_encoder(family, layers=layers, **more))


def built(
    values: dict[str, Any], parts: EncoderParts | None = None, teacher: TeacherShape | None = TEACHER
) -> Objective:
    return build_objective(good_with(values), parts or student(), teacher)


def refusal(
    values: dict[str, Any], parts: EncoderParts | None = None, teacher: TeacherShape = TEACHER
) -> str:
    with pytest.raises(UserError) as caught:
        built(values, parts, teacher)
    return str(caught.value)


# ------------------------------------------------------------------ what is built


def test_the_papers_layers_for_the_methods_that_match_some() -> None:
    """METHOD.md §1: 2, 4, 6, 8, 10 of 12 with 1 to 5 of 6."""
    for method in METHODS:
        found = built({"method": method})
        expected = ((2, 4, 6, 8, 10), (1, 2, 3, 4, 5)) if method in ("pkd", "gkd_cls") else ((), ())
        assert (found.teacher_layers, found.student_layers) == expected


@pytest.mark.parametrize(
    ("method", "positions", "terms", "has_layers"),
    [
        ("gkd", "auto", {"gradient_embedding"}, False),
        ("gkd", "embedding", {"gradient_embedding"}, False),
        ("gkd", "cls", {"gradient_cls"}, True),
        ("gkd", "both", {"gradient_embedding", "gradient_cls"}, True),
        ("gkd_cls", "auto", {"patience", "gradient_embedding", "gradient_cls"}, True),
        ("gkd_cls", "embedding", {"patience", "gradient_embedding"}, True),
        ("gkd_cls", "cls", {"patience", "gradient_cls"}, True),
        ("gkd_cls", "both", {"patience", "gradient_embedding", "gradient_cls"}, True),
    ],
)
def test_positions_are_terms(method: str, positions: str, terms: set[str], has_layers: bool) -> None:
    found = built({"method": method, "alignment.positions": positions})
    assert found.weights.keys() - {"cross_entropy", "distillation"} == terms
    assert bool(found.student_layers) == has_layers
    spec = found.signal_spec
    assert spec is not None
    assert spec.layers == found.teacher_layers
    assert (spec.embedding_gradient, spec.cls_gradients) == (
        "gradient_embedding" in terms,
        "gradient_cls" in terms,
    )


def test_named_layers_are_taken() -> None:
    found = built({"objective.teacher_layers": (3, 12), "objective.student_layers": (1, 6)})
    assert (found.teacher_layers, found.student_layers) == ((3, 12), (1, 6))
    message = refusal({"objective.teacher_layers": (3, 13), "objective.student_layers": (1, 3)})
    assert "teacher has layers 1 to 12" in message


def test_every_number_of_the_configuration_arrives() -> None:
    found = built(
        {
            "seed": 7,
            "weight.kd": 0.25,
            "weight.patience": 3.0,
            "weight.gradient": 0.75,
            "weight.attribution": 0.1,
            "weight.noise": 0.2,
            "objective.temperature": 2.0,
            "objective.kd_scale": "sum",
            "objective.attribution_top_k": 5,
            "objective.attribution_norm": "l1",
            "objective.noise_std": 0.3,
            "objective.noise_draws": 4,
            "alignment.signal": "label",
        }
    )
    assert found.weights == {
        "cross_entropy": 0.75,
        "distillation": 0.25,
        "patience": 3.0,
        "gradient_embedding": 0.75,
        "gradient_cls": 0.75,
        "attribution": 0.1,
        "noisy_distillation": 0.2,
    }
    assert (found.temperature, found.kd_per_class, found.signal) == (2.0, False, "label")
    assert (found.attribution_top_k, found.attribution_norm) == (5, "l1")
    assert found.noise_spec == NoiseSpec(0.3, 4, 7)
    spec = found.signal_spec
    assert spec is not None
    assert (spec.attribution_top_k, spec.noise, spec.signal) == (5, NoiseSpec(0.3, 4, 7), "label")


def test_noise_differs_by_the_runs_seed() -> None:
    """Two seeds of one run are two draws of the objective; the teacher's cache keeps them apart."""
    specs = {built({"method": "kd", "weight.noise": 1.0, "seed": seed}).signal_spec for seed in (0, 1)}
    assert len(specs) == 2


@pytest.mark.parametrize("method", METHODS)
def test_fine_tuning_compares_nothing_whatever_the_teacher_is(method: str) -> None:
    odd = TeacherShape(layers=1, hidden_size=99, embedding_size=77, pools_cls=False)
    if method == "finetune":
        assert built({"method": method}, teacher=odd).signal_spec is None
        assert built({"method": method}, teacher=None).signal_spec is None
    elif method == "kd":  # neither widths nor depths count
        assert built({"method": method}, teacher=odd).signal_spec is not None
    else:
        refusal({"method": method}, teacher=odd)


# ------------------------------------------------------------------ what cannot be compared


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"method": "gkd"}, "method gkd "),
        ({"method": "gkd_cls"}, "method gkd_cls "),
        ({"method": "gkd_cls", "alignment.positions": "embedding"}, "method gkd_cls "),
        ({"method": "kd", "weight.noise": 1.0}, "weight.noise "),
        ({"method": "pkd", "weight.noise": 1.0}, "weight.noise "),
    ],
)
def test_other_embedding_widths_are_refused(values: dict[str, Any], named: str) -> None:
    message = refusal(values, teacher=WIDE)
    assert message.startswith(named)
    for part in ("16 (student) and 64 (teacher)", "electra", "method kd", "weight.attribution"):
        assert part in message


@pytest.mark.parametrize(
    "values",
    [
        {"method": "kd"},
        {"method": "kd", "weight.attribution": 1.0},
        {"method": "pkd"},
        {"method": "pkd", "weight.attribution": 1.0},
        {"method": "gkd", "alignment.positions": "cls"},
        {"method": "gkd_cls", "alignment.positions": "cls"},
    ],
)
def test_what_does_not_compare_embeddings_needs_no_equal_ones(values: dict[str, Any]) -> None:
    assert built(values, teacher=WIDE).signal_spec is not None


@pytest.mark.parametrize(
    "values", [{"method": "gkd"}, {"method": "gkd_cls"}, {"method": "kd", "weight.noise": 1.0}]
)
def test_a_narrow_student_on_its_teachers_embedding_is_aligned(values: dict[str, Any]) -> None:
    parts = student("electra", **NARROW)
    assert (parts.hidden_size, parts.embedding_size) == (16, 64)
    assert built(values, parts, WIDE).signal_spec is not None


def mean_pooled() -> EncoderParts:
    return student("modernbert", classifier_pooling="mean")


@pytest.mark.parametrize("values", [{"method": "gkd_cls"}, {"method": "gkd", "alignment.positions": "both"},
                                    {"method": "gkd", "alignment.positions": "cls"},
                                    {"method": "gkd_cls", "alignment.positions": "cls"}])  # fmt: skip
def test_the_cls_of_a_mean_is_refused_for_either_model(values: dict[str, Any]) -> None:
    for parts, teacher, who in (
        (mean_pooled(), TEACHER, "student"),
        (student(), replace(TEACHER, pools_cls=False), "teacher"),
    ):
        message = refusal(values, parts, teacher)
        assert message.startswith(f"the {who}'s classifier reads the mean")
        assert "alignment.positions=embedding" in message
        assert "classifier_pooling: cls" in message


@pytest.mark.parametrize(
    "values",
    [
        {"method": "kd"},
        {"method": "gkd"},
        {"method": "gkd_cls", "alignment.positions": "embedding"},
        {"method": "kd", "weight.attribution": 1.0},
        {"method": "kd", "weight.noise": 1.0},
    ],
)
def test_a_mean_is_no_reason_where_cls_is_not_aligned(values: dict[str, Any]) -> None:
    assert built(values, mean_pooled(), replace(TEACHER, pools_cls=False)).signal_spec is not None


@pytest.mark.parametrize(
    "values", [{"method": "pkd"}, {"method": "gkd_cls"}, {"method": "gkd", "alignment.positions": "cls"}]
)
def test_a_student_of_one_layer_has_nothing_to_match(values: dict[str, Any]) -> None:
    message = refusal(values, student(layers=1))
    assert f"method {values['method']} matches [CLS]" in message
    named = {**values, "objective.teacher_layers": (12,), "objective.student_layers": (1,)}
    assert built(named, student(layers=1)).student_layers == (1,)


def test_a_student_deeper_than_its_teacher_has_no_even_map() -> None:
    assert "no even map" in refusal({"method": "gkd_cls"}, teacher=replace(TEACHER, layers=4))


# ------------------------------------------------------------------ maps between widths


def maps(values: dict[str, Any], parts: EncoderParts, teacher: TeacherShape) -> Any:
    return build_width_maps(built(values, parts, teacher), parts, teacher)


@pytest.mark.parametrize(
    ("values", "has_maps"),
    [
        ({"method": "finetune"}, False),
        ({"method": "kd"}, False),
        ({"method": "kd", "weight.attribution": 1.0}, False),
        ({"method": "gkd"}, False),
        ({"method": "pkd"}, True),
        ({"method": "gkd_cls"}, True),
        ({"method": "gkd_cls", "alignment.positions": "cls"}, True),
        ({"method": "gkd_cls", "alignment.positions": "embedding"}, True),
        ({"method": "gkd_cls", "weight.gradient": 0.0}, True),
    ],
)
def test_maps_where_layers_of_two_widths_are_matched(values: dict[str, Any], has_maps: bool) -> None:
    parts = student("electra", **NARROW)
    found = maps(values, parts, WIDE)
    assert (found is not None) == has_maps
    if has_maps:
        assert found.weight_KTS.shape == (5, 64, 16)
    assert maps(values, student(), TEACHER) is None  # of one width


@pytest.mark.parametrize(
    "values",
    [
        {"method": "gkd", "alignment.positions": "cls"},
        {"method": "gkd", "alignment.positions": "both"},
        {"method": "gkd_cls", "weight.patience": 0.0},
        {"method": "gkd_cls", "weight.patience": 0.0, "alignment.positions": "cls"},
    ],
)
def test_maps_that_nothing_would_train_are_refused(values: dict[str, Any]) -> None:
    parts = student("electra", **NARROW)
    with pytest.raises(UserError) as caught:
        maps(values, parts, WIDE)
    message = str(caught.value)
    for part in (
        "16 wide and its teacher 64",
        "only the patience term learns",
        "gkd_cls with weight.patience",
    ):
        assert part in message
    assert maps(values, student(), TEACHER) is None


def test_maps_that_nothing_reads_are_not_built() -> None:
    """gkd_cls at the embeddings with weight.patience 0: layers are matched by no term."""
    parts = student("electra", **NARROW)
    values = {"method": "gkd_cls", "weight.patience": 0.0, "alignment.positions": "embedding"}
    assert maps(values, parts, WIDE) is None


# ------------------------------------------------------------------ the teacher's shape


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("more", [{}, {"classifier_pooling": "mean"}, {"embedding_size": 12}])
def test_the_shape_read_from_a_file_is_the_models(family: str, more: dict[str, Any], tmp_path: Path) -> None:
    """A student beside remote teachers knows only the file; it must not say something else than the model."""
    if more and family != {"classifier_pooling": "modernbert", "embedding_size": "electra"}[next(iter(more))]:
        return
    model = tiny_encoder(family, layers=4, dtype=torch.float32, **more)
    model.save_pretrained(tmp_path)
    parts = encoder_parts(model)
    found = teacher_shape(RunConfig(teacher=TeacherConfig(path=str(tmp_path))))
    assert found == TeacherShape(
        layers=len(parts.layers),
        hidden_size=parts.hidden_size,
        embedding_size=parts.embedding_size,
        pools_cls=parts.pools_cls,
    )
