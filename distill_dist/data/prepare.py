"""Rows of a source -> a prepared folder: shards, indexes, tokenizer, manifest. Whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from distill_dist.config.schema_data import DataConfig
from distill_dist.data.bad_rows import BadRowLog
from distill_dist.data.hold_out import with_held_out
from distill_dist.data.manifest import (
    MANIFEST,
    TEACHER_TOKENIZER_FOLDER,
    TOKENIZER_FOLDER,
    Manifest,
    SplitEntry,
    TeacherTokens,
    list_strangers,
    load_manifest,
    save_manifest,
)
from distill_dist.data.request import build_request, list_changes
from distill_dist.data.rows import RawRow, TextRow, check_row
from distill_dist.data.shard_writer import ShardWriter
from distill_dist.data.shards import find_damage
from distill_dist.data.sources import Source, open_sources
from distill_dist.data.tasks import Task, resolve_task
from distill_dist.data.teacher_tokenization import Tokenizers, load_tokenizers
from distill_dist.data.tokenization import Tokens
from distill_dist.durable import durable_folder, remove_stale
from distill_dist.errors import UserError
from distill_dist.one_writer import one_writer

# Rows per call of the tokenizer: enough for all cores, little enough to keep in memory.
BATCH_ROWS = 2048

T = TypeVar("T")


def prepare(config: DataConfig, *, progress: bool = True, replace: bool = False) -> dict[str, Any]:
    """Writes `data.prepared` and returns its counts, as JSON. Does nothing if it already holds the same.

    ``progress`` draws bars on stderr; ``replace`` overwrites a folder that was prepared from something else.
    Raises UserError for bad input and for files that cannot be read or written (nothing is left behind), and
    for a folder that holds something else.
    """
    try:
        return _prepare(config, progress=progress, replace=replace)
    except BrokenPipeError:  # of stderr, not of a file
        raise
    except OSError as error:
        place = error.filename or config.prepared
        raise UserError(f"prepare failed at {place}: {error.strerror or error}") from error


def _prepare(config: DataConfig, *, progress: bool, replace: bool) -> dict[str, Any]:
    started = time.monotonic()
    if not config.prepared:
        raise UserError("data.prepared is empty: name the folder to write")
    folder = Path(config.prepared).resolve()
    remove_stale(folder.parent, glob.escape(folder.name))
    _refuse_foreign(folder)
    task = resolve_task(config)
    sources = with_held_out(config, task, open_sources(config, task))
    tokenizers = load_tokenizers(config)
    student, teacher = tokenizers.student, tokenizers.teacher
    request = build_request(
        config,
        task,
        tokenizer=student.fingerprint,
        teacher_tokenizer=None if teacher is None else teacher.fingerprint,
        sources=sources,
    )
    manifest = None if replace else _reusable(folder, request)
    reused = manifest is not None
    if manifest is None:  # only now: what is prepared already may lie on a disk that is read-only
        lock = folder.with_name(f".{folder.name}.lock")
        # of two, the slower one would replace the other's rows
        with one_writer(lock, name=f"data.prepared {folder}", kind="launcher/prepare.py"):
            _refuse_foreign(folder)  # again: another run may just have finished
            manifest = None if replace else _reusable(folder, request)
            reused = manifest is not None
            if manifest is None:
                _refuse_strangers(folder)
                manifest = _build(folder, config, task, sources, tokenizers, request, progress)
    return _summary(config.prepared, manifest, reused=reused, seconds=time.monotonic() - started)


def _build(
    folder: Path,
    config: DataConfig,
    task: Task,
    sources: dict[str, Source],
    tokenizers: Tokenizers,
    request: dict[str, Any],
    progress: bool,
) -> Manifest:
    with durable_folder(folder) as temporary:
        with contextlib.closing(BadRowLog(temporary)) as bad_rows:
            written = {
                split: _write_split(split, source, config, task, tokenizers, temporary, bad_rows, progress)
                for split, source in sources.items()
            }
            if config.on_bad_row == "error":
                bad_rows.refuse()
        splits = {split: entry for split, (entry, _) in written.items()}
        for split, entry in splits.items():
            if not entry.rows:
                skipped = f" but bad ones. {bad_rows.describe()}" if entry.bad_rows else ""
                raise UserError(f"{sources[split].place} has no rows{skipped}")
        bad_rows.say_skipped()
        tokenizers.student.save(temporary / TOKENIZER_FOLDER)
        manifest = Manifest(
            task=config.task,
            metric=task.metric,
            labels=task.labels,
            max_length=config.max_length,
            pad_token_id=tokenizers.student.pad_token_id,
            vocab_size=tokenizers.student.vocab_size,
            tokenizer=tokenizers.student.fingerprint,
            splits=splits,
            request=request,
            teacher=_save_teacher(
                tokenizers, {split: counts for split, (_, counts) in written.items()}, temporary
            ),
        )
        save_manifest(manifest, temporary)
    return manifest


@dataclass
class _TeacherCounts:
    """Of the rows of a split, as the teacher's own tokenizer cuts them."""

    tokens: int = 0
    truncated: int = 0

    def add(self, row: Tokens) -> None:
        self.tokens += row.tokens.shape[1]
        self.truncated += row.truncated


