"""Gradients at inner points against Hugging Face's own ``output_hidden_states`` and plain autograd, float64.

Tolerance: the hooked forward adds exact zeros, so only the order of the backward's additions differs: 1e-12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_encoders import FAMILIES, forward, pad_token, ragged_batch, take_rows, tiny_encoder
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from distill_dist.models.build import set_checkpointing
from distill_dist.models.encoder import EncoderParts, encoder_parts
from distill_dist.models.hooks import (
    Displacement,
    InnerPoints,
    embedding_output_BLH,
    gradients_at,
    watch_points,
)
from distill_dist.records import Batch

LAYERS = (1, 3)
LENGTHS = (8, 3, 6)
# Models that differ from their family's first example where the hooks sit.
SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "electra with narrow embeddings": ("electra", {"embedding_size": 12}),
    "deberta with a convolution": ("deberta-v2", {"conv_kernel_size": 3}),
    "modernbert with a mean": ("modernbert", {"classifier_pooling": "mean"}),
}
CASES = (*FAMILIES, *SPECIAL)


def example(case: str, **more: Any) -> tuple[Any, Batch]:
    family, special = SPECIAL.get(case, (case, {}))
    return tiny_encoder(family, layers=4, **{**special, **more}), ragged_batch(LENGTHS, pad=pad_token(family))


def two_signals(logits_BC: Tensor) -> Tensor:
    """Two smooth scalars that mix the classes: [V = 2]."""
    weights_C = torch.arange(1, 1 + logits_BC.shape[1])
    return torch.stack([(logits_BC.sin() * weights_C).sum(), (logits_BC.cos() * weights_C).sum()])


def run(parts: EncoderParts, batch: Batch) -> Tensor:
    return parts.logits_BC(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)


def hooked(
    model: Any, batch: Batch, *, parts: EncoderParts | None = None, create_graph: bool = False
) -> tuple[Tensor, Tensor, InnerPoints]:
    parts = parts or encoder_parts(model)
    with watch_points(parts, layers=LAYERS, embedding_gradient=True, cls_gradients=True) as points:
        signals_V = two_signals(run(parts, batch))
        recorded = points_of(points)
        found = gradients_at(
            signals_V, points, layers=LAYERS, create_graph=create_graph, retain_graph=create_graph
        )
    assert points_of(points) == recorded  # also where layers were run again
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1], points


def by_autograd(
    model: Any, batch: Batch, *, create_graph: bool = False
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(gradients at E, at [CLS] of LAYERS, states 0 to 4): nothing added to anything.

    State 0 is E itself; Hugging Face's is a projection of it where ELECTRA's embeddings are narrower.
    """
    seen: list[Tensor] = []
    handle = model.base_model.embeddings.register_forward_hook(lambda *call: seen.append(call[2]))
    output = forward(model, batch, output_hidden_states=True)
    handle.remove()
    states = [seen[0], *output.hidden_states[1:]]
    points = [states[layer] for layer in (0, *LAYERS)]
    at_e, at_cls = [], []
    for signal in two_signals(output.logits):
        embedding, *layers = torch.autograd.grad(signal, points, create_graph=create_graph, retain_graph=True)
        at_e.append(embedding)
        at_cls.append(torch.stack([gradient[:, 0] for gradient in layers], dim=1))
    return torch.stack(at_e, dim=2), torch.stack(at_cls, dim=2), states


