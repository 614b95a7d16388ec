"""A snapshot's rows as text: what `launcher/snapshot.py` prints. No torch, so that it answers at once."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from distill_dist.curriculum.scores import UNKNOWN
from distill_dist.curriculum.snapshot import Snapshot, list_snapshots
from distill_dist.curriculum.snapshot_record import RECORD
from distill_dist.curriculum.study import Extremes, Listed, confidence_edges, histogram
from distill_dist.data.manifest import (
    PREPARE_COMMAND,
    TOKENIZER_FOLDER,
    Manifest,
    load_manifest,
    manifest_hash,
)
from distill_dist.data.shards import PreparedSplit, open_split
from distill_dist.errors import UserError

SNAPSHOTS = "snapshots"  # folder of a run
LISTS = {
    "hardest": "hardest: lowest score",
    "easiest": "easiest: highest score",
    "most_forgotten": "most forgotten: right in one snapshot and wrong in the next, so many times",
    "suspects": "suspects of wrong labels: p(true) stayed low, and the model says something else",
}
_RANKED_BY = {"hardest": "score", "easiest": "score", "most_forgotten": "forgotten", "suspects": "suspicion"}
_SHOWN = 120  # characters of a text in a table; the JSON line has all


def find_snapshot(folder: Path, *, number: int | None) -> Path:
    """The snapshot that ``folder`` is, or its run's newest, or the run's ``number``; UserError if there is none."""
    if (folder / RECORD).is_file():
        if number is not None:
            raise UserError(f"--number {number}: {folder} is one snapshot already: give its run's folder")
        return folder
    found = list_snapshots(folder / SNAPSHOTS)
    if not found:
        raise UserError(
            f"{folder} has no snapshots: a run writes them to its {SNAPSHOTS}/ when it scores its rows "
            "(curriculum.order, curriculum.final_snapshot)"
        )
    if number is None:
        return found[-1]
    by_number = {int(path.name.rpartition("-")[2]): path for path in found}
    if number not in by_number:
        there = ", ".join(map(str, by_number))
        raise UserError(f"--number {number}: {folder} has the snapshots {there} (curriculum.keep_snapshots)")
    return by_number[number]


def show_snapshot(folder: Path, prepared: Path, *, top: int) -> dict[str, Any]:
    """What `launcher/snapshot.py` prints as JSON: the snapshot's record and four lists of at most ``top`` rows.

    Raises UserError where ``prepared`` is not the data that was scored, or something is damaged.
    """
    snapshot = Snapshot.open(folder)
    manifest = load_manifest(prepared)
    origin = snapshot.record.origin
    if origin.manifest != manifest_hash(manifest):
        raise UserError(
            f"{folder} scored other rows than data.prepared={prepared} holds (manifest {origin.manifest[:12]}…, "
            f"not {manifest_hash(manifest)[:12]}…): add data.prepared=FOLDER, the one that the run trained on"
        )
    split = open_split(prepared, "train")
    lists, counts = _study(snapshot, split, manifest, top=top)
    rows = np.unique(np.concatenate([found.rows for found in lists.values()]))
    described = _describe(rows, snapshot, split, manifest, prepared)
    return {
        "snapshot": str(folder),
        "number": snapshot.record.number,
        "step": origin.step,
        "measure": origin.measure,
        "smoothing": origin.smoothing,
        "hash": snapshot.hash,
        "rows": snapshot.num_rows,
        "nan": snapshot.record.num_nan,
        "unscored": snapshot.record.num_unscored,
        "confidence": counts,
        **{name: [described[row] for row in found.rows.tolist()] for name, found in lists.items()},
        "suspects": [
            {**described[row], "suspicion": value}
            for row, value in zip(
                lists["suspects"].rows.tolist(), lists["suspects"].values.tolist(), strict=True
            )
        ],
    }


def _study(
    snapshot: Snapshot, split: PreparedSplit, manifest: Manifest, *, top: int
) -> tuple[dict[str, Listed], dict[str, list[float]] | None]:
    """The lists, and the histogram of the scores where the measure has an own range; one pass."""
    extremes = Extremes(top)
    measured = snapshot.record.origin.measure != "file"
    edges = confidence_edges(snapshot.record.origin.measure, len(manifest.labels)) if measured else None
    counts = np.zeros(0 if edges is None else len(edges) - 1, np.int64)
    for block, first in enumerate(snapshot.starts[:-1].tolist()):
        columns = snapshot.columns(block)
        extremes.add(first, columns, split.labels[first : first + len(columns)])
        if edges is not None:
            counts += histogram(columns.score, edges)
    lists = {name: getattr(extremes, name)() for name in LISTS}
    return lists, None if edges is None else {"edges": edges.tolist(), "counts": counts.tolist()}


def _describe(
    rows: np.ndarray, snapshot: Snapshot, split: PreparedSplit, manifest: Manifest, prepared: Path
) -> dict[int, dict[str, Any]]:
    """Row number -> everything that is known of it; ``rows`` int64, ascending."""
    known = {
        name: snapshot.column_at(name, rows)
        for name in ("score", "loss", "mean", "m2", "count", "predicted", "forgotten", "teacher_loss")
    }
    texts = _texts(prepared, [example.input_ids.tolist() for example in split.read(rows)])
    found = {}
    for place, row in enumerate(rows.tolist()):
        of = {name: column[place].item() for name, column in known.items()}
        found[row] = {
            "row": row,
            "text": texts[place],
            "label": manifest.labels[split.labels[row]],
            "predicted": None if of["predicted"] == UNKNOWN else manifest.labels[of["predicted"]],
            "p_true": _number(math.exp(-of["loss"])),
            "score": _number(of["score"]),
            "mean": _number(of["mean"]) if of["count"] else None,
            "deviation": math.sqrt(of["m2"] / of["count"]) if of["count"] else None,
            "snapshots": of["count"],
            "forgotten": of["forgotten"],
            "teacher_p_true": _number(math.exp(-of["teacher_loss"])),
        }
        if split.clean_labels[row] >= 0:  # generated rows know their true label and their difficulty
            found[row]["clean_label"] = manifest.labels[split.clean_labels[row]]
        if split.difficulties[row] >= 0:
            found[row]["difficulty"] = int(split.difficulties[row])
    return found


def _texts(prepared: Path, rows: list[list[int]]) -> list[str]:
    """Token ids -> text, two texts with ` | ` between; as the tokenizer decodes it, so lower-cased by most."""
    path = prepared / TOKENIZER_FOLDER / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: prepare again with {PREPARE_COMMAND}") from error
    except Exception as error:  # the library has no class of its own for a broken file
        raise UserError(f"{path} is broken ({error}): prepare again with {PREPARE_COMMAND}") from error
    # What stands around every text: [CLS] and [SEP], <s> and </s>. Not all special tokens: [UNK] is worth seeing.
    frame = set(tokenizer.encode("").ids)
    parts: list[list[int]] = []
    places: list[int] = []
    for place, ids in enumerate(rows):
        for framing, part in groupby(ids, frame.__contains__):
            if not framing:
                parts.append(list(part))
                places.append(place)
    found: list[list[str]] = [[] for _ in rows]
    for place, text in zip(places, tokenizer.decode_batch(parts, skip_special_tokens=False), strict=True):
        found[place].append(text.strip())
    return [" | ".join(texts) for texts in found]


def _number(value: float) -> float | None:
    """What JSON has a word for: NaN and the infinities, which a file's scores may hold, are null."""
    return value if math.isfinite(value) else None


