"""WebSocket transport of the hub: encodes events as text frames, and decodes the client's input.

The transport passes messages to `on_text` (in the ws worker: `workers.ws.conversation`) and
`on_binary`. Without a callback it counts and ignores them (spec/realtime.md §2.3). It decodes the
input of one socket in steps of a bounded size, between which other sockets are served. It does not
read a socket that has spent its budget (`workers.ws.budgets`).

Invariants: all receivers share the frame of an event. Compression (permessage-deflate) happens once
for all connections with the same window, and not below `limits.DEFLATE_MIN_BYTES`. The transport
answers every ping, every close with the same code, and every breach of the protocol with the code
of RFC 6455. No method blocks; each runs in a callback of the poller, in the feed or in a greenlet
of its own. Metrics: pylon_sockets_over_budget_total, pylon_deflate_saved_bytes_total.
Called by `workers.hub`, in the ws and the shards workers.
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
from workers.net.response import Headers
from workers.ws import deflate, frames
from workers.ws.budgets import AddressBudgets, Inbox, value_cost_bytes

_STEP_S: Final = 0.000_1  # between two steps of one socket; epoll rounds it up to 1 ms
_OVER: Final = {
    result: metrics.SOCKETS_OVER_BUDGET.labels(result) for result in ("paused", "closed")
}


class WebSocketTransport:
    """`workers.hub.connection.Transport` and `workers.hub.admission.StreamTransport` for WebSocket.
    """

    expects_replies = True
    heartbeat = frames.encode(frames.PING, b"")

    def __init__(
        self, role: str, max_message_bytes: int, heartbeat_s: float = limits.SOCKET_PING_S, *,
        clock: Clock | None = None, counts_addresses: bool = True,
    ) -> None:
        """Args: `counts_addresses`: whether the sockets of one address share a budget."""
        self.role = role
        self.heartbeat_s = heartbeat_s
        self._max_message_bytes = max_message_bytes
        self._clock = clock or SystemClock()
        self._addresses = AddressBudgets(self._clock, is_counting=counts_addresses)
        self.on_text: Callable[[Connection, str], None] = _ignore
        self.on_binary: Callable[[Connection, bytes], None] = _ignore

    def stream_head(self, headers: Headers) -> bytes:
        """Return nothing: the 101 of the handshake is the head."""
        return b""

    def frame(self, seq: int, wire: bytes) -> bytes:
        """Return the event's JSON as one text frame."""
        return frames.encode(frames.TEXT, wire)

    def compress(self, frame: bytes, deflate_window: int) -> bytes:
        """Return `compress_frame` of the frame."""
        return compress_frame(frame, deflate_window)

    def close_frame(self, code: int, reason: str) -> bytes:
        """Return a close frame."""
        if code == NO_STATUS:
            return frames.encode(frames.CLOSE, b"")
        return frames.encode_close(code, reason)

    def received(self, connection: Connection, data: bytes) -> None:
        """Decode the input of a client, and answer it."""
        inbox = connection.receiver
        if inbox is None:  # PERF: most clients send only pongs, and need no parser
            if frames.is_pong(data):
                return
            parser = frames.Parser(self._max_message_bytes, unpacks=connection.deflate_window != 0)
            inbox = Inbox(parser, self._addresses.budget_of(connection.address))
            connection.receiver = inbox
        self._step(connection, inbox, data)

    def resumed(self, connection: Connection) -> None:
        """Decode the rest of the last read."""
        inbox = connection.receiver
        if inbox is not None and inbox.parser.has_rest:
            self._step(connection, inbox, b"")

    def charge(
        self, connection: Connection, answer_bytes: int = 0, *, work_bytes: int = 0
    ) -> None:
        """Count the server's work for a client against the client's budget.

        A message of 50 bytes may make the server read, compress and send a megabyte.
        """
        inbox = connection.receiver
        if inbox is None or connection.caller.auth.is_admin:
            return
        # PERF: 1 MiB of JSON takes 15 ms to compress, and 1 ms to send uncompressed.
        share = 1 if connection.deflate_window else limits.SOCKET_ANSWER_SHARE
        now_s = self._clock.monotonic_s()
        wait_s = inbox.spend(work_bytes + answer_bytes // share, now_s)
        if wait_s > 0.0:
            self._pause_or_close(connection, inbox, wait_s, now_s)

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
                self._pause_or_close(connection, inbox, wait_s, now_s)
                return
        if parser.has_rest:
            self._pause(connection, inbox, 0.0)

    def _answer(self, connection: Connection, received: list[frames.Received]) -> int:
        """Answer messages of a client, and return their cost beyond their bytes."""
        cost_bytes = 0
        pongs: list[bytes] = []  # sent in one write, so that a flood of pings costs one call
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

    def _pause_or_close(
        self, connection: Connection, inbox: Inbox, wait_s: float, now_s: float
    ) -> None:
        """Pause reading a socket that is in debt, or close it after too long a debt."""
        if inbox.is_overdrawn(now_s) and connection.is_open:
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
        self._pause(connection, inbox, wait_s)

    def _pause(self, connection: Connection, inbox: Inbox, wait_s: float) -> None:
        connection.pause(OVER_BUDGET)
        if not inbox.is_waiting:
            inbox.is_waiting = True
            gevent.spawn_later(max(wait_s, _STEP_S), self._resume_reading, connection, inbox)

    def _resume_reading(self, connection: Connection, inbox: Inbox) -> None:
        inbox.is_waiting = False
        wait_s = inbox.wait_s(self._clock.monotonic_s())
        if wait_s > 0.0 and not connection.caller.auth.is_admin:
            self._pause(connection, inbox, wait_s)  # other sockets of the address have spent
        else:
            connection.resume(OVER_BUDGET)

    def refuse(
        self, connection: Connection, error: PylonError, headers: Headers = (), *, has_begun: bool
    ) -> None:
        """Close a connection: its client must pull again, or connect again later."""
        if isinstance(error, ResyncRequired):
            connection.send(frames.encode(frames.TEXT, _resync(error)))
            connection.close(SERVICE_RESTART, "resync required")
        else:
            connection.close(TRY_AGAIN_LATER, error.code)


def compress_frame(frame: bytes, deflate_window: int) -> bytes:
    """Return the frame, compressed with a window of `deflate_window` bits if that is smaller."""
    if not deflate_window or len(frame) < limits.DEFLATE_MIN_BYTES:
        return frame
    payload = deflate.compress(frames.payload_of(frame), deflate_window)
    compressed = frames.encode(frame[0] & 0x0F, payload, compressed=True)
    if len(compressed) >= len(frame):
        return frame
    metrics.DEFLATE_SAVED.inc(len(frame) - len(compressed))
    return compressed


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
