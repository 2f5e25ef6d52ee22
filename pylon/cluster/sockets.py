"""Sockets of the cluster: plain ZeroMQ sockets, which gevent's event loop watches.

A cluster has a ZeroMQ context of its own in each process: its thread encrypts, and must not delay
the bus. No greenlet waits for a socket. The descriptor of a ZeroMQ socket becomes readable when
something has changed, and once only. So a `WatchedSocket` looks again after each send, and reads
until nothing is left.

Bounds: `_MESSAGES_A_TURN` messages in one turn of the loop; limits.CLUSTER_HWM parcels for each
link each way. Called by `links`, `port` and `zap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq
from gevent.hub import get_hub

from pylon import limits
from pylon.cluster.keys import KeyPair

_READ: Final = 1  # libev's event mask
_MESSAGES_A_TURN: Final = 16
_HANDSHAKE_MS: Final = 5_000
_RECONNECT_MS: Final = 100
_LINGER_MS: Final = 100
_RECONNECT_MAX_MS: Final = 1_000


class WatchedSocket:
    """A socket whose messages go to a callback of the event loop."""

    __slots__ = ("_again", "_loop", "_on_message", "_socket", "_watcher")

    def __init__(
        self, socket: zmq.Socket[bytes], on_message: Callable[[list[zmq.Frame]], None]
    ) -> None:
        """
        Args:
            on_message: gets the frames of each message. It must not block.
        """
        self._socket = socket
        self._on_message = on_message
        self._loop = get_hub().loop
        self._again = False
        self._watcher: Any = self._loop.io(socket.getsockopt(zmq.FD), _READ)
        self._watcher.start(self._read)
        self._look_again()

    def send(self, frames: Sequence[bytes]) -> bool:
        """Send a message; return False if the socket does not take it now.

        Raises:
            zmq.ZMQError: there is no such receiver (EHOSTUNREACH), or the socket is closed.
        """
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            self._look_again()
        return True

    def close(self) -> None:
        """Close the socket, and watch it no more. Idempotent. The last message still leaves."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
            self._socket.close(linger=_LINGER_MS)

    def _look_again(self) -> None:
        if not self._again:
            self._again = True
            self._loop.run_callback(self._read_again)

    def _read_again(self) -> None:
        self._again = False
        self._read()

    def _read(self) -> None:
        for _ in range(_MESSAGES_A_TURN):
            if self._watcher is None:  # a callback has closed it
                return
            events: Any = self._socket.getsockopt(zmq.EVENTS)
            if not events & zmq.POLLIN:
                return
            self._on_message(self._socket.recv_multipart(zmq.NOBLOCK, copy=False))
        self._look_again()


def open_client(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: KeyPair, server_key: str,
    name: bytes,
) -> zmq.Socket[bytes]:
    """Open the DEALER of a link, which connects to `endpoint` in the background.

    Args:
        server_key: the public key of the other node.
        name: the routing id, which no other link may ever have had.

    Raises:
        zmq.ZMQError: the endpoint or the key is malformed.
    """
    socket = _open(context, zmq.DEALER, keys)
    try:
        socket.setsockopt(zmq.ROUTING_ID, name)
        socket.setsockopt(zmq.CURVE_SERVERKEY, server_key.encode())
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        socket.connect(endpoint)
    except zmq.ZMQError:
        socket.close()
        raise
    return socket


def open_server(
    context: zmq.Context[zmq.Socket[bytes]], keys: KeyPair, domain: bytes
) -> zmq.Socket[bytes]:
    """Open the ROUTER of a port, not bound. Its ZAP handler must be there."""
    socket = _open(context, zmq.ROUTER, keys)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.ZAP_DOMAIN, domain)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.CLUSTER_MESSAGE_BYTES)
    return socket


def _open(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, keys: KeyPair
) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, limits.CLUSTER_HWM)
    socket.setsockopt(zmq.RCVHWM, limits.CLUSTER_HWM)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    return socket
