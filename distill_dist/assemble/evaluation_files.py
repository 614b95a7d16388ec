"""What `launcher/evaluate.py` leaves: evaluation.json, and a file of predictions for every split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_dist.assemble.score import Scored
from distill_dist.durable import remove_stale, sha256_file, write_json
from distill_dist.evaluation.predictions import write_predictions

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions"


def open_folder(folder: Path) -> None:
    """Make ``folder`` ready before anything is computed. Raises OSError where it cannot be written."""
    (folder / PREDICTIONS).mkdir(parents=True, exist_ok=True)
    remove_stale(folder, EVALUATION)
    remove_stale(folder / PREDICTIONS, "*.tsv")


def write_evaluation(folder: Path, scored: Scored) -> dict[str, Any]:
    """The record with the place and sha256 of each split's predictions, as it stands in evaluation.json.

    Predictions go first: a file that has not the record's checksum is of another evaluation.
    """
    files = {}
    for split, found in scored.predictions.items():
        path = folder / PREDICTIONS / f"{split}.tsv"
        write_predictions(path, found)
        files[split] = {"file": f"{PREDICTIONS}/{path.name}", "sha256": sha256_file(path)}
    record = {**scored.record, "predictions": files}
    write_json(folder / EVALUATION, record)
    return record
