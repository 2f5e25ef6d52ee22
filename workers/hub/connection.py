"""One client's socket after the handshake: a bounded outbox and a reader, without a greenlet.

The hub passes bytes that many connections share. `send` gives them to the kernel at once. The
`Outbox` keeps the bytes that the kernel does not take, until the `Poller` reports that the socket
is writable. The poller's callback passes input to the `Transport`, so nothing here may block. A
worker has tens of thousands of idle connections, so a connection makes its outbox only when it
needs one.

PERF: the hub writes to most connections without a method call. `direct_fd` is the descriptor for
that while the connection is open and has no outbox; else it is -1. If the kernel takes only a part
of a write, the hub calls `wrote`.

Invariants: all output goes through `send`, `close` or `direct_fd`, so frames never interleave. The
close frame is the last output. A full outbox closes its own connection and delays no other one. The
connection calls `Owner.left` once when it takes no more events, and `Owner.closed` once when its
socket is closed. Bounds: see `outbox`. Called by `workers.hub.hub`, `workers.hub.replay` and the
transports.
"""

from __future__ import annotations

import socket
from typing import Any, Final, Protocol

from gevent.event import Event

from pylon import metrics
from pylon.auth_context import Caller
from pylon.changelog.scope import Scope
from pylon.runtime.raw_socket import RawSocket
from workers.hub.close_codes import ABNORMAL, TRY_AGAIN_LATER
from workers.hub.outbox import Outbox
from workers.net.poller import READ, WRITE, poller

# Reasons for a pause.
ANSWERING: Final = 1  # messages wait for their responses
OVER_BUDGET: Final = 2  # the client has sent too much, or more of its input is decoded next turn

_RECEIVE_BYTES: Final = 65_536
_RECEIVE_COMPRESSED_BYTES: Final = 4_096  # compressed input may grow to a thousand times its size


class Transport(Protocol):
    """The protocol of a hub's connections: WebSocket or SSE. One object serves all of them."""

    role: str
    heartbeat_s: float
    heartbeat: bytes  # sent to every connection every `heartbeat_s`
    expects_replies: bool  # whether a client that stays silent for two heartbeats is dead

    def frame(self, seq: int, wire: bytes) -> bytes:
        """Return an event as it goes on the wire. All receivers share the bytes."""

    def compress(self, frame: bytes, deflate_window: int) -> bytes:
        """Return a frame compressed for connections with this window, which is not 0."""

    def close_frame(self, code: int, reason: str) -> bytes:
        """Return the last bytes to a client that is closed with `code`."""

    def received(self, connection: Connection, data: bytes) -> None:
        """Handle bytes from the client. Must not block."""

    def resumed(self, connection: Connection) -> None:
        """Handle the input that was left when the connection paused. Must not block."""

    def charge(
        self, connection: Connection, answer_bytes: int = 0, *, work_bytes: int = 0
    ) -> None:
        """Charge work for this connection alone to its budget. Must not block.

        Args:
            answer_bytes: the size of a response.
            work_bytes: the work, as the number of input bytes that cost the same CPU time.
        """


class SocketOwner(Protocol):
    """The connection, as its socket sees it."""

    def on_ready(self, events: int) -> None:
        """Handle events that were requested. Must not block."""

    def abort(self) -> None:
        """Close the socket now."""


class ClientSocket(Protocol):
    """A stand-in for a client's socket: the exit of a tunnel (`workers.shards.tunnel_exits`).

    Its methods do as those of a raw socket. It has no descriptor, so it watches itself.
    """

    def fileno(self) -> int:
        """Return -1."""

    def send(self, data: bytes | memoryview) -> int: ...

    def recv(self, size_bytes: int) -> bytes: ...

    def shutdown(self, how: int) -> None: ...

    def close(self) -> None: ...

    def watch(self, owner: SocketOwner, events: int) -> None:
        """Call `owner.on_ready` while one of the events (READ, WRITE) is there."""


class Owner(Protocol):
    """The registry of the connections: the hub."""

    def left(self, connection: Connection) -> None:
        """Remove a connection that takes no more events; its close frame may be unsent yet."""

    def closed(self, connection: Connection) -> None:
        """Forget a connection whose socket is closed."""


