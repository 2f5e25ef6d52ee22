"""Cluster port: the end of links at the node of the shards. One in each shards worker.

The port answers calls, and hands the exits of tunnels to the shards worker. It keeps a `_LinkEnd`
for each link; a link whose process is silent for limits.CLUSTER_DEAD_S, or whose node has left the
registry, is dropped with its tunnels.

Invariants: only keys of living nodes connect (`zap`). A call or a tunnel that came over a link is
executed in this process or refused, and never passed to another node: there is one hop. Bounds:
limits.CALLS_IN_FLIGHT calls and limits.CLUSTER_TUNNELS tunnels of all links;
limits.CLUSTER_MESSAGE_BYTES of a parcel that comes; `outgoing` has those of the bytes that leave.
Metrics: pylon_cluster_peers, pylon_cluster_tunnels, pylon_cluster_refused_total. Called by
`workers.shards.server`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import gevent
import msgspec
import zmq
from gevent.hub import get_hub

from pylon import limits, log, metrics
from pylon.clock import Clock, RandomSource
from pylon.cluster import envelopes
from pylon.cluster.envelopes import (
    ANSWER,
    BEAT,
    BYE,
    CALL,
    DATA,
    END,
    OPEN,
    RESET,
    VERSION,
    CallAnswer,
    Envelope,
    OpenTunnel,
    Parcel,
)
from pylon.cluster.keys import KeyPair
from pylon.cluster.outgoing import OutgoingQueue
from pylon.cluster.peers import Peers
from pylon.cluster.sockets import WatchedSocket, open_server
from pylon.cluster.tunnels import Tunnel
from pylon.cluster.zap import DOMAIN, ZapHandler
from pylon.errors import InternalError, PylonError, Unavailable
from pylon.errors.wire import WireError

_TRY_AGAIN: Final = "Try again in a moment"
_SESSION_BYTES: Final = 8

_log = log.get_logger("cluster")
_EXITS: Final = metrics.CLUSTER_TUNNELS.labels("exit")


class TunnelExits(Protocol):
    """Takes the connections that come through tunnels."""

    def open(self, tunnel: Tunnel, opening: OpenTunnel) -> None:
        """Take a tunnel, set its `user`, and serve the connection. Must not block.

        Raises:
            PylonError: the connection is refused; the client's node gets the error.
        """


class _LinkEnd:
    """The state of one link at the port."""

    __slots__ = ("expected", "heard_s", "key", "node", "queue", "session", "tunnel_by_id")

    def __init__(self, session: str, node: str, key: str, queue: OutgoingQueue) -> None:
        self.session = session  # of the link
        self.expected = 1  # the number of its next parcel
        self.node = node
        self.key = key
        self.queue = queue
        self.heard_s = 0.0
        self.tunnel_by_id: dict[int, Tunnel] = {}


class ClusterPort:
    """The port of one process. Make it after any fork; `close` it at the end."""

    def __init__(
        self, endpoint: str, keys: KeyPair, peers: Peers, clock: Clock, random: RandomSource, *,
        answer: Callable[[bytes], bytes], exits: TunnelExits,
    ) -> None:
        """Bind the port.

        Args:
            endpoint: ``tcp://address:port`` of this machine.
            answer: executes a command and returns its answer, in a greenlet of its own. It may
                block, and it may raise a `PylonError`, which the caller gets.

        Raises:
            OSError: the port is taken, or the address is not of this machine.
        """
        self._peers = peers
        self._clock = clock
        self._random = random
        self._answer = answer
        self._exits = exits
        self._calls = 0
        self._tunnels = 0
        self._end_by_name: dict[bytes, _LinkEnd] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap = ZapHandler(self._context, peers)
        socket = open_server(self._context, keys, DOMAIN)
        self._socket = WatchedSocket(socket, self._on_message)
        self._timer: Any = get_hub().loop.timer(limits.CLUSTER_BEAT_S, limits.CLUSTER_BEAT_S)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as ex:
            self.close()
            raise OSError(ex.errno, ex.strerror) from ex

    @property
    def nodes(self) -> list[str]:
        """The node of each link."""
        return [end.node for end in self._end_by_name.values()]

    def tick(self) -> None:
        """Drop the links that are silent, and those of nodes that have left the registry."""
        now_s = self._clock.monotonic_s()
        for name, end in list(self._end_by_name.items()):
            if now_s - end.heard_s > limits.CLUSTER_DEAD_S:
                self._drop(name, "silent")
            elif self._peers.find_node(end.key) is None:
                self._reset(name)
                self._drop(name, "left")

    def close(self) -> None:
        """Drop all links, and close the sockets."""
        for name in list(self._end_by_name):
            self._drop(name, "closed")
        self._timer.stop()
        self._socket.close()
        self._zap.close()
        self._context.term()

    # --- Messages --------------------------------------------------------------------------

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        name = frames[0].bytes
        parcel = envelopes.decode_parcel(frames[-1].bytes)
        if parcel is None:
            metrics.CLUSTER_REFUSED.labels("version").inc()
            return
        end = self._end_by_name.get(name)
        if end is None:
            if parcel.number != 1:  # of a link to this worker's predecessor
                self._reset(name)
                return
            end = self._greet(name, parcel, str(frames[-1].get("User-Id") or ""))
            if end is None:
                return
        if parcel.session != end.session or parcel.number != end.expected:
            self._reset(name)
            self._drop(name, "reset")
            return
        end.expected += 1
        end.heard_s = self._clock.monotonic_s()
        for envelope in parcel.envelopes:
            if envelope.kind == BYE:
                self._drop(name, "closed")
                return
            try:
                self._take(end, envelope)
            except msgspec.MsgspecError as ex:
                _log.error("cluster.unreadable", kind=envelope.kind, node=end.node, error=str(ex))
                self._reset(name)
                self._drop(name, "unreadable")
            if self._end_by_name.get(name) is not end:
                return

    def _greet(self, name: bytes, parcel: Parcel, key: str) -> _LinkEnd | None:
        """Return the end of a new link; None if its node has left since its handshake."""
        node = self._peers.find_node(key)
        if node is None:
            metrics.CLUSTER_REFUSED.labels("key").inc()
            return None
        queue = OutgoingQueue(
            self._random.token_hex(_SESSION_BYTES), lambda data: self._transmit(name, data),
            lambda: self._on_drained(name),
        )
        end = self._end_by_name[name] = _LinkEnd(parcel.session, node, key, queue)
        metrics.CLUSTER_PEERS.set(len(self._end_by_name))
        if len(self._end_by_name) == 1:
            self._timer.again(self.tick)
        return end

    def _take(self, end: _LinkEnd, envelope: Envelope) -> None:
        kind = envelope.kind
        if kind == DATA:
            for number in envelope.ids:
                tunnel = end.tunnel_by_id.get(number)
                if tunnel is not None and tunnel.user is not None:
                    tunnel.user.received(envelope.body)
        elif kind == BEAT:
            end.queue.put(BEAT, 0)
        elif kind == OPEN:
            opening = envelopes.decode_open(envelope.body)
            for number in envelope.ids:
                self._open(end, number, opening)
        elif kind == END:
            for number in envelope.ids:
                tunnel = end.tunnel_by_id.pop(number, None)
                if tunnel is not None:
                    self._count(-1)
                    tunnel.end()
        elif kind == CALL:
            for number in envelope.ids:
                self._call(end, number, envelope.body)

    def _open(self, end: _LinkEnd, number: int, opening: OpenTunnel) -> None:
        tunnel = Tunnel(number, end.queue, lambda tunnel: self._forget(end, tunnel))
        end.tunnel_by_id[number] = tunnel
        self._count(1)
        if self._tunnels > limits.CLUSTER_TUNNELS:
            tunnel.close(Unavailable("Too many connections come from other nodes", hint=_TRY_AGAIN))
            return
        try:
            self._exits.open(tunnel, opening)
        except PylonError as ex:
            tunnel.close(ex)

    def _forget(self, end: _LinkEnd, tunnel: Tunnel) -> None:
        if end.tunnel_by_id.pop(tunnel.number, None) is not None:
            self._count(-1)

    def _count(self, tunnels: int) -> None:
        self._tunnels += tunnels
        _EXITS.set(self._tunnels)

    def _call(self, end: _LinkEnd, number: int, command: bytes) -> None:
        if self._calls >= limits.CALLS_IN_FLIGHT:
            busy = Unavailable("The shards worker is busy", hint=_TRY_AGAIN)
            self._put_answer(end, number, CallAnswer(error=WireError.from_error(busy)))
            return
        self._calls += 1
        gevent.spawn(self._execute, end, number, command)

    def _execute(self, end: _LinkEnd, number: int, command: bytes) -> None:
        try:
            answer = CallAnswer(self._answer(command))
        except PylonError as ex:
            answer = CallAnswer(error=WireError.from_error(ex))
        except msgspec.MsgspecError:  # of a later version
            unknown = Unavailable("The shard's node does not know this command",
                                  hint="Finish the upgrade of all nodes")
            answer = CallAnswer(error=WireError.from_error(unknown))
        except Exception as ex:  # noqa: BLE001  the caller needs an answer to any error
            _log.exception("cluster.call_failed", error=ex)
            failed = InternalError("The call failed; the server's log says why")
            answer = CallAnswer(error=WireError.from_error(failed))
        finally:
            self._calls -= 1
        self._put_answer(end, number, answer)

    @staticmethod
    def _put_answer(end: _LinkEnd, number: int, answer: CallAnswer) -> None:
        end.queue.put(ANSWER, number, envelopes.encode(answer))

    # --- Links -----------------------------------------------------------------------------

    def _transmit(self, name: bytes, parcel: bytes) -> bool:
        try:
            return self._socket.send((name, parcel))
        except zmq.ZMQError:  # EHOSTUNREACH: the connection has gone
            self._drop(name, "unreachable")
            return True

    def _reset(self, name: bytes) -> None:
        """Tell a link to begin anew."""
        parcel = Parcel(VERSION, self._random.token_hex(_SESSION_BYTES), 1, [Envelope(RESET, [0])])
        try:
            self._socket.send((name, envelopes.encode(parcel)))
        except zmq.ZMQError:  # it has gone already
            return

    def _on_drained(self, name: bytes) -> None:
        end = self._end_by_name.get(name)
        for tunnel in [] if end is None else list(end.tunnel_by_id.values()):
            if tunnel.user is not None and not tunnel.is_full:
                tunnel.user.writable()

    def _drop(self, name: bytes, reason: str) -> None:
        end = self._end_by_name.pop(name, None)
        if end is None:
            return
        end.queue.close()
        tunnels = list(end.tunnel_by_id.values())
        end.tunnel_by_id.clear()
        self._count(-len(tunnels))
        metrics.CLUSTER_PEERS.set(len(self._end_by_name))
        metrics.CLUSTER_LOST.labels(reason).inc()
        _log.info("cluster.link_ended", node=end.node, reason=reason, tunnels=len(tunnels))
        if not self._end_by_name:
            self._timer.stop()
        for tunnel in tunnels:
            tunnel.end(is_lost=True)
