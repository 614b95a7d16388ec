"""A sweep as a YAML file: `config`, `out`, `grid`, `random`, `trials`, `draw_seed`. The command line adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill_dist.errors import UserError

_KEYS = ("config", "out", "grid", "random", "trials", "draw_seed")


@dataclass(frozen=True)
class SweepFile:
    """What a file says; None or empty where it says nothing. ``config`` is relative to the file."""

    config: Path | None = None
    out: Path | None = None
    grid: tuple[tuple[str, str], ...] = ()
    random: tuple[tuple[str, str], ...] = ()
    trials: int | None = None
    draw_seed: int | None = None


def read_sweep_file(path: Path) -> SweepFile:
    """The sweep at ``path``. Raises UserError."""
    try:
        # BaseLoader: every value is the text that stands there, as on a command line
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"sweep {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"sweep {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, Mapping) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"sweep {path}: it takes {', '.join(_KEYS)}")
    for key in tree:
        if key not in _KEYS:
            raise UserError(f"sweep {path}: {key}: no such key; it takes {', '.join(_KEYS)}")
    return SweepFile(
        config=path.parent / _text(path, tree, "config") if "config" in tree else None,
        out=Path(_text(path, tree, "out")) if "out" in tree else None,
        grid=tuple((key, ",".join(map(flow, _list(path, key, value)))) for key, value in _section(path, tree, "grid")),
        random=tuple((key, flow(value)) for key, value in _section(path, tree, "random")),
        trials=_number(path, tree, "trials"),
        draw_seed=_number(path, tree, "draw_seed"),
    )  # fmt: skip


def _text(path: Path, tree: Mapping[str, Any], key: str) -> str:
    if not isinstance(tree[key], str) or not tree[key]:
        raise UserError(f"sweep {path}: {key}: a name is needed")
    return str(tree[key])


def _section(path: Path, tree: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    found = tree.get(key, {})
    if not isinstance(found, Mapping):
        raise UserError(f"sweep {path}: {key}: it takes fields by their dotted names, e.g. weight.kd")
    return list(found.items())


def _list(path: Path, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"sweep {path}: grid: {key}: a list of values is needed, e.g. {key}: [a, b]")
    return value


def _number(path: Path, tree: Mapping[str, Any], key: str) -> int | None:
    if key not in tree:
        return None
    text = _text(path, tree, key)
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"sweep {path}: {key}: {text!r} is no whole number")
    return int(text)


def flow(value: Any) -> str:
    """``value`` on one line, as it is written after `field=`."""
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
    return str(value)