def second_order(model: Any, embedding_BLVH: Tensor, cls_BKVH: Tensor) -> dict[str, Tensor]:
    """The gradient of a nonlinear function of gradients with respect to every parameter that it reaches."""
    named = dict(model.named_parameters())
    total = embedding_BLVH.sin().sum() + cls_BKVH.sin().sum()
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """1e-12 of each parameter's norm, and of the largest: a small gradient is a difference of large sums."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    assert largest > 1
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-12 * (gradient.norm() + largest), name


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_states_equal_autograd(case: str) -> None:
    model, batch = example(case)
    embedding_BLVH, cls_BKVH, points = hooked(model, batch)
    expected_BLVH, expected_BKVH, states = by_autograd(model, batch)
    for expected in (expected_BLVH, expected_BKVH):
        assert expected.norm() > 0.1
        assert (expected.select(2, 0) - expected.select(2, 1)).norm() > 0.1
    assert (expected_BKVH[:, 0] - expected_BKVH[:, 1]).norm() > 0.1
    assert torch.allclose(embedding_BLVH, expected_BLVH, rtol=0, atol=1e-12)
    assert torch.allclose(cls_BKVH, expected_BKVH, rtol=0, atol=1e-12)
    for layer in LAYERS:
        assert torch.equal(points.cls_states_BH[layer], states[layer][:, 0])
    assert points.embedding_BLH is not None
    assert torch.equal(points.embedding_BLH, states[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_has_exactly_no_gradient(family: str) -> None:
    model, batch = example(family)
    embedding_BLVH, _, _ = hooked(model, batch)
    assert torch.equal((embedding_BLVH != 0).any(dim=(2, 3)), batch.attention_mask_BL.bool())


def test_debertas_convolution_reads_the_padding_behind_a_row() -> None:
    """So whoever compares gradients at E has to apply the mask: here they are not 0 by themselves."""
    model, batch = example("deberta with a convolution")
    embedding_BLVH, _, _ = hooked(model, batch)
    reached_BL = (embedding_BLVH != 0).any(dim=(2, 3))
    lengths_B = torch.tensor(LENGTHS)
    assert torch.equal(reached_BL.sum(dim=1), (lengths_B + 1).clamp(max=max(LENGTHS)))
    logits = forward(model, batch).logits
    alone = [forward(model, take_rows(batch, [row])).logits for row in range(len(LENGTHS))]
    assert torch.allclose(logits, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_second_derivative_reaches_trainable_embeddings(case: str) -> None:
    model, batch = example(case)
    found, expected = (
        second_order(model, *gradients(model, batch, create_graph=True)[:2])
        for gradients in (hooked, by_autograd)
    )
    words = next(n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    assert expected[words].norm() > 0.1
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("case", ["bert", "electra", "modernbert", "modernbert with a mean"])
def test_math_attention_has_eagers_second_derivative(case: str) -> None:
    """In fp32: 2.7e-6 was seen, some hundred roundings. A window of 1 leaves whole windows of padding."""
    more = {"local_attention": 2} if case.startswith("modernbert") else {}
    found = {}
    for attention in ("eager", "sdpa"):
        model, _ = example(case, dtype=torch.float32, attention=attention, **more)
        batch = ragged_batch((16, 3, 9), pad=pad_token(case.split()[0]))
        with sdpa_kernel(SDPBackend.MATH):
            embedding_BLVH, cls_BKVH, _ = hooked(model, batch, create_graph=True)
            found[attention] = second_order(model, embedding_BLVH, cls_BKVH)
        assert torch.equal((embedding_BLVH != 0).any(dim=(2, 3)), batch.attention_mask_BL.bool())
    largest = max(float(gradient.norm()) for gradient in found["eager"].values())
    for name, expected in found["eager"].items():
        assert (found["sdpa"][name] - expected).norm() < 3e-5 * (expected.norm() + 0.1 * largest), name


def test_electra_with_a_narrower_embedding() -> None:
    """The gradient at E has E's width, the layers' have theirs."""
    embedding_BLVH, cls_BKVH, _ = hooked(*example("electra with narrow embeddings"))
    assert embedding_BLVH.shape == (3, 8, 2, 12)
    assert cls_BKVH.shape == (3, 2, 2, 16)
    assert (embedding_BLVH[0] != 0).any(-1).all()


def test_frozen_embeddings_have_gradients_at_their_output() -> None:
    model, batch = example("bert")
    expected, _, _ = by_autograd(model, batch)
    model.requires_grad_(False)
    assert torch.allclose(hooked(model, batch)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_checkpointing_changes_no_second_derivative(case: str) -> None:
    model, batch = example(case)
    model.train()
    expected = second_order(model, *hooked(model, batch, create_graph=True)[:2])
    set_checkpointing(model)
    with counting(encoder_parts(model).layers[2]) as calls:
        found = second_order(model, *hooked(model, batch, create_graph=True)[:2])
    assert len(calls) > 1  # it was in fact computed again
    assert_same_gradients(found, expected)


class Recomputed(nn.Module):
    """A layer whose hooks run again with it; transformers of other versions checkpoint like this."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return checkpoint(self.layer, *arguments, use_reentrant=False, **named)


