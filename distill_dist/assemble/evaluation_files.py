"""What `launcher/evaluate.py` leaves: evaluation.json, and a file of predictions for every split."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_dist.assemble.score import Scored
from distill_dist.durable import remove_stale, sha256_file, write_all_durable
from distill_dist.errors import UserError
from distill_dist.evaluation.predictions import write_predictions
from distill_dist.one_writer import one_writer
from distill_dist.report.run_record import read_object, value_at

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions"


@contextlib.contextmanager
def evaluated_folder(folder: Path) -> Iterator[None]:
    """Inside the block ``folder`` is this process's own to write an evaluation into. Raises UserError.

    Where the block ends without one, a folder that was not there is not there again.
    """
    was_there = folder.exists()
    try:
        with one_writer(folder / ".evaluation.lock", name=str(folder), kind="evaluation"):
            for name, is_right in ((EVALUATION, Path.is_file), (PREDICTIONS, Path.is_dir)):
                if (folder / name).exists() and not is_right(folder / name):
                    raise UserError(f"{folder / name} is in the place of what is written there: move it away")
            remove_stale(folder, EVALUATION)
            remove_stale(folder / PREDICTIONS, "*.tsv")
            yield
    finally:
        if not was_there:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()


def left_behind(folder: Path, scored: Scored) -> list[str]:
    """What the evaluation in ``folder`` has measured and ``scored`` has not: `saliency`, `consistency`, a split."""
    before = value_at(read_object(folder / EVALUATION, []), "splits")
    if not isinstance(before, dict):
        return []
    now = scored.record["splits"]
    found = [f"split {name}" for name in before if name not in now]
    for what, section, prefix in (("saliency", "loyalty", "sl_"), ("consistency", "consistency", "")):
        had, has = (
            any(name.startswith(prefix) for split in tree.values() for name in value_at(split, section) or ())
            for tree in (before, now)
        )
        if had and not has:
            found.append(what)
    return found


def write_evaluation(folder: Path, scored: Scored) -> dict[str, Any]:
    """The record with the place and sha256 of each split's predictions, as it stands in evaluation.json.

    All is written before anything is replaced, predictions first: a file that has not the record's checksum is of
    another evaluation. Predictions of splits that were not scored now are removed.
    """
    (folder / PREDICTIONS).mkdir(exist_ok=True)
    paths = {split: folder / PREDICTIONS / f"{split}.tsv" for split in scored.predictions}
    record: dict[str, Any] = {**scored.record, "predictions": {}}

    def write_split(temporary: Path, split: str) -> None:
        write_predictions(temporary, scored.predictions[split])
        place = paths[split].relative_to(folder).as_posix()
        record["predictions"][split] = {"file": place, "sha256": sha256_file(temporary)}

    def write_record(temporary: Path) -> None:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    writes = {path: functools.partial(write_split, split=split) for split, path in paths.items()}
    write_all_durable({**writes, folder / EVALUATION: write_record})
    for path in (folder / PREDICTIONS).glob("*.tsv"):
        if path not in writes:
            path.unlink()
    return record
