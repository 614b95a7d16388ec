"""Whether an ONNX file computes what its PyTorch model does, to the rounding of fp32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_dist.errors import UserError
from distill_dist.models.encoder import EncoderParts
from distill_dist.records import Batch

# Two fp32 results differ by up to the sum of their own errors. Of the six families and MiniLM, random rows and weights,
# onnxruntime's error was 0.75 to 1.7 times torch's; a wrong mask or a lost segment is 10⁴ times above.
TIMES_ROUNDING = 8.0


@dataclass(frozen=True)
class Agreement:
    """Largest difference of a logit over ``rows`` rows, and what it was held against."""

    rows: int
    largest_difference: float
    tolerance: float


def check_onnx(
    parts: EncoderParts, onnx_BC: Callable[[Batch], Tensor], batches: Sequence[Batch]
) -> Agreement:
    """Compare on padded ``batches`` of several lengths. Raises UserError where they differ by more than rounding.

    Rounding is measured: torch's fp32 logits of the padded batch against those of the same rows in float64, one at a
    time and without padding (so that padding is checked as well).
    """
    exact = copy.deepcopy(parts.model).double()
    rounding = difference = largest = 0.0
    with torch.no_grad():
        for batch in batches:
            torch_BC = parts.logits_BC(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
            if not bool(torch_BC.isfinite().all()):
                raise UserError(
                    "--onnx: the model's logits are not finite, so nothing can be held against them"
                )
            exact_BC = torch.cat([_alone(exact, parts, batch, row) for row in range(len(torch_BC))])
            rounding = max(rounding, _distance(torch_BC, exact_BC))
            difference = max(difference, _distance(onnx_BC(batch), torch_BC))
            largest = max(largest, float(exact_BC.abs().max()))
    tolerance = TIMES_ROUNDING * max(rounding, torch.finfo(torch.float32).eps * largest)
    if not difference <= tolerance:
        raise UserError(
            f"--onnx: the exported graph does not compute what the model does: logits of real rows differ by "
            f"{difference:.2g}, and rounding explains {tolerance:.2g}. Nothing was written; leave --onnx away"
        )
    return Agreement(sum(len(batch.ids_B) for batch in batches), difference, tolerance)


def _alone(exact: torch.nn.Module, parts: EncoderParts, batch: Batch, row: int) -> Tensor:
    length = int(batch.attention_mask_BL[row].sum())
    segments = {"token_type_ids": batch.token_type_ids_BL[[row], :length]} if parts.takes_token_types else {}
    found: Tensor = exact(
        input_ids=batch.input_ids_BL[[row], :length],
        attention_mask=batch.attention_mask_BL[[row], :length],
        **segments,
    ).logits
    return found


def _distance(left_BC: Tensor, right_BC: Tensor) -> float:
    """Largest absolute difference; infinite where either is no number."""
    found = (left_BC.double() - right_BC.double()).abs()
    return float(found.max()) if bool(found.isfinite().all()) else float("inf")
