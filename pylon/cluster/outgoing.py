"""Outgoing queue of one link, in one direction: gathers envelopes, and sends them as parcels.

All envelopes of one turn of the loop leave together. While ZeroMQ takes no parcel, because the
other node reads too slowly, they wait here, and the queue tries again every `_RETRY_S`.

Invariants: envelopes leave in order. Bounds: `put_data` takes nothing while more than
limits.CLUSTER_QUEUE_BYTES wait; the caller keeps its bytes until `on_drained`, which comes at half
of the bound. Other envelopes are few: their senders bound them. Metrics:
pylon_cluster_sent_bytes_total, pylon_cluster_queue_full_total. Called by `links` and `port`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gevent.hub import get_hub

from pylon import limits, metrics
from pylon.cluster import envelopes
from pylon.cluster.envelopes import DATA, VERSION, Envelope, Parcel

_RETRY_S: Final = 0.005
_ID_BYTES: Final = 5
_BYTES: Final = metrics.CLUSTER_BYTES
_FULL: Final = metrics.CLUSTER_FULL


class OutgoingQueue:
    """The envelopes that wait to be sent to one other process."""

    __slots__ = (
        "_closed", "_is_full", "_last", "_loop", "_number", "_on_drained", "_parcel", "_scheduled",
        "_session", "_timer", "_transmit", "_waiting", "size_bytes",
    )

    def __init__(
        self, session: str, transmit: Callable[[bytes], bool], on_drained: Callable[[], None]
    ) -> None:
        """
        Args:
            transmit: sends a parcel, or returns False if it cannot be sent now.
            on_drained: called after `put_data` has refused bytes, when it takes some again.
        """
        self._session = session
        self._transmit = transmit
        self._on_drained = on_drained
        self._loop = get_hub().loop
        self._waiting: deque[Envelope] = deque()
        self._last: Envelope | None = None  # the newest, if it is of data
        self._parcel = b""  # encoded, and not taken by ZeroMQ yet
        self._number = 0
        self._scheduled = False
        self._is_full = False
        self._closed = False
        self._timer: Any = None
        self.size_bytes = 0

    def put(self, kind: int, number: int, body: bytes = b"") -> None:
        """Send an envelope for one tunnel or call. Never blocks."""
        self._last = None
        self._add(Envelope(kind, [number], body))

    def put_data(self, number: int, data: bytes) -> bool:
        """Send bytes through a tunnel; return False if the queue is full. Never blocks."""
        last = self._last
        if last is not None and last.body is data and self._waiting:
            # PERF: a shard sends one object to all its subscribers; 40 of them on one node cost
            # 40 numbers and not 40 copies.
            last.ids.append(number)
            self.size_bytes += _ID_BYTES
            return True
        if self.size_bytes > limits.CLUSTER_QUEUE_BYTES:
            if not self._is_full:
                self._is_full = True
                _FULL.inc()
            return False
        self._last = Envelope(DATA, [number], data)
        self._add(self._last)
        return True

    @property
    def is_full(self) -> bool:
        """Whether `put_data` would refuse bytes."""
        return self.size_bytes > limits.CLUSTER_QUEUE_BYTES

    def close(self) -> None:
        """Drop what waits, and send nothing more. Idempotent."""
        self._closed = True
        self._waiting.clear()
        self._last = None
        self._parcel = b""
        self.size_bytes = 0
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def flush(self) -> None:
        """Send what waits, as far as ZeroMQ takes it."""
        self._scheduled = False
        while not self._closed and (self._parcel or self._waiting):
            if not self._parcel:
                self._encode()
            if not self._transmit(self._parcel):
                self._retry_later()
                break
            _BYTES.inc(len(self._parcel))
            self._parcel = b""
        if self._is_full and 2 * self.size_bytes <= limits.CLUSTER_QUEUE_BYTES:
            self._is_full = False
            self._on_drained()

    def _add(self, envelope: Envelope) -> None:
        if self._closed:
            return
        self._waiting.append(envelope)
        self.size_bytes += len(envelope.body) + _ID_BYTES
        if not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self.flush)

    def _encode(self) -> None:
        """Make a parcel of the oldest envelopes."""
        waiting = self._waiting
        portion: list[Envelope] = []
        size_bytes = 0
        while waiting and (not portion or size_bytes < limits.CLUSTER_PARCEL_BYTES):
            envelope = waiting.popleft()
            portion.append(envelope)
            size_bytes += len(envelope.body) + _ID_BYTES * len(envelope.ids)
        if not waiting:
            self._last = None
        self.size_bytes -= size_bytes
        self._number += 1
        self._parcel = envelopes.encode(Parcel(VERSION, self._session, self._number, portion))

    def _retry_later(self) -> None:
        self._scheduled = True
        if self._timer is None:
            self._timer = self._loop.timer(_RETRY_S)
        self._timer.stop()
        self._timer.start(self.flush)