# ------------------------------------------------------------------ tables


def tables(found: dict[str, Any]) -> str:
    """The result of :func:`show_snapshot` for reading: a heading and a table per list."""
    head = (
        f"{found['snapshot']}: step {found['step']}, {found['measure']}, {found['rows']:,} rows, "
        f"{found['nan']:,} of them NaN now, {found['unscored']:,} without a score; hash {found['hash'][:12]}…"
    )
    return "\n\n".join([head, *(_table(title, name, found[name]) for name, title in LISTS.items())])


def _table(title: str, name: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return f"{title}\n  none"
    width = max(len(_verdict(row)) for row in rows)
    by = _RANKED_BY[name]
    lines = [f"{title}\n{'row':>10} {by:>9} {'p(true)':>8} {'mean ± deviation':>17}  {'label':{width}}  text"]
    for row in rows:
        value = f"{row[by]}" if by == "forgotten" else _short(row[by])
        spread = f"{_short(row['mean'])} ± {_short(row['deviation'])}"
        lines.append(
            f"{row['row']:>10} {value:>9} {_short(row['p_true']):>8} {spread:>17}  {_verdict(row):{width}}  "
            f"{_one_line(row['text'])}"
        )
    return "\n".join(lines)


def _verdict(row: dict[str, Any]) -> str:
    """`neutral → entailment`, label and prediction; one word where they agree."""
    return (
        row["label"] if row["predicted"] in (None, row["label"]) else f"{row['label']} → {row['predicted']}"
    )


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _one_line(text: str) -> str:
    """Shortened, and without control characters: a row's text must not steer a terminal."""
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in shown)
