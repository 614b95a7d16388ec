"""A family's student through ONNX, and what comes out at several sizes."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from tiny_encoders import WITH_SDPA, pad_token, ragged_batch, tiny_encoder

from distill_dist.export.onnx_check import check_onnx
from distill_dist.export.onnx_model import OnnxClassifier, export_onnx, quantize_int8
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.records import Batch

REFUSED = r"--onnx: this bert cannot be turned into ONNX \(\w+: .+\): leave --onnx away"
LENGTHS = ((5,), (3, 7, 5), (30, 2, 17, 4, 9), (38,) * 8)


def parts_of(family: str, **more: object) -> EncoderParts:
    attention = "sdpa" if family in WITH_SDPA else "eager"
    return encoder_parts(tiny_encoder(family, dtype=torch.float32, attention=attention, **more))


def batch_of(parts: EncoderParts, lengths: tuple[int, ...], seed: int = 0) -> Batch:
    family = str(parts.model.config.model_type)
    return ragged_batch(lengths, seed=seed, pad=pad_token(family), segments=parts.takes_token_types)


def check_family(family: str, tmp_path: Path) -> None:
    parts = parts_of(family)
    path, small = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    export_onnx(parts, batch_of(parts, (4, 7)), path)
    run = OnnxClassifier(path, parts, threads=1)
    batches = [batch_of(parts, lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    agreement = check_onnx(parts, run.logits_BC, batches)
    assert agreement.rows == 17
    assert 0 <= agreement.largest_difference <= agreement.tolerance < 1e-3
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    assert str(Path(__file__).parents[3]) not in str(graph), "paths of this machine"
    assert "site-packages" not in str(graph)
    quantize_int8(path, small)
    whole, int8 = run.logits_BC(batches[2]), OnnxClassifier(small, parts, threads=1).logits_BC(batches[2])
    spread = float(whole.max() - whole.min())
    # not the same numbers, or nothing was quantized; 2⁻⁷ a weight, over three layers
    assert 1e-4 * spread < float((int8 - whole).abs().max()) < 0.5 * spread
    assert small.stat().st_size < path.stat().st_size
