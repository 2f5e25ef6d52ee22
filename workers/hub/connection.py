"""One client's socket after the handshake: a bounded outbox and a reader, without a greenlet.

The hub hands over shared bytes; `send` gives them to the kernel at once, and only what the
kernel does not take waits in the outbox until the `Poller` says that the socket is writable.
What arrives is handed to the `Transport` in the poller's callback, so nothing here may ever
block. As tens of thousands of connections idle, what only a busy one needs is made when it does.

`direct` is the hub's short cut: a descriptor that whole frames may be written to at once, as
long as the connection is open and nothing waits before them; else -1. Whoever writes there
tells the connection what the kernel did not take (`wrote`).

Invariants: everything that goes out on the socket goes through `send`, `close` or `direct`, so
that frames never interleave. Nothing is sent after the close_frame. The bound of the outbox,
`limits.OUTBOX_BYTES` and `limits.OUTBOX_FRAMES`, counts the writes that wait behind the one under
way. Each counts with `limits.OUTBOX_WRITE_BYTES` at the most, so a message of any size can be
delivered, and a few of them in a row. A client that lets its outbox fill is closed, and no other
client notices. `Owner.left` is called once when the connection stops
receiving, `Owner.gone` once when its socket is closed. Called by `workers.hub.hub`,
`workers.hub.replay` and the transports.
"""

from __future__ import annotations

import socket as socket_module
from collections import deque
from typing import Any, Final, Protocol

from gevent.event import Event

from pylon import limits, metrics
from pylon.auth_context import Caller
from pylon.runtime.raw_socket import RawSocket
from workers.net.poller import READ, WRITE, poller

OVERFLOW: Final = 1013  # try again later: the reconnect pulls what was missed
ABNORMAL: Final = 1006  # never on the wire: the socket died
INTERNAL: Final = 1011

# Reasons for a pause.
ANSWERING: Final = 1  # messages wait for their answers
OVER_BUDGET: Final = 2  # the client has said too much, or has more to be decoded in its next turn

_Waiting = tuple[memoryview, int, int]

_RECEIVE_BYTES: Final = 65_536
_RECEIVE_PACKED_BYTES: Final = 4_096  # it may be a thousand times as much, unpacked


class Transport(Protocol):
    """What WebSocket and SSE do differently. One object for each worker."""

    role: str
    heartbeat_s: float
    heartbeat: bytes  # sent to every connection this often
    expects_replies: bool  # whether a client that stays silent for two heartbeats is dead

    def frame(self, seq: int, wire: bytes) -> bytes:
        """An event as it goes on the socket; made once, shared by all receivers."""

    def packed(self, frame: bytes, deflate_window: int) -> bytes:
        """A frame as it goes to those whose `Connection.packing` this is, if not 0."""

    def close_frame(self, code: int, reason: str) -> bytes:
        """The last bytes to a client that is closed with `code`."""

    def received(self, connection: Connection, data: bytes) -> None:
        """Bytes from the client. Must not block."""

    def resumed(self, connection: Connection) -> None:
        """The connection is read again, after a pause. Must not block."""

    def charge(
        self, connection: Connection, answer_bytes: int = 0, *, work_bytes: int = 0
    ) -> None:
        """Something was done for the connection alone: an answer of this size, and work that costs
        as much as so many bytes that a client says. Must not block."""


class Owner(Protocol):
    """Who keeps the connections (the hub)."""

    def left(self, connection: Connection) -> None:
        """It takes no more events; its close_frame may still be on the way."""

    def gone(self, connection: Connection) -> None:
        """Its socket is closed."""


