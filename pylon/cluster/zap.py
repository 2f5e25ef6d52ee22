"""ZAP: answers ZeroMQ's question whether a client's key may connect (RFC 27).

libzmq asks a handler of the same context at ``inproc://zeromq.zap.01`` for each handshake of a
CURVE server. The handler admits the keys of the nodes that live. pyzmq's own authenticator answers
in a coroutine of asyncio, which a worker does not have.

Invariants: the handler is bound before the port. The port enforces its domain, so that libzmq
refuses everybody while there is no handler. A refused client gets no reason. Metric:
pylon_cluster_refused_total. Called by `pylon.cluster.port`.
"""

from __future__ import annotations

from typing import Final

import zmq
from zmq.utils import z85

from pylon import log, metrics
from pylon.cluster.peers import Peers
from pylon.cluster.sockets import WatchedSocket

DOMAIN: Final = b"pylon"
_ENDPOINT: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_HWM: Final = 1_000
_QUESTION_FRAMES: Final = 7  # version, request, domain, address, routing id, mechanism, key
_KEY_BYTES: Final = 32

_log = log.get_logger("cluster")
_REFUSED: Final = metrics.CLUSTER_REFUSED.labels("key")


class ZapHandler:
    """Answers for one context. Close it after the sockets that it answers for."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], peers: Peers) -> None:
        self._peers = peers
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _HWM)
        socket.bind(_ENDPOINT)
        self._socket = WatchedSocket(socket, self._on_question)

    def close(self) -> None:
        """Answer no more."""
        self._socket.close()

    def _on_question(self, frames: list[zmq.Frame]) -> None:
        parts = [frame.bytes for frame in frames]
        cut = parts.index(b"") + 1  # behind the route back: libzmq asks by a REQ
        route, question = parts[:cut], parts[cut:]
        request_id = question[1] if len(question) > 1 else b""
        node = None
        if len(question) == _QUESTION_FRAMES:
            version, _, domain, _, _, mechanism, key = question
            if (version, domain, mechanism) == (_VERSION, DOMAIN, b"CURVE"):
                node = self._find_node(key)
        if node is None:
            _REFUSED.inc()
            address = question[3].decode(errors="replace") if len(question) > 3 else ""
            _log.warning("cluster.refused", address=address,
                         hint="no living node of the registry has this key")
            answer = (_VERSION, request_id, b"400", b"refused", b"", b"")
        else:
            answer = (_VERSION, request_id, b"200", b"OK", z85.encode(question[6]), b"")
        self._socket.send([*route, *answer])

    def _find_node(self, key: bytes) -> str | None:
        if len(key) != _KEY_BYTES:
            return None
        return self._peers.find_node(z85.encode(key).decode())
