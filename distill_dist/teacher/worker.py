"""The worker's side: it owns the model and the device, answers its host one request at a time, and may die."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from distill_dist.records import NoiseSpec, SignalSpec
from distill_dist.teacher.compute import NotSane, is_out_of_memory
from distill_dist.teacher.frames import Closed, receive, send
from distill_dist.teacher.sanity import Probe
from distill_dist.teacher.wire import Request

_log = logging.getLogger(__name__)
# A host reads at once; one that does not is dead or stopped.
SEND_S = 60.0
# Errors after which a process computes no more. oneDNN says the second where memory runs out while it compiles for a
# new shape, and remembers it: the same shape fails for ever, with memory or without (torch 2.13).
_LASTING = ("CUDA error", "could not create a primitive")


def serve_requests(
    connection: socket.socket,
    compute: Callable[[Request, SignalSpec], list[bytes]],
    description: dict[str, Any],
    probe: Callable[[], Probe],
    *,
    until_asked: Callable[[], None] = lambda: None,
) -> None:
    """Say who teaches here, then answer requests until the host closes ``connection``.

    ``description`` has an answer of ``probe`` (sanity.py), which is asked again when the host wishes. ``until_asked``
    may wait until there is something to be read.
    """
    send(connection, {"ready": description}, timeout_s=SEND_S)
    while True:
        until_asked()
        try:
            header, body = receive(connection, timeout_s=None)
            if "probe" in header:
                send(connection, _probed(probe), timeout_s=SEND_S)
            else:
                send(connection, *_answer(header, body, compute), timeout_s=SEND_S)
        except (Closed, TimeoutError):
            return


def _probed(probe: Callable[[], Probe]) -> dict[str, Any]:
    try:
        return {"probe": asdict(probe())}
    except Exception as error:  # as of any request: a process that cannot compute it cannot serve
        return _failure(error, "the probe's rows")


def _answer(
    header: dict[str, Any], body: bytes, compute: Callable[[Request, SignalSpec], list[bytes]]
) -> tuple[dict[str, Any], bytes]:
    request, spec = unpack_question(header, body)
    try:
        rows = compute(request, spec)
    except Exception as error:  # whatever the model raises belongs to those who asked
        return _failure(error, "rows"), b""
    return {"sizes": [len(row) for row in rows]}, b"".join(rows)


def _failure(error: Exception, what: str) -> dict[str, Any]:
    """What the host is told; only what the model itself raises is worth a traceback in the log."""
    text, kind = f"{type(error).__name__}: {error}", "model"
    if isinstance(error, NotSane):
        text, kind = str(error), "insane"
    elif is_out_of_memory(error):
        kind = "memory"
    elif any(lasting in text for lasting in _LASTING):
        kind = "device"  # nothing more can be computed in this process
    _log.warning("%s could not be computed: %s", what, text, exc_info=kind == "model")
    return {"error": text, "kind": kind}


def pack_question(request: Request, spec: SignalSpec) -> tuple[dict[str, Any], bytes]:
    """Header and body of one request; :func:`unpack_question` is its inverse, but for the keys."""
    tensors = [request.input_ids_BL, request.lengths_B, request.token_type_ids_BL]
    if request.labels_B is not None:
        tensors.append(request.labels_B)
    body = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
    shape = list(request.input_ids_BL.shape)
    return {"shape": shape, "labels": request.labels_B is not None, "spec": asdict(spec)}, body


def unpack_question(header: dict[str, Any], body: bytes) -> tuple[Request, SignalSpec]:
    """The request, without keys, and its spec."""
    rows, length = header["shape"]
    content, place = bytearray(body), 0

    def take(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        nonlocal place
        count = torch.Size(shape).numel()
        found = torch.frombuffer(content, dtype=dtype, count=count, offset=place).view(shape)
        place += count * dtype.itemsize
        return found

    request = Request(
        keys_B=(),
        input_ids_BL=take((rows, length), torch.int32),
        lengths_B=take((rows,), torch.int32),
        token_type_ids_BL=take((rows, length), torch.uint8),
        labels_B=take((rows,), torch.int32) if header["labels"] else None,
    )
    spec = dict(header["spec"])
    if spec["noise"] is not None:
        spec["noise"] = NoiseSpec(**spec["noise"])
    return request, SignalSpec(**{**spec, "layers": tuple(spec["layers"])})
