"""What a stored row is found by: 16 bytes of everything that determines its signal (DESIGN, invariant 3)."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_dist.models.encoder import EncoderParts
from distill_dist.records import SignalSpec
from distill_dist.teacher.compute import SIGNAL_VERSION
from distill_dist.teacher.row_codec import ROW_VERSION, WireTypes

KEY_BYTES = 16
_CONTEXT_BYTES = 32
# They differ between a model and its copy in another folder.
_NO_PART_OF_THE_MODEL = ("_name_or_path", "architectures", "transformers_version")


def row_keys(
    input_ids_BL: Tensor,
    lengths_B: Tensor,
    token_type_ids_BL: Tensor,
    labels_B: Tensor | None,
    *,
    context: bytes,
) -> list[bytes]:
    """The 16-byte key of every row: of ``context``, its real token ids and types, and its label where given.

    A row is its first ``lengths_B`` tokens; padding, neighbours, integer types and devices change no key.
    Give ``labels_B`` where the signal is a function of them (SignalSpec.needs_labels) and nowhere else.
    """
    ids_BL, types_BL = _integers(input_ids_BL), _integers(token_type_ids_BL)
    labels = None if labels_B is None else labels_B.tolist()
    start = hashlib.blake2b(struct.pack("<I", len(context)) + context, digest_size=KEY_BYTES)
    keys = []
    for row, length in enumerate(lengths_B.tolist()):
        content = start.copy()
        # First, so that no field can be read as a part of its neighbour.
        content.update(struct.pack("<I", length))
        content.update(ids_BL[row, :length].tobytes())
        content.update(types_BL[row, :length].tobytes())
        if labels is not None:
            content.update(struct.pack("<q", labels[row]))
        keys.append(content.digest())
    return keys


def signal_context(fingerprint: str, spec: SignalSpec, types: WireTypes) -> bytes:
    """32 bytes of what changes a row's bytes besides its sample: teacher, spec, code and wire types."""
    content = {
        "teacher": fingerprint,
        "spec": asdict(spec),
        "types": asdict(types),
        "signal": SIGNAL_VERSION,
        "row": ROW_VERSION,
    }
    return hashlib.blake2b(_canonical(content), digest_size=_CONTEXT_BYTES).digest()


def teacher_fingerprint(teacher: EncoderParts, *, tokenizer: str) -> str:
    """sha256 of the teacher: its weights, its configuration, its attention kernel and its ``tokenizer``.

    ``tokenizer`` is a fingerprint (Manifest.tokenizer). The same for every copy of the model, wherever it
    lies. Reads every weight: about a second for 400 MB, once per process.
    """
    config: Any = teacher.model.config
    settings = {key: value for key, value in config.to_dict().items() if key not in _NO_PART_OF_THE_MODEL}
    # Kernels differ in the last bits.
    attention = config._attn_implementation
    found = hashlib.sha256(_canonical({"tokenizer": tokenizer, "config": settings, "attention": attention}))
    for name, weight in sorted(teacher.model.state_dict().items()):
        found.update(_canonical([name, str(weight.dtype), list(weight.shape)]))
        found.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _integers(values_BL: Tensor) -> np.ndarray:
    return values_BL.cpu().numpy().astype("<i4")


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
