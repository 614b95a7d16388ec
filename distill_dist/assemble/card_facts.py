"""What a run's files say of its model, gathered for the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_dist.assemble.card_limits import limits_of
from distill_dist.assemble.card_settings import settings_of
from distill_dist.config.pool import teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import Manifest, manifest_hash
from distill_dist.data.tasks import resolve_task
from distill_dist.export.facts import CardFacts, Measured, SplitFigures, SplitSource, TeacherFacts
from distill_dist.export.markdown import hide_places
from distill_dist.hub import is_hub_model, weights_digest
from distill_dist.report.figures import pair
from distill_dist.report.run_record import RunRecord, number_at, read_object, value_at

Tree = Mapping[str, Any]
_LOYALTY = ("ll", "pl")  # a split's own in summary.json, beside the student's figures


def gather(
    config: RunConfig,
    run: RunRecord,
    evaluation: Tree | None,
    manifest: Manifest | None,
    *,
    name: str,
    labels: tuple[str, ...],
    parameters: int,
    architecture: str,
    sha256: str,
    teachers: Mapping[str, str],
    lower_cases: bool,
) -> CardFacts:
    """The facts, but for ONNX and latency. ``evaluation`` is of this model; None: the run's own figures are taken.

    ``teachers``: configured path -> folder of those that are there. ``lower_cases``: the tokenizer does.
    """
    folder = run.started_in
    splits = split_figures(run, evaluation, manifest)
    hub = _hub_source(manifest)
    hashed = manifest_hash(manifest) if manifest is not None else None
    known = value_at(evaluation, "data", "manifest")
    same_rows = known in (None, hashed)
    return CardFacts(
        name=name,
        task=run.task,
        metric=resolve_task(config.data).metric,
        columns=resolve_task(config.data).layouts[0].texts,
        labels=labels,
        method=config.method,
        parameters=parameters,
        architecture=architecture,
        weights_sha256=sha256,
        max_length=config.data.max_length,
        settings=settings_of(config, run, folder=folder),
        splits=tuple(replace(split, of_hub=_of_hub(manifest, split.name)) for split in splits),
        intervals=_intervals(evaluation),
        sources=_sources(manifest, folder) if manifest is not None and same_rows else (),
        manifest=known or hashed,
        teachers=_teachers(config, evaluation, teachers),
        teacher_parameters=_whole(number_at(run.summary, "teacher", "parameters")),
        teacher_missing=len(teachers) < len(teachers_of(config)),
        command=run.command,
        command_folder=folder,
        versions=run.versions,
        limits=limits_of(
            config,
            manifest,
            splits,
            task=run.task,
            lower_cases=lower_cases,
            with_intervals=evaluation is not None,
        ),
        base_model=config.student.path if is_hub_model(config.student.path) else None,
        dataset=hub.get("path"),
        dataset_config=hub.get("name") or None,
        dataset_revision=hub.get("revision"),
    )


def split_figures(
    run: RunRecord, evaluation: Tree | None, manifest: Manifest | None
) -> tuple[SplitFigures, ...]:
    """Every split that was scored, dev first; from ``evaluation`` with intervals, else from the run's summary."""
    if evaluation is None:
        scored = value_at(run.summary, "splits")
        found = [_from_summary(run, name, manifest) for name in (scored if isinstance(scored, dict) else ())]
    else:
        some = number_at(evaluation, "settings", "saliency_rows")
        found = [_from_evaluation(run, name, tree, some) for name, tree in evaluation["splits"].items()]
        found = [split for split in found if split.name != "train"]  # what it was taught says little
    return tuple(sorted(found, key=lambda split: (split.name != "dev", split.name)))


def _from_evaluation(run: RunRecord, name: str, tree: Tree, some: float | None) -> SplitFigures:
    """``some``: of how many rows at most `evaluate.py` measured saliency."""

    def of(*path: str) -> dict[str, Measured]:
        values, limits = value_at(tree, *path) or {}, value_at(tree, "intervals", *path) or {}
        return {
            key: Measured(float(value), pair(limits.get(key)))
            for key, value in values.items()
            if isinstance(value, int | float)
        }

    student, teacher, loyalty = of("student"), of("teacher"), of("loyalty")
    if (
        name == "dev"
    ):  # what only the run itself measured: with a teacher that is gone, saliency that was not asked for
        teacher = {**_of_teacher(run, student), **teacher}
        loyalty = {**_numbers(value_at(run.summary, "loyalty")), **loyalty}
    classes = {
        each: of("per_class", "student", each) for each in value_at(tree, "per_class", "student") or {}
    }
    has_saliency = any(key.startswith("sl_") for key in loyalty)
    fewer = int(some) if some is not None and some < tree["rows"] and has_saliency else None
    return SplitFigures(name, tree["rows"], student, teacher, loyalty, classes, saliency_rows=fewer)


