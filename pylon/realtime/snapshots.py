"""Snapshots on their way out: encoded once for all who see the same, whole or as a delta.

A `View` is what one subscriber, or all of them, see after one tick. It encodes lazily: a format
or a framing that nobody asked for costs nothing, and what several asked for is made once.

A delta (spec/realtime.md §4.2) has what changed since the subscriber's last frame: objects are
gone into, arrays and scalars replaced whole, and a key that is gone is null.

Called by `pylon.realtime.shard`.
"""

from __future__ import annotations

import enum
from typing import Any, Final, Protocol

import msgspec
import orjson


class Format(enum.Enum):
    """How payloads are encoded."""

    JSON = "json"
    MSGPACK = "msgpack"


class Wire(Protocol):
    """How payloads become frames. One object for all connections that share it."""

    format: Format

    def frame(self, tick: int, payload: bytes) -> bytes:
        """The bytes for the socket."""


class Ack(msgspec.Struct, frozen=True):
    """The last input of a connection that was applied, and by which tick."""

    client_seq: int | None
    server_seq: int
    tick: int


class _Unchanged:
    """The delta between equals."""


UNCHANGED: Final = _Unchanged()
_JSON: Final = msgspec.json.Encoder()
_MSGPACK: Final = msgspec.msgpack.Encoder()


def encode(value: Any, format: Format) -> bytes:  # noqa: A002  the wire's own word
    """`value` as bytes; `msgspec.Raw` within it is taken as it is.

    Integers beyond 64 bits, which MessagePack does not have, are floats in it.
    """
    if format is Format.JSON:
        return _JSON.encode(value)
    try:
        return _MSGPACK.encode(value)
    except OverflowError:
        return _MSGPACK.encode(orjson.loads(_JSON.encode(value)))


def delta_between(before: Any, after: Any) -> Any:
    """What turns `before` into `after` (plain values), or `UNCHANGED`."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return UNCHANGED if _same(before, after) else after
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


def _same(before: Any, after: Any) -> bool:
    # True == 1 == 1.0 in Python, and not on the wire.
    if type(before) is not type(after):
        return False
    if isinstance(before, list):
        return len(before) == len(after) and all(map(_same, before, after))
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(
            _same(value, after[key]) for key, value in before.items()
        )
    return bool(before == after)


class View:
    """What some subscribers see after a tick."""

    __slots__ = ("_deltas", "_frames", "_payloads", "_plain", "_value", "tick")

    def __init__(self, tick: int, value: Any) -> None:
        self.tick = tick
        self._value = value
        self._plain: Any = UNCHANGED
        self._payloads: dict[Format, bytes] = {}
        self._frames: dict[Wire, bytes] = {}
        # The base is kept with what was made of it, so that its id stays its own.
        self._deltas: dict[tuple[int, Format], tuple[Any, bytes | None]] = {}

    @property
    def plain(self) -> Any:
        """The snapshot as dicts, lists and scalars, which a later delta starts from."""
        if self._plain is UNCHANGED:
            self._plain = msgspec.to_builtins(self._value, str_keys=True)
        return self._plain

    def frame(self, wire: Wire) -> bytes:
        """The whole snapshot as a frame."""
        frame = self._frames.get(wire)
        if frame is None:
            frame = self._frames[wire] = wire.frame(self.tick, self._payload(wire.format))
        return frame

    def frame_with_ack(self, wire: Wire, ack: Ack | None) -> bytes:
        """The whole snapshot in the envelope of ``?ack=1``."""
        snapshot = msgspec.Raw(self._payload(wire.format))
        return wire.frame(self.tick, encode({"snapshot": snapshot, "ack": ack}, wire.format))

    def delta_frame(self, base: Any, wire: Wire) -> bytes | None:
        """What changed since `base` as a frame; None if nothing did."""
        delta = self._delta(base, wire.format)
        if delta is None:
            return None
        body = {"delta": msgspec.Raw(delta), "tick": self.tick}
        return wire.frame(self.tick, encode(body, wire.format))

    def delta_frame_with_ack(self, base: Any, wire: Wire, ack: Ack | None) -> bytes:
        """The same with an ack, which is news even where nothing changed."""
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
