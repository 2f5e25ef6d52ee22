"""Who watches a shard: its connections, and what each of them is to be sent.

A connection gets whole snapshots, or, if it wants deltas, what has changed since its last one
and now and then a whole one (spec/realtime.md §4.2).

Invariant: connections are removed by themselves, never by sid. `Sink.send` may remove its sink,
or any other, while a tick is sent. Called by `pylon.realtime.shard`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pylon.auth_context import AuthContext
from pylon.realtime.snapshots import Ack, View, Wire


class Sink(Protocol):
    """One connection of a subscriber."""

    sid: str
    auth: AuthContext
    wire: Wire
    delta: bool  # wants deltas
    acks: bool  # wants acks

    def send(self, frame: bytes) -> None:
        """Send or queue a frame. Never blocks; may unsubscribe the sink."""

    def reject(self, client_seq: int | None, reason: str) -> None:
        """Tell that an input was refused."""

    def end(self, code: int, reason: str) -> None:
        """The shard lets go of it: close the connection."""


@dataclass(slots=True)
class _Place:
    """A connection's own state."""

    ack: Ack | None = None
    base: Any = None  # the snapshot, as plain values, that its next delta starts from
    has_base: bool = False


class Audience:
    """The connections of one shard."""

    __slots__ = ("_places", "_whole_every")

    def __init__(self, whole_every: int) -> None:
        """Args: `whole_every` ticks a connection with deltas gets a whole snapshot; 0: never."""
        self._whole_every = whole_every
        self._places: dict[Sink, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, sink: Sink) -> None:
        """A connection has come."""
        self._places[sink] = _Place()

    def remove(self, sink: Sink) -> bool:
        """Forget a connection; whether it was here."""
        return self._places.pop(sink, None) is not None

    def clear(self) -> list[Sink]:
        """Forget all of them; who they were."""
        sinks = list(self._places)
        self._places.clear()
        return sinks

    def acknowledge(self, sink: Sink, ack: Ack) -> None:
        """An input of this connection was applied; its next frame says so."""
        place = self._places.get(sink)
        if place is not None:
            place.ack = ack

    def reject(self, sink: Sink, client_seq: int | None, reason: str) -> None:
        """An input of this connection was refused; it is told, if it is still here."""
        if sink in self._places:
            sink.reject(client_seq, reason)

    def send(self, tick: int, views: Mapping[str, View]) -> int:
        """Send everybody the view of its sid; how many frames that were."""
        whole = self._whole_every > 0 and tick % self._whole_every == 0
        frames = 0
        for sink, place in list(self._places.items()):
            view = views[sink.sid]
            if not sink.delta:
                _send_snapshot(sink, place, view)
            elif whole or not place.has_base:
                _send_base(sink, place, view)
            elif not _send_delta(sink, place, view):
                continue
            frames += 1
        return frames

    def send_to(self, sink: Sink, view: View) -> None:
        """Send one connection, which has just come, the snapshot as it is."""
        place = self._places[sink]
        if sink.delta:
            _send_base(sink, place, view)
        else:
            _send_snapshot(sink, place, view)


def _send_snapshot(sink: Sink, place: _Place, view: View) -> None:
    if sink.acks:
        sink.send(view.frame_with_ack(sink.wire, place.ack))
    else:
        sink.send(view.frame(sink.wire))


def _send_base(sink: Sink, place: _Place, view: View) -> None:
    place.base, place.has_base = view.plain, True
    _send_snapshot(sink, place, view)


def _send_delta(sink: Sink, place: _Place, view: View) -> bool:
    base, place.base = place.base, view.plain
    if sink.acks and place.ack is not None and place.ack.tick == view.tick:
        sink.send(view.delta_frame_with_ack(base, sink.wire, place.ack))
        return True
    frame = view.delta_frame(base, sink.wire)
    if frame is not None:
        sink.send(frame)
    return frame is not None
