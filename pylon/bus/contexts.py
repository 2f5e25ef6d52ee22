"""ZeroMQ contexts, one plain and one green for each process, and `open_socket`.

Invariants: every socket has high-water marks and linger 0, so that no socket grows without bound
and none delays an exit. Called only by other modules of `pylon.bus`.
"""

from __future__ import annotations

from typing import Any

import zmq


def plain() -> zmq.Context[zmq.Socket[bytes]]:
    """Return the context of threads: one for each process, and a new one after a fork."""
    return zmq.Context.instance()


def green() -> zmq.Context[zmq.Socket[bytes]]:
    """Return the context whose sockets block a greenlet and not the thread."""
    # The supervisor imports this module and must not import gevent.
    import zmq.green  # type: ignore[import-untyped,unused-ignore]

    context: Any = zmq.green.Context.instance()
    return context  # type: ignore[no-any-return]


def open_socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, hwm_messages: int, *,
    watched: bool = False,
) -> zmq.Socket[bytes]:
    """Open a socket of `kind` (``zmq.DEALER``, ...) that holds at most `hwm_messages` each way.

    Args:
        watched: make a plain socket, also in the green context. Its caller watches the
            descriptor and never blocks.
    """
    socket = context.socket(kind, socket_class=zmq.Socket) if watched else context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm_messages)
    socket.setsockopt(zmq.RCVHWM, hwm_messages)
    return socket
