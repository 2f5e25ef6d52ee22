"""The keeper: the states of shards on their way to the writer.

Of a shard only its last state counts, so a newer one takes the place of one that waits. What the
writer does not take now (it restarts, its queue is full) is sent again every
`limits.SHARD_SAVE_RETRY_S`; what it refuses for good is logged and given up.

Invariants: writes about one shard reach the writer in order, one at a time, and what waits is
what `pending` answers: a shard that is made again meanwhile goes on from it. At most one state
waits for each shard id. Called by `workers.shards.registry`.
"""

from __future__ import annotations

from collections.abc import Sequence

import gevent
import msgspec
from gevent.lock import BoundedSemaphore

from pylon import limits, log
from pylon.bus.writer_client import WriterClient
from pylon.errors import LimitExceeded, PylonError, Unavailable
from pylon.realtime.simulation import Saved
from pylon.storage.ops import (
    DropShard,
    MoveShard,
    PutShard,
    WriteOp,
)

_log = log.get_logger("shards")


class Change(msgspec.Struct, frozen=True):
    """What the store is to know of a shard from now on."""

    shard_id: str
    saved: Saved | None  # None: nothing
    keeps: bool = True  # whether its row stays as it is where `saved` is None
    moves: bool = False
    home: str | None = None  # with `moves`: where it lives

    def ops(self) -> list[WriteOp]:
        """The writes, in order.

        Raises:
            LimitExceeded: the state is too large.
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
            ops.append(PutShard(self.shard_id, self.saved.tick, data))
        elif not self.keeps:
            ops.append(DropShard(self.shard_id))
        if self.moves:
            ops.append(MoveShard(self.shard_id, self.home))
        return ops


class ShardStateWriter:
    """Writes what is to be kept, in the background."""

    def __init__(self, writer: WriterClient) -> None:
        self._writer = writer
        self._waiting: dict[str, Change] = {}  # what of each is not known to be written
        self._greenlets: dict[str, gevent.Greenlet] = {}
        # Others of this process write too, and have a share of what may be in flight.
        self._share = BoundedSemaphore(limits.WRITES_IN_FLIGHT // 4)
        self.closing = False  # at the drain nothing is tried again

    def pending(self, shard_id: str) -> Change | None:
        """What waits to be written of a shard."""
        return self._waiting.get(shard_id)

    def put(self, change: Change) -> None:
        """Write this, in place of what waits of the same shard. A move that waits stays."""
        waiting = self._waiting.get(change.shard_id)
        if waiting is not None and waiting.moves and not change.moves:
            change = msgspec.structs.replace(change, moves=True, home=waiting.home)
        self._waiting[change.shard_id] = change
        if change.shard_id not in self._greenlets:
            self._greenlets[change.shard_id] = gevent.spawn(self._write, change.shard_id)

    def settle(self, shard_id: str) -> None:
        """Wait until nothing of a shard waits any more.

        Raises:
            Unavailable: it takes longer than `limits.CALL_TIMEOUT_S`; it goes on.
        """
        greenlet = self._greenlets.get(shard_id)
        if greenlet is not None:
            greenlet.join(limits.CALL_TIMEOUT_S)
        if shard_id in self._waiting:
            raise Unavailable("The writer does not answer", hint="It is tried again; look later")

    def finish(self) -> int:
        """Write all that waits, once; how many could not be."""
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
        """Whether there is nothing more to do about it."""
        try:
            with self._share:
                errors = self._errors(change.ops())
        except PylonError as ex:
            errors = [ex]
        for error in errors:
            report = _log.warning if error.retryable else _log.error
            report("shard.unsaved", shard=change.shard_id, code=error.code, message=error.message)
        return not any(error.retryable for error in errors)

    def _errors(self, ops: Sequence[WriteOp]) -> list[PylonError]:
        replies = self._writer.submit_all(ops) if ops else []
        return [reply.error.to_exception() for reply in replies if reply.error is not None]
