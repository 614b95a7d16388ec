"""What the worker of one member of a sharded teacher is told; apart, because supervisors import no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ShardJob:
    """What a host or a supervisor tells the worker of one member."""

    config: str  # path of the resolved YAML
    launch: dict[str, Any]  # LaunchEnvironment
    run: str  # scope of the rendezvous keys
    leader: int  # global rank
    member: int  # 0 is the leader's
    attempt: int
    threads: int
    connection: int | None  # descriptor of the host's socket; of the leader's worker alone
