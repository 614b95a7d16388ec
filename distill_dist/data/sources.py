"""The sources by name: what identifies a split's input, and how its rows are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from distill_dist.config.schema_data import DataConfig, SyntheticConfig
from distill_dist.config.split_names import split_name_problem
from distill_dist.data.rows import BadRow, RawRow
from distill_dist.data.synthetic_nli import generate
from distill_dist.data.tables import open_hub, open_parquet
from distill_dist.data.tasks import Layout, Task
from distill_dist.data.text_files import read_csv, read_jsonl, read_tsv
from distill_dist.durable import sha256_file
from distill_dist.errors import UserError
from distill_dist.hub import locate_dataset

Opened = tuple[int, Iterator[RawRow | BadRow]]
TEXT_READERS = {"tsv": read_tsv, "csv": read_csv, "jsonl": read_jsonl}
FINGERPRINT_ROWS = 64  # generated rows that stand for the generator's version


@dataclass(frozen=True)
class Source:
    """One split's input. ``identity`` (JSON) determines its rows; ``place`` is how messages call it.

    ``open`` gives (rows to expect, for the progress bar; the rows).
    """

    place: str
    identity: dict[str, Any]
    open: Callable[[], Opened]


def open_sources(config: DataConfig, task: Task) -> dict[str, Source]:
    """The source of every split of ``config``. Reads files to hash them; UserError if one is not there."""
    if not config.splits:
        raise UserError("data.splits is empty: name at least one split")
    for split in config.splits:
        if problem := split_name_problem(split):
            raise UserError(f"data.splits: {problem}")
    if config.source == "synthetic_nli":
        return {split: _synthetic_source(config.synthetic, split) for split in config.splits}
    if config.source == "hub":
        return _hub_sources(config, task)
    return {split: _file_source(config, name, task.layouts) for split, name in config.splits.items()}


def _file_source(config: DataConfig, name: str, layouts: tuple[Layout, ...]) -> Source:
    path = Path(config.path, name)
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir() if p.is_file()) if path.parent.is_dir() else []
        found = f"its folder has {', '.join(there[:10])}" if there else "its folder is absent or empty"
        raise UserError(f"data.path, data.splits: there is no file {path} ({found})")
    identity = {"file": name, "sha256": sha256_file(path)}
    if config.source == "parquet":
        return Source(str(path), identity, partial(open_parquet, path, layouts))
    read = TEXT_READERS[config.source]
    return Source(str(path), identity, lambda: (_num_lines(path), read(path, layouts)))


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(partial(file.read, 1 << 20), b""))


def _hub_sources(config: DataConfig, task: Task) -> dict[str, Source]:
    path, revision = locate_dataset(config.path, what="data.path")
    if revision:
        content: dict[str, Any] = {"path": config.path, "revision": revision}
    else:
        content = {"files": _folder_digest(Path(path))}
    # A cached snapshot is loaded as the folder it is, which has no revisions.
    asked = "" if Path(path).is_dir() else revision
    return {
        split: Source(
            f"{config.path}[{name}]",
            {**content, "name": config.name, "split": name},
            partial(open_hub, path, config.name, name, asked, task.layouts),
        )
        for split, name in config.splits.items()
    }


def _folder_digest(folder: Path) -> str:
    """sha256 over the names and bytes of all files below ``folder``, hidden ones left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            digest.update(f"{name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _synthetic_source(config: SyntheticConfig, split: str) -> Source:
    first = [asdict(row) for row in islice(generate(config, split), FINGERPRINT_ROWS)]
    identity = {
        "generator": asdict(config),
        "first_rows_sha256": hashlib.sha256(json.dumps(first).encode()).hexdigest(),
    }
    rows = config.train_rows if split == "train" else config.dev_rows
    return Source(f"synthetic_nli[{split}]", identity, lambda: (rows, _synthetic_rows(config, split)))


def _synthetic_rows(config: SyntheticConfig, split: str) -> Iterator[RawRow | BadRow]:
    for line, row in enumerate(generate(config, split), 1):
        yield RawRow(line, (row.premise, row.hypothesis), row.label, row.difficulty, row.clean_label)
