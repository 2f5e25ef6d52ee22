"""The house: the shards that live in this process, from their making to their end.

A shard is made when somebody subscribes to an id of a kind that allows it, or by command. One
whose state was saved goes on from there. One that has stopped stays listed for a while with the
reason (`limits.SHARD_KEPT_S`) and is not made again meanwhile, so that a simulation that fails
at once does not do so in a loop; one that ended for want of company goes at once, and so does
one whose only visitor was refused.

States are kept by the `ShardStateWriter`: every `save_every_ticks`, when a shard ends for want of
company or moves, and at the drain. A finished shard's state is forgotten, a failed one's is kept as
it was last saved.

A shard that a subscriber brings into being counts for that identity and that address, until it is
forgotten: one client cannot take the places of all (`limits.SHARDS_OF_USER`, `rates`).

Invariants: an id has one running shard, here or elsewhere: none is made of an id that lives in
another process, and a move is written here, after the shard has stopped. While the house drains
nothing is made. Called by `workers.shards.handler`, `answers` and `server`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pylon import limits, log, metrics
from pylon.bus.writer_client import WriterClient
from pylon.clock import Clock, RandomSource
from pylon.errors import Draining, LimitExceeded, ShardNotFound, SubscribeFailed
from pylon.limiter import RateLimiter
from pylon.rates import SHARDS_BY_ADDRESS, SHARDS_BY_USER, is_user_subject
from pylon.realtime.kinds import Kind, kind_of
from pylon.realtime.placement import home_of, placement_of
from pylon.realtime.replay import Recording
from pylon.realtime.shard import Shard, Step
from pylon.realtime.simulation import Saved
from pylon.realtime.state import ShardContext
from pylon.storage.interface import Store
from workers.shards.recordings import Recordings
from workers.shards.scheduler import Scheduler
from workers.shards.state_writer import Change, ShardStateWriter

_FAILURE_EVERY_S: Final = 10.0  # inputs that fail are logged so often for each process
_FINISHED: Final = "finished"
_IDLE: Final = "idle"
_REFUSED: Final = "nobody was let in"
_OK: Final = 1000
_log = log.get_logger("shards")


class ShardRegistry:
    """The shards of one process."""

    def __init__(
        self, store: Store, writer: WriterClient, clock: Clock, random: RandomSource,
        recordings: Path, limiter: RateLimiter, *, worker: str, workers: int,
    ) -> None:
        """
        Args:
            recordings: the folder for those of kinds with `record_bytes`.
            limiter: for the shards that clients bring into being.
            worker: the name of this process, of so many `workers`.
        """
        self._store = store
        self._clock = clock
        self._random = random
        self._worker = worker
        self._workers = workers
        self._state_writer = ShardStateWriter(writer)
        self._recordings = Recordings(recordings, clock)
        self._shards: dict[str, Shard] = {}
        self._ended: dict[str, float] = {}  # stopped ones: until when they are listed
        self._unused: set[str] = set()  # made for a visitor who is not in yet
        self._limiter = limiter
        self._makers: dict[str, tuple[str, ...]] = {}  # the subjects that a shard counts for
        self._made_by: Counter[str] = Counter()  # shards by subject
        self._recording: dict[str, Recording] = {}
        self._failure_told_s = -_FAILURE_EVERY_S
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
        """The time of all shards."""
        return self._clock.monotonic_s()

    # --- Making and finding --------------------------------------------------------------

    def find_or_make(self, shard_id: str, subjects: tuple[str, ...] = ()) -> Shard:
        """The shard that somebody wants to subscribe to; made if its kind allows that.

        Args:
            subjects: the identity and the address (`pylon.rates`) that a new shard counts for.

        Raises:
            ShardNotFound: there is none, and none may be made.
            SubscribeFailed: there are as many as a process or a subject may have, or it lives
                elsewhere.
            RateLimited: a subject makes them too fast.
            Draining.
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
        self._check_quota(subjects)
        shard = self._make(kind, shard_id, {})
        self._unused.add(shard_id)
        if subjects:
            self._makers[shard_id] = subjects
            self._made_by.update(subjects)
        return shard

    def settle_join(self, shard: Shard, *, is_in: bool) -> None:
        """What became of a visitor. A shard that was made for one who was refused is forgotten,
        or strangers could fill the house."""
        if shard.id in self._unused and self._shards.get(shard.id) is shard:
            self._unused.discard(shard.id)
            if not is_in and shard.running and not shard.seats_taken:
                shard.stop(_OK, _REFUSED)
                recording = self._recording.get(shard.id)
                if recording is not None:
                    recording.discard()
        self.reschedule(shard)

    def get(self, shard_id: str) -> Shard:
        """The shard of an id, running or just stopped.

        Raises:
            ShardNotFound.
        """
        shard = self._known(shard_id)
        if shard is None:
            raise ShardNotFound(f'no such shard "{shard_id}"')
        return shard

    def get_or_make(self, shard_id: str, params: Mapping[str, Any]) -> Shard:
        """The running shard of an id, made with `params` if there is none.

        Raises:
            LimitExceeded: `params` are too large.
            And as `find_or_make`.
        """
        shard = self._known(shard_id)
        if shard is not None and shard.running:
            self._unused.discard(shard_id)
            return shard
        if len(msgspec.json.encode(params)) > limits.SHARD_PARAMS_BYTES:
            raise LimitExceeded(f"params are larger than {limits.SHARD_PARAMS_BYTES} bytes")
        self._forget(shard_id)
        kind = kind_of(shard_id)
        if kind is None:
            raise ShardNotFound(
                f'no kind of shard for "{shard_id}"', hint="Register it with pylon.shard(name)"
            )
        return self._make(kind, shard_id, params)

    def list_shards(self) -> list[Shard]:
        """Every shard, those that have just stopped included, by id."""
        self._tidy()
        return [self._shards[shard_id] for shard_id in sorted(self._shards)]

    def reschedule(self, shard: Shard) -> None:
        """Somebody came, went, or sent something."""
        if shard.running:
            self.scheduler.changed(shard)
        else:
            self._stepped(shard)

    # --- Ending --------------------------------------------------------------------------

    def end(self, shard_id: str, code: int, reason: str) -> None:
        """Stop a shard and forget its saved state.

        Raises:
            ShardNotFound.
            Unavailable: it is stopped, but not forgotten yet.
        """
        shard = self._known(shard_id)
        if shard is None and self._saved(shard_id) is None:
            raise ShardNotFound(f'no such shard "{shard_id}"')
        if shard is not None:
            shard.stop(code, reason)
            self.reschedule(shard)
            self._forget(shard_id)
        self._state_writer.put(Change(shard_id, None, keeps=False))
        self._state_writer.settle(shard_id)

    def move(self, shard_id: str, home: str | None, code: int, reason: str) -> bool:
        """Have a shard live at the worker `home` (None: where its id says) from now on; whether
        it ran. It stops here first, and is not made here again.

        Raises:
            SubscribeFailed: it lives elsewhere already.
            Unavailable: it is stopped, but the store does not know yet where it lives.
        """
        self._check_home(shard_id)
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

    def drain(self, code: int, reason: str) -> int:
        """A last tick for every shard, then save and stop them all; how many were not saved."""
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

    # --- Within --------------------------------------------------------------------------

    def _known(self, shard_id: str) -> Shard | None:
        until_s = self._ended.get(shard_id)
        if until_s is not None and until_s <= self.now_s():
            self._forget(shard_id)
        return self._shards.get(shard_id)

    def _make(self, kind: Kind, shard_id: str, params: Mapping[str, Any]) -> Shard:
        if self.draining:
            raise Draining("This server is shutting down", hint="Connect again")
        if len(self._shards) >= limits.SHARDS:
            self._tidy()
        if len(self._shards) >= limits.SHARDS:
            raise SubscribeFailed(f"{limits.SHARDS} shards are here, and no more may be")
        # The reads of the store do not switch greenlets: nobody makes the same one meanwhile.
        self._check_home(shard_id)
        saved = self._saved(shard_id)
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

    def _check_home(self, shard_id: str) -> None:
        pending = self._state_writer.pending(shard_id)
        if pending is not None and pending.moves:
            raise SubscribeFailed("shard is being moved", hint="Connect again")
        if placement_of(shard_id, self._workers, self._store) != self._worker:
            raise SubscribeFailed("shard lives in another process now", hint="Connect again")

    def _saved(self, shard_id: str) -> Saved | None:
        pending = self._state_writer.pending(shard_id)
        if pending is not None and (pending.saved is not None or not pending.keeps):
            return pending.saved
        at_rest = self._store.point(lambda reader: reader.shard(shard_id))
        if at_rest is None or at_rest.data is None:
            return None
        return msgspec.msgpack.decode(at_rest.data, type=Saved)

    def _stepped(self, shard: Shard, step: Step | None = None) -> None:
        """A shard has been stepped, or has stopped."""
        if shard.running:
            if step is None or not step.ticked:
                return
            if step.failure is not None and self.now_s() >= self._failure_told_s + _FAILURE_EVERY_S:
                self._failure_told_s = self.now_s()
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
        """A shard has stopped: say so, and forget it, or list it for a while."""
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
        """Have the state of a shard kept, if it has one; whether it has not failed of that."""
        saved = shard.save()
        if saved is not None:
            self._state_writer.put(Change(shard.id, saved))
        return shard.traceback is None

    def _forget(self, shard_id: str) -> None:
        self._shards.pop(shard_id, None)
        self._ended.pop(shard_id, None)
        self._unused.discard(shard_id)
        for subject in self._makers.pop(shard_id, ()):
            self._made_by[subject] -= 1
            if not self._made_by[subject]:
                del self._made_by[subject]

    def _check_quota(self, subjects: tuple[str, ...]) -> None:
        """Pass if one more shard may count for each of these.

        Raises:
            SubscribeFailed, RateLimited.
        """
        for subject in subjects:
            is_user = is_user_subject(subject)
            most = limits.SHARDS_OF_USER if is_user else limits.SHARDS_OF_ADDRESS
            if self._made_by[subject] >= most:
                self._tidy()
            if self._made_by[subject] >= most:
                raise SubscribeFailed(
                    f"{most} shards that you have made are here, which is the limit",
                    hint="They end when nobody is in them; join one that is there, or wait",
                )
        for subject in subjects:
            is_user = is_user_subject(subject)
            self._limiter.require(SHARDS_BY_USER if is_user else SHARDS_BY_ADDRESS, subject)

    def _tidy(self) -> None:
        now_s = self.now_s()
        for shard_id in [each for each, until_s in self._ended.items() if until_s <= now_s]:
            self._forget(shard_id)
