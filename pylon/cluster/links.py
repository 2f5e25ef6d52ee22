"""Links: the connections of one process to cluster ports of other nodes.

`Links` keeps a link for each port that the process uses. A link is made when it is first needed,
and closed when nothing has used it for limits.CLUSTER_IDLE_S. Both sides send a beat every
limits.CLUSTER_BEAT_S. After limits.CLUSTER_DEAD_S of silence the link is lost: the other process
has died or is frozen, the network is cut, or it admits this node's key no more. The link is also
lost when a parcel is missing or the other process is a new one. A lost link ends its tunnels
(`TunnelUser.ended`), and its calls with Unavailable. The next use makes a new link.

Invariants: a call ends in its answer, or in Unavailable after limits.CALL_TIMEOUT_S; then the other
node may have executed it or not. Bounds: limits.CALLS_IN_FLIGHT calls and limits.CLUSTER_TUNNELS
tunnels of a link; `outgoing` has those of the bytes. Metrics: pylon_cluster_links,
pylon_cluster_links_lost_total, pylon_cluster_tunnels, pylon_cluster_calls_total. Called by
`pylon.bus.shards` in all workers, and by `workers.shards`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gevent
import msgspec
import zmq
from gevent.hub import Waiter, get_hub

from pylon import limits, log, metrics
from pylon.clock import Clock, RandomSource
from pylon.cluster import envelopes
from pylon.cluster.addresses import worker_endpoint
from pylon.cluster.envelopes import (
    ANSWER,
    BEAT,
    BYE,
    CALL,
    DATA,
    END,
    OPEN,
    RESET,
    TAKEN,
    CallAnswer,
    Envelope,
    OpenTunnel,
)
from pylon.cluster.keys import KeyPair, load_key_pair
from pylon.cluster.outgoing import OutgoingQueue
from pylon.cluster.sockets import WatchedSocket, open_client
from pylon.cluster.tunnels import Tunnel, TunnelUser
from pylon.errors import Unavailable
from pylon.realtime.placement import ShardHome

_TRY_AGAIN: Final = "Try again in a moment"
_NAME_BYTES: Final = 12
_WANTED: Final = ("idle", "closed")  # reasons for which this process closes a link

_log = log.get_logger("cluster")
_ENTRIES: Final = metrics.CLUSTER_TUNNELS.labels("entry")
_CALLS: Final = {
    result: metrics.CLUSTER_CALLS.labels(result) for result in ("answered", "refused", "failed")
}


class Link:
    """A connection to one port. It is used until it is lost or closed."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server_key: str,
        keys: KeyPair, clock: Clock, name: str, on_lost: Callable[[Link, str], None],
    ) -> None:
        """
        Args:
            name: random; no other link of any process has it.

        Raises:
            zmq.ZMQError: the endpoint or the key is malformed.
        """
        self.endpoint = endpoint
        self._clock = clock
        self._on_lost = on_lost
        self._session: str | None = None  # of the port
        self._expected = 1  # the number of its next parcel
        self._next_id = 1
        self._tunnel_by_id: dict[int, Tunnel] = {}
        self._waiter_by_id: dict[int, Waiter[CallAnswer]] = {}
        self._loop = get_hub().loop
        self.is_open = True
        self.heard_s = self.used_s = clock.monotonic_s()
        socket = open_client(context, endpoint, keys, server_key, name.encode())
        self._socket = WatchedSocket(socket, self._on_message)
        self._queue = OutgoingQueue(name, self._transmit, self._on_drained)
        self.beat()

    @property
    def is_used(self) -> bool:
        """Whether tunnels or calls are open."""
        return bool(self._tunnel_by_id or self._waiter_by_id)

    def open_tunnel(self, user: TunnelUser, opening: OpenTunnel) -> Tunnel:
        """Open a tunnel. Never blocks; a refusal comes to `user.ended`.

        Raises:
            Unavailable: the link has too many tunnels, or is full.
        """
        if len(self._tunnel_by_id) >= limits.CLUSTER_TUNNELS or self._queue.is_full:
            raise Unavailable("Too many connections go to this shard's node", hint=_TRY_AGAIN)
        tunnel = Tunnel(
            self._take_id(), self._queue, self._forget, window_bytes=limits.CLUSTER_WINDOW_BYTES
        )
        tunnel.user = user
        self._tunnel_by_id[tunnel.number] = tunnel
        _ENTRIES.inc()
        self._queue.put(OPEN, tunnel.number, envelopes.encode(opening))
        return tunnel

    def call(self, command: bytes) -> bytes:
        """Have the other process execute a command; return its answer. Blocks this greenlet.

        Raises:
            Unavailable: the link has too many calls or is lost, or no answer came in time.
            PylonError: the error that the other process answered.
        """
        if len(self._waiter_by_id) >= limits.CALLS_IN_FLIGHT or self._queue.is_full:
            _CALLS["refused"].inc()
            raise Unavailable("Too many calls to a shard's node are in flight", hint=_TRY_AGAIN)
        number = self._take_id()
        waiter: Waiter[CallAnswer] = Waiter()
        self._waiter_by_id[number] = waiter
        answer = None
        try:
            self._queue.put(CALL, number, command)
            with gevent.Timeout(limits.CALL_TIMEOUT_S, False):
                answer = waiter.get()
        finally:
            self._waiter_by_id.pop(number, None)
            _CALLS["failed" if answer is None else "answered"].inc()
        if answer is None:
            raise Unavailable(
                f"No answer from a shard's node within {limits.CALL_TIMEOUT_S:g} s",
                hint=_TRY_AGAIN,
            )
        if answer.error is not None:
            raise answer.error.to_exception()
        body: bytes = answer.body
        return body

    def beat(self) -> None:
        """Send a beat."""
        self._queue.put(BEAT, 0)

    def lose(self, reason: str) -> None:
        """Close the link, end its tunnels and fail its calls. Idempotent."""
        if not self.is_open:
            return
        self.is_open = False
        if reason in _WANTED:
            self._queue.put(BYE, 0)
            self._queue.flush()
        self._queue.close()
        self._socket.close()
        for waiter in self._waiter_by_id.values():
            lost = Unavailable("The connection to the shard's node is lost", hint=_TRY_AGAIN)
            self._loop.run_callback(waiter.throw, lost)
        tunnels = list(self._tunnel_by_id.values())
        self._tunnel_by_id.clear()
        _ENTRIES.dec(len(tunnels))
        self._on_lost(self, reason)
        for tunnel in tunnels:
            tunnel.end(is_lost=True)

    def _take_id(self) -> int:
        self._next_id += 1
        self.used_s = self._clock.monotonic_s()
        return self._next_id

    def _forget(self, tunnel: Tunnel) -> None:
        if self._tunnel_by_id.pop(tunnel.number, None) is not None:
            _ENTRIES.dec()

    def _on_drained(self) -> None:
        for tunnel in list(self._tunnel_by_id.values()):
            if tunnel.user is not None and not tunnel.is_full:
                tunnel.user.writable()

    def _transmit(self, parcel: bytes) -> bool:
        return self._socket.send((parcel,))

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        parcel = envelopes.decode_parcel(frames[0].bytes)
        if parcel is None:
            metrics.CLUSTER_REFUSED.labels("version").inc()
            return
        self.heard_s = self._clock.monotonic_s()
        if self._session is None:
            self._session = parcel.session
        if parcel.session != self._session or parcel.number != self._expected:
            self.lose("reset")
            return
        self._expected += 1
        for envelope in parcel.envelopes:
            try:
                self._take(envelope)
            except msgspec.MsgspecError as ex:
                _log.error("cluster.unreadable", kind=envelope.kind, error=str(ex))
                self.lose("unreadable")
            if not self.is_open:
                return

    def _take(self, envelope: Envelope) -> None:
        kind = envelope.kind
        if kind == DATA:
            body = envelope.body
            for number in envelope.ids:
                tunnel = self._tunnel_by_id.get(number)
                if tunnel is not None and tunnel.user is not None:
                    tunnel.user.received(body)
        elif kind == ANSWER:
            answer = envelopes.decode_answer(envelope.body)
            for number in envelope.ids:
                waiter = self._waiter_by_id.pop(number, None)
                if waiter is not None:  # else its caller has timed out
                    self._loop.run_callback(waiter.switch, answer)
        elif kind == END:
            error = envelopes.decode_error(envelope.body)
            for number in envelope.ids:
                tunnel = self._tunnel_by_id.get(number)
                if tunnel is not None:
                    self._forget(tunnel)
                    tunnel.end(error)
        elif kind == TAKEN:
            size_bytes = envelopes.decode_number(envelope.body)
            for number in envelope.ids:
                tunnel = self._tunnel_by_id.get(number)
                if tunnel is not None:
                    tunnel.grant(size_bytes)
        elif kind == RESET:
            self.lose("reset")


