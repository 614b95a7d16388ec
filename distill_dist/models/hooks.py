"""Gradients at inner points of an unchanged Hugging Face forward.

A forward hook adds a zero perturbation δ to the output of the embedding block or of a layer; the gradient with
respect to δ is the gradient at that point (FACTS: exact to 6e-8 on six families). Nothing of a model's forward
is re-implemented, and embeddings stay trainable where they are.
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


@dataclass
class InnerPoints:
    """What the hooks saw in the last forward; filled while the model runs."""

    embedding_delta_BLH: Tensor | None = None
    cls_deltas_B1H: dict[int, Tensor] = field(default_factory=dict)
    cls_states_BH: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def watch_points(
    parts: EncoderParts, *, layers: tuple[int, ...], embedding_gradient: bool, cls_gradients: bool
) -> Iterator[InnerPoints]:
    """Inside the block every forward of ``parts.model`` records [CLS] states and perturbations.

    ``layers`` (from 1) give their [CLS] state, and with ``cls_gradients`` a perturbation at [CLS];
    ``embedding_gradient`` perturbs every position of the embedding output.
    """
    points = InnerPoints()

    def at_embedding(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        points.embedding_delta_BLH = torch.zeros_like(output, requires_grad=True)
        return output + points.embedding_delta_BLH

    def at_layer(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> Any:
            hidden_BLH = output if isinstance(output, Tensor) else output[0]
            if cls_gradients:
                delta_B1H = torch.zeros_like(hidden_BLH[:, :1], requires_grad=True)
                points.cls_deltas_B1H[layer] = delta_B1H
                hidden_BLH = hidden_BLH + functional.pad(delta_B1H, (0, 0, 0, hidden_BLH.shape[1] - 1))
            points.cls_states_BH[layer] = hidden_BLH[:, 0]
            return hidden_BLH if isinstance(output, Tensor) else (hidden_BLH, *output[1:])

        return hook

    handles = [parts.layers[layer - 1].register_forward_hook(at_layer(layer)) for layer in layers]
    if embedding_gradient:
        handles.append(parts.embeddings.register_forward_hook(at_embedding))
    try:
        yield points
    finally:
        for handle in handles:
            handle.remove()


def gradients_at(
    signal: Tensor, points: InnerPoints, *, layers: tuple[int, ...], create_graph: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the scalar ``signal`` at the perturbed points, in one backward.

    Returns (embedding gradient [B, L, H], [CLS] gradients [B, K, H]); None where nothing was perturbed. With
    ``create_graph`` they can be differentiated again.
    """
    at = [points.cls_deltas_B1H[layer] for layer in layers if layer in points.cls_deltas_B1H]
    num_cls = len(at)
    if points.embedding_delta_BLH is not None:
        at.append(points.embedding_delta_BLH)
    if not at:
        return None, None
    found = torch.autograd.grad(signal, at, create_graph=create_graph)
    cls_BKH = torch.cat(found[:num_cls], dim=1) if num_cls else None
    return (found[num_cls] if len(found) > num_cls else None), cls_BKH
