"""Students, objectives and batches of published sizes, with the teacher's signals ready: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from distill_dist.bench.sst2_lengths import batch_lengths
from distill_dist.models.build import set_attention, set_dropout
from distill_dist.models.copy_weights import copy_into_same
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.models.layer_map import copied_layers, matched_layers
from distill_dist.objectives.objective import METHODS, Objective
from distill_dist.probe import first_rows
from distill_dist.records import Batch, BatchCounts, TeacherSignal
from distill_dist.teacher.compute import compute_signal

FIRST_WORD = 1000  # of bert-base-uncased's vocabulary; special and unused tokens lie below
CLS, SEP = 101, 102


@dataclass(frozen=True)
class Shape:
    """Sizes of a BERT teacher and of the student cut from it, and how many cases are measured by default."""

    teacher_layers: int
    student_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    rounds: int
    vocab_size: int = 30522
    batch: int = 32


SHAPES = {
    "minilm": Shape(6, 3, hidden_size=384, num_attention_heads=12, intermediate_size=1536, rounds=24),
    "bert_base": Shape(12, 6, hidden_size=768, num_attention_heads=12, intermediate_size=3072, rounds=5),
}


@dataclass(frozen=True)
class Case:
    """One batch, as if it were the whole global one, with the teacher's signal for it."""

    batch: Batch
    signal: TeacherSignal

    @property
    def counts(self) -> BatchCounts:
        """What its losses are divided by."""
        return BatchCounts(len(self.batch.labels_B), int(self.batch.attention_mask_BL.sum()))

    def first(self, rows: int) -> Case:
        """Its first rows, as wide as it is."""
        return Case(first_rows(self.batch, rows), first_rows(self.signal, rows))


@dataclass(frozen=True)
class Setting:
    """A student in training mode, GKD-CLS's objective for it, and cases from short rows to long ones."""

    student: EncoderParts
    objective: Objective
    cases: list[Case]


def make_setting(shape: Shape, *, device: torch.device, count: int, seed: int) -> Setting:
    """``count`` cases for a student of every other layer of a random teacher; embeddings frozen, no dropout, fp32.

    Weights are random, of BERT's usual scale: times do not depend on their values.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.teacher_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        num_labels=2,
    )
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    layers = copied_layers(shape.teacher_layers, keep=shape.student_layers, how="even", chosen=())
    cut = copy_into_same(model, layers, {}, pooler=False)
    set_dropout(cut, 0.0)
    student = encoder_parts(cut.train().to(device))
    student.embeddings.requires_grad_(False)
    matched = matched_layers(shape.teacher_layers, shape.student_layers, teacher=(), student=())
    objective = replace(Objective(METHODS["gkd_cls"]), teacher_layers=matched[0], student_layers=matched[1])
    set_attention(model, "eager")
    teacher = encoder_parts(model.eval().requires_grad_(False).to(device))
    assert objective.signal_spec is not None
    cases = []
    for lengths_B in batch_lengths(count, rows=shape.batch, seed=seed):
        batch = random_batch(lengths_B, vocab_size=shape.vocab_size).to(device)
        cases.append(Case(batch, compute_signal(teacher, *batch.inputs, objective.signal_spec)))
    return Setting(student, objective, cases)


def random_batch(lengths_B: np.ndarray, *, vocab_size: int) -> Batch:
    """Rows of these lengths (2 or more): [CLS], words from torch's global generator, [SEP], padding."""
    rows, width = len(lengths_B), int(lengths_B.max())
    ends_B1 = torch.from_numpy(lengths_B)[:, None] - 1
    positions_L = torch.arange(width)
    ids_BL = torch.randint(FIRST_WORD, vocab_size, (rows, width))
    ids_BL[:, 0] = CLS
    ids_BL = ids_BL.masked_fill(positions_L == ends_B1, SEP).masked_fill(positions_L > ends_B1, 0)
    return Batch(
        ids_B=torch.arange(rows),
        input_ids_BL=ids_BL,
        attention_mask_BL=(positions_L <= ends_B1).long(),
        token_type_ids_BL=torch.zeros_like(ids_BL),
        labels_B=torch.randint(2, (rows,)),
        is_real_B=torch.ones(rows, dtype=torch.bool),
    )
