"""Which leaves a backward pass computes gradients for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OnlyInto(TorchFunctionMode):
    """Inside the block ``loss.backward()`` accumulates into ``leaves`` alone, also where a library calls it.

    A step that differentiates twice has other leaves: the embeddings at which the signal's gradient is taken. Their
    own gradient nobody reads, and at frozen embeddings it costs three matrix products of the first layer, one way.
    """

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        super().__init__()
        self._leaves = tuple(leaves)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Every torch call inside the block passes here; ``backward`` gets its ``inputs``."""
        if func is torch.Tensor.backward:
            return func(*args, **{**(kwargs or {}), "inputs": self._leaves})
        return func(*args, **(kwargs or {}))
