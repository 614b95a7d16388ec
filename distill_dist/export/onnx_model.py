"""A classifier as an ONNX file, run by onnxruntime.

By torch's own exporter: optimum-onnx 0.1.0 wants transformers below 4.58 (its metadata), and the exporters inside
transformers changed their interface between 5.17 and 5.24; for these families they give the same graph.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_dist.errors import UserError
from distill_dist.models.encoder import EncoderParts
from distill_dist.records import Batch

FOLDER, MODEL, INT8 = "onnx", "model.onnx", "model_int8.onnx"  # as the hub's other tools name them


class _Logits(nn.Module):
    """Tensors in, logits [B, C] out: no dictionary of outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments).logits
        return found


def export_onnx(parts: EncoderParts, sample: Batch, path: Path) -> None:
    """Write the model to ``path``, for any number of rows and any length. Raises UserError where it has no such form.

    ``sample`` has two rows and two tokens at least: a dimension of 1 would be taken for a constant.
    """
    inputs = inputs_of(parts, sample)
    assert min(sample.input_ids_BL.shape) > 1, sample.input_ids_BL.shape
    names = list(inputs)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                _Logits(parts.model).eval(),
                (),
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes={name: {0: "batch", 1: "length"} for name in names},
                input_names=names,
                output_names=["logits"],
                verbose=False,
            )
            _forget_the_machine(program)
            program.save(path)
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error.__cause__ or error
        reason = next(iter(str(cause).splitlines()), "")
        kind = getattr(parts.model.config, "model_type", "model")
        raise UserError(
            f"--onnx: this {kind} cannot be turned into ONNX ({type(cause).__name__}: {reason}): leave --onnx away"
        ) from error


def quantize_int8(path: Path, out: Path) -> None:
    """The ONNX model at ``path`` with int8 weights; activations are quantized as they come (dynamic).

    Weights use 7 of their 8 bits: products of 8 and 8 bits overflow on processors without VNNI
    (onnxruntime's documentation of quantization), and what is measured here should hold there.
    """
    # here, because the package is an extra
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It writes a copy beside the model in C++, which says nothing when the disk is full, and reads that back.
    if shutil.disk_usage(out.parent).free < 2 * path.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
    with _quiet():
        quantize_dynamic(path, out, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


class OnnxClassifier:
    """The file at ``path`` in onnxruntime on the CPU."""

    def __init__(self, path: Path, parts: EncoderParts, *, threads: int) -> None:
        """``parts`` of the model that it was made of say what it is fed with."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._parts = parts

    def logits_BC(self, batch: Batch) -> Tensor:
        """Class logits [B, C], fp32."""
        feed = {name: tensor.numpy() for name, tensor in inputs_of(self._parts, batch).items()}
        return torch.from_numpy(self._session.run(["logits"], feed)[0])


def inputs_of(parts: EncoderParts, batch: Batch) -> dict[str, Tensor]:
    """What the model reads of ``batch``, by the names of its forward."""
    found = {"input_ids": batch.input_ids_BL, "attention_mask": batch.attention_mask_BL}
    return {**found, "token_type_ids": batch.token_type_ids_BL} if parts.takes_token_types else found


def _forget_the_machine(program: Any) -> None:
    """Take out where in which file every node was traced: paths of this machine, and as large as small graphs."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(program.model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries talk at length of packages that nothing here uses and of names of axes that are equal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
