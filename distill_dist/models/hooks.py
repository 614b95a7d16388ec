"""Gradients at inner points of an unchanged Hugging Face forward.

A forward hook adds a perturbation δ to the output of the embedding block or of a layer. Where δ is a zero that
requires a gradient, the gradient with respect to it is the gradient at that point (FACTS: exact to 6e-8 on six
families); where it is a given displacement, the model is evaluated beside the point. Nothing of a model's
forward is re-implemented, and embeddings stay trainable where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill_dist.models.encoder import EncoderParts
from distill_dist.records import Inputs


@dataclass(frozen=True)
class Displacement:
    """Where beside its own points a model is evaluated: constants added at the embeddings and at [CLS]."""

    embedding_BLH: Tensor | None
    cls_BKH: Tensor | None  # K in the order of the watched layers


@dataclass
class InnerPoints:
    """What the hooks saw in the last forward; filled while the model runs."""

    embedding_BLH: Tensor | None = None
    embedding_delta_BLH: Tensor | None = None
    cls_deltas_B1H: dict[int, Tensor] = field(default_factory=dict)
    cls_states_BH: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def watch_points(
    parts: EncoderParts,
    *,
    layers: tuple[int, ...],
    embedding_gradient: bool,
    cls_gradients: bool,
    displacement: Displacement | None = None,
) -> Iterator[InnerPoints]:
    """Inside the block one forward of ``parts.model`` records its inner points and perturbs them.

    ``layers`` (from 1) give their [CLS] state, and with ``cls_gradients`` a perturbation at [CLS];
    ``embedding_gradient`` perturbs every position of the embedding output. ``displacement`` is added instead
    of a zero that requires a gradient. What activation checkpointing computes again changes nothing that was
    recorded.
    """
    points = InnerPoints()

    def at_embedding(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        points.embedding_BLH = output
        if displacement is not None:
            beside = displacement.embedding_BLH
            return output if beside is None else output + beside.to(output.dtype)
        if embedding_gradient:
            points.embedding_delta_BLH = torch.zeros_like(output, requires_grad=True)
            return output + points.embedding_delta_BLH
        return output

    def at_layer(place: int, layer: int) -> Any:
        def delta_B1H(hidden_BLH: Tensor) -> Tensor | None:
            if displacement is not None:
                beside = displacement.cls_BKH
                return None if beside is None else beside[:, place, None].to(hidden_BLH.dtype)
            if not cls_gradients:
                return None
            if layer not in points.cls_deltas_B1H:  # else a checkpointed layer, run again
                points.cls_deltas_B1H[layer] = torch.zeros_like(hidden_BLH[:, :1], requires_grad=True)
            return points.cls_deltas_B1H[layer]

        def hook(module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> Any:
            hidden_BLH = output if isinstance(output, Tensor) else output[0]
            delta = delta_B1H(hidden_BLH)
            if delta is not None:
                hidden_BLH = hidden_BLH + functional.pad(delta, (0, 0, 0, hidden_BLH.shape[1] - 1))
            points.cls_states_BH.setdefault(layer, hidden_BLH[:, 0])
            return hidden_BLH if isinstance(output, Tensor) else (hidden_BLH, *output[1:])

        return hook

    handles = [
        parts.layers[layer - 1].register_forward_hook(at_layer(place, layer))
        for place, layer in enumerate(layers)
    ]
    handles.append(parts.embeddings.register_forward_hook(at_embedding))
    try:
        yield points
    finally:
        for handle in handles:
            handle.remove()


def gradients_at(
    signals_V: Tensor, points: InnerPoints, *, layers: tuple[int, ...], create_graph: bool, retain_graph: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of every scalar of ``signals_V`` at the perturbed points, one backward each.

    Returns (embedding gradients [B, L, V, H], [CLS] gradients [B, K, V, H]); None where nothing was perturbed.
    With ``create_graph`` they can be differentiated again; with ``retain_graph`` the forward can.
    """
    at = [points.cls_deltas_B1H[layer] for layer in layers if layer in points.cls_deltas_B1H]
    num_cls = len(at)
    if points.embedding_delta_BLH is not None:
        at.append(points.embedding_delta_BLH)
    if not at:
        return None, None
    views = signals_V.unbind()
    embedding, cls = [], []
    for place, signal in enumerate(views):
        keep = create_graph or retain_graph or place < len(views) - 1
        found = torch.autograd.grad(signal, at, create_graph=create_graph, retain_graph=keep)
        cls.append(found[:num_cls])
        embedding.append(found[num_cls:])
    cls_BKVH = torch.stack([torch.cat(view, dim=1) for view in cls], dim=2) if num_cls else None
    embedding_BLVH = torch.stack([view[0] for view in embedding], dim=2) if embedding[0] else None
    return embedding_BLVH, cls_BKVH


def noisy_logits_BDC(parts: EncoderParts, inputs: Inputs, noise_BDLH: Tensor) -> Tensor:
    """Logits [B, D, C] at the embeddings plus each draw of noise, one forward each; graph attached."""
    found = []
    for noise_BLH in noise_BDLH.to(inputs[0].device).unbind(dim=1):
        beside = Displacement(noise_BLH, None)
        with watch_points(
            parts, layers=(), embedding_gradient=False, cls_gradients=False, displacement=beside
        ):
            found.append(parts.logits_BC(*inputs))
    return torch.stack(found, dim=1)
