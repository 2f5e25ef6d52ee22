"""The registry of shards: all shards of one process, from their making to their end.

The registry makes a shard when a client subscribes to an id whose kind allows that, or by command.
A shard with a saved state continues from it. A shard that has stopped stays listed with its reason
for limits.SHARD_KEPT_S seconds, and is not made again meanwhile: a simulation that fails at once
must not fail in a loop. The registry forgets a shard at once if it ended because it was empty, or
if its only subscriber was refused.

`ShardStateWriter` writes states: every `save_every_ticks`, when a shard ends empty or moves, and at
the drain. The state of a finished shard is deleted; that of a failed one stays as last saved.

Reads of the store may switch greenlets (`Store.point`). So each is made again if the shard or its
unwritten state changed meanwhile, and nothing switches between its answer and the making of a
shard.

Invariants: an id has one running shard in all processes. A process makes no shard that lives in
another one, and it writes a move after the shard has stopped. While the registry drains it makes
none. Where nodes share a database, one of them runs the shards of all; a registry of another node
makes none, and one whose lease ends stops its shards and saves nothing more (`release_all`).
Bounds: limits.SHARDS; `ShardQuota` for a client. Called by `workers.shards.handler`,
`rpc_handlers` and `server`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pylon import limits, log, metrics
from pylon.bus.writer_client import WriterClient
from pylon.clock import Clock, RandomSource
from pylon.errors import Draining, LimitExceeded, ShardNotFound, SubscribeFailed
from pylon.limiter import RateLimiter
from pylon.realtime.kinds import Kind, kind_of
from pylon.realtime.placement import home_of, home_of_stored
from pylon.realtime.replay import Recording
from pylon.realtime.shard import Shard, Step
from pylon.realtime.simulation import Saved
from pylon.realtime.state import ShardContext
from pylon.storage.interface import Store, read_settled
from pylon.storage.records import StoredShard
from workers.hub.close_codes import NORMAL
from workers.shards.quota import ShardQuota
from workers.shards.recordings import Recordings
from workers.shards.scheduler import Scheduler
from workers.shards.state_writer import Change, ShardStateWriter

_FAILURE_EVERY_S: Final = 10.0  # inputs that fail are logged so often for each process
_FINISHED: Final = "finished"
_IDLE: Final = "idle"
_REFUSED: Final = "nobody was let in"
_log = log.get_logger("shards")


class ShardRegistry:
    """The shards of one process."""

    def __init__(
        self, store: Store, writer: WriterClient, clock: Clock, random: RandomSource,
        recordings: Path, limiter: RateLimiter, *, worker: str, workers: int,
        may_run: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            may_run: whether this node is the one that runs shards now.
            recordings: the folder for recordings of kinds with `record_bytes`.
            limiter: the rate at which clients may make shards.
            worker: the name of this process, one of `workers`.
        """
        self._store = store
        self._clock = clock
        self._random = random
        self._worker = worker
        self._workers = workers
        self.may_run = may_run
        self._state_writer = ShardStateWriter(writer, may_run)
        self._recordings = Recordings(recordings, clock)
        self._shards: dict[str, Shard] = {}
        self._ended: dict[str, float] = {}  # stopped shards: until when they are listed
        self._unused: set[str] = set()  # made for a subscriber that is not admitted yet
        self._quota = ShardQuota(limiter)
        self._recording: dict[str, Recording] = {}
        self._failure_logged_s = -_FAILURE_EVERY_S
        self.draining = False
        self.scheduler = Scheduler(clock, self._stepped)
        metrics.SHARDS.labels("running").set_function(
            lambda: sum(shard.running for shard in self._shards.values())
        )
        metrics.SHARDS.labels("stopped").set_function(lambda: len(self._ended))
        metrics.SHARD_SUBSCRIBERS.set_function(
            lambda: sum(shard.subscribers for shard in self._shards.values())
        )

    def now_s(self) -> float:
        """Return the time of all shards."""
        return self._clock.monotonic_s()

    @property
    def has_shards(self) -> bool:
        """Whether any shard is here, running or just stopped."""
        return bool(self._shards)

    # --- Making and finding --------------------------------------------------------------

    def find_or_make(self, shard_id: str, subjects: tuple[str, ...] = ()) -> Shard:
        """Return the shard that a client wants to subscribe to; make it if its kind allows that.

        The caller calls `settle_join` afterwards.

        Args:
            subjects: the identity and the address (`pylon.rates`) that a new shard counts for.

        Raises:
            ShardNotFound: there is no such shard, and clients may not make it.
            SubscribeFailed: a process or a subject has too many shards, or the shard lives in
                another process.
            RateLimited: a subject makes shards too fast.
            Draining: the server is shutting down.
            QueryTimeout, StoreUnavailable: the saved state cannot be read now.
        """
        shard = self._known(shard_id)
        if shard is not None:
            return shard
        kind = kind_of(shard_id)
        if kind is None:
            raise ShardNotFound(f'no such shard "{shard_id}"')
        stored = self._read_stored(shard_id)
        shard = self._known(shard_id)
        if shard is not None:  # another greenlet has made it during the read
            return shard
        if not kind.config.on_demand and self._saved(shard_id, stored) is None:
            raise ShardNotFound(
                f'no such shard "{shard_id}"', hint="Shards of this kind are made by the server"
            )
        if self._quota.is_reached(subjects):
            self._drop_expired()
        self._quota.check(subjects)
        shard = self._make(kind, shard_id, {}, stored)
        self._unused.add(shard_id)
        self._quota.add(shard_id, subjects)
        return shard

    def settle_join(self, shard: Shard, *, is_in: bool) -> None:
        """Note whether a subscriber was admitted.

        A shard that was made for a refused subscriber is forgotten: otherwise strangers could fill
        the registry.
        """
        if shard.id in self._unused and self._shards.get(shard.id) is shard:
            self._unused.discard(shard.id)
            if not is_in and shard.running and not shard.seats_taken:
                shard.stop(NORMAL, _REFUSED)
                recording = self._recording.get(shard.id)
                if recording is not None:
                    recording.discard()
        self.reschedule(shard)

    def get(self, shard_id: str) -> Shard:
        """Return the shard of an id, running or just stopped.

        Raises:
            ShardNotFound: there is none.
        """
        shard = self._known(shard_id)
        if shard is None:
            raise ShardNotFound(f'no such shard "{shard_id}"')
        return shard

    def get_or_make(self, shard_id: str, params: Mapping[str, Any]) -> Shard:
        """Return the running shard of an id; make it with `params` if there is none.

        Raises:
            LimitExceeded: `params` are too large.
            PylonError: as `find_or_make`.
        """
        if len(msgspec.json.encode(params)) > limits.SHARD_PARAMS_BYTES:
            shard = self._running(shard_id)
            if shard is not None:
                return shard
            raise LimitExceeded(f"params are larger than {limits.SHARD_PARAMS_BYTES} bytes")
        kind = kind_of(shard_id)
        if kind is None:
            raise ShardNotFound(
                f'no kind of shard for "{shard_id}"', hint="Register it with pylon.shard(name)"
            )
        stored = None if self._running(shard_id) else self._read_stored(shard_id)
        shard = self._running(shard_id)
        if shard is not None:
            return shard
        self._forget(shard_id)
        return self._make(kind, shard_id, params, stored)

    def _running(self, shard_id: str) -> Shard | None:
        """Return a running shard that a command may use; it stays without a subscriber."""
        shard = self._known(shard_id)
        if shard is None or not shard.running:
            return None
        self._unused.discard(shard_id)
        return shard

    def list_shards(self) -> list[Shard]:
        """Return every shard by id, those that have just stopped included."""
        self._drop_expired()
        return [self._shards[shard_id] for shard_id in sorted(self._shards)]

    def reschedule(self, shard: Shard) -> None:
        """Schedule a shard anew after a subscriber came, left, or sent an input."""
        if shard.running:
            self.scheduler.changed(shard)
        else:
            self._stepped(shard)

    # --- Ending --------------------------------------------------------------------------

    def end(self, shard_id: str, code: int, reason: str) -> None:
        """Stop a shard and delete its saved state.

        Raises:
            ShardNotFound: there is none.
            SubscribeFailed: another node runs the shards.
            Unavailable: the shard has stopped, but its state is not deleted yet.
        """
        self._check_lease()
        stored = None if self._known(shard_id) else self._read_stored(shard_id)
        shard = self._known(shard_id)
        if shard is None and self._saved(shard_id, stored) is None:
            raise ShardNotFound(f'no such shard "{shard_id}"')
        if shard is not None:
            shard.stop(code, reason)
            self.reschedule(shard)
            self._forget(shard_id)
        self._state_writer.put(Change(shard_id, None, keeps=False))
        self._state_writer.settle(shard_id)

    def move(self, shard_id: str, home: str | None, code: int, reason: str) -> bool:
        """Move a shard to another worker. It stops here first, and is not made here again.

        Args:
            home: the worker; None for the one that the id names.

        Returns:
            Whether the shard ran here.

        Raises:
            SubscribeFailed: the shard lives in another process already, or another node runs the
                shards.
            Unavailable: the shard has stopped, but its placement is not stored yet.
        """
        self._check_lease()
        self._check_home(shard_id, self._read_stored(shard_id))
        target = home_of(shard_id, self._workers) if home is None else home
        shard = self._known(shard_id)
        saved = None
        ran = shard is not None and shard.running and target != self._worker
        if shard is not None and target != self._worker:
            if shard.running:
                saved = shard.save()
            shard.stop(code, reason)
            self.reschedule(shard)
            self._forget(shard_id)
        if saved is None:
            pending = self._state_writer.pending(shard_id)
            saved, keeps = (None, True) if pending is None else (pending.saved, pending.keeps)
        else:
            keeps = True
        self._state_writer.put(Change(shard_id, saved, keeps=keeps, moves=True, home=home))
        self._state_writer.settle(shard_id)
        return ran

    def release_all(self, code: int, reason: str) -> None:
        """Stop every shard without saving it: another node may run it from now on."""
        self._state_writer.discard_all()
        for shard in [shard for shard in self._shards.values() if shard.running]:
            shard.stop(code, reason)
            self.reschedule(shard)
        for shard_id in list(self._shards):
            self._forget(shard_id)

    def drain(self, code: int, reason: str) -> int:
        """Step, save and stop every shard. Return how many states were not saved."""
        self.draining = True
        now_s = self.now_s()
        for shard in [shard for shard in self._shards.values() if shard.running]:
            if shard.input_queue:
                shard.step(max(now_s, shard.due_s() or now_s))
            if shard.running:
                self._save(shard)
                shard.stop(code, reason)
            self.reschedule(shard)
        return self._state_writer.finish()

    # --- Internals -----------------------------------------------------------------------

    def _known(self, shard_id: str) -> Shard | None:
        until_s = self._ended.get(shard_id)
        if until_s is not None and until_s <= self.now_s():
            self._forget(shard_id)
        return self._shards.get(shard_id)

    def _make(
        self, kind: Kind, shard_id: str, params: Mapping[str, Any], stored: StoredShard | None
    ) -> Shard:
        """Make a shard. Never switches greenlets.

        Args:
            stored: the answer of `_read_stored`, since which nothing has switched.
        """
        if self.draining:
            raise Draining("This server is shutting down", hint="Connect again")
        self._check_lease()
        if len(self._shards) >= limits.SHARDS:
            self._drop_expired()
        if len(self._shards) >= limits.SHARDS:
            raise SubscribeFailed(f"{limits.SHARDS} shards are here, and no more may be")
        self._check_home(shard_id, stored)
        saved = self._saved(shard_id, stored)
        if saved is None:
            context = ShardContext(shard_id, kind.name, params, self._random.below(1 << 63))
        else:
            context = ShardContext(shard_id, kind.name, saved.params, saved.seed)
        recording = self._recordings.begin(kind, context, saved)
        if recording is not None:
            self._recording[shard_id] = recording
        shard = Shard(
            kind, context, self.now_s(), recorder=recording, saved=saved,
            guard=self.scheduler.guard(kind),
        )
        self._shards[shard_id] = shard
        _log.info("shard.made", shard=shard_id, restored=saved is not None)
        self.reschedule(shard)
        return shard

    def _check_lease(self) -> None:
        if not self.may_run():
            raise SubscribeFailed(
                "the shards run on another node of this server, or are on their way to this one",
                hint="Connect again; a load balancer should send shards to one node",
            )

    def _read_stored(self, shard_id: str) -> StoredShard | None:
        """Return the shard as stored. May switch greenlets; the answer fits the memory then.

        Raises:
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        return read_settled(
            self._store, lambda reader: reader.shard(shard_id),
            lambda: (self._known(shard_id), self._state_writer.pending(shard_id)),
        )

    def _check_home(self, shard_id: str, stored: StoredShard | None) -> None:
        pending = self._state_writer.pending(shard_id)
        if pending is not None and pending.moves:
            raise SubscribeFailed("shard is being moved", hint="Connect again")
        if home_of_stored(shard_id, self._workers, stored) != self._worker:
            raise SubscribeFailed("shard lives in another process now", hint="Connect again")

    def _saved(self, shard_id: str, stored: StoredShard | None) -> Saved | None:
        pending = self._state_writer.pending(shard_id)
        if pending is not None and (pending.saved is not None or not pending.keeps):
            return pending.saved
        if stored is None or stored.data is None:
            return None
        return msgspec.msgpack.decode(stored.data, type=Saved)

    def _stepped(self, shard: Shard, step: Step | None = None) -> None:
        """Save or settle a shard that was stepped, or has stopped."""
        if shard.running:
            if step is None or not step.ticked:
                return
            is_due = self.now_s() >= self._failure_logged_s + _FAILURE_EVERY_S
            if step.failure is not None and is_due:
                self._failure_logged_s = self.now_s()
                _log.error("shard.input_failed", shard=shard.id, traceback=step.failure)
            every = shard.kind.config.save_every_ticks
            if not every or shard.tick % every or self._save(shard):
                return
        if shard.id in self._ended or self._shards.get(shard.id) is not shard:
            return
        if shard.stopped_because == _IDLE:
            self._save(shard)
        self._settle(shard)

    def _settle(self, shard: Shard) -> None:
        """Log that a shard has stopped; forget it, or list it for a while."""
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
            if reason in (_IDLE, _REFUSED):
                self._forget(shard.id)
                return
        self._ended[shard.id] = self.now_s() + limits.SHARD_KEPT_S
        if reason == _FINISHED:
            self._state_writer.put(Change(shard.id, None, keeps=False))

    def _save(self, shard: Shard) -> bool:
        """Write the state of a shard, if it has one. Return False if the shard failed of that."""
        saved = shard.save()
        if saved is not None:
            self._state_writer.put(Change(shard.id, saved))
        return shard.traceback is None

    def _forget(self, shard_id: str) -> None:
        self._shards.pop(shard_id, None)
        self._ended.pop(shard_id, None)
        self._unused.discard(shard_id)
        self._quota.remove(shard_id)

    def _drop_expired(self) -> None:
        now_s = self.now_s()
        for shard_id in [each for each, until_s in self._ended.items() if until_s <= now_s]:
            self._forget(shard_id)
