"""Backward passes into some leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distill_dist.accumulate import OnlyInto


def library_backward(loss: Tensor) -> None:
    """Somebody else's call, whose arguments are not ours to choose."""
    (loss * 2).backward(retain_graph=True)  # type: ignore[no-untyped-call]


@pytest.fixture
def twice() -> tuple[list[nn.Parameter], Tensor, Callable[[], Tensor]]:
    """(weights, the leaf x, a loss that holds a gradient at x)."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        signal = layers(x).sum()
        (at_x,) = torch.autograd.grad(signal, x, create_graph=True)
        return signal + at_x.square().sum()

    return list(layers.parameters()), x, loss


def test_only_the_named_leaves_get_a_gradient(
    twice: tuple[list[nn.Parameter], Tensor, Callable[[], Tensor]],
) -> None:
    weights, x, loss = twice
    library_backward(loss())
    expected = [weight.grad for weight in weights]
    assert x.grad is not None
    x.grad = None
    for weight in weights:
        weight.grad = None
    seen: list[nn.Parameter] = []
    handles = [weight.register_post_accumulate_grad_hook(seen.append) for weight in weights]
    with OnlyInto(weights):
        library_backward(loss())
    assert x.grad is None
    assert all(torch.equal(weight.grad, other) for weight, other in zip(weights, expected, strict=True))
    assert len(seen) == len(weights), "libraries reduce gradients from these hooks"
    for handle in handles:
        handle.remove()
    library_backward(loss())
    assert x.grad is not None, "it ends with the block"


def test_a_leaf_that_the_loss_does_not_reach_is_no_error(
    twice: tuple[list[nn.Parameter], Tensor, Callable[[], Tensor]],
) -> None:
    weights, _, loss = twice
    apart = nn.Parameter(torch.ones(2))
    with OnlyInto([*weights, apart]):
        library_backward(loss())
    assert apart.grad is None
    assert weights[0].grad is not None
