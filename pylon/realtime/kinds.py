"""Kinds: registry of an app's shard classes and matchmaker modes, with their settings.

`shard("arena", tick_rate_hz=20)` registers a class. A shard's id is the name, or the name, a colon
and any text: "arena", "arena:42". `matchmaking` registers a mode.

Invariants: a name is registered once. An input has the declared type and obeys the limits
(`SHARD_INPUT_BYTES`) in both formats. The app's module fills the registry; the shards workers,
`pylonctl replay` and the trial import load that module. `workers.shards` and
`pylon.realtime.replay` read the registry.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf
from typing import Any, Final, TypeVar

import msgspec

from pylon import limits
from pylon.errors import InputRejected, InvalidJson, LimitExceeded, StartRefused
from pylon.json_text import check_bounds
from pylon.realtime.matchmaker import DEFAULT_MODE, Mode, check_mode
from pylon.realtime.snapshots import Format
from pylon.realtime.state import SimState

EVENT_POLL_S: Final = 0.01

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_LONG_INTEGER: Final = re.compile(rb"[0-9]{19}")
_MAXIMA: Final = {"tick_rate_hz": 1_000, "allow_reconnection_s": 3_600, "tick_budget_s": 60}
_State = TypeVar("_State", bound=type[SimState])


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Settings of a kind of shard. Defaults as in spec/realtime.md §4.3."""

    tick_rate_hz: float = 20.0  # 0: ticks only when inputs wait
    max_subscribers: int = 256  # 0: any number
    max_input_queue: int = 10_000  # 0: any number
    idle_ticks_before_shutdown: int = 1_800  # 0: never
    tick_when_empty: bool = False  # whether the shard ticks without subscribers
    on_demand: bool = True  # whether a subscriber may start the shard
    delta_full_every: int = 60  # ticks between whole snapshots with ?delta=1; 0: never
    allow_reconnection_s: float = 0.0  # how long a place is reserved after its last connection
    save_every_ticks: int = 0  # 0: only at a drain, a move, and the end of an idle shard
    tick_budget_s: float = 1.0  # a tick that takes longer stops the shard
    record_bytes: int = 0  # maximum size of a recording for `pylonctl replay`; 0: none is made


class Kind(msgspec.Struct, frozen=True):
    """A registered simulation."""

    name: str
    state: type[SimState]
    config: ShardConfig
    json_input: msgspec.json.Decoder[Any]

    def decode_input(self, raw: bytes, format: Format) -> Any:  # noqa: A002  the wire's own word
        """Return an input as a value of the declared type.

        MessagePack has values that JSON lacks (NaN, extensions, keys of any type), but snapshots
        and recordings are JSON. MessagePack is therefore converted to JSON first.

        Raises:
            InputRejected: not of the declared type, or larger or deeper than the limits.
        """
        if len(raw) > limits.SHARD_INPUT_BYTES:
            raise InputRejected(f"the input is larger than {limits.SHARD_INPUT_BYTES} bytes")
        try:
            if format is Format.MSGPACK:
                raw = msgspec.json.encode(msgspec.msgpack.decode(raw))
            check_bounds(raw)
            _check_integers(raw)
            value = self.json_input.decode(raw)
        except (
            msgspec.MsgspecError, TypeError, OverflowError, UnicodeError, InvalidJson, LimitExceeded
        ) as ex:
            raise InputRejected(f"invalid input {format.name}: {ex}") from ex
        except RecursionError as ex:
            raise InputRejected(f"invalid input {format.name}: nested too deeply") from ex
        return value

    @property
    def interval_s(self) -> float:
        """Return the time between two ticks; in an event-driven kind it is the shortest time."""
        rate_hz = self.config.tick_rate_hz
        return 1.0 / rate_hz if rate_hz else EVENT_POLL_S

    @property
    def is_event_driven(self) -> bool:
        """Whether the shard ticks only when inputs wait."""
        return not self.config.tick_rate_hz


def _check_integers(raw: bytes) -> None:
    """Check that no integer of a JSON text is beyond 64 bits, signed or unsigned.

    Python's JSON decoders accept longer integers. An app may copy one into its snapshot or saved
    state, and MessagePack cannot encode it.

    Raises:
        OverflowError: the text has such an integer.
    """
    if _LONG_INTEGER.search(raw) is not None:
        msgspec.msgpack.encode(msgspec.json.decode(raw))


