"""The registry of shards: all shards of one process, from their making to their end.

The registry makes a shard when a client subscribes to an id whose kind allows that, or by command.
A shard with a saved state continues from it. A shard that has stopped stays listed with its reason
for limits.SHARD_KEPT_S seconds, and is not made again meanwhile: a simulation that fails at once
must not fail in a loop. The registry forgets a shard at once if it ended because it was empty, or
if its only subscriber was refused.

`stored_shards` writes states: every `save_every_ticks`, when a shard ends empty or moves, and at
the drain. The state of a finished shard is deleted; that of a failed one stays as last saved.
Nothing switches greenlets between a read of the store and the making of a shard.

Where nodes share a database, the registry claims a shard before it makes it, and releases it when
it forgets it. When the lease of the node has ended it stops all shards (`release_all`). The store
takes their last states if nobody has claimed them meanwhile.

Invariants: an id has one running shard in all processes. A process makes no shard that lives in
another one, and it writes a move after the shard has stopped. While the registry drains it makes
none. A shard whose lease has ended does not tick (`Scheduler.may_step`), and of two claims of a
shard only the later one stores states.
Bounds: limits.SHARDS; `ShardQuota` for a client. Called by `workers.shards.handler`,
`rpc_handlers` and `server`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pylon import limits, log, metrics
from pylon.bus.writer_client import WriterClient
from pylon.clock import Clock, RandomSource
from pylon.errors import Draining, LimitExceeded, ShardNotFound, SubscribeFailed
from pylon.limiter import RateLimiter
from pylon.realtime.kinds import Kind, kind_of
from pylon.realtime.placement import Placement
from pylon.realtime.replay import Recording
from pylon.realtime.shard import Shard, Step
from pylon.realtime.state import ShardContext
from pylon.storage.interface import Store
from pylon.storage.records import StoredPlace, StoredShard
from workers.hub.close_codes import NORMAL, SERVICE_RESTART
from workers.shards.leases import ShardLeases
from workers.shards.quota import ShardQuota
from workers.shards.recordings import Recordings
from workers.shards.scheduler import Scheduler
from workers.shards.state_writer import Change
from workers.shards.stored_shards import StoredShards

_FAILURE_EVERY_S: Final = 10.0  # inputs that fail are logged so often for each process
_FINISHED: Final = "finished"
_IDLE: Final = "idle"
_REFUSED: Final = "nobody was let in"
_LEASE_ENDED: Final = "the lease of this node has ended"
_log = log.get_logger("shards")


class ShardRegistry:
    """The shards of one process."""

    def __init__(
        self, store: Store, writer: WriterClient, clock: Clock, random: RandomSource,
        recordings: Path, limiter: RateLimiter, placement: Placement, *, worker: str,
        leases: ShardLeases | None = None,
    ) -> None:
        """
        Args:
            recordings: the folder for recordings of kinds with `record_bytes`.
            limiter: the rate at which clients may make shards.
            worker: the name of this process on its node.
            leases: the claims of this process; None: no other node uses the store.
        """
        self._store = store
        self._clock = clock
        self._random = random
        self._worker = worker
        self._placement = placement
        self._leases = leases
        self._stored = StoredShards(store, writer, leases, self._known, self._lose)
        self._recordings = Recordings(recordings, clock)
        self._shards: dict[str, Shard] = {}
        self._ended: dict[str, float] = {}  # stopped shards: until when they are listed
        self._unused: set[str] = set()  # made for a subscriber that is not admitted yet
        self._quota = ShardQuota(limiter)
        self._recording: dict[str, Recording] = {}
        self._failure_logged_s = -_FAILURE_EVERY_S
        self.draining = False
        self.scheduler = Scheduler(
            clock, self._stepped, None if leases is None else leases.is_valid
        )
        if leases is not None:
            leases.on_lost(lambda: self.release_all(SERVICE_RESTART, _LEASE_ENDED))
        metrics.SHARDS.labels("running").set_function(
            lambda: sum(shard.running for shard in self._shards.values())
        )
        metrics.SHARDS.labels("stopped").set_function(lambda: len(self._ended))
        metrics.SHARD_SUBSCRIBERS.set_function(
            lambda: sum(shard.subscribers for shard in self._shards.values())
        )

    @property
    def name(self) -> str:
        """The name of this worker in the store."""
        return self._worker if self._leases is None else self._leases.name

    def now_s(self) -> float:
        """Return the time of all shards."""
        return self._clock.monotonic_s()

    def has_shard(self, shard_id: str) -> bool:
        """Return whether a shard is here, running or just stopped."""
        return self._known(shard_id) is not None

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
        with self._stored.alone(shard_id):
            stored = self._stored.read(shard_id)
            shard = self._known(shard_id)
            if shard is not None:  # another greenlet has made it during the read
                return shard
            if not kind.config.on_demand and self._stored.saved(shard_id, stored) is None:
                raise ShardNotFound(
                    f'no such shard "{shard_id}"', hint="Shards of this kind are made by the server"
                )
            if self._quota.is_reached(subjects):
                self._drop_expired()
            self._quota.check(subjects)
            self._check_drain()
            with self._stored.claimed(shard_id, stored) as stored:
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
        with self._stored.alone(shard_id):
            stored = None if self._running(shard_id) else self._stored.read(shard_id)
            shard = self._running(shard_id)
            if shard is not None:
                return shard
            self._forget(shard_id)
            region = params.get("region")
            region = region if isinstance(region, str) else None
            self._check_drain()
            with self._stored.claimed(shard_id, stored, region) as stored:
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
            SubscribeFailed: it lives on another node, or this node has no lease.
            Unavailable: the shard has stopped, but its state is not deleted yet.
        """
        with self._stored.alone(shard_id):
            stored = None if self._known(shard_id) else self._stored.read(shard_id)
            shard = self._known(shard_id)
            if shard is None and self._stored.saved(shard_id, stored) is None:
                raise ShardNotFound(f'no such shard "{shard_id}"')
            if shard is None:
                self._stored.claim(shard_id)
            else:
                shard.stop(code, reason)
                self.reschedule(shard)
            self._stored.put(Change(shard_id, None, keeps=False))
            self._forget(shard_id)
            self._stored.settle(shard_id)

    def move(self, shard_id: str, home: str | None, code: int, reason: str) -> bool:
        """Move a shard to another worker. It stops here first, and is not made here again.

        Args:
            home: the worker, as `Placement.has_worker` takes it; None: the one that the id names.

        Returns:
            Whether the shard ran here.

        Raises:
            SubscribeFailed: the shard lives in another process already, or this node has no lease.
            Unavailable: the shard has stopped, but its placement is not stored yet.
        """
        with self._stored.alone(shard_id):
            place = self._stored.read_place(shard_id)
            self._check_home(shard_id, place)
            shard = self._known(shard_id)
            if self._leases is not None and (shard is None or not shard.running):
                self._forget(shard_id)
                shard = None
                self._stored.claim(shard_id)
            moves_away = self._placement.target(shard_id, home, place).name != self.name
            ran = shard is not None and shard.running and moves_away
            saved = shard.save() if shard is not None and ran else None
            if shard is not None and moves_away:
                shard.stop(code, reason)
                self.reschedule(shard)
            self._stored.put(Change(shard_id, saved, moves=True, home=home))
            if shard is None or moves_away:
                self._forget(shard_id)
            self._stored.settle(shard_id)
            return ran

    def release_all(self, code: int, reason: str) -> None:
        """Stop every shard: another node may run it from now on. Its last state is stored if none
        does."""
        for shard in [shard for shard in self._shards.values() if shard.running]:
            self._save(shard)
            shard.stop(code, reason)
            self.reschedule(shard)
        for shard_id in list(self._shards):
            self._forget(shard_id)

    def drain(self, code: int, reason: str) -> int:
        """Step, save and stop every shard. Return how many states were not saved."""
        self.draining = True
        now_s = self.now_s()
        may_step = self._leases is None or self._leases.is_valid()
        for shard in [shard for shard in self._shards.values() if shard.running]:
            if shard.input_queue and may_step:
                shard.step(max(now_s, shard.due_s() or now_s))
            if shard.running:
                self._save(shard)
                shard.stop(code, reason)
            self.reschedule(shard)
        if self._leases is not None:  # so that other nodes need not wait for the end of the lease
            for shard_id in self._leases.claimed_ids():
                self._forget(shard_id)
        return self._stored.finish()

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
            stored: the answer of `StoredShards.read`, since which nothing has switched.
        """
        self._check_drain()
        self._stored.check(shard_id)
        if len(self._shards) >= limits.SHARDS:
            self._drop_expired()
        if len(self._shards) >= limits.SHARDS:
            raise SubscribeFailed(f"{limits.SHARDS} shards are here, and no more may be")
        self._check_home(shard_id, None if stored is None else StoredPlace(stored.home))
        saved = self._stored.saved(shard_id, stored)
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

    def _check_drain(self) -> None:
        if self.draining:
            raise Draining("This server is shutting down", hint="Connect again")

    def _lose(self, shard_id: str, generation: int) -> None:
        """Stop a shard that another worker has claimed."""
        leases = self._leases
        if leases is None or leases.generation_of(shard_id) != generation:
            return
        leases.forget(shard_id)
        shard = self._shards.get(shard_id)
        if shard is not None:
            shard.stop(SERVICE_RESTART, "moved to another node")
            self.reschedule(shard)
            self._forget(shard_id)

    def _check_home(self, shard_id: str, place: StoredPlace | None) -> None:
        """Check that a shard lives here; with leases the claim of it decides."""
        if self._stored.is_moving(shard_id):
            raise SubscribeFailed("shard is being moved", hint="Connect again")
        if self._leases is None:
            home = self._placement.of_stored(shard_id, place)
            if home.worker != self._worker:
                raise SubscribeFailed("shard lives in another process now", hint="Connect again")

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
            self._stored.put(Change(shard.id, None, keeps=False))

    def _save(self, shard: Shard) -> bool:
        """Write the state of a shard, if it has one. Return False if the shard failed of that."""
        saved = shard.save()
        if saved is not None:
            self._stored.put(Change(shard.id, saved))
        return shard.traceback is None

    def _forget(self, shard_id: str) -> None:
        self._shards.pop(shard_id, None)
        self._ended.pop(shard_id, None)
        self._unused.discard(shard_id)
        self._quota.remove(shard_id)
        self._stored.release(shard_id)

    def _drop_expired(self) -> None:
        now_s = self.now_s()
        for shard_id in [each for each, until_s in self._ended.items() if until_s <= now_s]:
            self._forget(shard_id)
