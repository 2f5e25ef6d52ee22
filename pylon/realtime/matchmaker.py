"""Matchmaker: queues waiting players and forms groups, for which the caller makes shards.

A `Mode` describes a group: its size, the criteria that must be equal, and how long players wait
for a full one. `Matchmaker` holds the queues. `step` (once a second) forms groups and returns them
as `Match`es. The caller makes the shard of each match and then calls `confirm_match`, which assigns
its players, or `requeue_match`, which returns them to their positions in the queue.

Invariants: a player has one ticket or one assignment; a new request replaces the ticket. A match,
the player, or the mode's timeout removes a ticket from its queue. The caller passes the time in.
Bounds: `limits.MATCH_TICKETS`, `MATCH_GROUP`, `MATCH_CRITERIA_BYTES`.
Called by `workers.shards`; source: spec/realtime.md §4.5.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pylon import limits
from pylon.errors import InvalidData, LimitExceeded, MatchQueueFull, StartRefused

DEFAULT_MODE: Final = "default"
_Key = tuple[str, tuple[str, ...]]  # the mode, and the criteria that must be equal


class Ticket(msgspec.Struct, eq=False):
    """A waiting player."""

    player: str
    criteria: dict[str, Any]
    since_s: float
    number: int  # in the order of arrival
    position: int = 0  # in its queue, from 1, at the last step


Grouping = Callable[[Sequence[Ticket], float], Iterable[Sequence[Ticket]]]
"""An app's function that forms groups from the waiting tickets (oldest first) and the time."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode of play. A client chooses it by ``criteria.mode``."""

    name: str
    shard: str  # the kind of shard that a group gets
    group_size: int
    min_size: int = 0  # smallest group after `relax_after_s`; 0: always a full group
    relax_after_s: float = 0.0
    timeout_s: float = 60.0  # age at which a ticket is dropped
    match_on: tuple[str, ...] = ()  # criteria that must be equal within a group
    backfill: bool = False  # whether players fill free places of running shards first
    seat_s: float = 30.0  # how long the place of a matched player is reserved
    grouping: Grouping | None = None


class OpenShard(msgspec.Struct, frozen=True):
    """A running shard of a match that has free places."""

    shard_id: str
    mode: str
    criteria: tuple[str, ...]  # its players' values of the mode's `match_on`
    free_places: int


class Match(msgspec.Struct, frozen=True):
    """A group and its shard."""

    shard_id: str
    mode: Mode
    tickets: tuple[Ticket, ...]
    criteria: tuple[str, ...]
    is_new: bool  # whether the caller must make the shard
    params: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def players(self) -> list[str]:
        return [ticket.player for ticket in self.tickets]


def check_mode(mode: Mode) -> Mode:
    """Return `mode` if its fields are in range.

    Raises:
        StartRefused: a field is out of range; the message names it.
    """
    def refuse(problem: str) -> StartRefused:
        return StartRefused(f'matchmaking mode "{mode.name}": {problem}')

    if not mode.name:
        raise refuse("the name is empty")
    if not 1 <= mode.group_size <= limits.MATCH_GROUP:
        raise refuse(f"group_size is {mode.group_size}; it must be 1 to {limits.MATCH_GROUP}")
    if not 0 <= mode.min_size <= mode.group_size:
        raise refuse(
            f"min_size is {mode.min_size}; it must be 0 to group_size ({mode.group_size})"
        )
    for name in ("relax_after_s", "timeout_s", "seat_s"):
        if not getattr(mode, name) >= 0:
            raise refuse(f"{name} is {getattr(mode, name)}; it must be 0 or more")
    return mode


