"""What travels between a student and a host: rows of token ids one way, encoded rows of signals the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from distill_dist.records import Batch, Inputs


@dataclass(frozen=True)
class Request:
    """Rows of token ids with their keys. Rows are padded on the right, so lengths stand for the mask."""

    keys_B: tuple[bytes, ...]  # none where nothing is stored under them
    input_ids_BL: Tensor  # int32
    lengths_B: Tensor  # int32
    token_type_ids_BL: Tensor  # uint8
    labels_B: Tensor | None  # int32, where the signal is a function of the label too

    def unpack(self, device: torch.device) -> Inputs:
        """(input ids, attention mask, token types), int64 on ``device``."""
        positions_L = torch.arange(self.input_ids_BL.shape[1])
        mask_BL = (positions_L < self.lengths_B[:, None]).long()
        ids_BL, types_BL = self.input_ids_BL.long(), self.token_type_ids_BL.long()
        return ids_BL.to(device), mask_BL.to(device), types_BL.to(device)

    def take(self, rows: Sequence[int]) -> Request:
        """Some of the rows, in the order of ``rows``, padded to the longest of them."""
        index = torch.as_tensor(rows)
        lengths_B = self.lengths_B[index]
        length = int(lengths_B.max())
        return Request(
            keys_B=tuple(self.keys_B[row] for row in rows) if self.keys_B else (),
            input_ids_BL=self.input_ids_BL[index, :length],
            lengths_B=lengths_B,
            token_type_ids_BL=self.token_type_ids_BL[index, :length],
            labels_B=None if self.labels_B is None else self.labels_B[index],
        )


def join_requests(requests: Sequence[Request]) -> Request:
    """All rows of ``requests``, of one spec, in their order."""
    if len(requests) == 1:
        return requests[0]
    length = max(request.input_ids_BL.shape[1] for request in requests)

    def padded(values_BL: Tensor) -> Tensor:
        return functional.pad(values_BL, (0, length - values_BL.shape[1]))

    labels = [request.labels_B for request in requests]
    return Request(
        keys_B=tuple(itertools.chain.from_iterable(request.keys_B for request in requests)),
        input_ids_BL=torch.cat([padded(request.input_ids_BL) for request in requests]),
        lengths_B=torch.cat([request.lengths_B for request in requests]),
        token_type_ids_BL=torch.cat([padded(request.token_type_ids_BL) for request in requests]),
        labels_B=None if labels[0] is None else torch.cat([each for each in labels if each is not None]),
    )


def pack_request(batch: Batch, *, labels: bool) -> Request:
    """The rows of ``batch`` as their teacher reads them, without keys, on the CPU; with their ``labels`` where the
    signal needs them."""
    input_ids_BL, attention_mask_BL, token_type_ids_BL = batch.teacher_inputs
    return Request(
        keys_B=(),
        input_ids_BL=input_ids_BL.to("cpu", torch.int32),
        lengths_B=attention_mask_BL.sum(dim=1).to("cpu", torch.int32),
        token_type_ids_BL=token_type_ids_BL.to("cpu", torch.uint8),
        labels_B=batch.labels_B.to("cpu", torch.int32) if labels else None,
    )


@dataclass(frozen=True)
class Answer:
    """Encoded rows, one after another. A tensor, because RPC moves those without copying them into a pickle."""

    content_X: Tensor  # uint8
    sizes_B: Tensor  # int64, bytes of each row

    def rows(self) -> list[memoryview]:
        """The encoded rows."""
        content = memoryview(self.content_X.numpy())  # type: ignore[arg-type]
        ends = list(itertools.accumulate(self.sizes_B.tolist(), initial=0))
        return [content[begin:end] for begin, end in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Refusal:
    """Instead of an answer, from a teacher that nobody should learn from."""

    reason: str


@dataclass(frozen=True)
class Failure:
    """Instead of an answer: these rows cannot be computed here. Another host may, and this one others."""

    reason: str


Reaction = Answer | Refusal | Failure
"""What a host says to a question; or None: ask again later."""


def pack_rows(rows: Sequence[bytes]) -> Answer:
    """The inverse of :meth:`Answer.rows`."""
    sizes = torch.tensor([len(row) for row in rows])
    return Answer(torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8), sizes)
