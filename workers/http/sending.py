"""Sending: keeps the bytes of a response until the client reads them.

The kernel takes as much of a response as it can at once. The sender keeps the rest, and asks a
streamed response for its next part when the part before is out.

Invariants: the sender asks the app for nothing while it keeps bytes. `ByteBudget.held_bytes` counts
all bytes that are kept. Bounds: limits.HTTP_OUTGOING_BYTES for all connections of a worker, and
`_PARTS_A_TURN` parts before other connections run. Used by `connection`.
"""

from __future__ import annotations

from typing import Final

from pylon import log
from pylon.runtime.raw_socket import RawSocket
from workers.http import response
from workers.http.byte_budget import ByteBudget
from workers.http.streamed import Streamed

_PARTS_A_TURN: Final = 16

_log = log.get_logger("http")


class BrokenResponse(Exception):
    """The response cannot be completed; the connection ends without its proper end."""


class Sender:
    """The sending half of a connection."""

    __slots__ = (
        "_budget", "_outgoing", "_sock", "_streamed", "has_more", "is_sending", "moved_s",
    )

    def __init__(self, sock: RawSocket, budget: ByteBudget) -> None:
        self._sock = sock
        self._budget = budget
        self._outgoing: memoryview[int] | bytes = b""
        self._streamed: Streamed | None = None  # the rest of a response that comes in parts
        self.is_sending = False  # a response is not complete yet
        self.moved_s = 0.0  # while sending: when the client last took bytes
        self.has_more = False  # the turn of this connection ended, and the app has more

    @property
    def outgoing_bytes(self) -> int:
        """The bytes of a response that the client has not read yet."""
        return len(self._outgoing)

    def send(self, data: bytes, now_s: float) -> None:
        """Send bytes; keep those that the kernel does not take.

        Raises:
            OSError: the connection is broken.
        """
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._keep(memoryview(data)[sent:], now_s)

    def send_both(self, head: bytes, body: bytes, now_s: float) -> None:
        """Send a head and a long body, without a copy of the body. Raises as `send` does."""
        try:
            sent = self._sock.sendmsg((head, body))
        except BlockingIOError:
            sent = 0
        if sent < len(head):
            self._keep(memoryview(head + body)[sent:], now_s)
        elif sent < len(head) + len(body):
            self._keep(memoryview(body)[sent - len(head):], now_s)

    def stream(self, streamed: Streamed, now_s: float) -> None:
        """Send a response's further parts after what was sent; `pump` asks for them."""
        self._streamed = streamed
        self.is_sending = True
        self.moved_s = now_s

    def pump(self, now_s: float) -> bool:
        """Send as much as the client takes.

        Returns:
            True if the response is complete. False if the client must read first, or
            (`has_more`) if other connections must run first.

        Raises:
            OSError: the connection is broken.
            BrokenResponse: the app failed in the middle of a response, or yielded too little.
        """
        parts = 0
        while True:
            if self._outgoing and not self._flush(now_s):
                return False
            if self._streamed is None:
                self.is_sending = False
                return True
            if parts >= _PARTS_A_TURN:
                self.has_more = True
                return False
            parts += 1
            self._send_part(self._streamed, now_s)

    def clear(self) -> None:
        """Drop what is left to send; tell the app that nobody reads more."""
        self._end_streamed()
        self._budget.held_bytes -= len(self._outgoing)
        self._outgoing = b""
        self.is_sending = False

    def _send_part(self, streamed: Streamed, now_s: float) -> None:
        try:
            part = streamed.next()
        except Exception as ex:
            _log.exception("answer.broken", error=ex)
            raise BrokenResponse from ex
        if part:
            self.moved_s = now_s
            self.send(part, now_s)
        elif part is None:
            self._end_streamed()
            if streamed.framed:
                self.send(response.LAST_CHUNK, now_s)
            elif streamed.left_bytes:
                raise BrokenResponse

    def _end_streamed(self) -> None:
        streamed, self._streamed = self._streamed, None
        if streamed is not None:
            streamed.close()

    def _keep(self, rest: memoryview[int], now_s: float) -> None:
        self._outgoing = rest
        self.is_sending = True
        self._budget.held_bytes += len(rest)
        self.moved_s = now_s

    def _flush(self, now_s: float) -> bool:
        """Send bytes that were kept. Return whether all of them are out."""
        outgoing = self._outgoing
        while outgoing:
            try:
                sent = self._sock.send(outgoing)
            except BlockingIOError:
                break
            self._budget.held_bytes -= sent
            outgoing = outgoing[sent:]
            self.moved_s = now_s
        self._outgoing = outgoing or b""
        return not outgoing
