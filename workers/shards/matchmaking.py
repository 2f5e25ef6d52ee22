"""Matchmaking: the matchmaker of `pylon.realtime`, with shards made for its matches.

One process of all nodes runs it (`pylon.realtime.placement.Placement.matchmaker`). Once a second
it forms groups. It makes a shard for each group in the process of the shard's id, with a place
reserved for every player, and then informs the players. The queue ends with its process: players
ask again when their status is `idle`.

Where nodes share a database, the process claims the matchmaker as it claims a shard (`leases`),
with the first command. When the lease of its node ends, it drops the queue: another process has an
empty one then. Called by `workers.shards.rpc_handlers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

import gevent
from gevent.lock import BoundedSemaphore

from pylon import log
from pylon.bus.shards import DescribeAll, MakeShard, ShardsClient
from pylon.clock import NS_PER_S, Clock
from pylon.errors import Draining, PylonError
from pylon.realtime.kinds import modes
from pylon.realtime.matchmaker import Match, Matchmaker, OpenShard
from pylon.realtime.placement import MATCHMAKER
from workers.shards.descriptions import decoded
from workers.shards.leases import ShardLeases

_PERIOD_S: Final = 1.0
_NO_MODES_S: Final = 3_600.0
_log = log.get_logger("matchmaking")


class Matchmaking:
    """Keeps the matchmaker going."""

    def __init__(
        self, shards: ShardsClient, clock: Clock, is_draining: Callable[[], bool],
        leases: ShardLeases | None = None,
    ) -> None:
        """Args: `leases` are the claims of this process; None: no other node uses the store."""
        self._leases = leases
        self._claiming = BoundedSemaphore()
        if leases is not None:
            leases.on_lost(self._drop_queue)
        self._shards = shards
        self._clock = clock
        self._made = 0
        self._modes = modes()
        self._open: dict[str, Match] = {}  # shards of modes with backfill, by id
        self._matchmaker = Matchmaker(self._modes, self._new_id)
        self._is_draining = is_draining

    def claim(self) -> None:
        """Make sure that this process runs the matchmaker of all nodes.

        Raises:
            SubscribeFailed: another process does, or this node has no lease.
            Draining: the server is shutting down.
            PylonError: the claim cannot be stored now.
        """
        leases = self._leases
        if leases is None:
            return
        with self._claiming:
            leases.check()
            if leases.generation_of(MATCHMAKER) is None:
                if self._is_draining():
                    raise Draining("This server is shutting down", hint="Ask again in a moment")
                leases.claim(MATCHMAKER, "")  # of no region, as its placement
                _log.info("matchmaker.claimed")

    def enqueue(self, player: str, criteria: dict[str, Any]) -> dict[str, Any]:
        """Have a player wait; the player's status.

        Raises:
            InvalidData, MatchQueueFull, Draining.
        """
        if self._is_draining():
            raise Draining("This server is shutting down", hint="Ask again in a moment")
        now_s = self._clock.monotonic_s()
        self._matchmaker.enqueue(player, criteria, now_s)
        return self._matchmaker.status(player, now_s)

    def dequeue(self, player: str) -> bool:
        """Have a player wait no more; whether they did."""
        return self._matchmaker.dequeue(player)

    def status(self, player: str) -> dict[str, Any]:
        """See `Matchmaker.status`."""
        return self._matchmaker.status(player, self._clock.monotonic_s())

    def acknowledge(self, player: str) -> str | None:
        """See `Matchmaker.acknowledge`."""
        return self._matchmaker.acknowledge(player)

    def run(self) -> NoReturn:
        """Form groups for ever, until a drain begins."""
        while not self._modes:  # no app defines one while it runs
            gevent.sleep(_NO_MODES_S)
        while True:
            gevent.sleep(_PERIOD_S)
            if not self._is_draining() and self._is_claimed():
                self.step()

    def step(self) -> None:
        """Form groups once. Their shards are made one after the other."""
        openings = self._openings() if self._open and len(self._matchmaker) else []
        for match in self._matchmaker.step(self._clock.monotonic_s(), openings):
            self._place(match)
        for mode, failure in self._matchmaker.take_failures():
            _log.error("match.grouping_failed", mode=mode, traceback=failure)

    def _place(self, match: Match) -> None:
        params = dict(match.params) if match.is_new else None
        command = MakeShard(match.shard_id, params, match.players, match.mode.seat_s)
        try:
            made = decoded(self._shards.for_shard(command))
        except PylonError as ex:  # they wait on; the next step tries again
            _log.warning("match.failed", shard=match.shard_id, code=ex.code, message=ex.message)
            self._matchmaker.requeue_match(match)
            self._open.pop(match.shard_id, None)
            return
        if not self._is_claimed():  # the lease has ended meanwhile: the players ask again
            return
        now_s = self._clock.monotonic_s()
        players = self._matchmaker.confirm_match(match, now_s, made.get("url"))
        if match.mode.backfill and match.is_new:
            self._open[match.shard_id] = match
        _log.info("match.placed", shard=match.shard_id, mode=match.mode.name, players=len(players))

    def _is_claimed(self) -> bool:
        leases = self._leases
        if leases is None:
            return True
        return leases.is_valid() and leases.generation_of(MATCHMAKER) is not None

    def _drop_queue(self) -> None:
        if len(self._matchmaker):
            _log.warning("matchmaker.queue_dropped", players=len(self._matchmaker),
                         hint="the lease of this node has ended; the players ask again")
        self._matchmaker = Matchmaker(self._modes, self._new_id)
        self._open.clear()

    def _openings(self) -> list[OpenShard]:
        """Return the free places of running matches, and forget matches that have ended."""
        try:
            answers = self._shards.broadcast(DescribeAll())
        except PylonError as ex:  # then there is nothing to fill this time
            _log.warning("match.openings", code=ex.code, message=ex.message)
            return []
        running = {
            shard["id"]: shard for text in answers.texts for shard in decoded(text)
            if shard["running"]
        }
        openings = []
        for shard_id, match in list(self._open.items()):
            shard = running.get(shard_id)
            if shard is None:
                if not answers.missing:  # else it may run in a worker that did not answer
                    del self._open[shard_id]
            else:
                places = match.mode.group_size - shard["seats_taken"]
                openings.append(OpenShard(shard_id, match.mode.name, match.criteria, places))
        return openings

    def _new_id(self) -> str:
        self._made += 1
        return f"match_{self._clock.wall_ns() // NS_PER_S:x}_{self._made}"
