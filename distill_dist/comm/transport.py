"""Which errors of torch mean that a peer is gone or hangs."""

from __future__ import annotations

import torch.distributed as dist

# gloo raises plain RuntimeErrors; these words stand in those about a peer
_WORDS = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")


def is_of_a_peer(error: BaseException) -> bool:
    """Whether a collective failed because of another process, not because of what was asked of it."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _WORDS)
