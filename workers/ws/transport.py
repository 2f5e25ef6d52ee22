"""WebSocket as a transport of the hub: text frames out, and the conversation with the client.

Invariants: an event's frame is made once and shared, and packed (permessage-deflate) once for
all who agreed to the same window; frames below `limits.DEFLATE_MIN_BYTES` go as they are. Every
ping is answered, every close is answered with its own code, every breach of the protocol with
the code that RFC 6455 names. Messages go to `on_text` (the ws worker's is
`workers.ws.conversation`) and `on_binary`; without one they are counted and ignored
(spec/realtime.md §2.3). The transport decodes the input of one socket in steps of a bounded size,
between which all other sockets have their turn; it does not read a socket that has spent its
budget (`workers.ws.budgets`). Metric: pylon_sockets_over_budget_total. Used by the ws and the
shards workers. All methods run in the poller's callbacks, in the feed or in a greenlet of their
own, and never block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import gevent
import msgspec

from pylon import limits, metrics
from pylon.clock import Clock, SystemClock
from pylon.errors import PylonError, ResyncRequired
from workers.hub.close_codes import NO_STATUS, POLICY, SERVICE_RESTART, TRY_AGAIN_LATER
from workers.hub.connection import OVER_BUDGET, Connection
from workers.ws import deflate, frames
from workers.ws.budgets import AddressBudgets, Inbox, value_cost_bytes

_STEP_S: Final = 0.000_1  # between two steps of one socket; epoll makes a millisecond of it
_OVER: Final = {
    result: metrics.SOCKETS_OVER_BUDGET.labels(result) for result in ("paused", "closed")
}


class WebSocketTransport:
    """`workers.hub.connection.Transport` and `workers.hub.admission.StreamTransport` for
    WebSocket."""

    expects_replies = True
    preamble = b""  # the handshake's 101 was all
    heartbeat = frames.encode(frames.PING, b"")

    def __init__(
        self, role: str, max_message_bytes: int, heartbeat_s: float = limits.SOCKET_PING_S, *,
        clock: Clock | None = None, counts_addresses: bool = True,
    ) -> None:
        """`counts_addresses`: the sockets of one address share a budget."""
        self.role = role
        self.heartbeat_s = heartbeat_s
        self._max_message_bytes = max_message_bytes
        self._clock = clock or SystemClock()
        self._addresses = AddressBudgets(self._clock, is_counting=counts_addresses)
        self.on_text: Callable[[Connection, str], None] = _ignore
        self.on_binary: Callable[[Connection, bytes], None] = _ignore

    def frame(self, seq: int, wire: bytes) -> bytes:
        """The event's JSON as one text frame."""
        return frames.encode(frames.TEXT, wire)

    def packed(self, frame: bytes, deflate_window: int) -> bytes:
        """See the function."""
        return packed(frame, deflate_window)

    def close_frame(self, code: int, reason: str) -> bytes:
        """A close frame."""
        if code == NO_STATUS:
            return frames.encode(frames.CLOSE, b"")
        return frames.encode_close(code, reason)

    def received(self, connection: Connection, data: bytes) -> None:
        """Take part in the conversation."""
        inbox = connection.receiver
        if inbox is None:  # most clients never send more than pongs
            if frames.is_pong(data):
                return
            parser = frames.Parser(self._max_message_bytes, unpacks=connection.deflate_window != 0)
            inbox = Inbox(parser, self._addresses.of(connection.address))
            connection.receiver = inbox
        self._step(connection, inbox, data)

    def resumed(self, connection: Connection) -> None:
        """Go on with what was left of the last read."""
        inbox = connection.receiver
        if inbox is not None and inbox.parser.has_rest:
            self._step(connection, inbox, b"")

    def charge(
        self, connection: Connection, answer_bytes: int = 0, *, work_bytes: int = 0
    ) -> None:
        """Count work for a client against its budget, like the client's own bytes: a message of 50
        bytes may make the server read, pack and send a megabyte."""
        inbox = connection.receiver
        if inbox is None or connection.caller.auth.is_admin:
            return
        # PERF: 1 MiB of JSON takes 15 ms to pack, and 1 ms to send as it is.
        share = 1 if connection.deflate_window else limits.SOCKET_ANSWER_SHARE
        now_s = self._clock.monotonic_s()
        wait_s = inbox.spend(work_bytes + answer_bytes // share, now_s)
        if wait_s > 0.0:
            self._hold(connection, inbox, wait_s, now_s)

    def _step(self, connection: Connection, inbox: Inbox, data: bytes) -> None:
        """Decode a part of bounded size, answer it, and spend its cost."""
        parser = inbox.parser
        before_frames, cost_bytes = parser.frames, -parser.size_bytes
        received = parser.step(data)
        cost_bytes += parser.size_bytes
        cost_bytes += (parser.frames - before_frames) * limits.SOCKET_FRAME_COST_BYTES
        cost_bytes += self._answer(connection, received)
        if not connection.caller.auth.is_admin:
            now_s = self._clock.monotonic_s()
            wait_s = inbox.spend(cost_bytes, now_s)
            if wait_s > 0.0:
                self._hold(connection, inbox, wait_s, now_s)
                return
        if parser.has_rest:
            self._wait(connection, inbox, 0.0)

    def _answer(self, connection: Connection, received: list[frames.Received]) -> int:
        """Answer messages of a client; their cost beyond their bytes."""
        cost_bytes = 0
        pongs: list[bytes] = []  # leave in one write: who floods with pings costs one call
        for item in received:
            if isinstance(item, frames.Ping):
                pongs.append(frames.encode(frames.PONG, item.data))
                continue
            if pongs:
                connection.send(b"".join(pongs), len(pongs))
                pongs.clear()
            if isinstance(item, frames.Text):
                cost_bytes += value_cost_bytes(item.text)
                self.on_text(connection, item.text)
            elif isinstance(item, frames.Binary):
                self.on_binary(connection, item.data)
            elif isinstance(item, frames.Close):
                _answer_close(connection, item)
            elif isinstance(item, frames.Violation):
                connection.close(item.code, item.reason, awaits_peer=False)
        if pongs:
            connection.send(b"".join(pongs), len(pongs))
        return cost_bytes

    def _hold(
        self, connection: Connection, inbox: Inbox, wait_s: float, now_s: float
    ) -> None:
        """Leave a socket that is in debt unread, or close it if it always is."""
        if inbox.is_hopeless(now_s) and connection.is_open:
            _OVER["closed"].inc()
            inbox.parser.end()
            connection.close(
                POLICY,
                f"you send too much: {limits.SOCKET_BYTES_PER_S} bytes a second are allowed, and "
                f"a message counts {limits.SOCKET_FRAME_COST_BYTES} more",
                awaits_peer=False,
            )
            return
        _OVER["paused"].inc()
        self._wait(connection, inbox, wait_s)

    def _wait(self, connection: Connection, inbox: Inbox, wait_s: float) -> None:
        connection.pause(OVER_BUDGET)
        if not inbox.is_waiting:
            inbox.is_waiting = True
            gevent.spawn_later(max(wait_s, _STEP_S), self._go_on, connection, inbox)

    def _go_on(self, connection: Connection, inbox: Inbox) -> None:
        inbox.is_waiting = False
        wait_s = inbox.wait_s(self._clock.monotonic_s())
        if wait_s > 0.0 and not connection.caller.auth.is_admin:
            self._wait(connection, inbox, wait_s)  # others of its address have spent meanwhile
        else:
            connection.resume(OVER_BUDGET)

    def refuse(self, connection: Connection, error: PylonError, *, has_begun: bool) -> None:
        """Tell a client that it must pull anew, or come again later."""
        if isinstance(error, ResyncRequired):
            connection.send(frames.encode(frames.TEXT, _resync(error)))
            connection.close(SERVICE_RESTART, "resync required")
        else:
            connection.close(TRY_AGAIN_LATER, error.code)


def packed(frame: bytes, deflate_window: int) -> bytes:
    """The frame compressed with a window of `deflate_window` bits, if that makes it smaller."""
    if not deflate_window or len(frame) < limits.DEFLATE_MIN_BYTES:
        return frame
    payload = deflate.pack(frames.payload_of(frame), deflate_window)
    made = frames.encode(frame[0] & 0x0F, payload, packed=True)
    if len(made) >= len(frame):
        return frame
    metrics.DEFLATE_SAVED.inc(len(frame) - len(made))
    return made


def _ignore(connection: Connection, message: str | bytes) -> None:
    metrics.MESSAGES_RECEIVED.labels("ignored").inc()


def _answer_close(connection: Connection, close: frames.Close) -> None:
    if connection.is_open:
        connection.close(
            NO_STATUS if close.code is None else close.code, close.reason, awaits_peer=False
        )
    else:
        connection.finish()


def _resync(error: ResyncRequired) -> bytes:
    return msgspec.json.encode(
        {"type": "resync", "code": error.code, "oldest_seq": error.details.get("oldest_seq", 0)}
    )
