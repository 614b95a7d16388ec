"""The records that travel between packages, and the legend of shape letters.

Shape letters, used as suffixes of names everywhere:
    B  rows (sequences) of a micro-batch
    L  token positions, padded to the longest row of the micro-batch
    C  classes
    H  hidden width of the model at hand
    K  matched layers ([CLS] states and their gradients)
    V  classes whose margin is differentiated: 1, or all of them (`alignment.signal: all_classes`)
    D  draws of input noise
    N  real tokens of a micro-batch, concatenated over rows (no padding)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

Inputs = tuple[Tensor, Tensor, Tensor]
"""What a forward reads: input ids, attention mask, token types, each int64 [B, L]."""


def at_least_fp32(tensor: Tensor) -> Tensor:
    """``tensor`` in fp32, or in float64 where it has that already: losses are never rounded below fp32.

    Float64 stays for the proofs: a gradient is checked against its formula to 1e-10 only where nothing rounds.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank; padded to its own longest row.

    ``is_real_B`` is False for filler rows: a rank whose share of a global batch is smaller than its
    sibling's computes a filler row so that all ranks run the same number of micro-batches. Fillers
    weigh nothing in any loss.
    """

    ids_B: Tensor  # int64, row number in the prepared split
    input_ids_BL: Tensor  # int64
    attention_mask_BL: Tensor  # int64, 1 on real tokens
    token_type_ids_BL: Tensor  # int64
    labels_B: Tensor  # int64
    is_real_B: Tensor  # bool
    # Weight of its aligned terms, one over the share of rows that have them; 0: it has none (`alignment.share`).
    alignment: float = 1.0
    # float32, λ of every row (METHOD.md §4); None: the objective's own constant for all of them.
    reliance_B: Tensor | None = None
    positions_B: Tensor | None = None  # int64, the row's place in its global batch; 0 for filler rows
    # The same rows as a teacher with a tokenizer of its own reads them, padded to an L of their own; else None.
    teacher_input_ids_BL: Tensor | None = None  # int64
    teacher_attention_mask_BL: Tensor | None = None  # int64, 1 on real tokens
    teacher_token_type_ids_BL: Tensor | None = None  # int64

    @property
    def inputs(self) -> Inputs:
        """What a forward of the student reads of it, and of its teacher where one tokenizer serves both."""
        return self.input_ids_BL, self.attention_mask_BL, self.token_type_ids_BL

    @property
    def teacher_inputs(self) -> Inputs:
        """What a forward of the teacher reads of it."""
        if self.teacher_input_ids_BL is None:
            return self.inputs
        assert self.teacher_attention_mask_BL is not None
        assert self.teacher_token_type_ids_BL is not None
        return self.teacher_input_ids_BL, self.teacher_attention_mask_BL, self.teacher_token_type_ids_BL

    def to(self, device: torch.device | str) -> Self:
        """The same batch on ``device``; asynchronous where the memory is pinned."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class NoiseSpec:
    """Normal noise on the embedding output: the same for teacher and student, a function of the row's token ids."""

    std: float
    draws: int
    seed: int


@dataclass(frozen=True)
class SignalSpec:
    """What a student asks of a teacher besides logits. Part of every cache key, so it stays hashable.

    ``layers`` are the teacher's matched layers, counted from 1 (the output of layer j). ``signal`` says of which
    class the margin is differentiated; `label` is the only one that needs the rows' labels.
    """

    layers: tuple[int, ...] = ()
    cls_states: bool = False
    cls_gradients: bool = False
    embedding_gradient: bool = False
    signal: str = "own_max"  # own_max, teacher_max, label, all_classes
    attribution_top_k: int | None = None  # None: no attribution; 0: every dimension
    noise: NoiseSpec | None = None

    @property
    def gradients(self) -> bool:
        """Whether the teacher has to run a backward at all."""
        return self.cls_gradients or self.embedding_gradient or self.attribution_top_k is not None

    @property
    def without_gradients(self) -> SignalSpec:
        """What a batch asks for whose rows are not aligned."""
        return replace(
            self,
            cls_gradients=False,
            embedding_gradient=False,
            attribution_top_k=None,
            signal=SignalSpec.signal,
        )

    @property
    def needs_labels(self) -> bool:
        """Whether the signal is a function of the row's label too."""
        return self.signal == "label" and (self.cls_gradients or self.embedding_gradient)


@dataclass(frozen=True)
class TeacherSignal:
    """What a teacher knows about one micro-batch, in the batch's row order.

    Gradients are of the margin (METHOD.md §1). They and states are unit rows plus one norm each: half
    precision keeps a unit row and loses a raw gradient. Fields that the spec did not ask for are None.
    """

    logits_BC: Tensor  # fp32
    cls_states_BKH: Tensor | None = None  # unit rows
    cls_state_norm_BK: Tensor | None = None  # fp32
    cls_gradients_BKVH: Tensor | None = None  # unit rows
    cls_gradient_norm_BKV: Tensor | None = None  # fp32
    embedding_gradient_BLVH: Tensor | None = None  # unit rows; zero on padding
    embedding_gradient_norm_BLV: Tensor | None = None  # fp32; zero on padding
    attribution_BLC: Tensor | None = None  # fp32, unit over L for every class; zero on padding
    noisy_logits_BDC: Tensor | None = None  # fp32, at the noisy embeddings

    def to(self, device: torch.device | str) -> Self:
        """The same signal on ``device``."""

        def move(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(move, value))
            if isinstance(value, TeacherSignal):
                return value.to(device)
            return None if value is None else value.to(device, non_blocking=True)

        return type(self)(*(move(getattr(self, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class JoinedSignal(TeacherSignal):
    """What several teachers know together, and how far they contradict each other; made by a student, never sent."""

    disagreement_B: Tensor | None = None  # fp32, 1 where their labels differ
    gradient_cosine_B: Tensor | None = None  # fp32, mean over pairs and real tokens
    members: tuple[TeacherSignal, ...] = ()  # each one's own, where its terms are separate


@dataclass(frozen=True)
class StudentOutput:
    """What one forward of the student gives the objective; graphs attached.

    Gradients are raw (not normalised) and carry a graph of their own where they are to be trained.
    """

    logits_BC: Tensor
    cls_states_BKH: Tensor | None = None
    cls_gradients_BKVH: Tensor | None = None
    embedding_gradient_BLVH: Tensor | None = None
    attribution_BLC: Tensor | None = None  # unit over L for every class
    noisy_logits_BDC: Tensor | None = None


@dataclass(frozen=True)
class BatchCounts:
    """What a whole global batch is divided by; known from the plan before its first micro-batch."""

    sequences: int
    tokens: int


@dataclass(frozen=True)
class Step:
    """One optimizer step of one rank: its micro-batches and the whole global batch's counts.

    ``epoch`` and ``index`` (step within the epoch) count from 0; ``number`` is the global step.
    """

    epoch: int
    index: int
    number: int
    batches: tuple[Batch, ...]
    counts: BatchCounts
