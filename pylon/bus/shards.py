"""What is asked of shards workers, and the way to the one where a shard lives.

Every shards worker answers commands at an endpoint of its own (`pylon.bus.calls`). A command
about a shard goes to the shard's home; the matchmaker lives at one worker, found as if it were
a shard. Answers are JSON texts, made where the shard is.

Used by the API of HTTP workers and by shards workers themselves.
"""

from __future__ import annotations

from typing import Any, Final

import gevent
import msgspec

from pylon.auth_context import AuthContext
from pylon.bus.calls import Caller
from pylon.bus.runtime import Runtime
from pylon.clock import RandomSource
from pylon.errors import ShardsNotAvailable
from pylon.realtime.placement import home_of, placement_of
from pylon.storage.interface import Store

CHANNEL: Final = "shards"
MATCHMAKER: Final = ":matchmaker"  # no shard has this id


class DescribeShard(msgspec.Struct, frozen=True, array_like=True, tag="describe"):
    """``{"id","running","tick","subscribers","input_queue", ...}``."""

    shard_id: str


class DescribeAll(msgspec.Struct, frozen=True, array_like=True, tag="describe_all"):
    """The same of every shard of the worker, as a list."""


class SubmitInput(msgspec.Struct, frozen=True, array_like=True, tag="input"):
    """An input that came over HTTP."""

    shard_id: str
    sid: str
    auth: AuthContext
    input: bytes  # JSON
    client_seq: int | None


class MakeShard(msgspec.Struct, frozen=True, array_like=True, tag="make"):
    """Make a shard that is not there, or keep seats in one that is."""

    shard_id: str
    params: dict[str, Any] | None  # None: it must be there
    seats: list[str] = []
    seat_s: float = 0.0


class EndShard(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Stop a shard and forget its state."""

    shard_id: str


class PlaceShard(msgspec.Struct, frozen=True, array_like=True, tag="rehome"):
    """Save a shard and let go of it: it lives at the worker `home` from now on (None: where its
    id says). The store is told by the worker that had it."""

    shard_id: str
    home: str | None


class Enqueue(msgspec.Struct, frozen=True, array_like=True, tag="enqueue"):
    """Have a player wait for a match. The answer is the player's status."""

    player: str
    criteria: dict[str, Any]


class Dequeue(msgspec.Struct, frozen=True, array_like=True, tag="dequeue"):
    player: str


class MatchStatus(msgspec.Struct, frozen=True, array_like=True, tag="match_status"):
    player: str


class MatchStatuses(msgspec.Struct, frozen=True, array_like=True, tag="match_statuses"):
    """The statuses of many players, by player."""

    players: list[str]


class AcknowledgeMatch(msgspec.Struct, frozen=True, array_like=True, tag="acknowledge"):
    player: str


ShardCommand = DescribeShard | SubmitInput | MakeShard | EndShard | PlaceShard
MatchCommand = Enqueue | Dequeue | MatchStatus | MatchStatuses | AcknowledgeMatch
Command = ShardCommand | MatchCommand | DescribeAll

_encode: Final = msgspec.msgpack.Encoder().encode
commands: Final = msgspec.msgpack.Decoder(Command)


class ShardsClient:
    """One process's way to all shards workers. `close` it at the end."""

    def __init__(
        self, runtime: Runtime, workers: int, store: Store, random: RandomSource
    ) -> None:
        """Args: `workers`: how many there are, named "1", "2" and so on."""
        self._runtime = runtime
        self._workers = workers
        self._store = store
        self._random = random
        self._callers: dict[str, Caller] = {}

    def for_shard(self, command: ShardCommand) -> bytes:
        """Ask the worker where the shard lives; blocks this greenlet.

        Raises:
            ShardsNotAvailable: the role is switched off.
            Unavailable: the worker does not answer.
            PylonError: what it answered.
        """
        self._check()
        home = placement_of(command.shard_id, self._workers, self._store.point)
        return self.at(home, command)

    def for_matchmaker(self, command: MatchCommand) -> bytes:
        """Ask the matchmaker. Raises as `for_shard`."""
        self._check()
        return self.at(home_of(MATCHMAKER, self._workers), command)

    def broadcast(self, command: DescribeAll) -> list[bytes]:
        """Ask every worker; their answers by number. Raises as `for_shard`."""
        names = [str(number) for number in range(1, self._workers + 1)]
        asked = [gevent.spawn(self.at, name, command) for name in names]
        gevent.joinall(asked, raise_error=True)
        return [greenlet.value for greenlet in asked]

    def at(self, worker: str, command: Command) -> bytes:
        """Ask one worker. Raises as `for_shard`."""
        caller = self._callers.get(worker)
        if caller is None:
            caller = self._callers[worker] = Caller(
                self._runtime.shards(worker), CHANNEL, self._random
            )
        return caller.call(_encode(command))

    def close(self) -> None:
        """Let go of all sockets."""
        for caller in self._callers.values():
            caller.close()

    def _check(self) -> None:
        if not self._workers:
            raise ShardsNotAvailable(
                "This server runs no shards", hint="Set PYLON_SHARD_WORKERS to 1 or more"
            )
