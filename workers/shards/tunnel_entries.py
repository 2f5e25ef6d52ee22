"""Tunnel entries: connections of clients whose shard lives on another node (`pylon.cluster`).

The worker that accepted such a client sends its request through a tunnel, and then its bytes. It
writes the bytes that come back to the client, as they are. The node of the shard judges everything:
token, policy, codes and frames. This one counts the client's address, and bounds its memory.

If the other node vanishes, a WebSocket is closed with 1012, and an event stream ends with its
`retry:`. Each `send` of the other side has whole frames, so a close frame fits behind any of them.
If no byte has come by then, this worker completes the handshake itself, since a close code is all
that browsers can read; a stream gets an HTTP error.

Invariants: a connection that came through a tunnel never enters another one. Bounds: the outbox of
the connection (a client that reads too slowly is closed with 1013) and the window of the tunnel (a
client that sends too fast is not read). Made by `workers.shards.server`, called by `handler`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pylon import limits
from pylon.cluster.envelopes import OpenTunnel
from pylon.cluster.links import Links
from pylon.cluster.tunnels import Tunnel
from pylon.errors import PylonError, Unavailable
from pylon.realtime.placement import ShardHome
from pylon.runtime.raw_socket import RawSocket
from workers.hub.admission import SubscriberAdmission
from workers.hub.close_codes import (
    GOING_AWAY,
    NO_STATUS,
    SERVICE_RESTART,
    TRY_AGAIN_LATER,
)
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.hub.request import Request
from workers.sse.stream import RETRY
from workers.ws import frames

_THROTTLED: Final = 1  # a reason for a pause; nothing else pauses these connections
_GONE: Final = "the node of this shard is gone"


class EntryTransport:
    """`workers.hub.connection.Transport` of connections that another node serves."""

    role = "shards"
    expects_replies = False  # the other node sends pings
    heartbeat = b""
    heartbeat_s = limits.SOCKET_PING_S

    def __init__(self, *, is_stream: bool) -> None:
        self._is_stream = is_stream

    def frame(self, seq: int, wire: bytes) -> bytes:
        """Never called: no change goes to these connections."""
        return wire

    def compress(self, frame: bytes, deflate_window: int) -> bytes:
        """Never called."""
        return frame

    def close_frame(self, code: int, reason: str) -> bytes:
        """Return the last bytes to a client; none after an end that the other node has sent."""
        if self._is_stream:
            return RETRY if code in (GOING_AWAY, SERVICE_RESTART) else b""
        return b"" if code == NO_STATUS else frames.encode_close(code, reason)

    def received(self, connection: Connection, data: bytes) -> None:
        """Send the client's bytes through the tunnel."""
        connection.receiver.forward(data)

    def resumed(self, connection: Connection) -> None:
        """Nothing is left when a connection pauses."""

    def charge(
        self, connection: Connection, answer_bytes: int = 0, *, work_bytes: int = 0
    ) -> None:
        """Never called: the other node charges for messages."""


class _Entry:
    """One client (`pylon.cluster.tunnels.TunnelUser`)."""

    __slots__ = ("_answer", "_connection", "_has_begun", "_refuse", "_rest", "tunnel")

    def __init__(
        self, connection: Connection, answer: bytes | None, refuse: Callable[[PylonError], bytes]
    ) -> None:
        """
        Args:
            answer: to a handshake; None for an event stream.
            refuse: returns the HTTP response for an error.
        """
        self._answer = answer
        self.tunnel: Tunnel | None = None
        self._connection = connection
        self._refuse = refuse
        self._has_begun = False  # the client has got bytes
        self._rest = b""  # of the client, which the tunnel has not taken

    def forward(self, data: bytes) -> None:
        """Send bytes of the client."""
        tunnel = self.tunnel
        if tunnel is None:
            return
        if not tunnel.send(data):
            self._rest = data
        if tunnel.is_full or self._rest:
            self._connection.pause(_THROTTLED)

    def received(self, data: bytes) -> None:
        """See `TunnelUser`."""
        self._has_begun = True
        if not self._connection.send(data):
            self.leave()

    def writable(self) -> None:
        """See `TunnelUser`."""
        tunnel = self.tunnel
        if tunnel is None:
            return
        if self._rest and tunnel.send(self._rest):
            self._rest = b""
        if not (self._rest or tunnel.is_full):
            self._connection.resume(_THROTTLED)

    def ended(self, error: PylonError | None, *, is_lost: bool) -> None:
        """See `TunnelUser`."""
        self.tunnel = None
        connection = self._connection
        if not self._has_begun:
            if error is None and not is_lost:
                error = Unavailable("The node of this shard has ended the connection")
            if self._answer is None:
                gone = error or Unavailable(_GONE, hint="Connect again")
                connection.send(self._refuse(gone))
                connection.close(NO_STATUS, awaits_peer=False)
                return
            connection.send(self._answer)
        if is_lost:
            connection.close(SERVICE_RESTART, _GONE, awaits_peer=False)
        elif error is not None:
            connection.close(TRY_AGAIN_LATER, error.code, awaits_peer=False)
        else:
            connection.close(NO_STATUS, awaits_peer=False)

    def leave(self) -> None:
        """End the tunnel: the client has left, or takes no more."""
        tunnel, self.tunnel = self.tunnel, None
        if tunnel is not None:
            tunnel.close()


class TunnelEntries:
    """All entries of one worker."""

    def __init__(
        self, links: Links, admission: SubscriberAdmission, sockets: Hub, streams: Hub, hops: int,
        refuse: Callable[[PylonError, Request], bytes],
    ) -> None:
        """
        Args:
            sockets: the hub of the WebSockets, with an `EntryTransport`; `streams` likewise.
            hops: trusted proxies (PYLON_TRUST_PROXY_HOPS).
            refuse: returns the HTTP response for the error of a request.
        """
        self._links = links
        self._admission = admission
        self._sockets = sockets
        self._streams = streams
        self._hops = hops
        self._refuse = refuse
        for hub in (sockets, streams):
            admission.serve(hub)
            hub.on_closed(_note_closed)

    def enter(
        self, home: ShardHome, request: Request, raw: RawSocket, early: bytes, *,
        on_main_port: bool, answer: bytes | None,
    ) -> None:
        """Serve a client through a tunnel to the home of its shard. Never blocks.

        Args:
            early: the bytes that arrived behind the request.
            answer: to the handshake, if the other node does not give one; None: the client wants
                an event stream.

        Raises:
            Unavailable: the address of the other node is malformed, or too many tunnels go there.
            Draining, StoreUnavailable, SocketLimit: as `SubscriberAdmission.enter`. In each case
                the caller still owns the socket.
        """
        link = self._links.find(home.cluster_url, home.curve_key, home.worker)
        connection = self._admission.enter_tunnel(
            raw, request.address(self._hops), self._streams if answer is None else self._sockets
        )
        entry = _Entry(connection, answer, lambda error: self._refuse(error, request))
        connection.receiver = entry
        try:
            entry.tunnel = link.open_tunnel(
                entry, OpenTunnel(request.peer, on_main_port, request.head + early)
            )
        except Unavailable as ex:
            entry.ended(ex, is_lost=False)
            return
        connection.start()


def _note_closed(connection: Connection) -> None:
    connection.receiver.leave()