class Connection:
    """One open socket of a client."""

    __slots__ = (
        "_close_code",
        "_drained",
        "_outbox",
        "_owner",
        "_pauses",
        "_raw",
        "_requested",
        "_shuts_down",
        "_state",
        "_transport",
        "address",
        "asked_scope",
        "caller",
        "deflate_window",
        "direct_fd",
        "heartbeats_unanswered",
        "is_cursor_exact",
        "last_seq",
        "number",
        "receiver",
        "scope",
        "wants_changes",
    )

    _OPEN, _CLOSING, _CLOSED = range(3)

    def __init__(
        self, raw: RawSocket | ClientSocket, transport: Transport, owner: Owner, caller: Caller,
        address: str,
    ) -> None:
        """Take over a connected, non-blocking socket. Reading begins with `start`."""
        self.caller = caller
        self.address = address
        self.last_seq = 0  # the hub sends only events with a higher seq
        self.number = 0  # from the hub, which counts its connections
        self.heartbeats_unanswered = 0
        self.receiver: Any = None  # the transport's state for input
        self.deflate_window = 0  # the window of permessage-deflate, in bits; 0: no compression
        self.scope: Scope | None = None  # the part of the data that the client gets; None: all
        self.asked_scope: Scope | None = None  # what it asked for: its API key may allow less
        self.is_cursor_exact = False  # whether it has nothing newer than its cursor; once joined
        self.wants_changes = True  # else the hub sends no events
        self._raw = raw
        self._transport = transport
        self._owner = owner
        self.direct_fd = raw.fileno()
        self._outbox: Outbox | None = None  # only while a write waits in it
        self._requested = 0  # the events that the poller watches for
        self._pauses = 0  # the reasons not to read, as bits
        self._drained: Event | None = None  # set when the outbox is empty
        self._state = self._OPEN
        self._shuts_down = False  # shut our side down after the close frame
        self._close_code = ABNORMAL

    def __repr__(self) -> str:
        return f"<Connection {self.address} seq={self.last_seq} outbox={self.outbox_bytes}>"

    @property
    def is_open(self) -> bool:
        """Return whether the connection takes events."""
        return self._state == self._OPEN

    @property
    def outbox_bytes(self) -> int:
        """Return the number of bytes that the kernel has not taken yet."""
        return 0 if self._outbox is None else self._outbox.size_bytes

    def start(self, early: bytes = b"") -> None:
        """Begin to read.

        Args:
            early: the bytes that arrived behind the handshake.
        """
        self._request(READ)
        if early:
            self._transport.received(self, early)

    def pause(self, reason: int) -> None:
        """Read nothing until `resume` was called for every reason. Input stays in the kernel."""
        self._pauses |= reason
        self._request(self._requested & ~READ)

    def resume(self, reason: int, early: bytes = b"") -> None:
        """Withdraw a reason for the pause; read again if it was the last one.

        Args:
            early: the bytes that arrived behind the handshake, if `start` did not get them.
        """
        pauses, self._pauses = self._pauses, self._pauses & ~reason
        if early and self._state != self._CLOSED:
            self._transport.received(self, early)
        if pauses and not self._pauses and self._state != self._CLOSED:
            self._request(self._requested | READ)
            self._transport.resumed(self)

    def send(self, data: bytes, frames: int = 1) -> bool:
        """Send whole frames, now or when the client reads. Never blocks.

        Returns:
            False if the connection does not take them: it is closing or broken, or this write
            filled its outbox and closed it.
        """
        if self._state != self._OPEN:
            return False
        outbox = self._outbox
        if outbox is None:
            return self._offer(data, frames)
        if outbox.is_full(data, frames):
            self._overflow()
            return False
        outbox.put(memoryview(data), frames)
        return True

    def wrote(self, data: bytes, taken_bytes: int, frames: int) -> None:
        """Put the rest of a write to `direct_fd` into the outbox.

        Args:
            taken_bytes: the number of bytes that the kernel took; not all of `data`.
        """
        self._put(memoryview(data)[taken_bytes:], frames)

    def close(
        self, code: int, reason: str = "", *, awaits_peer: bool = True, drops_outbox: bool = False
    ) -> None:
        """Send the close frame behind the outbox, then end. Later calls do nothing.

        The hub closes the socket after limits.SOCKET_CLOSE_S, if the peer does not close it sooner.

        Args:
            awaits_peer: whether the peer replies to the close frame. If not, this side is shut
                down as soon as the close frame is out.
            drops_outbox: send the close frame behind the write under way, and not what waits
                behind that: a client that reads slowly would not get the frame in time.
        """
        if self._state != self._OPEN:
            return
        if drops_outbox and self._outbox is not None:
            self._outbox.keep_first()
        close_frame = self._transport.close_frame(code, reason)
        self._close_code = code
        self._shuts_down = not awaits_peer
        if close_frame and not self._outbox:
            self._offer(close_frame, 0)
        elif close_frame:
            self._put(memoryview(close_frame), 0)
        if self._state != self._OPEN:  # the send of the close frame has failed
            return
        self._state = self._CLOSING
        self.direct_fd = -1
        self._set_drained()
        self._owner.left(self)
        if self._shuts_down and not self._outbox:
            self._shut_down()

    def finish(self) -> None:
        """Close the socket once the outbox is empty: the peer has replied to our close frame."""
        if self._state == self._CLOSING and not self._outbox:
            self.abort()
        else:
            self._shuts_down = True

    def abort(self, code: int = ABNORMAL) -> None:
        """Close the socket now, without a close frame. Later calls do nothing.

        Args:
            code: the label of the metric.
        """
        if self._state == self._CLOSED:
            return
        was_open = self._state == self._OPEN
        if was_open:
            self._close_code = code
        self._state = self._CLOSED
        self.direct_fd = -1
        self._request(0)
        self._outbox = None
        self._raw.close()
        self._set_drained()
        if was_open:
            self._owner.left(self)
        metrics.CONNECTIONS_CLOSED.labels(code=str(self._close_code)).inc()
        self._owner.closed(self)

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until the outbox is empty. Only this method blocks its greenlet.

        Returns:
            False if the time is over or the connection takes no more events.
        """
        if self._state == self._OPEN and self._outbox:
            if self._drained is None:
                self._drained = Event()
            self._drained.clear()
            if not self._drained.wait(timeout_s):
                return False
        return self._state == self._OPEN

    def _offer(self, data: bytes, frames: int) -> bool:
        try:
            sent_bytes = self._raw.send(data)
        except BlockingIOError:
            sent_bytes = 0
        except OSError:
            self.abort()
            return False
        if sent_bytes < len(data):
            self._put(memoryview(data)[sent_bytes:], frames)
        return True

    def _put(self, data: memoryview, frames: int) -> None:
        if self._outbox is None:
            self._outbox = Outbox()
            self.direct_fd = -1
            self._request(self._requested | WRITE)
        self._outbox.put(data, frames)

    def _request(self, events: int) -> None:
        before, self._requested = self._requested, events
        raw = self._raw
        if isinstance(raw, RawSocket):
            poller().change(raw.fileno(), self, before, events)
        elif before != events:
            raw.watch(self, events)

    def _overflow(self) -> None:
        metrics.SLOW_CLIENTS.labels(action="closed").inc()
        self.close(TRY_AGAIN_LATER, "too slow", drops_outbox=True)

    def on_ready(self, events: int) -> None:
        """Write, read, or end a broken connection (`workers.net.poller.Watched`)."""
        if events & WRITE and self._outbox:
            self._send_outbox(self._outbox)
        if events & ~WRITE and self._requested & READ:
            self._read()
        elif events & ~(READ | WRITE):  # broken, and paused
            self.abort()

    def _send_outbox(self, outbox: Outbox) -> None:
        try:
            outbox.send(self._raw)
        except OSError:
            self.abort()
            return
        if not outbox.is_empty:
            return
        self._outbox = None
        self._request(self._requested & ~WRITE)
        if self._state == self._OPEN:
            self.direct_fd = self._raw.fileno()
        self._set_drained()
        if self._shuts_down and self._state == self._CLOSING:
            self._shut_down()

    def _read(self) -> None:
        try:
            size_bytes = _RECEIVE_COMPRESSED_BYTES if self.deflate_window else _RECEIVE_BYTES
            data = self._raw.recv(size_bytes)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if not data:
            self.abort()
            return
        self.heartbeats_unanswered = 0
        self._transport.received(self, data)

    def _set_drained(self) -> None:
        if self._drained is not None:
            self._drained.set()

    def _shut_down(self) -> None:
        # A close over unread input resets the connection, and may destroy the close frame.
        try:
            self._raw.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()
