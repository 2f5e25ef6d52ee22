"""ZeroMQ contexts: one plain and one green for each process, and how sockets are opened.

Invariants: every socket has its high-water marks set and linger 0, so that no socket grows
without bound and none holds up an exit. Called by the other modules of `pylon.bus` only.
"""

from __future__ import annotations

from typing import Any

import zmq


def plain() -> zmq.Context[zmq.Socket[bytes]]:
    """The context of threads. One for each process (and a new one after a fork)."""
    return zmq.Context.instance()


def green() -> zmq.Context[zmq.Socket[bytes]]:
    """The context whose sockets block a greenlet instead of the thread."""
    # Imported here because the supervisor imports this module and must stay without gevent.
    import zmq.green  # type: ignore[import-untyped,unused-ignore]

    context: Any = zmq.green.Context.instance()
    return context  # type: ignore[no-any-return]


def open_socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, hwm_messages: int, *,
    watched: bool = False,
) -> zmq.Socket[bytes]:
    """A socket of `kind` (``zmq.DEALER``, ...) that holds at most `hwm_messages` each way.

    Args:
        watched: plain, also in the green context: whoever watches its descriptor never blocks.
    """
    socket = context.socket(kind, socket_class=zmq.Socket) if watched else context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm_messages)
    socket.setsockopt(zmq.RCVHWM, hwm_messages)
    return socket