def test_hooks_inside_a_checkpointed_region_record_once() -> None:
    model, batch = example("bert")
    parts = encoder_parts(model)
    expected = second_order(model, *hooked(model, batch, create_graph=True)[:2])
    names = {id(p): name for name, p in model.named_parameters()}
    model.bert.encoder.layer = nn.ModuleList([Recomputed(layer) for layer in model.bert.encoder.layer])
    # stopped early, a layer ends before its hooks
    with set_checkpoint_early_stop(False), counting(parts.layers[2]) as calls:
        gradients = hooked(model, batch, parts=parts, create_graph=True)[:2]
        assert len(calls) > 1
        found = second_order(model, *gradients)
    parameters = dict(model.named_parameters())
    assert_same_gradients({names[id(parameters[name])]: grad for name, grad in found.items()}, expected)


class counting:  # noqa: N801 - reads as a statement
    """Counts how often a module's own forward runs, recomputation included."""

    def __init__(self, module: nn.Module) -> None:
        self.submodule = next(child for child in module.modules() if isinstance(child, nn.Linear))

    def __enter__(self) -> list[int]:
        calls: list[int] = []
        self.handle = self.submodule.register_forward_hook(lambda *_: calls.append(1))
        return calls

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def points_of(points: InnerPoints) -> list[int]:
    layers, states = points.at_layers_BLH, points.cls_states_BH
    tensors = [points.embedding_BLH, points.at_embedding_BLH, *layers.values(), *states.values()]
    assert all(tensor is not None for tensor in tensors)
    return [id(tensor) for tensor in tensors]


