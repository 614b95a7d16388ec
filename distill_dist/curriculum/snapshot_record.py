"""What a snapshot's folder holds: its names, the entry of each block, and the record that is written last.

`snapshots/snapshot-00003/` has `shard-000000.bin`, one file per block (the rows of one tar shard) with the columns
one after another, and `snapshot.json`, which makes it a snapshot. Numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from distill_dist.curriculum.scores import COLUMN_TYPES, Columns
from distill_dist.errors import UserError

FORMAT = 1
RECORD = "snapshot.json"
FOLDER = re.compile(r"snapshot-(\d{5,})")
FILE = re.compile(r"shard-\d{6,}\.bin")
_ENDS = itertools.accumulate(dtype.itemsize for dtype in COLUMN_TYPES.values())
COLUMN_OFFSETS = dict(
    zip(COLUMN_TYPES, [0, *_ENDS], strict=False)
)  # first byte of a column, times the block's rows
ROW_BYTES = sum(dtype.itemsize for dtype in COLUMN_TYPES.values())
NUM_INTS = 9  # of an entry


def folder_name(number: int) -> str:
    """3 -> `snapshot-00003`."""
    return f"snapshot-{number:05d}"


def file_name(block: int) -> str:
    """12 -> `shard-000012.bin`."""
    return f"shard-{block:06d}.bin"


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One block's file as written, by the process that wrote it."""

    index: int
    rows: int
    nan: int  # rows that were scored now and gave no number
    unscored: int  # rows without any score, of now or of before
    crc32: int  # of the score column
    sha256: str  # of the whole file, hex

    def to_ints(self) -> np.ndarray:
        """int64 [:data:`NUM_INTS`]; all zeros is no entry, so processes that sum theirs gather them."""
        digest = np.frombuffer(bytes.fromhex(self.sha256), dtype="<i8")
        head = (self.index + 1, self.rows, self.nan, self.unscored, self.crc32)
        return np.concatenate([np.array(head, dtype=np.int64), digest.astype(np.int64)])

    @classmethod
    def from_ints(cls, ints: np.ndarray) -> Self:
        """The entry that ``to_ints`` gave; index -1 if nobody wrote it."""
        index, rows, nan, unscored, crc32 = (int(value) for value in ints[:5])
        return cls(index - 1, rows, nan, unscored, crc32, ints[5:].astype("<i8").tobytes().hex())


def entries_table(entries: Sequence[BlockEntry], num_blocks: int) -> np.ndarray:
    """int64 [num_blocks, NUM_INTS], zeros where another process wrote: the sum over processes holds them all."""
    table = np.zeros((num_blocks, NUM_INTS), dtype=np.int64)
    for entry in entries:
        table[entry.index] = entry.to_ints()
    return table


def entries_of(table: np.ndarray) -> list[BlockEntry]:
    """The entries of a summed :func:`entries_table`, in order."""
    return [BlockEntry.from_ints(ints) for ints in table]


def block_bytes(index: int, columns: Columns, *, num_nan: int) -> tuple[bytes, BlockEntry]:
    """The content of the block's file, and its entry."""
    parts = [getattr(columns, name).tobytes() for name in COLUMN_TYPES]
    content = b"".join(parts)
    unscored = int(np.count_nonzero(np.isnan(columns.score)))
    digest = hashlib.sha256(content).hexdigest()
    return content, BlockEntry(index, len(columns), num_nan, unscored, zlib.crc32(parts[0]), digest)


@dataclass(frozen=True)
class Origin:
    """Where a snapshot comes from; goes into its record as it stands."""

    step: int  # optimizer steps before it; 0 for a teacher's or a file's
    measure: str  # of `score`; "file" where the user gave it
    smoothing: float
    manifest: str  # hash of the rows
    parent: str  # hash of the snapshot whose columns it continues, or of the file or teacher that it is of; else ""
    run: str = ""  # digest of what determined the run that made it


@dataclass(frozen=True)
class Record:
    """snapshot.json."""

    number: int
    origin: Origin
    blocks: tuple[BlockEntry, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all blocks."""
        return sum(entry.rows for entry in self.blocks)

    @property
    def num_nan(self) -> int:
        """Rows that this snapshot scored without getting a number."""
        return sum(entry.nan for entry in self.blocks)

    @property
    def num_unscored(self) -> int:
        """Rows that have no score."""
        return sum(entry.unscored for entry in self.blocks)

    def to_bytes(self) -> bytes:
        """The file: JSON, one line a block, since there may be 100,000; equal records give equal bytes."""
        counts = {"rows": self.num_rows, "nan": self.num_nan, "unscored": self.num_unscored}
        head = {
            "format": FORMAT,
            "number": self.number,
            **asdict(self.origin),
            **counts,
            "columns": _layout(),
        }
        lines = ",\n".join(json.dumps(_line(entry)) for entry in self.blocks)
        return f'{json.dumps(head, indent=1)[:-2]},\n "blocks": [\n{lines}\n]}}\n'.encode()


def _layout() -> dict[str, str]:
    return {name: dtype.str for name, dtype in COLUMN_TYPES.items()}


def _line(entry: BlockEntry) -> list[int | str]:
    return [entry.rows, entry.nan, entry.unscored, entry.crc32, entry.sha256]


def parse_record(content: bytes, path: Path) -> Record:
    """The record in the bytes of its file; UserError naming ``path`` if it is damaged or of another format."""
    try:
        found = json.loads(content)
        if found["format"] != FORMAT:
            raise UserError(
                f"{path} has snapshot format {found['format']}, this version reads {FORMAT}: "
                "go on with the version that wrote it, or start in another run_dir"
            )
        return _record(found)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(path.parent, f"{path.name} cannot be read: {error!r}") from error


def _record(found: Mapping[str, Any]) -> Record:
    if found["columns"] != _layout():
        raise ValueError(f"columns {found['columns']}")
    blocks = tuple(BlockEntry(index, *_checked(line)) for index, line in enumerate(found["blocks"]))
    origin = Origin(**{name: found[name] for name in Origin.__dataclass_fields__})
    record = Record(int(found["number"]), origin, blocks)
    stated = [found["rows"], found["nan"], found["unscored"]]
    if stated != [record.num_rows, record.num_nan, record.num_unscored]:
        raise ValueError(f"the blocks do not add up to {stated}")
    return record


def _checked(line: Sequence[Any]) -> tuple[int, int, int, int, str]:
    rows, nan, unscored, crc32, sha256 = line
    if not (
        all(type(value) is int and value >= 0 for value in line[:4]) and len(bytes.fromhex(sha256)) == 32
    ):
        raise ValueError(f"block {line}")
    return rows, nan, unscored, crc32, sha256


def damaged(folder: Path, reason: str) -> UserError:
    """The error of a snapshot that cannot be used."""
    return UserError(
        f"snapshot {folder} is missing or damaged ({reason}): put a copy of the folder in its place, "
        "or start again in another run_dir"
    )