_KINDS: Final[dict[str, Kind]] = {}
_MODES: Final[dict[str, Mode]] = {}


def shard(name: str, **config: Any) -> Callable[[_State], _State]:
    """Register a `SimState` class under `name`.

    Args:
        config: fields of `ShardConfig` that differ from their defaults.

    Raises:
        StartRefused: the name is malformed or taken, the class is no `SimState`, msgspec cannot
            validate its `Input`, or a setting is unknown or out of range.
    """

    def register(state: _State) -> _State:
        _check_name(name)
        if not (isinstance(state, type) and issubclass(state, SimState)):
            raise StartRefused(f'shard("{name}") must decorate a subclass of pylon.SimState')
        try:
            decoder = msgspec.json.Decoder(state.Input)
        except TypeError as ex:
            raise StartRefused(f"{state.__name__}.Input of shard \"{name}\": {ex}") from ex
        _KINDS[name] = Kind(name, state, _parse_config(name, config), decoder)
        return state

    return register


def kinds() -> dict[str, Kind]:
    """Return the registered kinds by name."""
    return dict(_KINDS)


def kind_of(shard_id: str) -> Kind | None:
    """Return the kind of an id such as "arena:42".

    None if no kind has the name before the colon, or if the id is invalid: longer than
    `limits.SHARD_ID_CHARS`, or with control characters.
    """
    if len(shard_id) > limits.SHARD_ID_CHARS or not shard_id.isprintable():
        return None
    return _KINDS.get(shard_id.partition(":")[0])


def matchmaking(name: str = DEFAULT_MODE, *, shard: str, group_size: int, **settings: Any) -> None:
    """Register a mode of the matchmaker.

    Args:
        shard: the registered kind of the shards that its groups play in.
        group_size: number of players in a full group.
        settings: other fields of `pylon.realtime.matchmaker.Mode`.

    Raises:
        StartRefused: the kind is not registered, the name is taken, or a field is unknown or out
            of range.
    """
    if name in _MODES:
        raise StartRefused(f'matchmaking mode "{name}" is registered twice')
    if shard not in _KINDS:
        raise StartRefused(
            f'matchmaking mode "{name}" names the shard "{shard}", which is not registered before'
        )
    known = {field.name for field in fields(Mode)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise StartRefused(
            f'matchmaking mode "{name}" has no setting "{unknown[0]}"; there are '
            + ", ".join(sorted(known))
        )
    _MODES[name] = check_mode(Mode(name, shard, group_size, **settings))


def modes() -> dict[str, Mode]:
    """Return the modes of the matchmaker by name."""
    return dict(_MODES)


def clear_registry() -> None:
    """Remove all registrations, so that a test can load a module again."""
    _KINDS.clear()
    _MODES.clear()


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise StartRefused(
            f'shard("{name}"): a name is a letter and then at most 63 letters, digits, _ or -'
        )
    if name in _KINDS:
        raise StartRefused(
            f'shard("{name}") is registered twice, by {_KINDS[name].state.__qualname__} and again'
        )


def _parse_config(name: str, given: dict[str, Any]) -> ShardConfig:
    known = {field.name: field for field in fields(ShardConfig)}
    for key, value in given.items():
        if key not in known:
            raise StartRefused(
                f'shard("{name}") has no setting "{key}"; there are {", ".join(sorted(known))}'
            )
        default = known[key].default
        wanted = bool if isinstance(default, bool) else (int, float)
        fits = isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool)
        if isinstance(default, int) and isinstance(value, float):
            fits = False
        if not fits or (not isinstance(default, bool) and not 0 <= value <= _MAXIMA.get(key, inf)):
            raise StartRefused(
                f'shard("{name}"): {key} is {value!r}; it must be '
                + _allowed_values(key, default)
            )
    return ShardConfig(**given)


def _allowed_values(key: str, default: object) -> str:
    if isinstance(default, bool):
        return "True or False"
    kind = "a whole number" if isinstance(default, int) else "a number"
    maximum = _MAXIMA.get(key)
    return f"{kind} of 0 or more" + ("" if maximum is None else f", and at most {maximum:g}")
