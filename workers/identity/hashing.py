"""Password hashes: argon2id in threads, behind a bounded queue (spec/identity.md §6).

A hash takes 25 to 32 ms of CPU time and 19 MiB, which the process keeps for the next one until it
is quiet (`memory.keep_blocks`). argon2 releases the interpreter, so the event loop goes on.
`HashPool` lets as many hashes run as it has threads; the others wait in their order.

Invariants: at most `limits.HASHES_WAITING` hashes wait, and none longer than `limits.HASH_WAIT_S`;
beyond it the caller gets Unavailable. Each check of a password costs exactly one hash, also of an
account that does not exist (`verify_nobody`), so its time reveals nothing. Passwords reach no log
and no error. Metrics: pylon_password_hashes_total, pylon_password_hashes_waiting,
pylon_password_hash_duration_seconds. Called by the flows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from gevent.hub import get_hub
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from pylon import limits, metrics
from pylon.errors import Unavailable
from pylon.runtime import memory

T = TypeVar("T")

_MEMORY_KIB: Final = 19_456
_PASSES: Final = 2
_LANES: Final = 1
_SALT_BYTES: Final = 16
_MADE: Final = metrics.PASSWORD_HASHES.labels("made")
_REFUSED: Final = metrics.PASSWORD_HASHES.labels("refused")
_LATE: Final = metrics.PASSWORD_HASHES.labels("late")


def hash_threads(setting: int) -> int:
    """Return the number of threads: the setting, or half of the cores for 0."""
    return setting or max(1, (os.cpu_count() or 1) // 2)


class HashPool:
    """The hashes of one process. Its methods block the calling greenlet only."""

    def __init__(
        self, threads: int, *, memory_kib: int = _MEMORY_KIB,
        waiting: int = limits.HASHES_WAITING, wait_s: float = limits.HASH_WAIT_S,
    ) -> None:
        """Args: `memory_kib`, `waiting`, `wait_s` are other than the defaults in tests only."""
        self._argon2 = PasswordHasher(
            time_cost=_PASSES, memory_cost=memory_kib, parallelism=_LANES, salt_len=_SALT_BYTES
        )
        memory.keep_blocks(memory_kib * 1_024, threads)
        self._free = BoundedSemaphore(threads)
        self._threads = ThreadPool(threads, get_hub())
        self._waiting_most = waiting
        self._wait_s = wait_s
        self._waiting = 0
        # No password has this hash: it is of random bytes that nobody keeps.
        self._nobody = self._argon2.hash(os.urandom(32))

    def make(self, password: bytes) -> str:
        """Return the hash of a password as a PHC string, with a new salt.

        Raises:
            Unavailable: too many hashes wait, or this one waited too long.
        """
        return self._run(lambda: self._argon2.hash(password))

    def verify(self, phc: str, password: bytes) -> bool:
        """Return whether the password is that of the hash.

        Raises:
            Unavailable: as `make`.
        """
        return self._run(lambda: self._matches(phc, password))

    def verify_nobody(self, password: bytes) -> None:
        """Take as long as `verify` for an account that has no password.

        Raises:
            Unavailable: as `make`.
        """
        self._run(lambda: self._matches(self._nobody, password))

    def is_outdated(self, phc: str) -> bool:
        """Return whether a hash was made with other parameters than today's."""
        try:
            return self._argon2.check_needs_rehash(phc)
        except InvalidHashError:
            return True

    def _matches(self, phc: str, password: bytes) -> bool:
        try:
            return self._argon2.verify(phc, password)
        except (VerificationError, InvalidHashError):
            return False

    def _run(self, work: Callable[[], T]) -> T:
        if not self._free.acquire(blocking=False):
            self._wait()
        try:
            result: T = self._threads.apply(_timed, (work,))
        finally:
            self._free.release()
        _MADE.inc()
        return result

    def _wait(self) -> None:
        """Wait for a thread.

        Raises:
            Unavailable: see `make`.
        """
        if self._waiting >= self._waiting_most:
            _REFUSED.inc()
            raise Unavailable(
                f"Too many sign-ins wait (limit {self._waiting_most})", hint="Try again in 1s"
            )
        self._waiting += 1
        metrics.HASHES_WAITING.set(self._waiting)
        try:
            has_thread = self._free.acquire(timeout=self._wait_s)
        finally:
            self._waiting -= 1
            metrics.HASHES_WAITING.set(self._waiting)
        if not has_thread:
            _LATE.inc()
            raise Unavailable(
                f"The sign-in waited longer than {self._wait_s:g} s", hint="Try again in 1s"
            )

    def close(self) -> None:
        """End the threads."""
        self._threads.kill()


def _timed(work: Callable[[], T]) -> T:
    """Do the work in a thread, and measure it."""
    started_s = time.monotonic()
    try:
        return work()
    finally:
        metrics.HASH_TIME.observe(time.monotonic() - started_s)
