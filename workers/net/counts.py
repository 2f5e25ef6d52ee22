"""Shared counts: counts by client address, visible to all processes of a role.

Each process keeps its counts in a file of the runtime directory, and its siblings map that file. A
process writes only into its own file, and holds a lock on it, so the counts of a killed worker end
with the lock. Before a process refuses a client because of a sibling's counts, it checks that the
sibling lives. A process finds its siblings in the folder, since a reload replaces them by others
with other names.

The table stores a 64-bit digest in place of an address. If the bucket of a digest is full
(improbable below 50,000 addresses), only its own process counts the address.

Called by `workers.hub.addresses` (sockets) and `workers.http.connection_limits` (HTTP).
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

_BUCKETS: Final = 8_192
_WAYS: Final = 16  # places in a bucket
_PLACES: Final = _BUCKETS * _WAYS
_KEYS_BYTES: Final = 8 * _PLACES
_FILE_BYTES: Final = _KEYS_BYTES + 4 * _PLACES


class CountTable:
    """The counts of one process, its own or a sibling's."""

    __slots__ = ("_counts", "_fd", "_keys", "_map")

    def __init__(self, path: Path) -> None:
        """Map the file, which is made if it does not exist."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < _FILE_BYTES:  # never smaller: siblings have mapped it
            os.posix_fallocate(self._fd, 0, _FILE_BYTES)  # a full disk must show here
        self._map = mmap.mmap(self._fd, _FILE_BYTES)
        view = memoryview(self._map)
        self._keys = view[:_KEYS_BYTES].cast("Q")
        self._counts = view[_KEYS_BYTES:].cast("I")

    def own(self) -> None:
        """Lock the file for this process until its end, and set all counts to zero."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # a checking sibling holds it for an instant
        os.pwrite(self._fd, bytes(_FILE_BYTES), 0)  # not through the map, which would stay in RSS

    def has_owner(self) -> bool:
        """Return whether the process that owns the file lives."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def count(self, key: int) -> int:
        """Return the count of a key."""
        first = key % _BUCKETS * _WAYS
        keys = self._keys[first:first + _WAYS].tolist()
        return self._counts[first + keys.index(key)] if key in keys else 0

    def set(self, key: int, count: int) -> None:
        """Set the count of a key; does nothing if its bucket is full."""
        first = key % _BUCKETS * _WAYS
        keys = self._keys[first:first + _WAYS].tolist()
        if key in keys:
            place = first + keys.index(key)
        elif 0 in keys:
            place = first + keys.index(0)
        else:
            return
        # In this order a concurrent reader may see a count that is one too low, and never a count
        # of another address.
        self._counts[place] = count if self._keys[place] == key else 0
        self._keys[place] = key if count else 0
        self._counts[place] = count


class SharedCounts:
    """The table of this process, and those of its siblings."""

    __slots__ = ("_find_siblings", "_own", "_siblings")

    def __init__(
        self, own: CountTable, siblings: Iterable[CountTable] = (),
        find_siblings: Callable[[], Iterable[CountTable] | None] = lambda: None,
    ) -> None:
        """Args: `find_siblings` returns all siblings, or None while they are the same."""
        self._own = own
        self._siblings = tuple(siblings)
        self._find_siblings = find_siblings

    def publish(self, address: str, count: int) -> None:
        """Publish the count of an address in this process to the siblings."""
        self._own.set(_key(address), count)

    def count_in_siblings(self, address: str, spare: int) -> int:
        """Return the count of an address in all living siblings.

        Args:
            spare: the count that the caller still accepts. Up to it this method checks no locks,
                so it may count dead siblings too.
        """
        found = self._find_siblings()
        if found is not None:
            self._siblings = tuple(found)
        key = _key(address)
        counts = [(table, table.count(key)) for table in self._siblings]
        total = sum(each for _, each in counts)
        if total <= spare:
            return total
        return sum(each for table, each in counts if each and table.has_owner())


class _SiblingFinder:
    """Finds the tables of the siblings of one worker, again after the folder has changed."""

    __slots__ = ("_changed_ns", "_folder", "_own_name", "_prefix", "_table_by_name")

    def __init__(self, folder: Path, prefix: str, own_name: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._own_name = own_name
        self._table_by_name: dict[str, CountTable] = {}
        self._changed_ns = -1

    def __call__(self) -> Iterable[CountTable] | None:
        # PERF: 2 us, for each new connection.
        changed_ns = self._folder.stat().st_mtime_ns
        if changed_ns == self._changed_ns:
            return None
        self._changed_ns = changed_ns
        for path in self._folder.glob(f"{self._prefix}*"):
            if path.name != self._own_name and path.name not in self._table_by_name:
                self._table_by_name[path.name] = CountTable(path)
        return self._table_by_name.values()


def shared_counts(folder: Path, role: str, worker: str, workers: int) -> SharedCounts | None:
    """Return the counts of one of `workers` workers; None if it is the only one of its role."""
    if workers < 2:
        return None
    prefix = f"addresses-{role}-"
    own = CountTable(folder / f"{prefix}{worker}")
    own.own()
    return SharedCounts(own, find_siblings=_SiblingFinder(folder, prefix, f"{prefix}{worker}"))


def _key(address: str) -> int:
    # Never 0, which marks an empty place.
    return int.from_bytes(hashlib.blake2b(address.encode(), digest_size=8).digest(), "big") or 1
