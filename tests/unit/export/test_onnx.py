"""ONNX files against PyTorch: the same numbers at any size, and a graph that computes something else is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distill_dist.errors import UserError
from distill_dist.export.onnx_check import check_onnx
from distill_dist.export.onnx_model import export_onnx, quantize_int8
from distill_dist.records import Batch
from export.onnx_cases import LENGTHS, REFUSED, batch_of, check_family, parts_of


def test_the_same_numbers_at_any_size_and_int8_near_them(tmp_path: Path) -> None:
    check_family("bert", tmp_path)


def test_another_graph_is_refused() -> None:
    parts = parts_of("bert")
    batches = [batch_of(parts, lengths) for lengths in LENGTHS]

    def unmasked(batch: Batch) -> torch.Tensor:
        return parts.logits_BC(
            batch.input_ids_BL, torch.ones_like(batch.attention_mask_BL), batch.token_type_ids_BL
        )

    def rounded(batch: Batch) -> torch.Tensor:
        return parts.logits_BC(*batch.inputs).half().float()

    def lost(batch: Batch) -> torch.Tensor:
        return parts.logits_BC(*batch.inputs) * np.nan

    for wrong in (unmasked, rounded, lost):
        with torch.no_grad(), pytest.raises(UserError, match="does not compute what the model does"):
            check_onnx(parts, wrong, batches)
    with torch.no_grad():
        assert (
            check_onnx(parts, lambda batch: parts.logits_BC(*batch.inputs), batches).largest_difference == 0
        )


def test_a_model_without_such_a_form_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("long advice") from ValueError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    parts = parts_of("bert")
    with pytest.raises(UserError, match=REFUSED) as caught:
        export_onnx(parts, batch_of(parts, (4, 7)), tmp_path / "model.onnx")
    assert "(ValueError: no such operator)" in str(caught.value)


def test_a_full_disk_is_told_before_it_corrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 100)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 199}))
    with pytest.raises(OSError, match="No space left on device"):
        quantize_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")
