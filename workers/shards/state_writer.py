"""Write-behind of shard states: one pending change for each shard, sent to the writer in order.

Only the newest state of a shard counts, so a newer change replaces the pending one. The state
writer retries a change every `limits.SHARD_SAVE_RETRY_S` while the writer is away or its queue is
full. It logs and drops a change that the writer refuses for good.

Where nodes share the store, a change has the generation of the shard's claim (`leases`). The store
refuses it if another worker has claimed the shard since. So a change may wait for the end of an
outage: it is stored if the shard is nobody else's, and does no harm otherwise.

Invariants: the writer receives the changes of one shard one at a time and in order. `pending`
returns the change that is not known to be written, so a shard that is made again continues from it.
Bound: one pending change for each shard id. Called by `workers.shards.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gevent
import msgspec
from gevent.lock import BoundedSemaphore

from pylon import limits, log, metrics
from pylon.bus.writer_client import WriterClient
from pylon.errors import LimitExceeded, PylonError, ShardLeaseLost, Unavailable
from pylon.realtime.simulation import Saved
from pylon.storage.ops import (
    DropShard,
    MoveShard,
    PutShard,
    ReleaseShard,
    WriteOp,
)

_log = log.get_logger("shards")


class Change(msgspec.Struct, frozen=True):
    """A change of one shard's row in the store."""

    shard_id: str
    saved: Saved | None  # the new state; None: no new state
    keeps: bool = True  # without a new state: whether the stored state stays
    moves: bool = False
    home: str | None = None  # with `moves`: the worker that the shard belongs to
    generation: int | None = None  # of the claim; None: on a store of one node
    releases: bool = False  # whether the claim ends

    def ops(self) -> list[WriteOp]:
        """Return the write operations, in order.

        Raises:
            LimitExceeded: the state is larger than `limits.SHARD_STATE_BYTES`.
        """
        ops: list[WriteOp] = []
        if self.saved is not None:
            data = msgspec.msgpack.encode(self.saved)
            if len(data) > limits.SHARD_STATE_BYTES:
                raise LimitExceeded(
                    f'the saved state of shard "{self.shard_id}" has {len(data)} bytes; at most '
                    f"{limits.SHARD_STATE_BYTES} are kept",
                    hint="Let save() return less",
                )
            ops.append(PutShard(self.shard_id, self.saved.tick, data, self.generation))
        elif not self.keeps:
            ops.append(DropShard(self.shard_id, self.generation))
        if self.moves:
            ops.append(MoveShard(self.shard_id, self.home, self.generation))
        if self.releases and self.generation is not None:
            ops.append(ReleaseShard(self.shard_id, self.generation))
        return ops

    def after(self, earlier: Change) -> Change:
        """Return one change for an earlier one, which is not written yet, and this one."""
        change = self
        if earlier.moves and not change.moves:
            change = msgspec.structs.replace(change, moves=True, home=earlier.home)
        if change.saved is None and change.keeps and earlier.generation == change.generation:
            change = msgspec.structs.replace(change, saved=earlier.saved, keeps=earlier.keeps)
        return change


class ShardStateWriter:
    """Writes shard states in the background: one greenlet for each shard with a pending change."""

    def __init__(self, writer: WriterClient, on_refused: Callable[[str, int], None]) -> None:
        """Args: `on_refused` is called with each shard and generation that the store refuses,
        because the shard has been claimed again. It must not block."""
        self._writer = writer
        self._on_refused = on_refused
        self._waiting: dict[str, Change] = {}  # by shard id: not known to be written
        self._greenlets: dict[str, gevent.Greenlet] = {}
        # States may take a quarter of the writes in flight; inputs and matches need the rest.
        self._share = BoundedSemaphore(limits.WRITES_IN_FLIGHT // 4)
        self.closing = False  # a draining process retries nothing

    def pending(self, shard_id: str) -> Change | None:
        """Return the change of a shard that is not known to be written."""
        return self._waiting.get(shard_id)

    def put(self, change: Change) -> None:
        """Queue a change, together with the pending change of the same shard."""
        waiting = self._waiting.get(change.shard_id)
        self._waiting[change.shard_id] = change if waiting is None else change.after(waiting)
        if change.shard_id not in self._greenlets:
            self._greenlets[change.shard_id] = gevent.spawn(self._write, change.shard_id)

    def settle(self, shard_id: str) -> None:
        """Wait until a shard has no pending change.

        Raises:
            Unavailable: after `limits.CALL_TIMEOUT_S`; the change stays pending.
        """
        greenlet = self._greenlets.get(shard_id)
        if greenlet is not None:
            greenlet.join(limits.CALL_TIMEOUT_S)
        if shard_id in self._waiting:
            raise Unavailable("The writer does not answer", hint="It is tried again; look later")

    def finish(self) -> int:
        """Try each pending change once more; return the number that could not be written."""
        self.closing = True
        gevent.joinall(list(self._greenlets.values()))
        return len(self._waiting)

    def _write(self, shard_id: str) -> None:
        try:
            while (change := self._waiting.get(shard_id)) is not None:
                if self._write_once(change):
                    if self._waiting.get(shard_id) is change:
                        del self._waiting[shard_id]
                elif self.closing:
                    return
                else:
                    gevent.sleep(limits.SHARD_SAVE_RETRY_S)
        finally:
            del self._greenlets[shard_id]

    def _write_once(self, change: Change) -> bool:
        """Send a change; return whether it is done, so that no retry follows."""
        try:
            with self._share:
                errors = self._errors(change.ops())
        except PylonError as ex:
            errors = [ex]
        if change.generation is not None and any(isinstance(e, ShardLeaseLost) for e in errors):
            metrics.SHARD_SAVES_REFUSED.inc()
            _log.warning("shard.save_refused", shard=change.shard_id, generation=change.generation,
                         hint="another worker has claimed it")
            self._on_refused(change.shard_id, change.generation)
            return True
        for error in errors:
            report = _log.warning if error.retryable else _log.error
            report("shard.unsaved", shard=change.shard_id, code=error.code, message=error.message)
        return not any(error.retryable for error in errors)

    def _errors(self, ops: Sequence[WriteOp]) -> list[PylonError]:
        replies = self._writer.submit_all(ops) if ops else []
        return [reply.error.to_exception() for reply in replies if reply.error is not None]
