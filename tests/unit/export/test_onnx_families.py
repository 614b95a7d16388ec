"""Every family of students as ONNX, and an operator that has no such form; a minute: `make export`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_encoders import FAMILIES

from distill_dist.errors import UserError
from distill_dist.export.onnx_model import export_onnx
from export.onnx_cases import REFUSED, batch_of, check_family, parts_of


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    check_family(family, tmp_path)


def test_an_operator_that_onnx_lacks_is_such_a_model(tmp_path: Path) -> None:
    parts = parts_of("bert")

    def bessel(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(output)

    parts.layers[0].register_forward_hook(bessel)
    with pytest.raises(UserError, match=REFUSED):
        export_onnx(parts, batch_of(parts, (4, 7)), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
