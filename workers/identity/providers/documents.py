"""Cached documents of a provider: its metadata and its keys.

`CachedDocument` loads a document when it is first asked for, keeps it for an hour, and for a day
while the provider is down. One greenlet loads; others use the copy that exists, or wait.

Invariants: after a failure the provider is asked again after `_RETRY_S` at the earliest, so a
provider that is down costs each sign-in nothing but the first wait. A copy is replaced as a whole.
Called by `workers.identity.providers.client`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from gevent.lock import BoundedSemaphore

from pylon.clock import Clock
from workers.identity.providers.fetch import FetchFailed

T = TypeVar("T")

_FRESH_S: Final = 3_600.0
_STALE_S: Final = 24 * 3_600.0
_RETRY_S: Final = 10.0
_RELOAD_S: Final = 60.0  # between two loads that unknown key ids caused


class CachedDocument(Generic[T]):
    """One document. `load` fetches and checks it, or raises FetchFailed."""

    def __init__(self, load: Callable[[], T], clock: Clock) -> None:
        self._load = load
        self._clock = clock
        self._lock = BoundedSemaphore()
        self._copy: tuple[T, float] | None = None  # and when it was loaded
        self._failed: tuple[str, float] | None = None  # why, and until when not to ask again
        self._reload_at_s = 0.0

    def get(self) -> T:
        """Return the document.

        Raises:
            FetchFailed: it cannot be loaded, and there is no copy of the last day.
        """
        age_s, found = self._age()
        if found is not None and age_s < _FRESH_S:
            return found[0]
        if found is not None and age_s < _STALE_S and self._lock.locked():
            return found[0]  # another greenlet loads a newer one
        with self._lock:
            return self._get_or_load()

    def get_newer(self) -> T:
        """Load the document again, at most once a minute, and return the newest copy.

        Raises:
            FetchFailed: see `get`.
        """
        with self._lock:
            now_s = self._clock.monotonic_s()
            if now_s >= self._reload_at_s:
                self._reload_at_s = now_s + _RELOAD_S
                try:
                    self._keep(self._load())
                except FetchFailed as ex:
                    self._failed = (str(ex), now_s + _RETRY_S)
            return self._get_or_load()

    def _get_or_load(self) -> T:
        age_s, found = self._age()
        if found is not None and age_s < _FRESH_S:
            return found[0]
        usable = found if age_s < _STALE_S else None
        now_s = self._clock.monotonic_s()
        if self._failed is None or now_s >= self._failed[1]:
            try:
                return self._keep(self._load())
            except FetchFailed as ex:
                self._failed = (str(ex), self._clock.monotonic_s() + _RETRY_S)
        if usable is not None:
            return usable[0]
        raise FetchFailed(self._failed[0])

    def _age(self) -> tuple[float, tuple[T, float] | None]:
        found = self._copy
        return (0.0 if found is None else self._clock.monotonic_s() - found[1]), found

    def _keep(self, document: T) -> T:
        self._copy = (document, self._clock.monotonic_s())
        self._failed = None
        return document