def _save_teacher(
    tokenizers: Tokenizers, counts: dict[str, _TeacherCounts], folder: Path
) -> TeacherTokens | None:
    """Keeps the teacher's own tokenizer, if it has one; the manifest's record of it."""
    teacher = tokenizers.teacher
    if teacher is None:
        return None
    teacher.save(folder / TEACHER_TOKENIZER_FOLDER)
    return TeacherTokens(
        max_length=teacher.max_length,
        pad_token_id=teacher.pad_token_id,
        vocab_size=teacher.vocab_size,
        tokenizer=teacher.fingerprint,
        tokens={split: each.tokens for split, each in counts.items()},
        truncated={split: each.truncated for split, each in counts.items()},
    )


def _write_split(
    split: str,
    source: Source,
    config: DataConfig,
    task: Task,
    tokenizers: Tokenizers,
    folder: Path,
    bad_rows: BadRowLog,
    progress: bool,
) -> tuple[SplitEntry, _TeacherCounts]:
    total, rows = source.open()
    truncated, of_teacher = 0, _TeacherCounts()
    writer = _open_writer(folder, split, config, tokenizers)
    with (
        contextlib.closing(writer),
        tqdm(
            total=total, desc=f"prepare {split}", unit=" rows", file=sys.stderr, disable=not progress
        ) as bar,
    ):
        for batch in _batches(rows, BATCH_ROWS):
            good = []
            for raw in batch:
                row = check_row(raw, task.labels) if isinstance(raw, RawRow) else raw
                if isinstance(row, TextRow):
                    good.append(row)
                else:
                    bad_rows.add(split, source.place, row)
            # A run that will be refused only counts from here on.
            if not (bad_rows.any and config.on_bad_row == "error"):
                encoded = tokenizers.encode([row.texts for row in good])
                for row, (ours, theirs) in zip(good, encoded, strict=True):
                    truncated += ours.truncated
                    if theirs is not None:
                        of_teacher.add(theirs)
                    writer.add(ours.tokens, row, None if theirs is None else theirs.tokens)
            bar.update(len(batch))
        bar.total = bar.n  # what was expected counts lines, headers and line ends inside of fields too
        entry = writer.finish(truncated=truncated, bad_rows=bad_rows.counts(split), labels=task.labels)
        return entry, of_teacher


def _open_writer(folder: Path, split: str, config: DataConfig, tokenizers: Tokenizers) -> ShardWriter:
    return ShardWriter(
        folder,
        split,
        rows_per_shard=config.rows_per_shard,
        dtype=tokenizers.student.dtype,
        teacher_dtype=None if tokenizers.teacher is None else tokenizers.teacher.dtype,
    )


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _reusable(folder: Path, request: dict[str, Any]) -> Manifest | None:
    """The manifest of ``folder`` if it holds what is asked, None if it has to be made; else UserError."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = load_manifest(folder)
    changes = list_changes(manifest, request)
    if changes:
        raise UserError(
            f"data.prepared {folder} was prepared from something else:\n  "
            + "\n  ".join(changes)
            + "\nName another folder in data.prepared, or prepare with --replace to overwrite it"
        )
    damage = find_damage(folder, manifest)
    if damage is not None:
        print(f"{damage}: now", file=sys.stderr)
        return None
    print(f"{folder} is already prepared from the same input: nothing to do", file=sys.stderr)
    return manifest


def _refuse_foreign(folder: Path) -> None:
    """UserError if ``folder`` is somebody else's: what stands there would be deleted."""
    if not folder.exists():
        return
    if (folder / MANIFEST).exists():
        list_strangers(folder)  # refuses a manifest that is somebody else's
    elif not folder.is_dir() or any(folder.iterdir()):
        raise UserError(f"data.prepared {folder} exists and was not made by prepare: name another folder")


def _refuse_strangers(folder: Path) -> None:
    """UserError if there is anything in ``folder``, which is about to be replaced, that is not prepare's."""
    strangers = list_strangers(folder) if (folder / MANIFEST).exists() else []
    if strangers:
        raise UserError(
            f"data.prepared {folder} would be replaced, but was not made by prepare alone; it holds "
            f"{', '.join(strangers[:5])}: move that away, or name another folder"
        )


def _summary(folder: str, manifest: Manifest, *, reused: bool, seconds: float) -> dict[str, Any]:
    splits, teacher = manifest.splits.values(), manifest.teacher
    of_teacher = {}
    if teacher is not None:
        of_teacher = {
            "teacher_tokens": sum(teacher.tokens.values()),
            "teacher_truncated": sum(teacher.truncated.values()),
        }
    return {
        "folder": folder,
        "rows": {name: split.rows for name, split in manifest.splits.items()},
        "tokens": sum(split.tokens for split in splits),
        "truncated": sum(split.truncated for split in splits),
        **of_teacher,
        "bad_rows": sum(sum(split.bad_rows.values()) for split in splits),
        "labels": list(manifest.labels),
        "reused": reused,
        "seconds": round(seconds, 2),
    }
