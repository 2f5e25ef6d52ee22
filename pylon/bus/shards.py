"""Commands to shards workers, and the client that sends each to the right worker.

Every shards worker executes commands at its own endpoint (`pylon.bus.calls`). A command about a
shard goes to the worker where the shard is placed (`pylon.realtime.placement`). The matchmaker runs
in one worker, which is found like that of a shard. `broadcast` asks every worker, and names those
that do not answer. Answers are JSON texts, which the shards worker encodes.

Commands also go to other nodes, which may have another version (`pylon.cluster`): new fields stand
at the end and have defaults, and a node refuses a command that it does not know. Called by the API
of HTTP workers, by `workers.ws` and by shards workers.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import gevent
import msgspec

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.bus.calls import Caller
from pylon.bus.runtime import Runtime
from pylon.clock import RandomSource
from pylon.errors import PylonError, ShardsNotAvailable, Unavailable
from pylon.realtime.placement import MATCHMAKER, Placement, ShardHome, elsewhere_error

CHANNEL: Final = "shards"


class DescribeShard(msgspec.Struct, frozen=True, array_like=True, tag="describe"):
    """``{"id","running","tick","subscribers","input_queue", ...}``."""

    shard_id: str


class DescribeAll(msgspec.Struct, frozen=True, array_like=True, tag="describe_all"):
    """The descriptions of all shards of the worker, as a list."""


class SubmitInput(msgspec.Struct, frozen=True, array_like=True, tag="input"):
    """Submit an input that came over HTTP."""

    shard_id: str
    sid: str
    auth: AuthContext
    input: bytes  # JSON
    client_seq: int | None


class MakeShard(msgspec.Struct, frozen=True, array_like=True, tag="make"):
    """Create a shard if it does not exist, and reserve places for `seats` in it."""

    shard_id: str
    params: dict[str, Any] | None  # None: the shard must exist
    seats: list[str] = []
    seat_s: float = 0.0


class EndShard(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Stop a shard and delete its state."""

    shard_id: str


class PlaceShard(msgspec.Struct, frozen=True, array_like=True, tag="rehome"):
    """Move a shard to the worker `home`, or to the default worker of its id if that is None.

    The worker that has the shard saves it, stops it, and stores the new placement.
    """

    shard_id: str
    home: str | None


class Enqueue(msgspec.Struct, frozen=True, array_like=True, tag="enqueue"):
    """Queue a player for a match. The answer is the player's status."""

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


class RemoteCalls(Protocol):
    """Calls shards workers of other nodes: the cluster port."""

    def call(self, home: ShardHome, command: bytes) -> bytes:
        """Have the worker `home` execute an encoded command; return its answer. Blocks this
        greenlet for `limits.CALL_TIMEOUT_S` at the longest.

        Raises:
            Unavailable: the node cannot be reached, or does not answer.
            PylonError: the error that the worker answered.
        """


class ShardAnswers(msgspec.Struct, frozen=True):
    """The answers of all shards workers to one command."""

    texts: list[bytes]  # one for each worker that answered
    missing: list[str]  # the names of the others: "2", or "node/2" where nodes share a store


class ShardsClient:
    """The client of all shards workers, one for each process. `close` it at the end."""

    def __init__(
        self, runtime: Runtime, placement: Placement, random: RandomSource,
        remote: RemoteCalls | None = None,
    ) -> None:
        """Args: `remote` calls the workers of other nodes; None: this node cannot."""
        self._remote = remote
        self._runtime = runtime
        self._placement = placement
        self._random = random
        self._callers: dict[str, Caller] = {}

    def for_shard(self, command: ShardCommand) -> bytes:
        """Call the worker of the shard; return its answer. Blocks this greenlet.

        Raises:
            ShardsNotAvailable: no node has shards workers.
            SubscribeFailed: the shard lives on a node that this one cannot reach.
            Unavailable: the worker does not answer.
            PylonError: the error that the worker answered.
        """
        self._check()
        region = None
        if isinstance(command, MakeShard) and command.params is not None:
            named = command.params.get("region")
            region = named if isinstance(named, str) else None
        home = self._placement.find(command.shard_id, region)
        return self._call(home, command, command.shard_id)

    def for_matchmaker(self, command: MatchCommand) -> bytes:
        """Call the matchmaker; return its answer. Raises: as `for_shard`."""
        self._check()
        return self._call(self._placement.matchmaker(), command, MATCHMAKER)

    def has_worker(self, name: str) -> bool:
        """Return whether a shard may be moved to this worker (`Placement.has_worker`).

        Raises:
            ShardsNotAvailable: no node has shards workers.
        """
        self._check()
        return self._placement.has_worker(name)

    def broadcast(self, command: DescribeAll) -> ShardAnswers:
        """Call every worker of all nodes. Waits `limits.SHARD_LIST_TIMEOUT_S` at the longest.

        Raises:
            ShardsNotAvailable: no node has shards workers.
            PylonError: no worker answered; the error of the first one.
        """
        self._check()
        homes = self._placement.all_workers()
        calls = [gevent.spawn(self._call_in_time, home, command) for home in homes]
        gevent.joinall(calls, raise_error=True)  # a PylonError is a value here
        results = [call.value for call in calls]
        texts = [result for result in results if not isinstance(result, PylonError)]
        errors = [result for result in results if isinstance(result, PylonError)]
        if errors and not texts:
            raise errors[0]
        return ShardAnswers(texts, [
            home.name for home, result in zip(homes, results, strict=True)
            if isinstance(result, PylonError)
        ])

    def _call_in_time(self, home: ShardHome, command: DescribeAll) -> bytes | PylonError:
        """Call one worker; return its answer, or why there is none."""
        answer: bytes | PylonError = Unavailable(
            f"No answer from shards worker {home.name} within {limits.SHARD_LIST_TIMEOUT_S:g} s",
            hint="Try again in a moment",
        )
        with gevent.Timeout(limits.SHARD_LIST_TIMEOUT_S, False):
            try:
                answer = self._call(home, command, "*")
            except PylonError as ex:
                answer = ex
        return answer

    def _call(self, home: ShardHome, command: Command, shard_id: str) -> bytes:
        """Call one worker; return its answer. Raises: as `for_shard`."""
        if not home.is_here:
            if self._remote is None or not home.cluster_url:
                raise elsewhere_error(shard_id, home)
            return self._remote.call(home, _encode(command))
        caller = self._callers.get(home.worker)
        if caller is None:
            caller = self._callers[home.worker] = Caller(
                self._runtime.shards(home.worker), CHANNEL, self._random
            )
        return caller.call(_encode(command))

    def close(self) -> None:
        """Close all sockets."""
        for caller in self._callers.values():
            caller.close()

    def _check(self) -> None:
        if not self._placement.has_workers:
            raise ShardsNotAvailable(
                "This server runs no shards", hint="Set PYLON_SHARD_WORKERS to 1 or more"
            )
