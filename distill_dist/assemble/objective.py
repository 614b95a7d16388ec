"""The objective of a run, and whether its student and its teacher can be compared at all."""

from __future__ import annotations

from dataclasses import replace

from distill_dist.assemble.models import TeacherShape
from distill_dist.config.methods import aligned_positions, matches_states, relies_selectively
from distill_dist.config.pool import teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.curriculum.reliance import largest
from distill_dist.errors import UserError
from distill_dist.models.encoder import EncoderParts
from distill_dist.models.layer_map import matched_layers
from distill_dist.models.width_maps import WidthMaps
from distill_dist.objectives.objective import METHODS, Objective
from distill_dist.records import NoiseSpec


def build_objective(config: RunConfig, student: EncoderParts, teacher: TeacherShape | None) -> Objective:
    """The method's objective. Raises UserError where student and teacher cannot be aligned."""
    at_embedding, at_cls = aligned_positions(config)
    layers: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if teacher is not None and config.method != "finetune":
        if at_embedding or config.weight.noise:
            _require_one_embedding(config, student, teacher)
        if at_cls:
            _require_cls(config, student, teacher)
        if at_cls or matches_states(config.method):
            layers = _matched_layers(config, student, teacher)
    return Objective(
        terms=replace(METHODS[config.method], embedding_gradient=at_embedding, cls_gradients=at_cls),
        kd=config.weight.kd,
        patience=config.weight.patience,
        gradient=config.weight.gradient or 0.0,
        attribution=config.weight.attribution,
        noise=config.weight.noise,
        temperature=config.objective.temperature,
        kd_per_class=config.objective.kd_scale == "mean",
        signal=config.alignment.signal,
        attribution_top_k=config.objective.attribution_top_k,
        attribution_norm=config.objective.attribution_norm,
        noise_spec=NoiseSpec(config.objective.noise_std, config.objective.noise_draws, config.seed),
        teacher_layers=layers[0],
        student_layers=layers[1],
        per_row=relies_selectively(config),
        scale_alignment=_scale(config),
        teacher_weights=tuple(each.weight for each in teachers_of(config))
        if config.teacher.combine == "separate"
        else (),
    )


def _scale(config: RunConfig) -> float | None:
    reliance = config.reliance
    if not reliance.scale_alignment or reliance.rule == "constant":
        return None
    assert reliance.maximum is not None
    return largest(reliance.rule, reliance.maximum)


def build_width_maps(objective: Objective, student: EncoderParts, teacher: TeacherShape) -> WidthMaps | None:
    """Maps from the student's width to its teacher's where they differ and layers are matched; else None."""
    matched = objective.weights.keys() & {"patience", "gradient_cls"}
    if not matched or teacher.hidden_size == student.hidden_size:
        return None
    if "patience" not in objective.weights:
        raise UserError(
            f"the student is {student.hidden_size} wide and its teacher {teacher.hidden_size}: gradients at [CLS] are "
            "compared through maps that only the patience term learns. Take method gkd_cls with weight.patience above "
            "0, or alignment.positions=embedding"
        )
    return WidthMaps(
        len(objective.student_layers), teacher_width=teacher.hidden_size, student_width=student.hidden_size
    )


def _require_one_embedding(config: RunConfig, student: EncoderParts, teacher: TeacherShape) -> None:
    if teacher.embedding_size != student.embedding_size:
        what = "weight.noise" if config.weight.noise else f"method {config.method}"
        raise UserError(
            f"{what} compares the models at their embeddings, which are {student.embedding_size} (student) and "
            f"{teacher.embedding_size} (teacher) wide: they must be equal. Take a student cut from its teacher "
            "(student.path=${teacher.path}), with student.architecture=electra a narrower one; or method kd, "
            "weight.attribution with it, which need no equal width"
        )


def _require_cls(config: RunConfig, student: EncoderParts, teacher: TeacherShape) -> None:
    for name, pools_cls in (("student", student.pools_cls), ("teacher", teacher.pools_cls)):
        if not pools_cls:
            raise UserError(
                f"the {name}'s classifier reads the mean over all tokens (classifier_pooling: mean), so the gradient "
                "at [CLS] of its last layers says nothing of its own: take alignment.positions=embedding, or a model "
                "with classifier_pooling: cls"
            )


def _matched_layers(
    config: RunConfig, student: EncoderParts, teacher: TeacherShape
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    teacher_layers, student_layers = matched_layers(
        teacher.layers,
        len(student.layers),
        teacher=config.objective.teacher_layers,
        student=config.objective.student_layers,
    )
    if not student_layers:
        raise UserError(
            f"method {config.method} matches [CLS] of inner layers, but a student of one layer has none besides "
            "its last: take student.layers=2 or more, name objective.student_layers, or use gkd or kd"
        )
    return teacher_layers, student_layers
