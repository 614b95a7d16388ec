"""One micro-batch of the student: forward, gradients of its signal, objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distill_dist.models.encoder import EncoderParts
from distill_dist.models.hooks import gradients_at, watch_points
from distill_dist.objectives.objective import LossTerms, Objective
from distill_dist.objectives.signal import margin_B, own_class_B
from distill_dist.records import Batch, StudentOutput, TeacherSignal


@dataclass(frozen=True)
class StudentStep:
    """What the trainer calls per micro-batch.

    ``parts.model`` is the module itself, not DeepSpeed's wrapper: differentiating twice through the wrapper
    raises or is silently wrong (FACTS, second-order gradients).
    """

    parts: EncoderParts
    objective: Objective

    def loss_terms(self, batch: Batch, signal: TeacherSignal | None) -> LossTerms:
        """The objective's sums over ``batch``, graphs attached."""
        weights = self.objective.weights
        layers = self.objective.student_layers
        wants_embedding = "gradient_embedding" in weights
        wants_cls_gradients = "gradient_cls" in weights
        wants_states = "patience" in weights
        with watch_points(
            self.parts,
            layers=layers if wants_states or wants_cls_gradients else (),
            embedding_gradient=wants_embedding,
            cls_gradients=wants_cls_gradients,
        ) as points:
            logits_BC = self.parts.logits_BC(
                batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL
            )
            embedding_BLH = cls_BKH = None
            if wants_embedding or wants_cls_gradients:
                margin = margin_B(logits_BC, own_class_B(logits_BC)).sum()
                embedding_BLH, cls_BKH = gradients_at(margin, points, layers=layers, create_graph=True)
        states_BKH = None
        if wants_states:
            states_BKH = torch.stack([points.cls_states_BH[layer] for layer in layers], dim=1)
        output = StudentOutput(logits_BC, states_BKH, cls_BKH, embedding_BLH)
        return self.objective(output, signal, batch)
