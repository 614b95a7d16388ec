"""Teachers that teach no more although their launched processes stay: who, and why, for the students that miss them.

They stay because launchers kill the siblings of a process that leaves, and others may teach on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch.distributed as dist

from distill_dist.comm.rendezvous import Store


def stand_down(store: Store, name: str, reason: str) -> None:
    """``name`` will not teach again in this run; nobody hears it where student 0, and the store in it, is gone."""
    with contextlib.suppress(dist.DistError):
        store.set(f"down/{name}", reason)


def stood_down(store: Store, names: Iterable[str]) -> dict[str, str]:
    """Those of ``names`` that did, with their reasons; none where the store is gone."""
    try:
        return {name: store.get(f"down/{name}").decode() for name in names if store.check([f"down/{name}"])}
    except dist.DistError:
        return {}