def _from_summary(run: RunRecord, name: str, manifest: Manifest | None) -> SplitFigures:
    student = _numbers(value_at(run.summary, "splits", name))
    loyalty = {key: student.pop(key) for key in _LOYALTY if key in student}
    teacher: dict[str, Measured] = {}
    if name == "dev":
        loyalty |= _numbers(value_at(run.summary, "loyalty"))
        teacher = _of_teacher(run, student)
    rows = manifest.splits[name].rows if manifest is not None and name in manifest.splits else None
    return SplitFigures(name, rows, student, teacher, loyalty, {})


def _of_teacher(run: RunRecord, student: Mapping[str, Measured]) -> dict[str, Measured]:
    """On dev, at the end of the run: the figures that the student has as well."""
    found = _numbers(value_at(run.summary, "teacher"))
    return {key: value for key, value in found.items() if key in student}


def _numbers(tree: Any) -> dict[str, Measured]:
    found = {} if not isinstance(tree, dict) else {key: number_at(tree, key) for key in tree}
    return {key: Measured(value) for key, value in found.items() if value is not None}


def _intervals(evaluation: Tree | None) -> str | None:
    settings = value_at(evaluation, "settings")
    if settings is None:
        return None
    return (
        f"{settings['confidence']:.0%} intervals over rows ({settings['intervals']} bootstrap, "
        f"{settings['resamples']} draws)"
    )


def _teachers(
    config: RunConfig, evaluation: Tree | None, folders: Mapping[str, str]
) -> tuple[TeacherFacts, ...]:
    scored = {each["path"]: each["sha256"] for each in value_at(evaluation, "models", "teachers") or []}
    found = []
    for teacher in teachers_of(config):
        digest, shape = scored.get(teacher.path), ""
        if teacher.path in folders:
            folder = Path(folders[teacher.path])
            digest = digest or weights_digest(folder)
            shape = architecture(read_object(folder / "config.json", []))
        found.append(TeacherFacts(teacher.path, digest, shape))
    return tuple(found)


def architecture(config: Tree) -> str:
    """`bert, 3 layers of width 384`, of a model's config.json; "" where that does not say."""
    width = config.get("hidden_size", config.get("dim"))  # DistilBERT's names
    layers = config.get("num_hidden_layers", config.get("n_layers"))
    if not config.get("model_type") or layers is None or width is None:
        return ""
    return f"{config['model_type']}, {layers} layer{'' if layers == 1 else 's'} of width {width}"


def _sources(manifest: Manifest, folder: str) -> tuple[SplitSource, ...]:
    return tuple(
        SplitSource(name, split.rows, split.tokens, split.truncated, _origin(manifest, name, folder))
        for name, split in manifest.splits.items()
    )


def _origin(manifest: Manifest, split: str, folder: str) -> str:
    identity = manifest.request["splits"].get(split, {})
    drawn, place = identity.get("drawn"), _place(manifest, identity, folder)
    if drawn is None:
        return place
    if drawn["part"]:
        return f"drawn out of {place}, seed {drawn['seed']}"
    held_out = f"without the rows of {' and '.join(drawn['hold_out'])}" if drawn["hold_out"] else ""
    most = f"at most {drawn['max_rows']:,} of its rows" if drawn["max_rows"] else ""
    return f"{place}, {', '.join(filter(None, (held_out, most)))}, seed {drawn['seed']}"


def _place(manifest: Manifest, identity: Tree, folder: str) -> str:
    if "generator" in identity:
        return f"generated by distill-dist (synthetic_nli, seed {identity['generator']['seed']})"
    if "file" in identity:
        file = hide_places(identity["file"], folder=folder)
        return f"{file} ({manifest.request['source']}), sha256 {identity['sha256']}"
    if "path" in identity:
        name = f", {identity['name']}" if identity.get("name") else ""
        return f"hub: {identity['path']}{name}, split {identity['split']}, revision {identity['revision']}"
    return f"a folder in the hub's layout, split {identity.get('split')}, sha256 {identity.get('files')}"


def _hub_source(manifest: Manifest | None) -> Mapping[str, str]:
    """`path`, `name`, `revision` of the hub's data set that train is from; {} where it is from elsewhere."""
    identity = {} if manifest is None else manifest.request["splits"].get("train", {})
    return identity if "path" in identity and "revision" in identity else {}


def _of_hub(manifest: Manifest | None, split: str) -> str | None:
    identity = {} if manifest is None else manifest.request["splits"].get(split, {})
    if "path" not in identity or "revision" not in identity:
        return None
    # rows drawn out of a split are none that somebody else could look up
    is_drawn = (identity.get("drawn") or {}).get("part")
    return f"{identity['split']}, rows drawn out as {split}" if is_drawn else str(identity["split"])


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
