"""The settings that made a model what it is, as the card shows them."""

from __future__ import annotations

from collections.abc import Iterator

from distill_dist.config.methods import (
    aligned_positions,
    has_curriculum,
    is_aligned,
    matches_states,
    relies_selectively,
)
from distill_dist.config.pool import is_pool, teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.export.markdown import hide_places
from distill_dist.report.run_record import RunRecord, number_at, value_at


def settings_of(config: RunConfig, run: RunRecord, *, folder: str) -> tuple[tuple[str, str], ...]:
    """(title, value) in reading order. Titles are ours, values may hold anything; it was started in ``folder``."""
    return (
        *_student(config, folder),
        *_objective(config),
        *_gradients(config, run),
        *_layers(run),
        *_training(config, run),
    )


def _student(config: RunConfig, folder: str) -> Iterator[tuple[str, str]]:
    student, shape = config.student, config.student.shape
    if student.path:
        yield "student starts from", hide_places(student.path, folder=folder)
        if student.architecture == "electra":
            sizes = f"{shape.num_hidden_layers} random layers of width {shape.hidden_size}"
            yield "student", f"the embeddings of that model, projected, and {sizes} (ELECTRA's shape)"
        else:
            layers = (
                "all layers" if student.layers is None else f"{student.layers} layers ({student.layer_copy})"
            )
            yield "student", f"{layers} of that model, architecture: {student.architecture}"
    else:
        yield (
            "student",
            f"{shape.num_hidden_layers} random {shape.model_type} layers of width {shape.hidden_size}",
        )
    yield "embeddings kept fixed", "yes" if student.freeze_embeddings else "no"
    yield "dropout", f"{student.dropout:g}"
    if config.data.tokenizer:
        yield "tokenizer", hide_places(config.data.tokenizer, folder=folder)
    yield "longest text", f"{config.data.max_length} tokens"


def _objective(config: RunConfig) -> Iterator[tuple[str, str]]:
    weight, objective = config.weight, config.objective
    if config.method != "finetune":
        yield "share of the teacher's logits (weight.kd)", f"{weight.kd:g}"
        yield "temperature", f"{objective.temperature:g}"
        scale = {"sum": "summed over the classes", "mean": "divided by the number of classes"}
        yield "divergence from the teacher", scale.get(objective.kd_scale, objective.kd_scale)
        if is_pool(config):
            shares = ", ".join(f"{teacher.weight:.3g}" for teacher in teachers_of(config))
            yield "several teachers, joined by", f"{config.teacher.combine} (weights {shares})"
    if matches_states(config.method):
        yield "weight of matched [CLS] states", f"{weight.patience:g}"
    if weight.noise > 0:
        yield "weight of distillation at noisy embeddings", f"{weight.noise:g} (σ {objective.noise_std:g})"
    if has_curriculum(config):
        yield "curriculum", f"{config.curriculum.order}, pacing {config.curriculum.pacing}"
    if relies_selectively(config):
        yield "reliance on the teacher", config.reliance.rule


def _gradients(config: RunConfig, run: RunRecord) -> Iterator[tuple[str, str]]:
    if not is_aligned(config):
        return
    at_embeddings, at_cls = aligned_positions(config)
    if at_embeddings or at_cls:
        places = [text for text, is_one in (("embedding output", at_embeddings), ("[CLS]", at_cls)) if is_one]
        yield "weight of matched gradients", f"{config.weight.gradient:g}"
        yield "gradients matched at", " and ".join(places)
        yield "of whose margin", config.alignment.signal
    if config.weight.attribution > 0:
        yield "weight of matched attributions", f"{config.weight.attribution:g}"
    route = value_at(run.summary, "alignment", "route") or config.alignment.route
    yield "gradient of a gradient by", str(route)
    if config.alignment.share < 1:
        yield "share of rows with gradients", f"{config.alignment.share:g} ({config.alignment.choose})"


def _layers(run: RunRecord) -> Iterator[tuple[str, str]]:
    teacher, student = (value_at(run.summary, "matched_layers", of) for of in ("teacher", "student"))
    if isinstance(teacher, list) and isinstance(student, list):
        pairs = ", ".join(f"{one} with {other}" for one, other in zip(student, teacher, strict=False))
        yield "layers whose [CLS] is matched (student with teacher)", pairs


def _training(config: RunConfig, run: RunRecord) -> Iterator[tuple[str, str]]:
    train = config.train
    steps, best = (number_at(run.summary, key) for key in ("steps", "best_step"))
    yield "epochs", f"{train.epochs}" + ("" if steps is None else f" ({steps:.0f} steps)")
    if best is not None:
        chosen = f", the best on {config.evaluate.select_on}" if train.epochs > 1 else ""
        yield "step of this model", f"{best:.0f}{chosen}"
    yield "rows of a batch", f"{config.batch.size}"
    yield (
        "optimizer",
        f"{train.optimizer}, weight decay {train.weight_decay:g}, gradient norm up to {train.clip_norm:g}",
    )
    warmup = f"{train.warmup_share:.0%} linear warm-up, then linearly to 0"
    yield "learning rate", f"{train.learning_rate:g} ({warmup})"
    yield "precision", train.precision
    yield "seed", f"{config.seed}"
    students, teachers = (number_at(run.summary, "world", key) for key in ("students", "teachers"))
    if students is not None:
        stage = number_at(run.summary, "zero_stage")
        zero = "" if stage is None else f", ZeRO {stage:.0f}"
        said = f"{_counted(students, 'student')}, {_counted(teachers or 0, 'teacher')}"
        yield "processes", f"{said}{zero}"


def _counted(number: float, what: str) -> str:
    return f"{number:.0f} {what}{'' if number == 1 else 's'}"
