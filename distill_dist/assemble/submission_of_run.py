"""A run's model on the GLUE server's test rows: what `launcher/evaluate.py --submission` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distill_dist.assemble.device import pick_device
from distill_dist.assemble.evaluated_models import read_student
from distill_dist.config.schema import RunConfig
from distill_dist.data.loader import evaluation_batches
from distill_dist.data.manifest import load_manifest
from distill_dist.data.unlabelled import UnlabelledRows, prepared_tokenizer, read_unlabelled
from distill_dist.errors import UserError
from distill_dist.evaluation.split import add_logits
from distill_dist.evaluation.submission import check_place, server_labels, write_submission
from distill_dist.hub import locate
from distill_dist.models.build import quiet_loading
from distill_dist.teacher.local import LocalTeacher

# task -> the server's file -> the split of nyu-mll/glue; the official files are called like it, but for AX
_SPLITS = {
    "cola": {"CoLA": "test"},
    "sst2": {"SST-2": "test"},
    "qqp": {"QQP": "test"},
    "mnli": {"MNLI-m": "test_matched", "MNLI-mm": "test_mismatched", "AX": "test"},
    "qnli": {"QNLI": "test"},
}
_AX_NAME, _AX_FILE = "ax", "diagnostic"  # the hub's configuration, and the official file


def write_submission_of(
    config: RunConfig, *, student: str, path: Path, places: Mapping[str, str]
) -> dict[str, Any]:
    """Fills the zip at ``path`` with what ``student`` says of its task's test rows, as far as they are there.

    ``places`` says where the rows of a server's file are (a file below data.path, a split of the hub's) instead of
    where they are by custom. Returns what was written, what was not and why, and what the server will miss. Raises
    UserError where no test rows were found, or the zip would be refused.
    """
    quiet_loading()
    check_place(path)
    prepared = Path(config.data.prepared)
    manifest = load_manifest(prepared)
    names = server_labels(
        manifest.task if config.data.source != "synthetic_nli" else "synthetic_nli", manifest.labels
    )
    tests, left_out = _open_tests(config, places, prepared)
    device = pick_device(config.cluster.device, 0)
    folder = locate(student, what="student")
    parts = read_student(prepared, manifest, folder, value=student, device=device)
    source = LocalTeacher(parts, device, is_student=True)
    predictions = {}
    for file, rows in tests.items():
        found_NC = torch.zeros(rows.num_rows, len(manifest.labels))
        batches = evaluation_batches(
            rows, rank=0, size=1, micro_tokens=config.batch.micro_tokens, pad_token_id=manifest.pad_token_id
        )
        add_logits(found_NC, source, batches, ahead=0)
        predictions[file] = [names[number] for number in found_NC.argmax(dim=1).tolist()]
    missing = write_submission(path, predictions)
    written = {f"{file}.tsv": rows.num_rows for file, rows in tests.items()}
    return {"zip": str(path), "written": written, "left_out": left_out, "missing": missing}


def _open_tests(
    config: RunConfig, places: Mapping[str, str], prepared: Path
) -> tuple[dict[str, UnlabelledRows], dict[str, str]]:
    """(rows by the server's file, why the others are not there)."""
    wanted = _SPLITS[config.data.task]
    if unknown := sorted(places.keys() - wanted.keys()):
        raise UserError(f"--test {unknown[0]}: a model of {config.data.task} fills {', '.join(wanted)}")
    tokenizer = prepared_tokenizer(prepared, max_length=config.data.max_length)
    found, left_out = {}, {}
    for file, split in wanted.items():
        is_ax = file == "AX"
        by_custom = (
            split if config.data.source == "hub" else f"{_AX_FILE if is_ax else split}.{config.data.source}"
        )
        name = _AX_NAME if is_ax else config.data.name
        try:
            found[file] = read_unlabelled(
                config.data, places.get(file, by_custom), name=name, tokenizer=tokenizer
            )
        except UserError as error:
            if file in places:
                raise
            left_out[f"{file}.tsv"] = str(error)
    if not found:
        reasons = "\n  ".join(f"{file}: {reason}" for file, reason in left_out.items())
        raise UserError(
            f"--submission: no test rows were found; --test NAME=FILE says where they are\n  {reasons}"
        )
    return found, left_out
