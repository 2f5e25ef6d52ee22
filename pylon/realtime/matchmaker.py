"""The matchmaker: players wait, groups are formed, shards are made for them.

A `Mode` says what a group is: how many, of which criteria alike, how long to wait for a full
one. `Matchmaker` keeps the queues; `step` (once a second) forms groups and hands them out as
`Match`es. Whoever makes the shards reports each as `placed`, which is when its players are
told, or as `failed`, which puts them back where they stood.

Invariants: a player has one ticket or one assignment; a new request replaces the ticket. A ticket
leaves the queue by a match, by its own player, or by its mode's timeout. Queues are bounded
(`limits.MATCH_TICKETS`). Time is handed in. Used by `workers.shards`; spec/realtime.md §4.5.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from pylon import limits
from pylon.errors import InvalidData, LimitExceeded, MatchQueueFull, StartRefused

DEFAULT_MODE: Final = "default"
_Key = tuple[str, tuple[str, ...]]  # the mode, and the criteria that must be equal


class Ticket(msgspec.Struct, eq=False):
    """A player who waits."""

    player: str
    criteria: dict[str, Any]
    since_s: float
    number: int  # in the order of arrival
    position: int = 0  # in its queue, from 1, as of the last step


Grouping = Callable[[Sequence[Ticket], float], Iterable[Sequence[Ticket]]]
"""An app's own way to form groups: from those who wait (oldest first) and the time."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to play, chosen by ``criteria.mode``."""

    name: str
    shard: str  # the kind of shard that a group gets
    group_size: int
    min_size: int = 0  # a group of so many is enough after `relax_after_s`; 0: never less than all
    relax_after_s: float = 0.0
    timeout_s: float = 60.0  # a ticket older than this is dropped
    match_on: tuple[str, ...] = ()  # criteria that must be equal within a group
    backfill: bool = False  # whether empty seats of running shards are filled first
    seat_s: float = 30.0  # how long a seat is kept for a matched player
    grouping: Grouping | None = None


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A running shard of a match that has seats to fill."""

    shard_id: str
    mode: str
    criteria: tuple[str, ...]  # its players' values of the mode's `match_on`
    seats: int


@dataclass(frozen=True, slots=True)
class Match:
    """A group, and the shard that it is for."""

    shard_id: str
    mode: Mode
    tickets: tuple[Ticket, ...]
    criteria: tuple[str, ...]
    is_new: bool  # whether the shard is to be made
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def players(self) -> list[str]:
        return [ticket.player for ticket in self.tickets]


def check_mode(mode: Mode) -> Mode:
    """`mode`, if it makes sense.

    Raises:
        StartRefused: it does not; the message names the field.
    """
    def refuse(what: str) -> StartRefused:
        return StartRefused(f'matchmaking mode "{mode.name}": {what}')

    if not mode.name:
        raise refuse("the name is empty")
    if not 1 <= mode.group_size <= limits.MATCH_GROUP:
        raise refuse(f"group_size is {mode.group_size}; it must be 1 to {limits.MATCH_GROUP}")
    if not 0 <= mode.min_size <= mode.group_size:
        raise refuse(f"least is {mode.min_size}; it must be 0 to group_size ({mode.group_size})")
    for name in ("relax_after_s", "timeout_s", "seat_s"):
        if not getattr(mode, name) >= 0:
            raise refuse(f"{name} is {getattr(mode, name)}; it must be 0 or more")
    return mode


class Matchmaker:
    """The queues of one server."""

    def __init__(self, modes: Mapping[str, Mode], new_id: Callable[[], str]) -> None:
        """`new_id` makes ids of shards, e.g. "arena:match_65f0c1_1"."""
        self._modes = dict(modes)
        self._new_id = new_id
        self._queues: dict[_Key, dict[str, Ticket]] = {}
        self._key_of: dict[str, _Key] = {}
        self._matching: dict[str, Match] = {}  # by player, while the shard is being made
        self._assigned: dict[str, tuple[str, float]] = {}  # player: shard, until when
        self._numbers = 0
        self._failures: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """How many wait."""
        return len(self._key_of)

    def enqueue(self, player: str, criteria: dict[str, Any], now_s: float) -> None:
        """Have a player wait, in place of what they waited for.

        A player for whom a match is kept, or is being made, keeps it: the request repeats one
        whose answer was lost. `dequeue` gives a match up.

        Raises:
            InvalidData: the mode is unknown, or a criterion that counts is missing.
            LimitExceeded: the criteria are too large.
            MatchQueueFull.
        """
        if len(msgspec.json.encode(criteria)) > limits.MATCH_CRITERIA_BYTES:
            raise LimitExceeded(f"criteria are larger than {limits.MATCH_CRITERIA_BYTES} bytes")
        mode = self._mode_of(criteria)
        key = (mode.name, tuple(_criterion(criteria, name) for name in mode.match_on))
        if self.status(player, now_s)["status"] == "matched" or player in self._matching:
            return
        self._take_out(player)
        if len(self._key_of) >= limits.MATCH_TICKETS:
            raise MatchQueueFull(f"{limits.MATCH_TICKETS} players wait; come again later")
        self._numbers += 1
        queue = self._queues.setdefault(key, {})
        queue[player] = Ticket(player, criteria, now_s, self._numbers, len(queue) + 1)
        self._key_of[player] = key

    def dequeue(self, player: str) -> bool:
        """Have a player wait no more, and give up the match that is kept for them; whether they
        waited."""
        self._matching.pop(player, None)
        self._assigned.pop(player, None)
        return self._take_out(player) is not None

    def status(self, player: str, now_s: float) -> dict[str, Any]:
        """``{"status": "idle" | "queued" | "matched", ...}`` (spec/realtime.md §4.5)."""
        assigned = self._assigned.get(player)
        if assigned is not None and assigned[1] > now_s:
            return {"status": "matched", "shard_id": assigned[0]}
        key = self._key_of.get(player)
        ticket = None if key is None else self._queues[key][player]
        match = self._matching.get(player)
        if ticket is None and match is not None:
            ticket = next(t for t in match.tickets if t.player == player)
        if ticket is None:
            return {"status": "idle"}
        waited_s = int(max(0.0, now_s - ticket.since_s))
        return {"status": "queued", "position": ticket.position, "waiting_secs": waited_s}

    def acknowledge(self, player: str) -> str | None:
        """The shard that the player was given, told once."""
        assigned = self._assigned.pop(player, None)
        return None if assigned is None else assigned[0]

    def step(self, now_s: float, openings: Iterable[OpenShard] = ()) -> list[Match]:
        """Drop who waited too long, fill openings, form groups."""
        for player in [p for p, (_, until_s) in self._assigned.items() if until_s <= now_s]:
            del self._assigned[player]
        free: dict[_Key, list[OpenShard]] = {}
        for opening in openings:
            free.setdefault((opening.mode, opening.criteria), []).append(opening)
        matches: list[Match] = []
        for key in list(self._queues):
            mode = self._modes[key[0]]
            self._drop_old(key, mode, now_s)
            if mode.backfill:
                for opening in free.get(key, ()):
                    matches += self._fill(key, mode, opening)
            matches += self._form(key, mode, now_s)
            for position, ticket in enumerate(self._queues.get(key, {}).values(), 1):
                ticket.position = position
        return matches

    def placed(self, match: Match, now_s: float) -> list[str]:
        """The shard is there and keeps their seats; who of them is told (and has not left)."""
        told = []
        for player in match.players:
            if self._matching.get(player) is match:
                del self._matching[player]
                self._assigned[player] = (match.shard_id, now_s + match.mode.seat_s)
                told.append(player)
        return told

    def failed(self, match: Match) -> None:
        """The shard could not be made: they wait again, where they stood."""
        key = (match.mode.name, match.criteria)
        back = [t for t in match.tickets if self._matching.get(t.player) is match]
        for ticket in back:
            del self._matching[ticket.player]
            self._key_of[ticket.player] = key
        waiting = [*back, *self._queues.get(key, {}).values()]
        if waiting:
            waiting.sort(key=lambda ticket: ticket.number)
            self._queues[key] = {ticket.player: ticket for ticket in waiting}

    def take_failures(self) -> list[tuple[str, str]]:
        """The modes whose own grouping failed in the last step, with tracebacks, once."""
        failures, self._failures = self._failures, []
        return failures

    # --- Within --------------------------------------------------------------------------

    def _mode_of(self, criteria: dict[str, Any]) -> Mode:
        name = criteria.get("mode", DEFAULT_MODE)
        mode = self._modes.get(name) if isinstance(name, str) else None
        if mode is None:
            known = ", ".join(sorted(self._modes)) or "none"
            raise InvalidData(
                f"criteria.mode is {name!r}, which is no mode of this app",
                hint=f"The modes are: {known}",
            )
        return mode

    def _take_out(self, player: str) -> Ticket | None:
        key = self._key_of.pop(player, None)
        if key is None:
            return None
        queue = self._queues[key]
        ticket = queue.pop(player)
        if not queue:
            del self._queues[key]
        return ticket

    def _drop_old(self, key: _Key, mode: Mode, now_s: float) -> None:
        queue = self._queues[key]
        for player in [p for p, t in queue.items() if now_s - t.since_s > mode.timeout_s]:
            self._take_out(player)

    def _fill(self, key: _Key, mode: Mode, opening: OpenShard) -> list[Match]:
        group = list(self._queues.get(key, {}).values())[: max(0, opening.seats)]
        return [self._match(key, mode, group, opening.shard_id)] if group else []

    def _form(self, key: _Key, mode: Mode, now_s: float) -> list[Match]:
        matches = []
        if mode.grouping is not None:
            waiting = tuple(self._queues.get(key, {}).values())
            for group in self._groups_of(mode.grouping, mode.name, waiting, now_s):
                mine = [t for t in group if self._key_of.get(t.player) == key]
                if mine:
                    matches.append(self._match(key, mode, mine, None))
            return matches
        while True:
            waiting = tuple(self._queues.get(key, {}).values())
            size = min(mode.group_size, len(waiting))
            is_enough = size == mode.group_size or (
                0 < mode.min_size <= size and now_s - waiting[0].since_s >= mode.relax_after_s
            )
            if not size or not is_enough:
                return matches
            matches.append(self._match(key, mode, waiting[:size], None))

    def _groups_of(
        self, grouping: Grouping, mode: str, waiting: Sequence[Ticket], now_s: float
    ) -> list[Sequence[Ticket]]:
        """What the app makes of those who wait; nothing where its code fails."""
        try:
            return [
                [ticket for ticket in dict.fromkeys(group) if isinstance(ticket, Ticket)]
                for group in grouping(waiting, now_s)
            ]
        except Exception as ex:  # noqa: BLE001  the app's code
            told = "".join(traceback.format_exception(ex))[-limits.TRACEBACK_CHARS :]
            self._failures.append((mode, told))
            return []

    def _match(
        self, key: _Key, mode: Mode, group: Sequence[Ticket], shard_id: str | None
    ) -> Match:
        for ticket in group:
            self._take_out(ticket.player)
        match = Match(
            f"{mode.shard}:{self._new_id()}" if shard_id is None else shard_id, mode,
            tuple(group), key[1], shard_id is None,
            {"mode": mode.name, "alike": list(key[1]), "players": [t.player for t in group]},
        )
        for ticket in group:
            self._matching[ticket.player] = match
        return match


def _criterion(criteria: Mapping[str, Any], name: str) -> str:
    value = criteria.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidData(f"criteria.{name} is {value!r}; it must be a text or a whole number")
    return str(value)
