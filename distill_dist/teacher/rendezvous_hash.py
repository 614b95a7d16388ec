"""Which host keeps a row: highest random weight (Thaler & Ravishankar, IEEE/ACM ToN 6(1), 1998).

Nobody keeps a table: whoever knows the hosts' names knows the owners. When a host is lost, each of its rows
goes to that row's next owner, so that its share spreads evenly over the others and no other row moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from distill_dist.curriculum.hashing import mix


def owners(key: bytes, hosts: Sequence[str]) -> list[str]:
    """All of ``hosts`` in order of preference for ``key``: its owner, then who follows when that is lost, ….

    The same in every process and for every order of ``hosts``. Raises ValueError where a name stands twice.
    """
    return [hosts[place] for place in rank_hosts([key], hosts)[0].tolist()]


def rank_hosts(keys: Sequence[bytes], hosts: Sequence[str]) -> np.ndarray:
    """``owners`` of many keys at once, as places in ``hosts``: int [keys, hosts].

    One hash for every key and one for every name, mixed in pairs: hashing every pair costs ten times as much.
    """
    if len(set(hosts)) < len(hosts):
        raise ValueError(f"the hosts of cached rows need distinct names, got {list(hosts)}")
    names = _hashes([host.encode() for host in hosts])
    # No ties: names differ, and both steps are bijections.
    weights = mix(_hashes(keys)[:, None] ^ names)
    return weights.argsort(axis=1)[:, ::-1]


def _hashes(contents: Sequence[bytes]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return np.frombuffer(digests, dtype="<u8")
