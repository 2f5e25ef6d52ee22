"""Rate limiter: one table of rates that all worker processes of a node share.

Nodes that share a database tell each other what was spent (`supervisor.node_rates`).

The algorithm is GCRA, a token bucket without refills: a cell holds the theoretical arrival time
(`tat`) of the next unit. A take is allowed while `tat` is at most the rate's tolerance ahead of the
clock (spec/identity.md §4). The table is a file of 1 MiB in the runtime folder that every process
maps. A cell's key is a salted 64-bit digest, so no client can choose the bucket of another one.

Invariants: a take is atomic over all processes, by a record lock on the byte of its bucket, and so
is a take of several keys, which spends all of them or none. A process takes locks in the order of
their buckets; the kernel releases the locks of a process that dies. If a bucket stays locked (its
owner was stopped), takes succeed, and the limiter counts them. In a full bucket a new key replaces
the cell whose budget is nearest to full. A take never switches greenlets. Memory is fixed.

Metrics: pylon_rate_limited_total, pylon_rate_limit_skipped_total, pylon_rate_limit_evictions_total.
Called by the API and by the socket workers, one `RateLimiter` for each process.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import secrets
import struct
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from pylon import metrics
from pylon.clock import Clock
from pylon.errors import RateLimited
from pylon.rates import Rate

_BUCKETS: Final = 8_192
_WAYS: Final = 8  # cells in a bucket
_CELL: Final = struct.Struct("<Qd")  # key, tat in monotonic seconds
_BUCKET: Final = struct.Struct("<" + "Qd" * _WAYS)
_SALT_BYTES: Final = 16
_SALT_OFFSET: Final = _BUCKETS * _BUCKET.size
_FILE_BYTES: Final = _SALT_OFFSET + _SALT_BYTES
_LOCK_WAIT_S: Final = 0.005  # a process that was stopped inside a take holds its bucket
_DEBT_WINDOWS: Final = 10
_SPENT_KEYS: Final = 10_000  # that one process reports in one heartbeat
_STUCK_S: Final = 1.0  # after a bucket stayed locked, takes do not wait for it this long


class Take(NamedTuple):
    """Units of one rate to spend, for a key of it (`RateLimiter.key`)."""

    rate: Rate
    key: int
    units: float = 1


class RateTable:
    """The cells. Without a path the table belongs to this process alone (tests)."""

    __slots__ = ("_fd", "_map", "_stuck_until_s", "salt")

    def __init__(self, path: Path | None = None, salt: bytes | None = None) -> None:
        """Map the file; the first process creates it.

        Args:
            salt: of the keys, where nodes share them; the file keeps the first one. None: random.

        Raises:
            OSError: the runtime folder is full or missing.
        """
        self._fd = -1
        self._stuck_until_s: dict[int, float] = {}  # at most one entry for each bucket
        if path is None:
            self._map = mmap.mmap(-1, _FILE_BYTES)
            self.salt = secrets.token_bytes(_SALT_BYTES)
            return
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if os.fstat(self._fd).st_size < _FILE_BYTES:
                os.posix_fallocate(self._fd, 0, _FILE_BYTES)  # a full disk must fail here
                os.pwrite(self._fd, salt or secrets.token_bytes(_SALT_BYTES), _SALT_OFFSET)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._map = mmap.mmap(self._fd, _FILE_BYTES)
        self.salt = bytes(self._map[_SALT_OFFSET:])

    def take(self, key: int, units_s: float, tolerance_s: float, now_s: float) -> float:
        """Spend `units_s` of a key, if its rate allows it.

        Args:
            key: any 64-bit number but 0.
            units_s: the units to spend, as the time in which they are restored.

        Returns:
            The seconds to wait until the rate allows it, if that is above 0. Otherwise the units
            are spent, and it is minus the time that restores what the key may still spend.
        """
        bucket = key % _BUCKETS
        if not self._lock(bucket):
            metrics.RATE_SKIPPED.inc()
            return -tolerance_s
        try:
            offset, tat_s = self._find(key, now_s)
            wait_s = tat_s + units_s - now_s - tolerance_s
            if wait_s <= 0:
                _CELL.pack_into(self._map, offset, key, tat_s + units_s)
            return wait_s
        finally:
            self._unlock(bucket)

    def take_all(self, takes: Sequence[tuple[int, float, float]], now_s: float) -> list[float]:
        """Spend units of several keys, if the rates of all of them allow it.

        Args:
            takes: the key, the `units_s` and the `tolerance_s` of each, as in `take`. No key comes
                twice.

        Returns:
            What `take` would return of each. If one is above 0, nothing is spent.
        """
        locked: list[int] = []
        try:
            # In this order for all processes, so that no two wait for each other.
            for bucket in sorted({take[0] % _BUCKETS for take in takes}):
                if self._lock(bucket):
                    locked.append(bucket)
            waits_s = []
            cells = []
            for key, units_s, tolerance_s in takes:
                if key % _BUCKETS in locked:
                    offset, tat_s = self._find(key, now_s)
                    waits_s.append(tat_s + units_s - now_s - tolerance_s)
                    cells.append((offset, key, tat_s + units_s))
                else:
                    metrics.RATE_SKIPPED.inc()
                    waits_s.append(-tolerance_s)
            if max(waits_s) <= 0:
                is_crowded = len(locked) < len(cells)  # two keys may have found one free cell
                for offset, key, tat_s in cells:
                    at = self._find(key, now_s)[0] if is_crowded else offset
                    _CELL.pack_into(self._map, at, key, tat_s)
            return waits_s
        finally:
            for bucket in locked:
                self._unlock(bucket)

    def ahead_s(self, key: int, now_s: float) -> float:
        """Return how far a key's `tat` is ahead of the clock, without spending units.

        It takes no lock: during a take it reads the time before or after it.
        """
        offset = key % _BUCKETS * _BUCKET.size
        cells = _BUCKET.unpack_from(self._map, offset)
        keys, tats = cells[::2], cells[1::2]
        return max(0.0, tats[keys.index(key)] - now_s) if key in keys else 0.0

    def charge(self, key: int, units_s: float, max_ahead_s: float, now_s: float) -> float:
        """Spend `units_s` of a key, also beyond its tolerance.

        Args:
            max_ahead_s: the largest time that the key's `tat` may be ahead of the clock.

        Returns:
            How far `tat` is now ahead of the clock.
        """
        owed_s = min(self.ahead_s(key, now_s) + units_s, max_ahead_s)
        taken_s = owed_s - self.ahead_s(key, now_s)
        return owed_s if self.take(key, taken_s, max_ahead_s, now_s) <= 0.0 else max_ahead_s

    def add(self, key: int, units_s: float, now_s: float) -> None:
        """Spend `units_s` of a key, whatever its rate: another node has allowed it."""
        self.take(key, units_s, float("inf"), now_s)

    def close(self) -> None:
        """Unmap the table."""
        self._map.close()
        if self._fd >= 0:
            os.close(self._fd)

    def _find(self, key: int, now_s: float) -> tuple[int, float]:
        """Return the offset of the cell that a key has or gets, and the key's `tat`."""
        offset = key % _BUCKETS * _BUCKET.size
        cells = _BUCKET.unpack_from(self._map, offset)
        keys = cells[::2]
        if key in keys:
            cell = keys.index(key)
            return offset + cell * _CELL.size, max(cells[2 * cell + 1], now_s)
        tats = cells[1::2]
        oldest_s = min(tats)
        if oldest_s > now_s:
            metrics.RATE_EVICTED.inc()
        return offset + tats.index(oldest_s) * _CELL.size, now_s

    def _lock(self, bucket: int) -> bool:
        if self._fd < 0:
            return True
        if self._try_lock(bucket):
            return True
        if self._stuck_until_s.get(bucket, 0.0) > (now_s := time.monotonic()):
            return False
        while time.monotonic() < now_s + _LOCK_WAIT_S:
            os.sched_yield()
            if self._try_lock(bucket):
                self._stuck_until_s.pop(bucket, None)
                return True
        self._stuck_until_s[bucket] = now_s + _STUCK_S
        return False

    def _try_lock(self, bucket: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, bucket)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, bucket: int) -> None:
        if self._fd >= 0:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, bucket)


