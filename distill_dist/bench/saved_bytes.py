"""How much a step keeps for its backward."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor


class SavedBytes:
    """Inside the block: bytes of storage that autograd holds for backwards, each storage counted once.

    ``peak`` is the most held at one time, ``live`` what is held now: a graph that is dropped early gives its bytes
    back. Storages of ``excluded`` tensors (parameters) do not count. The same on every device; what an operation
    needs only while it runs is not seen.
    """

    def __init__(self, excluded: Iterable[Tensor] = ()) -> None:
        """Counts nothing before the block is entered."""
        self.live = 0
        self.peak = 0
        self._excluded = {_storage(tensor) for tensor in excluded}
        self._holders: Counter[tuple[str, int]] = Counter()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> Self:
        """Start counting."""
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting; what is released later is still taken off ``live``."""
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> _Held:
        held = _Held(tensor.detach())  # an output with its history would hold its own graph for ever
        storage, size = _storage(tensor), tensor.untyped_storage().nbytes()
        if storage not in self._excluded and size:
            if not self._holders[storage]:
                self.live += size
                self.peak = max(self.peak, self.live)
            self._holders[storage] += 1
            weakref.finalize(held, self._release, storage, size)
        return held

    def _release(self, storage: tuple[str, int], size: int) -> None:
        self._holders[storage] -= 1
        if not self._holders[storage]:
            self.live -= size


class _Held:
    """A saved tensor; it dies when autograd lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _unpack(held: _Held) -> Tensor:
    return held.tensor


def _storage(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()
