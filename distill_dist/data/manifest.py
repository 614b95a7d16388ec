"""manifest.json of a prepared folder: what is in it, and everything that determined it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill_dist.durable import write_json
from distill_dist.errors import UserError

FORMAT_VERSION = 2  # 1 had no sources of rows
MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
TEACHER_TOKENIZER_FOLDER = "teacher_tokenizer"
PREPARE_COMMAND = "python launcher/prepare.py --config FILE"
BAD_ROWS = "bad_rows.jsonl"
LENGTH_BUCKET = 8  # tokens per bar of the length histogram

_OWN_KEYS = frozenset({"format", "splits", "request"})  # those of every version
_SHARD_FILE = re.compile(r"shard-\d+\.(tar|index\.npz)")
# No --replace: it would delete somebody's folder.
_NOT_OURS = "name another folder in data.prepared, or remove this one yourself and prepare again"


@dataclass(frozen=True)
class ShardEntry:
    """One tar. ``file`` is relative to the prepared folder, `SPLIT/shard-000000.tar`."""

    file: str
    rows: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class SplitEntry:
    """One split. ``lengths`` counts rows by length in tokens, `"9-16"`; ``labels`` rows by class name.

    ``sources`` counts rows by the value of `data.source_column`, in the order of the numbers that the indexes hold;
    empty where no column is named.
    """

    rows: int
    tokens: int
    truncated: int
    bad_rows: dict[str, int]
    lengths: dict[str, int]
    labels: dict[str, int]
    sources: dict[str, int]
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class TeacherTokens:
    """The tokens of `data.teacher_tokenizer`, which every row holds besides the student's.

    ``tokens`` and ``truncated`` rows by split. ``pad_token_id`` is its end token's where it has none for padding.
    """

    max_length: int
    pad_token_id: int
    vocab_size: int
    tokenizer: str  # fingerprint: sha256 over the files of the teacher's tokenizer folder
    tokens: dict[str, int]
    truncated: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """A prepared folder. ``request`` holds what determined it: configuration, tokenizer, input checksums."""

    task: str
    metric: str
    labels: tuple[str, ...]
    max_length: int
    pad_token_id: int
    vocab_size: int
    tokenizer: str  # fingerprint: sha256 over the files of the tokenizer folder
    splits: dict[str, SplitEntry]
    request: dict[str, Any]
    format: int = FORMAT_VERSION
    teacher: TeacherTokens | None = (
        None  # None: the student's tokens serve both, and the file has no such key
    )

    @property
    def read_by_teacher(self) -> Manifest | TeacherTokens:
        """Tokenizer, vocabulary and longest row of the tokens that a teacher reads."""
        return self if self.teacher is None else self.teacher


def save_manifest(manifest: Manifest, prepared: Path) -> None:
    """Writes manifest.json into ``prepared``."""
    write_json(prepared / MANIFEST, _to_record(manifest))


def load_manifest(prepared: Path) -> Manifest:
    """The manifest of ``prepared``; UserError if it is absent, unreadable, not ours or of another format."""
    path = prepared / MANIFEST
    record = _read(prepared)
    if record["format"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {record['format']}, this version reads {FORMAT_VERSION}: "
            f"prepare again with {PREPARE_COMMAND} --replace"
        )
    try:
        return _from_record(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is broken ({error!r}): prepare again with {PREPARE_COMMAND} --replace"
        ) from error


def list_strangers(prepared: Path) -> list[str]:
    """What stands in ``prepared`` and is not of prepare's making, `train/notes.txt`; UserError as above."""
    record = _read(prepared)
    splits = record["splits"]
    ours = {MANIFEST, BAD_ROWS, TOKENIZER_FOLDER, *splits}
    if "teacher" in record:
        ours.add(TEACHER_TOKENIZER_FOLDER)
    strangers = [path for path in prepared.iterdir() if path.name not in ours]
    for split in splits:
        shards = (prepared / split).iterdir() if (prepared / split).is_dir() else ()
        strangers += [path for path in shards if not _SHARD_FILE.fullmatch(path.name)]
    return sorted(path.relative_to(prepared).as_posix() for path in strangers)


def manifest_hash(manifest: Manifest) -> str:
    """sha256 of the rows themselves and their meaning: equal for equal shards, wherever they came from."""
    content = _to_record(manifest)
    del content["request"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(prepared: Path) -> dict[str, Any]:
    """The file as JSON, of whatever version; UserError if prepare cannot have written it."""
    path = prepared / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"data.prepared: no prepared data in {prepared}: run {PREPARE_COMMAND} first"
        ) from error
    except OSError as error:
        raise UserError(f"data.prepared: {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken ({error}): {_NOT_OURS}") from error
    if not (isinstance(record, dict) and record.keys() >= _OWN_KEYS and isinstance(record["splits"], dict)):
        raise UserError(f"{path} was not made by prepare: {_NOT_OURS}")
    return record


def _to_record(manifest: Manifest) -> dict[str, Any]:
    """As JSON: equal rows of one vocabulary give the bytes that they gave before there were two."""
    record = asdict(manifest)
    if manifest.teacher is None:
        del record["teacher"]
    return record


def _from_record(record: dict[str, Any]) -> Manifest:
    splits = {
        name: SplitEntry(**{**split, "shards": tuple(ShardEntry(**shard) for shard in split["shards"])})
        for name, split in record["splits"].items()
    }
    teacher = TeacherTokens(**record["teacher"]) if "teacher" in record else None
    return Manifest(
        **{**record, "labels": tuple(record["labels"]), "splits": splits, "teacher": teacher},
    )
