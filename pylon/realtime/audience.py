"""Audience: the connections of a shard, and the frames that each receives.

A connection receives whole snapshots. A connection with deltas receives the changes since its last
frame, and a whole snapshot every `full_every` ticks (spec/realtime.md §4.2).

Invariants: the key of a connection is its sink, never its sid, because one subscriber may have
several. `Sink.send` may remove its sink, or another one, during a send.
Called by `pylon.realtime.shard`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from pylon.auth_context import AuthContext
from pylon.realtime.snapshots import Ack, View, Wire


class Sink(Protocol):
    """One connection of a subscriber."""

    sid: str
    auth: AuthContext
    wire: Wire
    delta: bool  # the client asked for deltas
    acks: bool  # the client asked for acks

    def send(self, frame: bytes) -> None:
        """Send or queue a frame. Must not block; may unsubscribe the sink."""

    def reject(self, client_seq: int | None, reason: str) -> None:
        """Send the client the refusal of an input."""

    def end(self, code: int, reason: str) -> None:
        """Close the connection, because the shard has stopped."""


class _Delivery(msgspec.Struct):
    """Delivery state of one connection."""

    ack: Ack | None = None
    base: Any = None  # the snapshot, as plain values, that the next delta starts from
    has_base: bool = False


class Audience:
    """The connections of one shard."""

    __slots__ = ("_delivery_by_sink", "_full_every")

    def __init__(self, full_every: int) -> None:
        """Make an empty audience.

        Args:
            full_every: ticks between two whole snapshots on a connection with deltas; 0: never.
        """
        self._full_every = full_every
        self._delivery_by_sink: dict[Sink, _Delivery] = {}

    def __len__(self) -> int:
        return len(self._delivery_by_sink)

    def add(self, sink: Sink) -> None:
        """Add a connection."""
        self._delivery_by_sink[sink] = _Delivery()

    def remove(self, sink: Sink) -> bool:
        """Remove a connection, and return whether it was in the audience."""
        return self._delivery_by_sink.pop(sink, None) is not None

    def clear(self) -> list[Sink]:
        """Remove and return all connections."""
        sinks = list(self._delivery_by_sink)
        self._delivery_by_sink.clear()
        return sinks

    def acknowledge(self, sink: Sink, ack: Ack) -> None:
        """Put the ack of an applied input into the connection's next frame."""
        delivery = self._delivery_by_sink.get(sink)
        if delivery is not None:
            delivery.ack = ack

    def reject(self, sink: Sink, client_seq: int | None, reason: str) -> None:
        """Send the refusal of an input, if the connection is still in the audience."""
        if sink in self._delivery_by_sink:
            sink.reject(client_seq, reason)

    def send(self, tick: int, views: Mapping[str, View]) -> int:
        """Send each connection the view of its sid, and return the number of frames."""
        is_full = self._full_every > 0 and tick % self._full_every == 0
        frames = 0
        for sink, delivery in list(self._delivery_by_sink.items()):
            view = views[sink.sid]
            if not sink.delta:
                _send_snapshot(sink, delivery, view)
            elif is_full or not delivery.has_base:
                _send_base(sink, delivery, view)
            elif not _send_delta(sink, delivery, view):
                continue
            frames += 1
        return frames

    def send_to(self, sink: Sink, view: View) -> None:
        """Send a new connection the current snapshot."""
        delivery = self._delivery_by_sink[sink]
        if sink.delta:
            _send_base(sink, delivery, view)
        else:
            _send_snapshot(sink, delivery, view)


def _send_snapshot(sink: Sink, delivery: _Delivery, view: View) -> None:
    if sink.acks:
        sink.send(view.frame_with_ack(sink.wire, delivery.ack))
    else:
        sink.send(view.frame(sink.wire))


def _send_base(sink: Sink, delivery: _Delivery, view: View) -> None:
    delivery.base, delivery.has_base = view.plain, True
    _send_snapshot(sink, delivery, view)


def _send_delta(sink: Sink, delivery: _Delivery, view: View) -> bool:
    base, delivery.base = delivery.base, view.plain
    if sink.acks and delivery.ack is not None and delivery.ack.tick == view.tick:
        sink.send(view.delta_frame_with_ack(base, sink.wire, delivery.ack))
        return True
    frame = view.delta_frame(base, sink.wire)
    if frame is not None:
        sink.send(frame)
    return frame is not None
