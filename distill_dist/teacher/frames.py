"""Messages between a host and its worker: a JSON header and raw bytes, over a socket pair."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

_SIZES = struct.Struct("<IQ")  # bytes of the header, of the body
_MOST_HEADER = 1 << 24


class Closed(ConnectionError):
    """The other side is gone."""


def send(connection: socket.socket, header: dict[str, Any], body: bytes = b"", *, timeout_s: float) -> None:
    """One message. Raises Closed, and TimeoutError when the other side does not read it within ``timeout_s``."""
    text = json.dumps(header).encode()
    connection.settimeout(timeout_s)
    try:
        connection.sendall(_SIZES.pack(len(text), len(body)) + text + body)
    except TimeoutError:
        raise
    except OSError as error:
        raise Closed(str(error)) from error


def receive(connection: socket.socket, *, timeout_s: float | None) -> tuple[dict[str, Any], bytes]:
    """The next message, (header, body). Raises Closed; TimeoutError when it is not whole within ``timeout_s``."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    header_bytes, body_bytes = _SIZES.unpack(_read(connection, _SIZES.size, deadline))
    if header_bytes > _MOST_HEADER:
        raise Closed(f"a header of {header_bytes} bytes is none of ours")
    header: dict[str, Any] = json.loads(_read(connection, header_bytes, deadline))
    return header, bytes(_read(connection, body_bytes, deadline))


def _read(connection: socket.socket, size: int, deadline: float | None) -> bytearray:
    found, got = bytearray(size), 0
    view = memoryview(found)
    while got < size:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("the message is late")
        connection.settimeout(left)
        try:
            count = connection.recv_into(view[got:])
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(str(error)) from error
        if not count:
            raise Closed("the other side has ended")
        got += count
    return found
