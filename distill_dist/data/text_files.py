"""Rows of TSV, CSV and JSON-lines files. Blank lines hold no row; everything else is a row or a bad row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from distill_dist.data.rows import BadRow, RawRow
from distill_dist.data.tasks import Layout, choose_layout, describe_missing, require_layout
from distill_dist.errors import UserError

Rows = Iterator[RawRow | BadRow]


def read_tsv(path: Path, layouts: tuple[Layout, ...]) -> Rows:
    """Tab-separated, one header line, no quoting: quote characters are text, as GLUE is written."""
    with path.open("rb") as file:
        header = _decode_header(file.readline(), path).rstrip("\r\n").split("\t")
        layout, select = _selector(header, layouts, path)
        # By lines of bytes: text mode would also break lines at characters inside a text.
        for number, line in enumerate(file, 2):
            content = line.rstrip(b"\r\n")
            if not content:
                continue
            try:
                fields = content.decode("utf-8").split("\t")
            except UnicodeDecodeError as error:
                yield BadRow(number, "broken utf-8", f"the line is not UTF-8: {error}")
                continue
            yield _row(fields, header, layout, select, number)


def read_csv(path: Path, layouts: tuple[Layout, ...]) -> Rows:
    """Comma-separated with quoting; a quoted field may hold line ends. ``line`` is the row's first line."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"{path}:1: the header is not CSV: {error}") from error
        # Re-encoded, so that the header's bytes are checked like those of the other formats.
        _decode_header(",".join(header).encode("utf-8", "surrogateescape"), path)
        header[0] = header[0].removeprefix("\ufeff")
        layout, select = _selector(header, layouts, path)
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                _refuse_open_quote(path, number, reader.line_num, error)
                yield BadRow(number, "broken csv", f"not CSV: {error}")
                continue
            if fields is None:
                return
            if fields:
                yield _row(fields, header, layout, select, number)


def _refuse_open_quote(path: Path, first: int, last: int, error: csv.Error) -> None:
    """UserError if a stray quote has taken the lines ``first`` to ``last`` for one field.

    Never one bad row: how many rows are lost in it nobody can tell.
    """
    if last > first or "unexpected end of data" in str(error):
        raise UserError(
            f"{path}:{first}: a quote opens in this row and is not closed well up to line {last} ({error}): "
            "close it, or double it if it is text"
        ) from error


def read_jsonl(path: Path, layouts: tuple[Layout, ...]) -> Rows:
    """One JSON object per line, keys as columns."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = _load_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield BadRow(number, "broken utf-8", f"the line is not UTF-8: {error}")
                continue
            except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
                yield BadRow(number, "broken json", f"not JSON: {error}")
                continue
            yield _json_row(record, layouts, number)


def _load_json(text: str) -> Any:
    """As `json.loads`, but ValueError where it would let the last of equal keys win in silence."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return record


def _json_row(record: object, layouts: tuple[Layout, ...], number: int) -> RawRow | BadRow:
    if not isinstance(record, dict):
        return BadRow(number, "broken json", f"not a JSON object but a {type(record).__name__}")
    layout = choose_layout(layouts, record)
    if layout is None:
        return BadRow(number, "missing column", describe_missing(layouts, record))
    texts, label, source = layout.parts([record[name] for name in layout.columns])
    return RawRow(number, texts, label, source=source)


def _decode_header(line: bytes, path: Path) -> str:
    if not line.strip():
        raise UserError(f"{path}:1: the file has no header line")
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:1: the header is not UTF-8: {error}") from error


def _selector(header: list[str], layouts: tuple[Layout, ...], path: Path) -> tuple[Layout, itemgetter]:
    """The file's layout, and what takes its columns out of a row's fields."""
    layout = require_layout(layouts, header, f"{path}:1")
    return layout, itemgetter(*(header.index(name) for name in layout.columns))


def _row(
    fields: list[str], header: list[str], layout: Layout, select: itemgetter, number: int
) -> RawRow | BadRow:
    if len(fields) != len(header):
        reason = f"{len(fields)} fields where the header has {len(header)}"
        return BadRow(number, "wrong number of fields", reason)
    texts, label, source = layout.parts(select(fields))
    return RawRow(number, texts, label, source=source)
