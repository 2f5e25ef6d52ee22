"""Stored shards: what the store has of the shards of one process, and the claims to change it.

A write goes to the state writer, and does not wait. So a state that is not written yet comes before
the stored one. Where nodes share the store, a process claims a shard before it makes, moves or ends
it (`leases`); every write carries the generation of that claim, and the end of the claim follows
the last write.

After an outage of the database every node gets its lease anew, and may have states that it could
not store. So for `SETTLING_S` after a lost lease a worker claims no shard whose last owner is not
back yet.

Reads of the store may switch greenlets (`Store.point`). Each is made again if the shard or its
unwritten state has changed meanwhile: the answer fits the memory until the next switch.

Invariant: greenlets that claim one shard exclude each other (`alone`), since a claim outdates the
one before. Called by `registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec
from gevent.lock import BoundedSemaphore

from pylon.bus.writer_client import WriterClient
from pylon.errors import SubscribeFailed
from pylon.realtime.simulation import Saved
from pylon.storage.interface import Reader, Store, read_settled
from pylon.storage.records import StoredPlace, StoredShard
from workers.shards.leases import ShardLeases
from workers.shards.state_writer import Change, ShardStateWriter

T = TypeVar("T")


class StoredShards:
    """See the module."""

    def __init__(
        self, store: Store, writer: WriterClient, leases: ShardLeases | None,
        find_shard: Callable[[str], object], on_refused: Callable[[str, int], None],
    ) -> None:
        """
        Args:
            leases: the claims of this process; None: no other node uses the store.
            find_shard: the shard of an id in this process, or None.
            on_refused: see `ShardStateWriter`.
        """
        self._store = store
        self._leases = leases
        self._find_shard = find_shard
        self._state_writer = ShardStateWriter(writer, on_refused)
        self._locks: dict[str, tuple[BoundedSemaphore, int]] = {}  # by shard id: see `alone`

    # --- Reads ---------------------------------------------------------------------------

    def read(self, shard_id: str) -> StoredShard | None:
        """Return a shard as stored.

        Raises:
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        return self._read(shard_id, lambda reader: reader.shard(shard_id))

    def read_place(self, shard_id: str) -> StoredPlace | None:
        """Return the placement of a shard alone. Raises: as `read`."""
        return self._read(shard_id, lambda reader: reader.shard_place(shard_id))

    def saved(self, shard_id: str, stored: StoredShard | None) -> Saved | None:
        """Return the newest state of a shard that the store has as `stored`."""
        pending = self._state_writer.pending(shard_id)
        if pending is not None and (pending.saved is not None or not pending.keeps):
            return pending.saved
        if stored is None or stored.data is None:
            return None
        return msgspec.msgpack.decode(stored.data, type=Saved)

    def is_moving(self, shard_id: str) -> bool:
        """Return whether a move of the shard is not written yet."""
        pending = self._state_writer.pending(shard_id)
        return pending is not None and pending.moves

    # --- Claims --------------------------------------------------------------------------

    def check(self, shard_id: str) -> None:
        """Raise if this process may not run a shard now.

        Raises:
            SubscribeFailed: the lease of this node has ended, or with it the claim.
        """
        leases = self._leases
        if leases is not None:
            leases.check()
            if leases.generation_of(shard_id) is None:
                raise SubscribeFailed("the claim of the shard has ended", hint="Connect again")

    @contextmanager
    def alone(self, shard_id: str) -> Iterator[None]:
        """Exclude other greenlets that make or end this shard. On a store of one node they exclude
        nobody, since there are no claims."""
        if self._leases is None:
            yield
            return
        lock, users = self._locks.get(shard_id) or (BoundedSemaphore(), 0)
        self._locks[shard_id] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            lock, users = self._locks[shard_id]
            if users == 1:
                del self._locks[shard_id]
            else:
                self._locks[shard_id] = (lock, users - 1)

    @contextmanager
    def claimed(
        self, shard_id: str, stored: StoredShard | None, region: str | None = None
    ) -> Iterator[StoredShard | None]:
        """Claim a shard for the block, which makes it; end the claim if the block fails.

        Args:
            stored: what the store had before the claim; that is all without leases.

        Yields:
            The shard as it is stored under the claim. Nothing switches afterwards.

        Raises: as `claim`.
        """
        if self._leases is None:
            yield stored
            return
        self.claim(shard_id, region)
        try:
            yield self.read(shard_id)
        except BaseException:
            self.release(shard_id)
            raise

    def claim(self, shard_id: str, region: str | None = None) -> None:
        """Claim a shard that is not here. Without leases it needs none.

        Raises:
            SubscribeFailed: another worker has it, or may have its newest state; or this node has
                no lease.
            Unavailable: an earlier change of it is not written yet.
            PylonError: the claim cannot be stored now.
        """
        leases = self._leases
        if leases is None:
            return
        leases.check()
        self._state_writer.settle(shard_id)
        if leases.is_settling():
            place = self._store.point(lambda reader: reader.shard_place(shard_id))
            if place is not None and place.owner is not None and not place.owner_lives:
                raise SubscribeFailed(
                    "the node that had this shard may still store its last state",
                    hint="Connect again",
                )
        leases.claim(shard_id, region)

    def release(self, shard_id: str) -> None:
        """End the claim of a shard behind what is to be written, if there is a claim."""
        generation = None if self._leases is None else self._leases.forget(shard_id)
        if generation is not None:
            self._state_writer.put(
                Change(shard_id, None, generation=generation, releases=True)
            )

    # --- Writes --------------------------------------------------------------------------

    def put(self, change: Change) -> None:
        """Queue a change of a shard, under its claim."""
        if self._leases is not None:
            generation = self._leases.generation_of(change.shard_id)
            if generation is None:
                return  # it is another worker's by now
            change = msgspec.structs.replace(change, generation=generation)
        self._state_writer.put(change)

    def settle(self, shard_id: str) -> None:
        """See `ShardStateWriter.settle`."""
        self._state_writer.settle(shard_id)

    def finish(self) -> int:
        """See `ShardStateWriter.finish`."""
        return self._state_writer.finish()

    def _read(self, shard_id: str, read: Callable[[Reader], T]) -> T:
        return read_settled(
            self._store, read,
            lambda: (self._find_shard(shard_id), self._state_writer.pending(shard_id)),
        )