def open_links(path: Path, clock: Clock, random: RandomSource) -> Links | None:
    """Return the links of a worker, which has the key pair of its node at `path`; None without
    one: no other node shares the database.

    Raises:
        ValueError: the file holds something else.
    """
    keys = load_key_pair(path)
    return None if keys is None else Links(keys, clock, random)


class Links:
    """All links of one process. Make it after any fork; `close` it at the end."""

    def __init__(self, keys: KeyPair, clock: Clock, random: RandomSource) -> None:
        self._keys = keys
        self._clock = clock
        self._random = random
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._link_by_port: dict[tuple[str, str], Link] = {}  # by endpoint and key
        self._timer: Any = get_hub().loop.timer(limits.CLUSTER_BEAT_S, limits.CLUSTER_BEAT_S)

    def __len__(self) -> int:
        return len(self._link_by_port)

    def find(self, url: str, key: str, worker: str) -> Link:
        """Return the link to a worker's cluster port; make it if there is none.

        Args:
            url: PYLON_CLUSTER_URL of the worker's node.
            key: the public key of that node.

        Raises:
            Unavailable: the address or the key is malformed.
        """
        try:
            endpoint = worker_endpoint(url, worker)
            link = self._link_by_port.get((endpoint, key))
            if link is None:
                link = self._connect(endpoint, key)
        except (ValueError, zmq.ZMQError) as ex:
            raise Unavailable(
                f"The cluster port of a node cannot be used: {ex}",
                hint="Check PYLON_CLUSTER_URL of that node",
            ) from ex
        return link

    def call(self, home: ShardHome, command: bytes) -> bytes:
        """Have a worker of another node execute a command (`pylon.bus.shards.RemoteCalls`).

        Raises: as `find` and `Link.call`.
        """
        return self.find(home.cluster_url, home.curve_key, home.worker).call(command)

    def tick(self) -> None:
        """Send beats, drop the links that are silent, and close those that nobody uses."""
        now_s = self._clock.monotonic_s()
        for link in list(self._link_by_port.values()):
            if now_s - link.heard_s > limits.CLUSTER_DEAD_S:
                link.lose("silent")
            elif not link.is_used and now_s - link.used_s > limits.CLUSTER_IDLE_S:
                link.lose("idle")
            else:
                link.beat()

    def close(self) -> None:
        """Close all links and the context."""
        for link in list(self._link_by_port.values()):
            link.lose("closed")
        self._timer.stop()
        if self._context is not None:
            self._context.term()
            self._context = None

    def _connect(self, endpoint: str, key: str) -> Link:
        if self._context is None:
            self._context = zmq.Context()
        link = Link(
            self._context, endpoint, key, self._keys, self._clock,
            self._random.token_hex(_NAME_BYTES),
            lambda link, reason: self._drop((endpoint, key), link, reason),
        )
        self._link_by_port[endpoint, key] = link
        metrics.CLUSTER_LINKS.set(len(self._link_by_port))
        if len(self._link_by_port) == 1:
            self._timer.again(self.tick)
        return link

    def _drop(self, port: tuple[str, str], link: Link, reason: str) -> None:
        del self._link_by_port[port]
        metrics.CLUSTER_LINKS.set(len(self._link_by_port))
        metrics.CLUSTER_LOST.labels(reason).inc()
        if reason not in _WANTED:
            _log.warning("cluster.lost", endpoint=link.endpoint, reason=reason)
        if not self._link_by_port:
            self._timer.stop()

