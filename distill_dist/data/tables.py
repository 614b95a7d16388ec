"""Rows of Arrow tables: parquet files, and data sets in the hub's layout. ``line`` is the row, from 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from distill_dist.data.rows import BadRow, RawRow
from distill_dist.data.tasks import Layout, require_layout
from distill_dist.errors import UserError

BATCH_ROWS = 4096

ClassNames = dict[str, list[str] | None]  # by column; None: its values are names or plain numbers


def open_parquet(path: Path, layouts: tuple[Layout, ...]) -> tuple[int, Iterator[RawRow | BadRow]]:
    """(number of rows, the rows) of a parquet file."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file: {error}") from error
    layout = require_layout(layouts, file.schema_arrow.names, str(path))
    names = {name: _class_names(file.schema_arrow, name, path) for name in _named_columns(layout)}

    def rows() -> Iterator[RawRow | BadRow]:
        line = 1
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(layout.columns)):
                yield from _rows(pa.Table.from_batches([batch]), layout, names, line)
                line += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: broken after row {line - 1}: {error}") from error

    return file.metadata.num_rows, rows()


def open_hub(
    path: str, name: str, split: str, revision: str, layouts: tuple[Layout, ...]
) -> tuple[int, Iterator[RawRow | BadRow]]:
    """(number of rows, the rows) of one split of a data set: a hub name at ``revision``, or a folder."""
    place = f"data.path {path!r}" + (f", data.name {name!r}" if name else "") + f", split {split!r}"
    try:
        dataset = datasets.load_dataset(path, name or None, split=split, revision=revision or None)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{place} cannot be loaded: {error}") from error
    layout = require_layout(layouts, dataset.column_names, place)
    features = {name: dataset.features[name] for name in _named_columns(layout)}
    names = {
        name: feature.names if isinstance(feature, datasets.ClassLabel) else None
        for name, feature in features.items()
    }

    def rows() -> Iterator[RawRow | BadRow]:
        arrow = dataset.select_columns(list(layout.columns)).with_format("arrow")
        for start in range(0, len(arrow), BATCH_ROWS):
            yield from _rows(arrow[start : start + BATCH_ROWS], layout, names, start + 1)

    return len(dataset), rows()


def _named_columns(layout: Layout) -> tuple[str, ...]:
    """The columns in which a number may stand for a name."""
    return layout.columns[len(layout.texts) :]


def _rows(table: pa.Table, layout: Layout, names: ClassNames, first_line: int) -> Iterator[RawRow]:
    columns = [_values(table.column(name)) for name in layout.columns]
    label_names, *source_names = (names[name] for name in _named_columns(layout))
    for offset, values in enumerate(zip(*columns, strict=True)):
        texts, label, source = layout.parts(values)
        if isinstance(label, bytes):
            label = label.decode("utf-8", "replace")
        label = _name(label, label_names)
        source = tuple(_name(value, source_names[0]) for value in source)
        yield RawRow(first_line + offset, texts, label, source=source)


def _name(value: Any, names: list[str] | None) -> Any:
    """The name for a number of the file's own numbering, which need not be ours."""
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; strings as bytes, because Arrow lets broken UTF-8 through and we report the row."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _class_names(schema: pa.Schema, label: str, path: Path) -> list[str] | None:
    """Class names that the `datasets` library left in a parquet file's metadata, if it wrote the file.

    UserError if they cannot be read: without them the file's class numbers might be taken for ours.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text).get("info", {}).get("features", {}).get(label)
        if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
            return None
        names = feature["names"]
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise TypeError("names is no list of texts")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: its metadata `huggingface`, which would name the classes, is not what the datasets "
            f"library writes ({error!r}): write the file again without it"
        ) from error
    return names