def displaced(
    parts: EncoderParts, batch: Batch, displacement: Displacement, layers: tuple[int, ...] = ()
) -> tuple[Tensor, InnerPoints]:
    with watch_points(
        parts, layers=layers, embedding_gradient=True, cls_gradients=True, displacement=displacement
    ) as points:
        return run(parts, batch), points


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", [case for case in CASES if case != "deberta with a convolution"])
def test_a_displaced_embedding_is_the_embedding_with_another_bias(case: str) -> None:
    """A constant added to every E is what the embedding's LayerNorm adds with that much more bias."""
    model, batch = example(case, **({"norm_bias": True} if case.startswith("modernbert") else {}))
    parts = encoder_parts(model)
    step_H = normal(parts.embedding_size) / 10
    step_BLH = step_H * batch.attention_mask_BL[..., None]
    plain = run(parts, batch)
    beside, points = displaced(parts, batch, Displacement(step_BLH, None))
    assert points.at_embedding_BLH is None
    norm = [module for module in parts.embeddings.modules() if isinstance(module, nn.LayerNorm)][-1]
    with torch.no_grad():
        norm.bias += step_H
    expected = run(parts, batch)
    assert (expected - plain).abs().max() > 0.01
    # ModernBERT computes attention's softmax and its rotations in fp32 whatever its weights: a last bit of E may
    # move a product by 6e-8, and some hundred of them reach a logit through four layers.
    tolerance = 1e-5 if case.startswith("modernbert") else 1e-11
    assert torch.allclose(beside, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_a_displaced_cls_is_the_next_layers_displaced_input(case: str) -> None:
    model, batch = example(case)
    parts = encoder_parts(model)
    step_BKH = normal(len(LENGTHS), 2, parts.hidden_size) / 10

    def add(place: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            moved_BLH = inputs[0].clone()
            moved_BLH[:, 0] += step_BKH[:, place]
            return moved_BLH, *inputs[1:]

        return hook

    plain, (beside, points) = run(parts, batch), displaced(parts, batch, Displacement(None, step_BKH), LAYERS)
    handles = [
        parts.layers[layer].register_forward_pre_hook(add(place)) for place, layer in enumerate(LAYERS)
    ]
    expected = run(parts, batch)
    for handle in handles:
        handle.remove()
    assert (expected - plain).abs().max() > 0.01
    assert torch.equal(beside, expected)
    assert list(points.cls_states_BH) == list(LAYERS)
    assert points.at_layers_BLH == {}
    first = by_autograd(model, batch)[2][1][:, 0]
    assert torch.equal(points.cls_states_BH[1], first + step_BKH[:, 0])


@pytest.mark.parametrize("case", CASES)
def test_a_small_displacement_changes_the_signal_by_its_gradient(case: str) -> None:
    """Central difference of step ε: ε²-errors of the third derivative, and rounding / ε."""
    model, batch = example(case)
    parts = encoder_parts(model)
    embedding_BLVH, cls_BKVH, _ = hooked(model, batch)
    gradients = (embedding_BLVH[:, :, 0], cls_BKVH[:, :, 0])
    directions = tuple(normal(*g.shape, seed=seed) / 10 for seed, g in enumerate(gradients))
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    assert isinstance(expected, Tensor)
    # ModernBERT rounds to fp32 inside: 6e-8 of a signal of size 10, over the step
    step, tolerance = (1e-3, 1e-2) if case.startswith("modernbert") else (1e-4, 1e-4)
    plus, minus = (
        two_signals(displaced(parts, batch, Displacement(e * sign * step, c * sign * step), LAYERS)[0])[0]
        for sign in (1, -1)
        for e, c in [directions]
    )
    assert abs(expected) > 0.01
    assert abs((plus - minus) / (2 * step) - expected) < tolerance * abs(expected)


def test_hooks_are_gone_afterwards_also_after_an_error() -> None:
    model = tiny_encoder(layers=4)
    parts = encoder_parts(model)
    before = num_hooks(model)
    with watch_points(parts, layers=LAYERS, embedding_gradient=True, cls_gradients=False):
        assert num_hooks(model) == before + 3
    assert num_hooks(model) == before

    def fail() -> None:
        with watch_points(parts, layers=LAYERS, embedding_gradient=True, cls_gradients=True):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert num_hooks(model) == before


def test_only_what_was_asked_for_is_recorded() -> None:
    model, batch = example("bert")
    parts = encoder_parts(model)
    with watch_points(parts, layers=(), embedding_gradient=False, cls_gradients=True) as points:
        signals_V = two_signals(run(parts, batch))
    assert points == InnerPoints(embedding_BLH=points.embedding_BLH)
    no_graph = {"create_graph": False, "retain_graph": False}
    assert gradients_at(signals_V, points, layers=(), **no_graph) == (None, None)
    with watch_points(parts, layers=(2,), embedding_gradient=False, cls_gradients=False) as points:
        signals_V = two_signals(run(parts, batch))
    assert list(points.cls_states_BH) == [2]
    assert gradients_at(signals_V, points, layers=(2,), **no_graph) == (None, None)


def test_a_retained_graph_is_there_for_another_backward() -> None:
    model, batch = example("bert")
    parts = encoder_parts(model)
    for retain in (True, False):
        with watch_points(parts, layers=LAYERS, embedding_gradient=True, cls_gradients=True) as points:
            logits_BC = run(parts, batch)
            gradients_at(
                two_signals(logits_BC), points, layers=LAYERS, create_graph=False, retain_graph=retain
            )
        if retain:
            logits_BC.sum().backward()
            assert model.get_input_embeddings().weight.grad.norm() > 0
        else:
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                logits_BC.sum().backward()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_itself_does_not_change_even_under_dropout(family: str) -> None:
    model, batch = example(family, dropout=0.2)
    parts = encoder_parts(model.train())
    logits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        logits.append(forward(model, batch).logits)
    torch.manual_seed(1)
    with watch_points(parts, layers=LAYERS, embedding_gradient=True, cls_gradients=True):
        found = run(parts, batch)
    assert not torch.allclose(logits[0], logits[1])
    assert torch.equal(found, logits[0])


@pytest.mark.parametrize("case", CASES)
def test_the_embedding_output_alone_computes_no_layer(case: str) -> None:
    model, batch = example(case)
    _, _, points = hooked(model, batch)
    parts = encoder_parts(model)
    for layer in parts.layers:
        layer.register_forward_pre_hook(lambda *_: pytest.fail("a layer was computed"))
    found = embedding_output_BLH(parts, batch.inputs)
    assert points.embedding_BLH is not None
    assert torch.equal(found, points.embedding_BLH)
    assert not found.requires_grad
