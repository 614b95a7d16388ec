"""How large a model on disk is, read from the header of its safetensors and its config.json, without torch."""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_dist.config.schema import ShapeConfig

_LAYER = re.compile(r"(?:^|\.)(?:layer|layers)\.(\d+)\.")
_MOST_HEADER = 100 << 20  # the format's own limit


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, and the sizes of one layer."""

    embeddings: int
    layer: int  # of one layer
    rest: int  # pooler and classifier
    layers: int
    hidden: int
    heads: int

    def total(self, layers: int | None = None) -> int:
        """Parameters with that many layers; None: all."""
        return self.embeddings + self.layer * (self.layers if layers is None else layers) + self.rest


def size_on_disk(folder: Path) -> ModelSize | None:
    """The model in ``folder``; None where there is none that this can read."""
    try:
        shapes = _shapes(folder)
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, struct.error):
        return None
    embeddings = sum(count for name, count in shapes.items() if "embeddings" in name)
    by_layer: dict[int, int] = {}
    for name, count in shapes.items():
        if found := _LAYER.search(name):
            by_layer[int(found[1])] = by_layer.get(int(found[1]), 0) + count
    hidden = config.get("hidden_size") or config.get("dim")
    heads = config.get("num_attention_heads") or config.get("n_heads")
    if not by_layer or not hidden or not heads:
        return None
    layers, inside = len(by_layer), sum(by_layer.values())
    rest = sum(shapes.values()) - embeddings - inside
    return ModelSize(embeddings, inside // layers, rest, layers, hidden, heads)


def _shapes(folder: Path) -> dict[str, int]:
    """Parameters of every tensor, by name."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MOST_HEADER:
                raise ValueError(f"{path} is no safetensors file")
            header = json.loads(file.read(length))
        found.update(
            {name: math.prod(tensor["shape"]) for name, tensor in header.items() if "shape" in tensor}
        )
    return found


def size_of_shape(shape: ShapeConfig, *, vocabulary: int, classes: int) -> ModelSize:
    """A BERT of that shape with a classifier, as transformers builds it."""
    h, i = shape.hidden_size, shape.intermediate_size
    return ModelSize(
        embeddings=(vocabulary + shape.max_position_embeddings + 2 + 2)
        * h,  # two segments; a norm's scale and shift
        layer=4 * (h * h + h) + 2 * h * i + h + i + 4 * h,
        rest=h * h + h + classes * h + classes,
        layers=shape.num_hidden_layers,
        hidden=h,
        heads=shape.num_attention_heads,
    )
