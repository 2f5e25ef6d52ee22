"""Snapshots: encodes them once for all connections that share a view, whole or as a delta.

A `View` is the snapshot of one subscriber, or of all, after one tick. It encodes on demand: a
format or framing that no connection uses costs nothing, and one that several use is made once.

A delta (spec/realtime.md §4.2) holds the changes since the subscriber's last frame. It descends
into objects, replaces arrays and scalars whole, and sends null for a removed key.

Called by `pylon.realtime.shard` and `pylon.realtime.audience`.
"""

from __future__ import annotations

import enum
from typing import Any, Final, Protocol

import msgspec
import orjson


class Format(enum.Enum):
    """Encoding of payloads."""

    JSON = "json"
    MSGPACK = "msgpack"


class Wire(Protocol):
    """Framing of payloads. Connections with the same framing share one object."""

    format: Format

    def frame(self, tick: int, payload: bytes) -> bytes:
        """Return the bytes for the socket."""


class Ack(msgspec.Struct, frozen=True):
    """The last applied input of a connection, and the tick that applied it."""

    client_seq: int | None
    server_seq: int
    tick: int


class _Unchanged:
    """Type of the delta between equal values."""


UNCHANGED: Final = _Unchanged()
_JSON: Final = msgspec.json.Encoder()
_MSGPACK: Final = msgspec.msgpack.Encoder()


def encode(value: Any, format: Format) -> bytes:  # noqa: A002  the wire's own word
    """Return `value` as bytes. A `msgspec.Raw` within it is copied as it is.

    MessagePack has no integers beyond 64 bits; they become floats.
    """
    if format is Format.JSON:
        return _JSON.encode(value)
    try:
        return _MSGPACK.encode(value)
    except OverflowError:
        return _MSGPACK.encode(orjson.loads(_JSON.encode(value)))


def delta_between(before: Any, after: Any) -> Any:
    """Return the delta that turns `before` into `after` (plain values), or `UNCHANGED`."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return UNCHANGED if _is_equal(before, after) else after
    changed = {}
    for key, value in after.items():
        if key not in before:
            changed[key] = value
        else:
            part = delta_between(before[key], value)
            if part is not UNCHANGED:
                changed[key] = part
    for key in before:
        if key not in after:
            changed[key] = None
    return changed or UNCHANGED


def _is_equal(before: Any, after: Any) -> bool:
    # True == 1 == 1.0 in Python, but they differ on the wire.
    if type(before) is not type(after):
        return False
    if isinstance(before, list):
        return len(before) == len(after) and all(map(_is_equal, before, after))
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(
            _is_equal(value, after[key]) for key, value in before.items()
        )
    return bool(before == after)


class View:
    """The snapshot of some subscribers after a tick, with its encodings."""

    __slots__ = ("_deltas", "_frames", "_payloads", "_plain", "_value", "tick")

    def __init__(self, tick: int, value: Any) -> None:
        self.tick = tick
        self._value = value
        self._plain: Any = UNCHANGED
        self._payloads: dict[Format, bytes] = {}
        self._frames: dict[Wire, bytes] = {}
        # Each entry keeps its base, so that no other object can get the id in the key.
        self._deltas: dict[tuple[int, Format], tuple[Any, bytes | None]] = {}

    @property
    def plain(self) -> Any:
        """Return the snapshot as dicts, lists and scalars: the base of a later delta."""
        if self._plain is UNCHANGED:
            self._plain = msgspec.to_builtins(self._value, str_keys=True)
        return self._plain

    def frame(self, wire: Wire) -> bytes:
        """Return the whole snapshot as a frame."""
        frame = self._frames.get(wire)
        if frame is None:
            frame = self._frames[wire] = wire.frame(self.tick, self._payload(wire.format))
        return frame

    def frame_with_ack(self, wire: Wire, ack: Ack | None) -> bytes:
        """Return the whole snapshot as a frame in the envelope of ``?ack=1``."""
        snapshot = msgspec.Raw(self._payload(wire.format))
        return wire.frame(self.tick, encode({"snapshot": snapshot, "ack": ack}, wire.format))

    def delta_frame(self, base: Any, wire: Wire) -> bytes | None:
        """Return the changes since `base` as a frame; None if there are none."""
        delta = self._delta(base, wire.format)
        if delta is None:
            return None
        body = {"delta": msgspec.Raw(delta), "tick": self.tick}
        return wire.frame(self.tick, encode(body, wire.format))

    def delta_frame_with_ack(self, base: Any, wire: Wire, ack: Ack | None) -> bytes:
        """Return the changes since `base` and an ack as a frame, also if there are no changes."""
        delta = self._delta(base, wire.format)
        changed = msgspec.Raw(encode({}, wire.format) if delta is None else delta)
        body = {"delta": changed, "tick": self.tick, "ack": ack}
        return wire.frame(self.tick, encode(body, wire.format))

    def _payload(self, format: Format) -> bytes:  # noqa: A002
        payload = self._payloads.get(format)
        if payload is None:
            payload = self._payloads[format] = encode(self._value, format)
        return payload

    def _delta(self, base: Any, format: Format) -> bytes | None:  # noqa: A002
        key = (id(base), format)
        found = self._deltas.get(key)
        if found is None:
            delta = delta_between(base, self.plain)
            found = (base, None if delta is UNCHANGED else encode(delta, format))
            self._deltas[key] = found
        return found[1]
