"""How long a client of the run's store waits for an answer.

Torch sets no limit to most of its questions. The store answers at once while the process that keeps it runs and the way
to it is whole; a link that is cut sends no word, so that its clients would wait for ever.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator

import torch.distributed as dist

_TIMEVAL = "ll"  # of setsockopt: seconds, microseconds


def limit_silence(port: int, seconds: float) -> None:
    """All of this process's connections to a store at ``port``, made so far, fail after ``seconds`` of silence.

    As a DistError ("Socket Timeout"). Such a connection must not be used any more: an answer that comes late would be
    taken for that to the next question.
    """
    limit = struct.pack(_TIMEVAL, int(seconds), int(seconds % 1 * 1e6))
    for connection in _connections(port):
        # torch reads with recv(), which the kernel then ends; it has no option for this (2.13)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def clone_store(store: dist.Store) -> dist.Store:
    """Another connection for another thread, with the limit of the first: a wait in one blocks the others."""
    clone: dist.Store = store.clone()  # type: ignore[attr-defined]
    inner = clone
    while isinstance(inner, dist.PrefixStore):
        inner = inner.underlying_store
    if isinstance(inner, dist.TCPStore):
        limits = [_limit(connection) for connection in _connections(inner.port)]
        limit_silence(inner.port, max(limits))
    return clone


def _limit(connection: socket.socket) -> float:
    size = struct.calcsize(_TIMEVAL)
    seconds, micros = struct.unpack(
        _TIMEVAL, connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, size)
    )
    return float(seconds + micros / 1e6)


def _connections(port: int) -> Iterator[socket.socket]:
    """Of this process to ``port``, whoever opened them; torch does not tell its own."""
    for name in os.listdir("/proc/self/fd"):
        try:
            # a look must not open and close what is no socket: that would let go of the lock on a file (fcntl)
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            connection = socket.socket(fileno=int(name))
        except OSError:
            continue  # closed meanwhile
        try:
            if _peer_port(connection) == port:
                yield connection
        finally:
            connection.detach()  # it stays open, and torch's


def _peer_port(connection: socket.socket) -> int | None:
    try:
        peer = connection.getpeername()
    except OSError:
        return None  # it listens, say
    return int(peer[1]) if isinstance(peer, tuple) and len(peer) > 1 else None
