"""Sending: keeps the bytes of answers until the client reads them.

The kernel takes as much of an answer as it can at once. The connection keeps the rest, within
limits.HTTP_OUTGOING_BYTES for all connections of a worker. It asks a streamed answer for its next
part when the part before is out. Invariant: the connection asks the app for nothing while it keeps
bytes. Used by `connection`.
"""

from __future__ import annotations

import _socket
from typing import TYPE_CHECKING, Final

from pylon import limits, log, metrics
from workers.http import response
from workers.http.streamed import Streamed

if TYPE_CHECKING:
    from workers.http.loop import Loop

_log = log.get_logger("http")
_PARTS_A_TURN: Final = 16


class Sender:
    """The sending half of a connection."""

    __slots__ = ("_later", "_loop", "_outgoing", "_sock", "_streamed", "deadline_s")

    def __init__(self, loop: Loop, sock: _socket.socket, deadline_s: float) -> None:
        self._loop = loop
        self._sock = sock
        self._later = False  # enough for this turn, though there is more to do
        self._outgoing: memoryview[int] | bytes = b""
        self._streamed: Streamed | None = None  # what is left of an answer that comes in parts
        self.deadline_s = deadline_s

    def close(self) -> None:
        """End the connection now."""
        raise NotImplementedError

    def make_room(self) -> bool:
        """Have other connections give up their answers. False where this one must."""
        raise NotImplementedError

    @property
    def outgoing_bytes(self) -> int:
        """The bytes of an answer that the client has not read yet."""
        return len(self._outgoing)

    def give_up_answer(self) -> None:
        """Close the connection: there is no memory for an answer that its client does not read."""
        metrics.HTTP_CUT.labels("outgoing").inc()
        self.close()

    def _pump(self) -> bool:
        """Send what there is. False where the client must make room first."""
        turns = 0
        while True:
            if self._outgoing and not self._flush():
                return False
            streamed = self._streamed
            if streamed is None:
                return True
            if turns >= _PARTS_A_TURN:
                self._later = True
                return False
            turns += 1
            try:
                part = streamed.next()
            except Exception as ex:  # noqa: BLE001  (whatever it is, the answer cannot be completed)
                _log.exception("answer.broken", error=ex)
                self.close()
                return False
            if part:
                self.deadline_s = self._loop.now_s + limits.HTTP_SEND_S
                self._send(part)
            elif part is None:
                self._end_streamed()
                if streamed.framed:
                    self._send(response.LAST_CHUNK)
                elif streamed.left_bytes:
                    self.close()

    def _end_streamed(self) -> None:
        streamed, self._streamed = self._streamed, None
        if streamed is not None:
            streamed.close()

    def _send(self, data: bytes) -> None:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._keep_for_later(memoryview(data)[sent:])

    def _send_both(self, head: bytes, body: bytes) -> None:
        try:
            sent = self._sock.sendmsg((head, body))
        except BlockingIOError:
            sent = 0
        if sent < len(head):
            self._keep_for_later(memoryview(head + body)[sent:])
        elif sent < len(head) + len(body):
            self._keep_for_later(memoryview(body)[sent - len(head):])

    def _keep_for_later(self, rest: memoryview[int]) -> None:
        self._outgoing = rest
        loop = self._loop
        loop.outgoing_bytes += len(rest)
        self.deadline_s = loop.now_s + limits.HTTP_SEND_S
        if loop.outgoing_bytes > limits.HTTP_OUTGOING_BYTES and not self.make_room():
            self.give_up_answer()

    def _flush(self) -> bool:
        """Whether all has been sent."""
        outgoing = self._outgoing
        while outgoing:
            try:
                sent = self._sock.send(outgoing)
            except BlockingIOError:
                break
            self._loop.outgoing_bytes -= sent
            outgoing = outgoing[sent:]
            self.deadline_s = self._loop.now_s + limits.HTTP_SEND_S
        self._outgoing = outgoing or b""
        if not outgoing:
            self.deadline_s = self._loop.now_s + limits.HTTP_KEEPALIVE_S
        return not outgoing