class Connection:
    """A client that the hub can reach."""

    __slots__ = (
        "_asked",
        "_close_code",
        "_drained",
        "_outbox",
        "_outbox_bytes",
        "_outbox_counted_bytes",
        "_outbox_frames",
        "_owner",
        "_pauses",
        "_raw",
        "_shut",
        "_state",
        "_transport",
        "address",
        "caller",
        "deflate_window",
        "direct",
        "heartbeats_unanswered",
        "last_seq",
        "number",
        "receiver",
    )

    _OPEN, _CLOSING, _CLOSED = range(3)

    def __init__(
        self, raw: RawSocket, transport: Transport, owner: Owner, caller: Caller, address: str
    ) -> None:
        """Take over a connected, non-blocking socket. Reading begins with `start`."""
        self.caller = caller
        self.address = address
        self.last_seq = 0  # when it joins the hub: events up to here are never sent (again)
        self.number = 0  # given by the hub, counting up
        self.heartbeats_unanswered = 0
        self.receiver: Any = None  # the transport's own, for what arrives
        self.deflate_window = 0  # of its frames (`Transport.packed`); 0: not compressed
        self._raw = raw
        self._transport = transport
        self._owner = owner
        self.direct = raw.fileno()
        # (bytes, frames, bytes that count against the bound); never an empty one
        self._outbox: deque[_Waiting] | None = None
        self._outbox_bytes = 0
        self._outbox_counted_bytes = 0
        self._outbox_frames = 0
        self._asked = 0  # of the poller
        self._pauses = 0  # reasons why it is not read
        self._drained: Event | None = None
        self._state = self._OPEN
        self._shut = False
        self._close_code = ABNORMAL

    def __repr__(self) -> str:
        return f"<Connection {self.address} seq={self.last_seq} outbox={self._outbox_bytes}>"

    @property
    def is_open(self) -> bool:
        """Whether it still takes events."""
        return self._state == self._OPEN

    @property
    def outbox_bytes(self) -> int:
        """What the kernel has not taken yet."""
        return self._outbox_bytes

    def start(self, early: bytes = b"") -> None:
        """Begin to read; `early` is what arrived together with the handshake."""
        self._ask(READ)
        if early:
            self._transport.received(self, early)

    def pause(self, reason: int) -> None:
        """Leave what the client sends in the kernel until `resume` was called for every reason."""
        self._pauses |= reason
        self._ask(self._asked & ~READ)

    def resume(self, reason: int) -> None:
        """This is no reason any more; read again if there is no other."""
        pauses, self._pauses = self._pauses, self._pauses & ~reason
        if pauses and not self._pauses and self._state != self._CLOSED:
            self._ask(self._asked | READ)
            self._transport.resumed(self)

    def send(self, data: bytes, frames: int = 1) -> bool:
        """Send whole frames, now or when the client reads. Never blocks.

        Returns:
            False when the connection does not take them: it is closing, dead, or so far
            behind that this write closed it.
        """
        if self._state != self._OPEN:
            return False
        if self._outbox:
            if len(self._outbox) > 1 and self._is_above_bound(data, frames):
                self._overflow()
                return False
            self._put(memoryview(data), frames)
            return True
        return self._offer(data, frames)

    def wrote(self, data: bytes, taken_bytes: int, frames: int) -> None:
        """Of `data`, whole frames written to `direct`, the kernel took the first bytes only."""
        self._put(memoryview(data)[taken_bytes:], frames)

    def close(self, code: int, reason: str = "", *, awaits_peer: bool = True) -> None:
        """Say good-bye after what is in the outbox, then end. Later calls do nothing.

        Args:
            awaits_peer: the peer has something to answer; otherwise our side of the stream
                ends as soon as the close_frame is out. Either way the socket is closed when the
                peer closes, or after `limits.SOCKET_CLOSE_S`.
        """
        if self._state != self._OPEN:
            return
        close_frame = self._transport.close_frame(code, reason)
        self._close_code = code
        self._shut = not awaits_peer
        if close_frame and not self._outbox:
            self._offer(close_frame, 0)
        elif close_frame:
            self._put(memoryview(close_frame), 0)
        if self._state != self._OPEN:  # the close_frame found the socket dead
            return
        self._state = self._CLOSING
        self.direct = -1
        self._set_drained()
        self._owner.left(self)
        if self._shut and not self._outbox:
            self._shut_down()

    def finish(self) -> None:
        """The peer has answered our close_frame, so nothing is under way in either direction:
        close once the outbox is empty."""
        if self._state == self._CLOSING and not self._outbox:
            self.abort()
        else:
            self._shut = True

    def abort(self, code: int = ABNORMAL) -> None:
        """Close the socket now, without a word. Later calls do nothing."""
        if self._state == self._CLOSED:
            return
        was_open = self._state == self._OPEN
        if was_open:
            self._close_code = code
        self._state = self._CLOSED
        self.direct = -1
        self._ask(0)
        self._clear_outbox()
        self._raw.close()
        self._set_drained()
        if was_open:
            self._owner.left(self)
        metrics.CONNECTIONS_CLOSED.labels(code=str(self._close_code)).inc()
        self._owner.gone(self)

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until the outbox is empty; the one call here that blocks its greenlet.

        Returns:
            False when the time is over or the connection no longer takes events.
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

    def _is_above_bound(self, data: bytes, frames: int) -> bool:
        """Whether a write would pass the bound of what waits behind the write under way."""
        assert self._outbox is not None
        _, head_frames, head_bytes = self._outbox[0]
        waiting_bytes = self._outbox_counted_bytes - head_bytes + _counted(data)
        waiting_frames = self._outbox_frames - head_frames + frames
        return waiting_bytes > limits.OUTBOX_BYTES or waiting_frames > limits.OUTBOX_FRAMES

    def _put(self, data: memoryview, frames: int) -> None:
        if self._outbox is None:
            self._outbox = deque()
            self.direct = -1
            self._ask(self._asked | WRITE)
        counted_bytes = _counted(data)
        self._outbox.append((data, frames, counted_bytes))
        self._outbox_bytes += len(data)
        self._outbox_counted_bytes += counted_bytes
        self._outbox_frames += frames
        metrics.SEND_QUEUE_BYTES.observe(self._outbox_bytes)

    def _clear_outbox(self, keep: int = 0) -> None:
        """Drop all but the first `keep` writes."""
        while self._outbox and len(self._outbox) > keep:
            data, frames, counted_bytes = self._outbox.pop()
            self._outbox_bytes -= len(data)
            self._outbox_counted_bytes -= counted_bytes
            self._outbox_frames -= frames
        if not self._outbox:
            self._outbox = None

    def _ask(self, events: int) -> None:
        poller().change(self._raw.fileno(), self, self._asked, events)
        self._asked = events

    def _overflow(self) -> None:
        # The head may be sent in part, and a frame that has begun must end before another.
        self._clear_outbox(keep=1)
        metrics.SLOW_CLIENTS.labels(action="closed").inc()
        self.close(OVERFLOW, "too slow")

    def on_ready(self, events: int) -> None:
        """`workers.net.poller.Watched`: the socket can be written to, or read, or is broken."""
        if events & WRITE and self._outbox:
            self._send_outbox(self._outbox)
        if events & ~WRITE and self._asked & READ:
            self._read()
        elif events & ~(READ | WRITE):  # broken, and nobody is reading
            self.abort()

    def _send_outbox(self, outbox: deque[_Waiting]) -> None:
        while outbox:
            data, frames, counted_bytes = outbox[0]
            try:
                sent_bytes = self._raw.send(data)
            except BlockingIOError:
                return
            except OSError:
                self.abort()
                return
            self._outbox_bytes -= sent_bytes
            if sent_bytes < len(data):
                outbox[0] = (data[sent_bytes:], frames, counted_bytes)
                return
            outbox.popleft()
            self._outbox_counted_bytes -= counted_bytes
            self._outbox_frames -= frames
        self._outbox = None
        self._ask(self._asked & ~WRITE)
        if self._state == self._OPEN:
            self.direct = self._raw.fileno()
        self._set_drained()
        if self._shut and self._state == self._CLOSING:
            self._shut_down()

    def _read(self) -> None:
        try:
            data = self._raw.recv(_RECEIVE_PACKED_BYTES if self.deflate_window else _RECEIVE_BYTES)
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
        # Closing at once could send RST over unread input and destroy the close_frame under way.
        try:
            self._raw.shutdown(socket_module.SHUT_WR)
        except OSError:
            self.abort()


def _counted(data: bytes | memoryview) -> int:
    """With how many bytes a write counts against the bound of the outbox."""
    return min(len(data), limits.OUTBOX_WRITE_BYTES)
