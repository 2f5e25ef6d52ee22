"""The kinds of shards of an app, by name, and their settings.

`shard("arena", tick_rate_hz=20)` registers a class; a shard's id is the name alone, or the name,
a colon and anything: "arena", "arena:42". The app's module (`PYLON_APP`) is imported once, by
each shards worker and by `pylonctl replay`, and by no other process.

Invariant: a name is registered once.
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
_MOST: Final = {"tick_rate_hz": 1_000, "allow_reconnection_s": 3_600, "tick_budget_s": 60}
_State = TypeVar("_State", bound=type[SimState])


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """How a kind of shard runs. Defaults as in spec/realtime.md §4.3."""

    tick_rate_hz: float = 20.0  # 0: ticks only when inputs wait
    max_subscribers: int = 256  # 0: any number
    max_input_queue: int = 10_000  # 0: any number
    idle_ticks_before_shutdown: int = 1_800  # 0: never
    tick_when_empty: bool = False  # whether time goes on while nobody is there
    on_demand: bool = True  # whether a subscriber may bring it into being
    delta_full_every: int = 60  # with ?delta=1, a full snapshot after so many
    allow_reconnection_s: float = 0.0  # a seat is kept so long after its connection died
    save_every_ticks: int = 0  # 0: only at drain
    tick_budget_s: float = 1.0  # one tick may take so long; past it the shard is stopped
    record_bytes: int = 0  # inputs are recorded up to this size for `pylonctl replay`; 0: not


@dataclass(frozen=True, slots=True)
class Kind:
    """A registered simulation."""

    name: str
    state: type[SimState]
    config: ShardConfig
    json_input: msgspec.json.Decoder[Any]

    def decode_input(self, raw: bytes, format: Format) -> Any:  # noqa: A002  the wire's own word
        """An input of the declared type.

        MessagePack can say what JSON cannot (NaN, extensions, keys of any type), and snapshots
        and recordings are JSON: so it goes through JSON, and an input is the same in both.

        Raises:
            InputRejected: it is not of the type, or larger or deeper than the limits.
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
        """Between two ticks; of an event-driven kind the shortest time between them."""
        rate_hz = self.config.tick_rate_hz
        return 1.0 / rate_hz if rate_hz else EVENT_POLL_S

    @property
    def is_event_driven(self) -> bool:
        """Whether it ticks only when inputs wait."""
        return not self.config.tick_rate_hz


def _check_integers(raw: bytes) -> None:
    """Pass if no integer of a JSON text is beyond 64 bits, signed or unsigned.

    A JSON decoder in Python makes such integers, and the app may repeat one in its snapshot, for
    which MessagePack and the saved state have no form.

    Raises:
        OverflowError: it holds one.
    """
    if _LONG_INTEGER.search(raw) is not None:
        msgspec.msgpack.encode(msgspec.json.decode(raw))


_KINDS: Final[dict[str, Kind]] = {}
_MODES: Final[dict[str, Mode]] = {}


def shard(name: str, **config: Any) -> Callable[[_State], _State]:
    """Register a `SimState` class under `name`.

    Args:
        config: fields of `ShardConfig` that are not to have their defaults.

    Raises:
        StartRefused: the name is no name or is taken, the class is no `SimState`, its `Input`
            is nothing that msgspec can validate, or a setting is unknown or out of range.
    """

    def register(state: _State) -> _State:
        _check_name(name)
        if not (isinstance(state, type) and issubclass(state, SimState)):
            raise StartRefused(f'shard("{name}") must decorate a subclass of pylon.SimState')
        try:
            decoder = msgspec.json.Decoder(state.Input)
        except TypeError as ex:
            raise StartRefused(f"{state.__name__}.Input of shard \"{name}\": {ex}") from ex
        _KINDS[name] = Kind(name, state, _checked(name, config), decoder)
        return state

    return register


def kinds() -> dict[str, Kind]:
    """All that are registered, by name."""
    return dict(_KINDS)


def kind_of(shard_id: str) -> Kind | None:
    """The kind of an id such as "arena:42"; None where no kind has the name before the colon,
    or where the id is none (longer than `limits.SHARD_ID_CHARS`, or with control characters)."""
    if len(shard_id) > limits.SHARD_ID_CHARS or not shard_id.isprintable():
        return None
    return _KINDS.get(shard_id.partition(":")[0])


def matchmaking(name: str = DEFAULT_MODE, *, shard: str, group_size: int, **more: Any) -> None:
    """Register a mode of the matchmaker.

    Args:
        shard: the registered kind that its groups get.
        group_size: players of a full group.
        more: other fields of `pylon.realtime.matchmaker.Mode`.

    Raises:
        StartRefused: the kind is not registered, the name is taken, a field is unknown or out
            of range.
    """
    if name in _MODES:
        raise StartRefused(f'matchmaking mode "{name}" is registered twice')
    if shard not in _KINDS:
        raise StartRefused(
            f'matchmaking mode "{name}" names the shard "{shard}", which is not registered before'
        )
    known = {field.name for field in fields(Mode)}
    unknown = sorted(set(more) - known)
    if unknown:
        raise StartRefused(
            f'matchmaking mode "{name}" has no setting "{unknown[0]}"; there are '
            + ", ".join(sorted(known))
        )
    _MODES[name] = check_mode(Mode(name, shard, group_size, **more))


def modes() -> dict[str, Mode]:
    """All modes of the matchmaker, by name."""
    return dict(_MODES)


def forget() -> None:
    """Drop all registrations, so that a module can be loaded again (tests)."""
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


def _checked(name: str, given: dict[str, Any]) -> ShardConfig:
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
        if not fits or (not isinstance(default, bool) and not 0 <= value <= _MOST.get(key, inf)):
            raise StartRefused(
                f'shard("{name}"): {key} is {value!r}; it must be '
                + _expected(key, default)
            )
    return ShardConfig(**given)


def _expected(key: str, default: object) -> str:
    if isinstance(default, bool):
        return "True or False"
    kind = "a whole number" if isinstance(default, int) else "a number"
    most = _MOST.get(key)
    return f"{kind} of 0 or more" + ("" if most is None else f", and at most {most:g}")
