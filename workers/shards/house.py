"""The house: the shards that live in this process, from their making to their end.

A shard is made when somebody subscribes to an id of a kind that allows it, or by command. One
whose state was saved goes on from there. One that has stopped stays listed for a while with the
reason (`limits.SHARD_KEPT_S`) and is not made again meanwhile, so that a simulation that fails
at once does not do so in a loop; one that ended for want of company goes at once.

What is saved goes through the writer: every `save_every_ticks`, when a shard ends for want of
company, and at the drain. A finished shard's state is forgotten, a failed one's is kept as it
was last saved.

Invariants: an id has one running shard. Saves of a shard reach the writer in order, and one that
is on its way counts: a shard that is made again goes on from it. Called by
`workers.shards.door`, `answers` and `server`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import gevent
import msgspec

from pylon import limits, log, metrics
from pylon.bus.messages import DropShard, PutShard
from pylon.bus.writer_client import WriterClient
from pylon.clock import Clock, RandomSource
from pylon.errors import PylonError, ShardNotFound, SubscribeFailed
from pylon.realtime.kinds import Kind, kind_of
from pylon.realtime.replay import Recording
from pylon.realtime.shard import Shard
from pylon.realtime.simulation import Saved
from pylon.realtime.state import ShardContext
from pylon.storage.contract import Store
from workers.shards.scheduler import Scheduler

_NS_PER_S: Final = 1_000_000_000
_FINISHED: Final = "finished"
_IDLE: Final = "idle"
_log = log.get_logger("shards")


class House:
    """The shards of one process."""

    def __init__(
        self, store: Store, writer: WriterClient, clock: Clock, random: RandomSource,
        recordings: Path,
    ) -> None:
        """Args: `recordings` is the folder for those of kinds with `record_bytes`."""
        self._store = store
        self._writer = writer
        self._clock = clock
        self._random = random
        self._recordings = recordings
        self._shards: dict[str, Shard] = {}
        self._ended: dict[str, float] = {}  # stopped ones: until when they are listed
        self._moving: dict[str, float] = {}  # until when they are not made here
        self._saving: dict[str, Saved] = {}  # on their way to the writer
        self._recording: dict[str, Recording] = {}
        self.scheduler = Scheduler(clock, self._stepped)
        metrics.SHARDS.labels("running").set_function(
            lambda: sum(shard.running for shard in self._shards.values())
        )
        metrics.SHARDS.labels("stopped").set_function(lambda: len(self._ended))
        metrics.SHARD_SUBSCRIBERS.set_function(
            lambda: sum(shard.subscribers for shard in self._shards.values())
        )

    def now_s(self) -> float:
        """The time of all shards."""
        return self._clock.monotonic_s()

    # --- Making and finding --------------------------------------------------------------

    def visited(self, shard_id: str) -> Shard:
        """The shard that somebody wants to subscribe to; made if its kind allows that.

        Raises:
            ShardNotFound: there is none, and none may be made.
            SubscribeFailed: there are as many as a process may have.
            QueryTimeout, StoreUnavailable: its saved state cannot be read now.
        """
        shard = self._known(shard_id)
        if shard is not None:
            return shard
        kind = kind_of(shard_id)
        if kind is None:
            raise ShardNotFound(f'no such shard "{shard_id}"')
        if not kind.config.on_demand and self._saved(shard_id) is None:
            raise ShardNotFound(
                f'no such shard "{shard_id}"', hint="Shards of this kind are made by the server"
            )
        return self._make(kind, shard_id, {})

    def found(self, shard_id: str) -> Shard:
        """The shard of an id, running or just stopped.

        Raises:
            ShardNotFound.
        """
        shard = self._known(shard_id)
        if shard is None:
            raise ShardNotFound(f'no such shard "{shard_id}"')
        return shard

    def made(self, shard_id: str, params: Mapping[str, Any]) -> Shard:
        """The running shard of an id, made with `params` if there is none. Raises as `visited`."""
        shard = self._known(shard_id)
        if shard is not None and shard.running:
            return shard
        self._forget(shard_id)
        kind = kind_of(shard_id)
        if kind is None:
            raise ShardNotFound(
                f'no kind of shard for "{shard_id}"', hint="Register it with pylon.shard(name)"
            )
        return self._make(kind, shard_id, params)

    def all(self) -> list[Shard]:
        """Every shard, those that have just stopped included, by id."""
        self._tidy()
        return [self._shards[shard_id] for shard_id in sorted(self._shards)]

    def changed(self, shard: Shard) -> None:
        """Somebody came, went, or sent something."""
        if shard.running:
            self.scheduler.changed(shard)
        else:
            self._stepped(shard)

    # --- Ending --------------------------------------------------------------------------

    def end(self, shard_id: str, code: int, reason: str) -> None:
        """Stop a shard and forget its saved state.

        Raises:
            ShardNotFound; what the writer raises.
        """
        shard = self._known(shard_id)
        if shard is None and self._saved(shard_id) is None:
            raise ShardNotFound(f'no such shard "{shard_id}"')
        if shard is not None:
            shard.stop(code, reason)
            self._forget(shard_id)
        self._writer.submit(DropShard(shard_id))

    def release(self, shard_id: str, code: int, reason: str) -> bool:
        """Save a shard and let go of it, so that another process can go on; whether it ran.

        It is not made here again for `limits.SHARD_MOVE_S`, in which the store is told where it
        lives now.

        Raises: what the writer raises; the shard goes on here then.
        """
        self._moving[shard_id] = self.now_s() + limits.SHARD_MOVE_S
        shard = self._shards.get(shard_id)
        if shard is None or not shard.running:
            self._forget(shard_id)
            return False
        saved = shard.save()
        if saved is not None:
            try:
                self._writer.submit(_put(saved))
            except PylonError:
                del self._moving[shard_id]
                raise
        shard.stop(code, reason)
        self._forget(shard_id)
        return True

    def drain(self, code: int, reason: str) -> int:
        """A last tick for every shard, then save and stop them all; how many were saved."""
        now_s = self.now_s()
        running = [shard for shard in self._shards.values() if shard.running]
        for shard in running:
            if shard.input_queue:
                shard.step(max(now_s, shard.due_s() or now_s))
        saved = [state for shard in running if (state := shard.save()) is not None]
        for shard in running:
            shard.stop(code, reason)
        failed = 0
        for begin in range(0, len(saved), limits.WRITES_IN_FLIGHT):
            part = saved[begin : begin + limits.WRITES_IN_FLIGHT]
            replies = self._writer.submit_all([_put(state) for state in part])
            failed += sum(reply.error is not None for reply in replies)
        if failed:
            _log.error("shards.unsaved", shards=failed)
        return len(saved) - failed

    # --- Within --------------------------------------------------------------------------

    def _known(self, shard_id: str) -> Shard | None:
        until_s = self._ended.get(shard_id)
        if until_s is not None and until_s <= self.now_s():
            self._forget(shard_id)
        return self._shards.get(shard_id)

    def _make(self, kind: Kind, shard_id: str, params: Mapping[str, Any]) -> Shard:
        now_s = self.now_s()
        for moved in [each for each, until_s in self._moving.items() if until_s <= now_s]:
            del self._moving[moved]
        if shard_id in self._moving:
            raise SubscribeFailed("shard is being moved", hint="Connect again")
        if len(self._shards) >= limits.SHARDS:
            self._tidy()
        if len(self._shards) >= limits.SHARDS:
            raise SubscribeFailed(f"{limits.SHARDS} shards are here, and no more may be")
        saved = self._saved(shard_id)
        other = self._shards.get(shard_id)  # reading may have let somebody else in
        if other is not None:
            return other
        if saved is None:
            context = ShardContext(shard_id, kind.name, params, self._random.below(1 << 63))
        else:
            context = ShardContext(shard_id, kind.name, saved.params, saved.seed)
        recorder = self._recorder(kind, context, saved)
        shard = Shard(kind, context, self.now_s(), recorder=recorder, saved=saved)
        self._shards[shard_id] = shard
        _log.info("shard.made", shard=shard_id, restored=saved is not None)
        self.changed(shard)
        return shard

    def _saved(self, shard_id: str) -> Saved | None:
        on_its_way = self._saving.get(shard_id)
        if on_its_way is not None:
            return on_its_way
        at_rest = self._store.point(lambda reader: reader.shard(shard_id))
        if at_rest is None or at_rest.data is None:
            return None
        return msgspec.msgpack.decode(at_rest.data, type=Saved)

    def _recorder(
        self, kind: Kind, context: ShardContext, saved: Saved | None
    ) -> Recording | None:
        if not kind.config.record_bytes:
            return None
        self._recordings.mkdir(parents=True, exist_ok=True)
        stamp = self._clock.wall_ns() // _NS_PER_S
        name = f"{context.id.replace('/', '_').replace(':', '-')}-{stamp}.jsonl"
        recording = Recording(self._recordings / name, kind, context, saved)
        self._recording[context.id] = recording
        return recording

    def _stepped(self, shard: Shard) -> None:
        """A shard has done a tick, or has stopped."""
        if shard.running:
            every = shard.kind.config.save_every_ticks
            if every and shard.tick % every == 0 and shard.id not in self._saving:
                self._save(shard)
            return
        if shard.id in self._ended or self._shards.get(shard.id) is not shard:
            return
        recording = self._recording.pop(shard.id, None)
        if recording is not None and recording.error is not None:
            _log.warning("shard.recording_cut", shard=shard.id, error=str(recording.error))
        reason = shard.stopped_because or ""
        if shard.traceback is not None:
            metrics.SHARD_STOPS.labels("failed").inc()
            _log.error("shard.failed", shard=shard.id, tick=shard.tick, reason=reason,
                       traceback=shard.traceback)
        else:
            metrics.SHARD_STOPS.labels(reason if reason in (_FINISHED, _IDLE) else "other").inc()
            _log.info("shard.stopped", shard=shard.id, tick=shard.tick, reason=reason)
        if reason == _IDLE:
            del self._shards[shard.id]
            self._save(shard)
            return
        self._ended[shard.id] = self.now_s() + limits.SHARD_KEPT_S
        if reason == _FINISHED:
            gevent.spawn(self._drop, shard.id)

    def _save(self, shard: Shard) -> None:
        saved = shard.save()
        if saved is not None:
            self._saving[shard.id] = saved
            gevent.spawn(self._put, saved)

    def _put(self, saved: Saved) -> None:
        try:
            self._writer.submit(_put(saved))
        except PylonError as ex:  # the next save will do; the one before is still there
            _log.warning("shard.unsaved", shard=saved.id, code=ex.code, message=ex.message)
        finally:
            if self._saving.get(saved.id) is saved:
                del self._saving[saved.id]

    def _drop(self, shard_id: str) -> None:
        try:
            self._writer.submit(DropShard(shard_id))
        except PylonError as ex:
            _log.warning("shard.undropped", shard=shard_id, code=ex.code, message=ex.message)

    def _forget(self, shard_id: str) -> None:
        self._shards.pop(shard_id, None)
        self._ended.pop(shard_id, None)

    def _tidy(self) -> None:
        now_s = self.now_s()
        for shard_id in [each for each, until_s in self._ended.items() if until_s <= now_s]:
            self._forget(shard_id)


def _put(saved: Saved) -> PutShard:
    return PutShard(saved.id, saved.tick, msgspec.msgpack.encode(saved))