class Matchmaker:
    """The queues of one server."""

    def __init__(self, modes: Mapping[str, Mode], new_id: Callable[[], str]) -> None:
        """Make empty queues.

        Args:
            new_id: returns the part of a new shard's id after the colon, e.g. "match_65f0c1_1".
        """
        self._modes = dict(modes)
        self._new_id = new_id
        self._queues: dict[_Key, dict[str, Ticket]] = {}
        self._key_by_player: dict[str, _Key] = {}
        self._matching: dict[str, Match] = {}  # by player, while the caller makes the shard
        # By player: the shard id, the end of the reservation, and the URL of the shard's node.
        self._assigned: dict[str, tuple[str, float, str | None]] = {}
        self._numbers = 0
        self._failures: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Return the number of waiting players."""
        return len(self._key_by_player)

    def enqueue(self, player: str, criteria: dict[str, Any], now_s: float) -> None:
        """Put a player into the queue of their criteria, and replace their earlier ticket.

        A player who is assigned, or whose match waits for its shard, keeps that match: the request
        repeats one whose response was lost. `dequeue` gives a match up.

        Raises:
            InvalidData: the mode is unknown, or a criterion of `match_on` is missing.
            LimitExceeded: the criteria are too large.
            MatchQueueFull: `limits.MATCH_TICKETS` players wait.
        """
        if len(msgspec.json.encode(criteria)) > limits.MATCH_CRITERIA_BYTES:
            raise LimitExceeded(f"criteria are larger than {limits.MATCH_CRITERIA_BYTES} bytes")
        mode = self._requested_mode(criteria)
        key = (mode.name, tuple(_criterion(criteria, name) for name in mode.match_on))
        if self.status(player, now_s)["status"] == "matched" or player in self._matching:
            return
        self._remove_ticket(player)
        if len(self._key_by_player) >= limits.MATCH_TICKETS:
            raise MatchQueueFull(f"{limits.MATCH_TICKETS} players wait; come again later")
        self._numbers += 1
        queue = self._queues.setdefault(key, {})
        queue[player] = Ticket(player, criteria, now_s, self._numbers, len(queue) + 1)
        self._key_by_player[player] = key

    def dequeue(self, player: str) -> bool:
        """Remove a player's ticket, match and assignment, and return whether they had a ticket."""
        self._matching.pop(player, None)
        self._assigned.pop(player, None)
        return self._remove_ticket(player) is not None

    def status(self, player: str, now_s: float) -> dict[str, Any]:
        """Return ``{"status": "idle" | "queued" | "matched", ...}`` (spec/realtime.md §4.5)."""
        assigned = self._assigned.get(player)
        if assigned is not None and assigned[1] > now_s:
            status: dict[str, Any] = {"status": "matched", "shard_id": assigned[0]}
            return status if assigned[2] is None else {**status, "url": assigned[2]}
        key = self._key_by_player.get(player)
        ticket = None if key is None else self._queues[key][player]
        match = self._matching.get(player)
        if ticket is None and match is not None:
            ticket = next(t for t in match.tickets if t.player == player)
        if ticket is None:
            return {"status": "idle"}
        waited_s = int(max(0.0, now_s - ticket.since_s))
        return {"status": "queued", "position": ticket.position, "waiting_secs": waited_s}

    def acknowledge(self, player: str) -> str | None:
        """End the player's assignment, and return its shard id, or None if they had none."""
        assigned = self._assigned.pop(player, None)
        return None if assigned is None else assigned[0]

    def step(self, now_s: float, open_shards: Iterable[OpenShard] = ()) -> list[Match]:
        """Drop expired tickets, fill open shards and form groups; return the new matches."""
        for player in [p for p, (_, until_s, _) in self._assigned.items() if until_s <= now_s]:
            del self._assigned[player]
        open_by_key: dict[_Key, list[OpenShard]] = {}
        for open_shard in open_shards:
            open_by_key.setdefault((open_shard.mode, open_shard.criteria), []).append(open_shard)
        matches: list[Match] = []
        for key in list(self._queues):
            mode = self._modes[key[0]]
            self._drop_expired(key, mode, now_s)
            if mode.backfill:
                for open_shard in open_by_key.get(key, ()):
                    matches += self._fill_open_shard(key, mode, open_shard)
            matches += self._form_groups(key, mode, now_s)
            for position, ticket in enumerate(self._queues.get(key, {}).values(), 1):
                ticket.position = position
        return matches

    def confirm_match(self, match: Match, now_s: float, url: str | None = None) -> list[str]:
        """Assign the players of a match whose shard exists and has reserved their places.

        Args:
            url: where the node of the shard takes connections; None: where every node does.

        Returns:
            The players who have not dequeued meanwhile.
        """
        assigned = []
        for player in match.players:
            if self._matching.get(player) is match:
                del self._matching[player]
                self._assigned[player] = (match.shard_id, now_s + match.mode.seat_s, url)
                assigned.append(player)
        return assigned

    def requeue_match(self, match: Match) -> None:
        """Return the players of a match without a shard to their positions in the queue."""
        key = (match.mode.name, match.criteria)
        returning = [t for t in match.tickets if self._matching.get(t.player) is match]
        for ticket in returning:
            del self._matching[ticket.player]
            self._key_by_player[ticket.player] = key
        waiting = [*returning, *self._queues.get(key, {}).values()]
        if waiting:
            waiting.sort(key=lambda ticket: ticket.number)
            self._queues[key] = {ticket.player: ticket for ticket in waiting}

    def take_failures(self) -> list[tuple[str, str]]:
        """Return each failure of an app's grouping once, as (mode, traceback)."""
        failures, self._failures = self._failures, []
        return failures

    # --- Internals -----------------------------------------------------------------------

    def _requested_mode(self, criteria: dict[str, Any]) -> Mode:
        name = criteria.get("mode", DEFAULT_MODE)
        mode = self._modes.get(name) if isinstance(name, str) else None
        if mode is None:
            known = ", ".join(sorted(self._modes)) or "none"
            raise InvalidData(
                f"criteria.mode is {name!r}, which is no mode of this app",
                hint=f"The modes are: {known}",
            )
        return mode

    def _remove_ticket(self, player: str) -> Ticket | None:
        key = self._key_by_player.pop(player, None)
        if key is None:
            return None
        queue = self._queues[key]
        ticket = queue.pop(player)
        if not queue:
            del self._queues[key]
        return ticket

    def _drop_expired(self, key: _Key, mode: Mode, now_s: float) -> None:
        queue = self._queues[key]
        for player in [p for p, t in queue.items() if now_s - t.since_s > mode.timeout_s]:
            self._remove_ticket(player)

    def _fill_open_shard(self, key: _Key, mode: Mode, open_shard: OpenShard) -> list[Match]:
        group = list(self._queues.get(key, {}).values())[: max(0, open_shard.free_places)]
        return [self._match(key, mode, group, open_shard.shard_id)] if group else []

    def _form_groups(self, key: _Key, mode: Mode, now_s: float) -> list[Match]:
        matches = []
        if mode.grouping is not None:
            waiting = tuple(self._queues.get(key, {}).values())
            for group in self._app_groups(mode.grouping, mode.name, waiting, now_s):
                group_tickets = [t for t in group if self._key_by_player.get(t.player) == key]
                if group_tickets:
                    matches.append(self._match(key, mode, group_tickets, None))
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

    def _app_groups(
        self, grouping: Grouping, mode: str, waiting: Sequence[Ticket], now_s: float
    ) -> list[Sequence[Ticket]]:
        """Return the groups that the app's function forms; none if it fails."""
        try:
            return [
                [ticket for ticket in dict.fromkeys(group) if isinstance(ticket, Ticket)]
                for group in grouping(waiting, now_s)
            ]
        except Exception as ex:  # noqa: BLE001  the app's code
            text = "".join(traceback.format_exception(ex))[-limits.TRACEBACK_CHARS :]
            self._failures.append((mode, text))
            return []

    def _match(
        self, key: _Key, mode: Mode, group: Sequence[Ticket], shard_id: str | None
    ) -> Match:
        for ticket in group:
            self._remove_ticket(ticket.player)
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
