"""Outbox: the writes of one connection that the kernel has not taken yet.

A connection has an outbox only while something waits in it, so an idle one carries none. The first
write is under way: a part of it may be sent already, so it is never dropped and counts against no
bound.

Invariant: writes leave in the order in which they came. Bounds: limits.OUTBOX_BYTES and
OUTBOX_FRAMES behind the first write. A write counts with limits.OUTBOX_WRITE_BYTES at most, so that
a message of any size can be delivered, and a few of them in a row. Metric:
pylon_send_queue_size_bytes. Used by `workers.hub.connection`.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

from pylon import limits, metrics

_Write: TypeAlias = tuple[memoryview, int, int]  # bytes, frames, bytes that count; never empty


class ClientSocket(Protocol):
    """A raw socket, or what stands in for one."""

    def send(self, data: memoryview, /) -> int: ...


class Outbox:
    """The unsent writes of one connection."""

    __slots__ = ("_counted_bytes", "_frames", "_writes", "size_bytes")

    def __init__(self) -> None:
        self._writes: deque[_Write] = deque()
        self._counted_bytes = 0
        self._frames = 0
        self.size_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether the kernel has taken all writes."""
        return not self._writes

    def is_full(self, data: bytes, frames: int) -> bool:
        """Whether another write would pass the bounds."""
        if len(self._writes) < 2:
            return False
        _, first_frames, first_bytes = self._writes[0]
        waiting_bytes = self._counted_bytes - first_bytes + _counted_bytes(data)
        waiting_frames = self._frames - first_frames + frames
        return waiting_bytes > limits.OUTBOX_BYTES or waiting_frames > limits.OUTBOX_FRAMES

    def put(self, data: memoryview, frames: int) -> None:
        """Add a write of some whole frames, or the rest of one."""
        counted_bytes = _counted_bytes(data)
        self._writes.append((data, frames, counted_bytes))
        self.size_bytes += len(data)
        self._counted_bytes += counted_bytes
        self._frames += frames
        metrics.SEND_QUEUE_BYTES.observe(self.size_bytes)

    def send(self, raw: ClientSocket) -> None:
        """Send as much as the kernel takes.

        Raises:
            OSError: the connection is broken.
        """
        writes = self._writes
        while writes:
            data, frames, counted_bytes = writes[0]
            try:
                sent_bytes = raw.send(data)
            except BlockingIOError:
                return
            self.size_bytes -= sent_bytes
            if sent_bytes < len(data):
                writes[0] = (data[sent_bytes:], frames, counted_bytes)
                return
            writes.popleft()
            self._counted_bytes -= counted_bytes
            self._frames -= frames

    def keep_first(self) -> None:
        """Drop all writes but the one under way."""
        while len(self._writes) > 1:
            data, frames, counted_bytes = self._writes.pop()
            self.size_bytes -= len(data)
            self._counted_bytes -= counted_bytes
            self._frames -= frames


def _counted_bytes(data: bytes | memoryview) -> int:
    return min(len(data), limits.OUTBOX_WRITE_BYTES)
