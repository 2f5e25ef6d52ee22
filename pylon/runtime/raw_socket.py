"""Raw sockets: the only module that uses CPython's private module `_socket`.

`socket.socket` and gevent's sockets are wrappers around `_socket.socket`. gevent's wrapper waits
where a call would block, and each wrapper is a second object for each client. Code that runs in
callbacks of the event loop must never wait, so it uses the wrapped class itself. Its `_accept` is
the method behind `socket.socket.accept`, without the wrapper.

Invariant: every raw socket made here is non-blocking. `tests/test_raw_socket.py` fails if another
version of CPython changes `_socket`. Called by `workers.net`, `workers.http`, `workers.hub` and
`pylon.bus.passing`.
"""

from __future__ import annotations

import _socket
import os
import socket
from typing import Any, TypeAlias

RawSocket: TypeAlias = _socket.socket


def take_over(sock: socket.socket) -> RawSocket:
    """Return the raw socket of a wrapper, which is detached and unusable afterwards."""
    raw = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
    raw.setblocking(False)
    return raw


def accept(listener: RawSocket) -> tuple[RawSocket, Any]:
    """Accept one connection.

    Returns:
        The connection, and the address of its client.

    Raises:
        OSError: no connection waits (BlockingIOError), it has ended, or the process has no
            descriptor or memory for it.
    """
    fd, address = listener._accept()  # type: ignore[attr-defined]
    raw = _socket.socket(listener.family, listener.type, listener.proto, fd)
    raw.setblocking(False)
    return raw, address


def move_lower(raw: RawSocket) -> RawSocket:
    """Return the socket with the lowest free descriptor; `raw` is closed."""
    moved = _socket.socket(raw.family, raw.type, raw.proto, os.dup(raw.fileno()))
    raw.close()
    moved.setblocking(False)
    return moved


def host_of(address: Any) -> str:
    """Return the host of a client's address; "" for a Unix socket, which has none."""
    return str(address[0]) if isinstance(address, tuple) else ""
