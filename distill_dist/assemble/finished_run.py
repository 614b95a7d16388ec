"""What an export starts from: a run that is done, its model as the run noted it, and the rows that it was scored on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_dist.assemble.evaluated_models import find_teachers
from distill_dist.config.pool import teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import Manifest, load_manifest, manifest_hash
from distill_dist.errors import UserError
from distill_dist.export.model_files import check_model
from distill_dist.hub import weights_digest
from distill_dist.report.run_record import RunRecord, number_at, read_object, read_run, value_at
from distill_dist.run_folder import BEST


def finished_run(path: Path) -> RunRecord:
    """Raises UserError where it is not done, saying how it stands."""
    run = read_run(path)
    if run.state != "done":
        reason = f" ({run.reason})" if run.reason else ""
        remedy = {
            "running": "wait for its end",
            "lost": "its process is gone; the command that started it goes on from its last checkpoint",
            "stopped": "the command that started it goes on from its last checkpoint",
            "failed": "see its logs, then start it again",
            "refused": "mend that, then start it again",
        }.get(run.state, "give the run_dir of a launcher/train.py that ended")
        raise UserError(f"{path} is not done, its state is `{run.state}`{reason}: {remedy}, then export")
    if not run.summary:
        raise UserError(
            f"{path} has no summary.json ({'; '.join(run.problems) or 'it is gone'}), which says what the model is: "
            "put it back, or run launcher/train.py with its config.yaml again"
        )
    return run


def noted_best(model: Path) -> dict[str, Any]:
    """`step`, `value`, `sha256` and `files` of the run's model. Raises UserError where a run exported no such model."""
    try:
        found = json.loads((model / BEST).read_text(encoding="utf-8"))
        if not isinstance(found["sha256"], str):
            raise TypeError("no checksum")
        files = found.setdefault("files", {})  # a run of an older version noted the weights' alone
        if not all(isinstance(each, str) and Path(each).name == each for each in (*files, *files.values())):
            raise TypeError("no checksums")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{model} is not the model that a run exported ({BEST}: {error}): put the run's model folder back"
        ) from error
    return dict(found)


def check_own_model(model: Path) -> None:
    """Raises UserError where the weights in a run's ``model`` are not those that it noted; without a note any are."""
    noted = read_object(model / BEST, []).get("sha256")
    if isinstance(noted, str):
        check_model(model, sha256=noted, others={})


def evaluation_missing(config: RunConfig, run: RunRecord, manifest: Manifest | None) -> str:
    """Why evaluation.json does not say how this model does on the run's dev rows; "": it does.

    It has to be of these weights and rows, and of no other teacher than the run's own, as far as those are there.
    """
    damage = [problem for problem in run.problems if problem.startswith("evaluation.json")]
    found = run.evaluation
    if damage:
        return damage[0].removeprefix("evaluation.json ")
    if not found:
        return "is not there"
    if not _is_whole(found):
        return "is not what launcher/evaluate.py writes"
    if found["models"]["student"]["sha256"] != weights_digest(run.path / "model") or not _of_own_teachers(
        config, found["models"]["teachers"]
    ):
        return "is of another model or teacher"
    if "dev" not in found["splits"]:
        return "says nothing of dev"
    rows = rows_of_run(run) or (None if manifest is None else manifest_hash(manifest))
    return "is of other rows" if rows not in (None, value_at(found, "data", "manifest")) else ""


def _is_whole(evaluation: Mapping[str, Any]) -> bool:
    """Whether what an export reads of it has the types that it was written with."""
    splits, settings = evaluation.get("splits"), evaluation.get("settings")
    teachers = value_at(evaluation, "models", "teachers")
    models = [
        value_at(evaluation, "models", "student"),
        *(teachers if isinstance(teachers, list) else [None]),
    ]
    return (
        isinstance(splits, dict)
        and all(isinstance(value_at(split, "rows"), int) for split in splits.values())
        and all(number_at(settings, name) is not None for name in ("confidence", "resamples"))
        and all(isinstance(value_at(each, name), str) for each in models for name in ("path", "sha256"))
    )


def _of_own_teachers(config: RunConfig, scored: Sequence[Mapping[str, str]]) -> bool:
    if not scored:
        return True
    digests = {each["path"]: each["sha256"] for each in scored}
    there, _ = find_teachers(config)
    return list(digests) == [teacher.path for teacher in teachers_of(config)] and all(
        digests[path] == weights_digest(Path(place)) for path, _, place in there
    )


def rows_of_run(run: RunRecord) -> str:
    """The hash of the prepared rows that it was trained on; "" where it did not note that."""
    found = value_at(run.summary, "data", "manifest")
    return found if isinstance(found, str) else ""


def other_rows(config: RunConfig, run: RunRecord, manifest: Manifest) -> str:
    """That ``manifest``, of `data.prepared`, is not of the rows that the run was trained on; "": it is, or may be."""
    if (noted := rows_of_run(run)) in ("", found := manifest_hash(manifest)):
        return ""
    return (
        f"data.prepared={config.data.prepared} holds other rows than {run.path} was trained on (manifest "
        f"{found[:12]}…, not {noted[:12]}…)"
    )


def prepared_rows(config: RunConfig, run: RunRecord) -> tuple[Manifest | None, UserError | None]:
    """(the manifest of the run's own rows, why it is not there)."""
    try:
        manifest = load_manifest(Path(config.data.prepared))
    except UserError as error:
        return None, error
    other = other_rows(config, run, manifest)
    return (None, UserError(other)) if other else (manifest, None)


def check_rows(error: UserError | None, *, needed_by: Sequence[str]) -> None:
    """Raises UserError where rows that are gone, for the reason ``error``, are ``needed_by`` something."""
    if error is not None and needed_by:
        raise UserError(
            f"{error}. They are needed for {' and '.join(needed_by)}: give their place as data.prepared=FOLDER, or do "
            "without"
        ) from error
