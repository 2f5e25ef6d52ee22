"""ZAP: answers ZeroMQ's question whether a client's key may connect (RFC 27).

libzmq asks a handler of the same context at ``inproc://zeromq.zap.01`` for each handshake of a
CURVE server. The handler admits the keys of the nodes that live. A node that has just started may
connect before this one has heard of it. So a question about an unknown key waits for the next
reports (`Peers`), `_REPORTS` of them, and is refused then. pyzmq's own authenticator answers in a
coroutine of asyncio, which a worker does not have.

Invariants: the handler is bound before the port. The port enforces its domain, so that libzmq
refuses everybody while there is no handler. A refused client gets no reason. Bound: `_WAITING`
questions; beyond it the oldest is refused. Metric: pylon_cluster_refused_total. Called by `port`.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

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
_WAITING: Final = 64
_REPORTS: Final = 3  # one comes every two seconds, and with each change

_log = log.get_logger("cluster")
_REFUSED: Final = metrics.CLUSTER_REFUSED.labels("key")


class _Question(NamedTuple):
    route: list[bytes]  # back to the asker
    request_id: bytes
    address: str
    key: str
    report: int  # the number of the last one before it


class ZapHandler:
    """Answers for one context. Close it after the sockets that it answers for."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], peers: Peers) -> None:
        self._peers = peers
        self._waiting: deque[_Question] = deque()
        self._report = 0
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _HWM)
        socket.bind(_ENDPOINT)
        self._socket = WatchedSocket(socket, self._on_question)
        peers.on_report(self._look_again)

    def close(self) -> None:
        """Answer no more."""
        self._waiting.clear()
        self._socket.close()

    def _on_question(self, frames: list[zmq.Frame]) -> None:
        parts = [frame.bytes for frame in frames]
        cut = parts.index(b"") + 1  # behind the route back: libzmq asks as a REQ does
        route, rest = parts[:cut], parts[cut:]
        key, address = "", ""
        if len(rest) == _QUESTION_FRAMES and len(rest[6]) == _KEY_BYTES:
            version, _, domain, peer, _, mechanism, raw_key = rest
            if (version, domain, mechanism) == (_VERSION, DOMAIN, b"CURVE"):
                key, address = z85.encode(raw_key).decode(), peer.decode(errors="replace")
        request_id = rest[1] if len(rest) > 1 else b""
        question = _Question(route, request_id, address, key, self._report)
        if not key:
            self._refuse(question)
        elif self._peers.find_node(key) is not None:
            self._admit(question)
        else:
            self._waiting.append(question)
            if len(self._waiting) > _WAITING:
                self._refuse(self._waiting.popleft())

    def _look_again(self) -> None:
        self._report += 1
        questions, self._waiting = self._waiting, deque()
        for question in questions:
            if self._peers.find_node(question.key) is not None:
                self._admit(question)
            elif self._report - question.report >= _REPORTS:
                self._refuse(question)
            else:
                self._waiting.append(question)

    def _admit(self, question: _Question) -> None:
        self._answer(question, b"200", b"OK", question.key.encode())

    def _refuse(self, question: _Question) -> None:
        _REFUSED.inc()
        _log.warning("cluster.refused", address=question.address,
                     hint="no living node of the registry has the key of this client")
        self._answer(question, b"400", b"refused", b"")

    def _answer(self, question: _Question, status: bytes, text: bytes, user_id: bytes) -> None:
        self._socket.send(
            [*question.route, _VERSION, question.request_id, status, text, user_id, b""]
        )
