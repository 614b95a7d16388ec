"""What an export starts from: a run that is done, its model as the run noted it, and the rows that it was scored on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_dist.config.pool import teachers_of
from distill_dist.config.schema import RunConfig
from distill_dist.data.manifest import Manifest, load_manifest
from distill_dist.errors import UserError
from distill_dist.hub import weights_digest
from distill_dist.report.run_record import RunRecord, read_run, value_at
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


def evaluation_missing(config: RunConfig, run: RunRecord) -> str:
    """Why evaluation.json is not that of these weights, against no other teacher than the run's own; "": it is."""
    damage = [problem for problem in run.problems if problem.startswith("evaluation.json")]
    if damage:
        return damage[0].removeprefix("evaluation.json ")
    if not run.evaluation:
        return "is not there"
    scored = value_at(run.evaluation, "models", "student", "sha256")
    teachers = [each["path"] for each in value_at(run.evaluation, "models", "teachers") or []]
    own = [teacher.path for teacher in teachers_of(config)]
    fits = teachers in ([], own) and scored == weights_digest(run.path / "model")
    return "" if fits and value_at(run.evaluation, "splits") else "is of another model or teacher"


def prepared_rows(config: RunConfig, *, needed_by: Sequence[str]) -> Manifest | None:
    """None where they are gone and nothing has to be computed on them; else UserError, which names what has to."""
    try:
        return load_manifest(Path(config.data.prepared))
    except UserError as error:
        if not needed_by:
            return None
        raise UserError(
            f"{error}. They are needed for {' and '.join(needed_by)}: give their place as data.prepared=FOLDER, or do "
            "without"
        ) from error