class RateLimiter:
    """Spends rates. One for each process."""

    __slots__ = ("_clock", "_spent_s", "_table")

    def __init__(self, table: RateTable, clock: Clock, *, is_shared: bool = False) -> None:
        """`clock.monotonic_s` must be the same clock in all processes of the table.

        Args:
            is_shared: other nodes count what is spent here (`take_spent`).
        """
        self._table = table
        self._clock = clock
        self._spent_s: dict[int, float] | None = {} if is_shared else None

    def take_spent(self) -> list[tuple[int, float]]:
        """Return what was spent since the last call, for other nodes: keys, and the time that
        restores the units."""
        if not self._spent_s:
            return []
        spent = list(self._spent_s.items())
        self._spent_s.clear()
        return spent

    def _note_spent(self, key: int, units_s: float) -> None:
        spent_s = self._spent_s
        if spent_s is not None and (key in spent_s or len(spent_s) < _SPENT_KEYS):
            spent_s[key] = spent_s.get(key, 0.0) + units_s

    def take(self, rate: Rate, subject: str, units: float = 1) -> float:
        """Spend units of a rate for a subject (`rates.user_subject`, `rates.address_subject`).

        Returns:
            The seconds to wait until the rate allows it; 0.0 if the units are spent.
        """
        if rate.limit <= 0:
            return 0.0
        return max(0.0, self.spend(rate, self.key(rate, subject), units))

    def spend(self, rate: Rate, key: int, units: float = 1) -> float:
        """Spend units of a rate, whose limit is not 0, for a `key` of it.

        Returns:
            The seconds to wait, if that is above 0. Otherwise the units are spent, and it is minus
            the time that restores what the subject may still spend.
        """
        units_s = units * rate.interval_s
        wait_s = self._table.take(key, units_s, rate.tolerance_s, self._clock.monotonic_s())
        if wait_s > 0:
            metrics.RATE_LIMITED.labels(rate.name).inc()
        else:
            self._note_spent(key, units_s)
        return wait_s

    def require_all(self, takes: Sequence[Take]) -> list[float]:
        """Spend units of several rates, or of none if one of them does not allow it.

        Args:
            takes: of rates whose limits are not 0. No key comes twice.

        Returns:
            For each minus the time that restores what its subject may still spend.

        Raises:
            RateLimited: a rate does not allow it; the error tells of the one with the longest wait.
        """
        if not takes:
            return []
        now_s = self._clock.monotonic_s()
        wanted = [(key, units * rate.interval_s, rate.tolerance_s) for rate, key, units in takes]
        # PERF: one key without the sets of locks, 1 µs.
        waits_s = (
            self._table.take_all(wanted, now_s) if len(wanted) > 1
            else [self._table.take(*wanted[0], now_s)]
        )
        longest_s = max(waits_s)
        if longest_s > 0:
            rate = takes[waits_s.index(longest_s)].rate
            metrics.RATE_LIMITED.labels(rate.name).inc()
            raise rate_limited(rate, longest_s)
        if self._spent_s is not None:
            for key, units_s, _ in wanted:
                self._note_spent(key, units_s)
        return waits_s

    def wait_s(self, rate: Rate, subject: str) -> float:
        """Return the seconds until one unit of a rate is available, without spending units."""
        if rate.limit <= 0:
            return 0.0
        ahead_s = self._table.ahead_s(self.key(rate, subject), self._clock.monotonic_s())
        return max(0.0, ahead_s + rate.interval_s - rate.tolerance_s)

    def charge(self, rate: Rate, subject: str, units: float = 1) -> float:
        """Spend units for a cost that is known only afterwards.

        The subject then waits until the units are restored, at most ten windows of the rate.

        Returns:
            The seconds until one more unit is available.
        """
        if rate.limit <= 0:
            return 0.0
        max_ahead_s = rate.tolerance_s + _DEBT_WINDOWS * rate.window_s
        key, units_s = self.key(rate, subject), units * rate.interval_s
        ahead_s = self._table.charge(key, units_s, max_ahead_s, self._clock.monotonic_s())
        self._note_spent(key, units_s)
        return max(0.0, ahead_s + rate.interval_s - rate.tolerance_s)

    def require(self, rate: Rate, subject: str, units: float = 1) -> None:
        """Spend units of a rate.

        Raises:
            RateLimited: the units are spent; the error has the seconds to wait.
        """
        wait_s = self.take(rate, subject, units)
        if wait_s > 0:
            raise rate_limited(rate, wait_s)

    def key(self, rate: Rate, subject: str) -> int:
        """Return the key of a rate and a subject in the table."""
        digest = blake2b(f"{rate.name}\0{subject}".encode(), digest_size=8, key=self._table.salt)
        return int.from_bytes(digest.digest(), "big") or 1


def rate_limited(rate: Rate, wait_s: float) -> RateLimited:
    """Return the error for a take that must wait for `wait_s`."""
    seconds = max(1, math.ceil(wait_s))
    error = RateLimited(
        f"Too many requests of this kind ({rate.name}): {rate.limit:g} are allowed in "
        f"{rate.window_s:g} s. Retry after {seconds} seconds.",
        hint=f"Try again in {seconds}s",
        retry_after_secs=seconds,
    )
    error.headers = rate.headers(0.0)
    return error
