"""Commands to a shards worker (`pylon.bus.shards`): executes each, and replies with JSON.

Called by `workers.shards.server`, through a call port of the bus.
"""

from __future__ import annotations

from typing import Any

from pylon.bus.shards import (
    AcknowledgeMatch,
    Command,
    Dequeue,
    DescribeAll,
    DescribeShard,
    EndShard,
    Enqueue,
    MakeShard,
    MatchStatus,
    MatchStatuses,
    PlaceShard,
    SubmitInput,
    commands,
)
from pylon.errors import Unavailable
from workers.hub.close_codes import NORMAL, SERVICE_RESTART
from workers.shards.descriptions import description, encoded
from workers.shards.matchmaking import Matchmaking
from workers.shards.registry import ShardRegistry


class ShardRpcHandlers:
    """Executes commands in one process."""

    def __init__(
        self, worker: str, registry: ShardRegistry, matchmaking: Matchmaking | None,
        shard_url: str | None = None,
    ) -> None:
        """
        Args:
            matchmaking: None if another process of this node runs it.
            shard_url: told to the players of matches; None: they need not know it.
        """
        self._worker = worker
        self._shard_url = shard_url
        self._registry = registry
        self._matchmaking = matchmaking

    def answer(self, data: bytes) -> bytes:
        """Execute one encoded command, and return the encoded reply.

        Raises:
            PylonError: the error that the caller gets.
        """
        return encoded(self._execute(commands.decode(data)))

    def _execute(self, command: Command) -> Any:
        registry = self._registry
        match command:
            case DescribeShard():
                return description(registry.get(command.shard_id), registry.name)
            case DescribeAll():
                return [description(shard, registry.name) for shard in registry.list_shards()]
            case SubmitInput():
                return {"accepted": True, "seq": self._submit(command)}
            case MakeShard():
                return self._make(command)
            case EndShard():
                registry.end(command.shard_id, NORMAL, "ended by an admin")
                return {"ended": command.shard_id}
            case PlaceShard():
                was = registry.move(command.shard_id, command.home, SERVICE_RESTART, "moved")
                return {"released": was}
        matchmaking = self._matchmaking
        if matchmaking is None:  # the sender counts another number of shards workers
            raise Unavailable(
                f"Shards worker {self._worker} does not run the matchmaker",
                hint="Restart the server, so that all processes count the same shards workers",
            )
        matchmaking.claim()
        match command:
            case Enqueue():
                return matchmaking.enqueue(command.player, command.criteria)
            case Dequeue():
                return {"dequeued": matchmaking.dequeue(command.player)}
            case MatchStatus():
                return matchmaking.status(command.player)
            case MatchStatuses():
                return {player: matchmaking.status(player) for player in command.players}
            case AcknowledgeMatch():
                return {"shard_id": matchmaking.acknowledge(command.player)}

    def _submit(self, command: SubmitInput) -> int:
        shard = self._registry.get(command.shard_id)
        try:
            return shard.submit(
                command.sid, command.auth, command.input, self._registry.now_s(),
                client_seq=command.client_seq,
            )
        finally:  # the input may have ended the shard
            self._registry.reschedule(shard)

    def _make(self, command: MakeShard) -> dict[str, Any]:
        registry = self._registry
        if command.params is None:
            shard = registry.get(command.shard_id)
        else:
            shard = registry.get_or_make(command.shard_id, command.params)
        if command.seats:
            shard.reserve(command.seats, registry.now_s() + command.seat_s)
            registry.reschedule(shard)
        made = description(shard, registry.name)
        if command.seats and self._shard_url is not None:
            made["url"] = self._shard_url
        return made
