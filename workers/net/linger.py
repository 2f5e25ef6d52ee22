"""Lingering close: end our side of a connection, then discard input until the client ends its own.

If a process closes a socket with unread input, the kernel resets the connection, and the reset can
destroy a response that the client has not read yet. So after a refusal the server shuts its side
down and discards what the client still sends. nginx calls this a lingering close.

Invariants: no byte of the input is kept. Bounds: `limit_bytes` of input; the caller closes the
socket at `deadline_s`. Used by `workers.http.connection` and `workers.hub.refused_sockets`.
"""

from __future__ import annotations

import socket
from typing import Final

from pylon.runtime.raw_socket import RawSocket

_RECEIVE_BYTES: Final = 65_536


class LingeringClose:
    """A socket whose last response has been sent."""

    __slots__ = ("_left_bytes", "_sock", "deadline_s")

    def __init__(self, sock: RawSocket, limit_bytes: int, deadline_s: float) -> None:
        """Shut our side of a non-blocking socket down.

        Args:
            limit_bytes: the input to discard before the client is cut off.
            deadline_s: when the caller closes the socket, on the caller's clock.

        Raises:
            OSError: the connection is broken; close the socket.
        """
        self._sock = sock
        self._left_bytes = limit_bytes
        self.deadline_s = deadline_s
        sock.shutdown(socket.SHUT_WR)

    def discard(self, reads: int = 1) -> bool:
        """Discard input until the kernel has no more, with at most `reads` system calls.

        Returns:
            True if there may be more to read now.

        Raises:
            OSError: the client has ended its side, or has sent too much; close the socket.
        """
        for _ in range(reads):
            try:
                size_bytes = len(self._sock.recv(_RECEIVE_BYTES))
            except BlockingIOError:
                return False
            self._left_bytes -= size_bytes
            if not size_bytes or self._left_bytes < 0:
                raise ConnectionAbortedError("the client has ended the connection, or sends on")
        return True
