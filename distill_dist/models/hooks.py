"""Gradients at inner points of an unchanged Hugging Face forward.

Forward hooks on the embedding block and on layers keep what comes out of them, and autograd differentiates with
respect to it; where nothing before a point is trained, a fresh leaf of the same values takes its place. Or they add a
given displacement, and the model is evaluated beside the point. Nothing of a model's forward is re-implemented, and
embeddings stay trainable where they are.
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
    """What the hooks saw in the last forward; filled while the model runs. ``at_*`` are differentiated."""

    embedding_BLH: Tensor | None = None
    at_embedding_BLH: Tensor | None = None
    at_layers_BLH: dict[int, Tensor] = field(default_factory=dict)
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
    """Inside the block one forward of ``parts.model`` records its inner points.

    ``layers`` (from 1) give their [CLS] state, and with ``cls_gradients`` can be differentiated at;
    ``embedding_gradient`` says so of the embedding output. A ``displacement`` is added instead. What activation
    checkpointing computes again changes nothing that was recorded.
    """
    points = InnerPoints()

    def at_embedding(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        points.embedding_BLH = output
        if displacement is not None:
            beside = displacement.embedding_BLH
            return output if beside is None else output + beside.to(output.dtype)
        if embedding_gradient:
            output = points.at_embedding_BLH = _differentiable(output)
        return output

    def at_layer(place: int, layer: int) -> Any:
        def moved(hidden_BLH: Tensor) -> Tensor:
            if displacement is not None:
                if displacement.cls_BKH is None:
                    return hidden_BLH
                beside_B1H = displacement.cls_BKH[:, place, None].to(hidden_BLH.dtype)
                return hidden_BLH + functional.pad(beside_B1H, (0, 0, 0, hidden_BLH.shape[1] - 1))
            if cls_gradients:
                hidden_BLH = _differentiable(hidden_BLH)
                points.at_layers_BLH.setdefault(layer, hidden_BLH)  # there: a checkpointed layer, run again
            return hidden_BLH

        def hook(module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> Any:
            hidden_BLH = moved(output if isinstance(output, Tensor) else output[0])
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


def _differentiable(point_BLH: Tensor) -> Tensor:
    """The point itself, or a leaf of its values where nothing before it is trained."""
    return point_BLH if point_BLH.requires_grad else point_BLH.detach().requires_grad_()


def gradients_at(
    signals_V: Tensor, points: InnerPoints, *, layers: tuple[int, ...], create_graph: bool, retain_graph: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of every scalar of ``signals_V`` at the points, one backward each.

    Returns (embedding gradients [B, L, V, H], [CLS] gradients [B, K, V, H]); None where none was asked for.
    With ``create_graph`` they can be differentiated again; with ``retain_graph`` the forward can.
    """
    at = [points.at_layers_BLH[layer] for layer in layers if layer in points.at_layers_BLH]
    num_layers = len(at)
    if points.at_embedding_BLH is not None:
        at.append(points.at_embedding_BLH)
    if not at:
        return None, None
    views = signals_V.unbind()
    embedding, cls = [], []
    for place, signal in enumerate(views):
        keep = create_graph or retain_graph or place < len(views) - 1
        found = torch.autograd.grad(signal, at, create_graph=create_graph, retain_graph=keep)
        cls.append([gradient_BLH[:, 0] for gradient_BLH in found[:num_layers]])
        embedding.append(found[num_layers:])
    cls_BKVH = torch.stack([torch.stack(view, dim=1) for view in cls], dim=2) if num_layers else None
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


class _Enough(Exception):
    """Ends a forward whose rest nobody reads."""

    def __init__(self, embedding_BLH: Tensor) -> None:
        super().__init__()
        self.embedding_BLH = embedding_BLH


def embedding_output_BLH(parts: EncoderParts, inputs: Inputs) -> Tensor:
    """E, what the embedding block puts out, without a graph; the layers after it are not computed."""

    def stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
        raise _Enough(output)

    handle = parts.embeddings.register_forward_hook(stop)
    try:
        with torch.no_grad():
            parts.logits_BC(*inputs)
    except _Enough as enough:
        return enough.embedding_BLH
    finally:
        handle.remove()
    raise AssertionError("the embedding block was not called")
