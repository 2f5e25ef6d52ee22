"""Query cache: answers to reads, kept until the next commit.

The answer to a read follows from the database, the question and the caller's rights alone. Each
read asks the store for its version first (3 us), and takes an answer of that version from memory.
So each client finds a write in its next read, as soon as anybody was told of the write.

Invariants: an answer is kept under the version that the store had *before* the read, and only
while that version is the newest one known: it may be newer than its version, never older. A new
version empties the cache. Bound: `max_bytes` of keys and answers; the oldest go first, and an
answer larger than a sixteenth of it is not kept. Metrics: pylon_query_cache_lookups_total,
pylon_query_cache_size_bytes. Called by the read resources; for the greenlets of one thread.

Reads of questions that never come again would pay for the look-up in vain. So after `_MISSES_MAX`
misses in a row, the cache takes part in one read of `_SAMPLE`, until one of these hits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from pylon import limits, metrics
from pylon.storage.interface import Reader, Store

T = TypeVar("T")

_ENTRY_BYTES: Final = 500  # what an entry takes besides its texts, about
_BIGGEST_PART: Final = 16
# PERF: with a look-up each time, a list of 100 rows that is not in the cache took 96 us of CPU in
# place of 84, and one of 10 rows 92 in place of 84.
_MISSES_MAX: Final = 64
_SAMPLE: Final = 16
_HITS: Final = metrics.QUERY_CACHE_LOOKUPS.labels("hit")
_MISSES: Final = metrics.QUERY_CACHE_LOOKUPS.labels("miss")


class QueryCache(Generic[T]):
    """One for each kind of answer in each process."""

    __slots__ = ("_bytes", "_held", "_max_bytes", "_misses", "_version")

    def __init__(self, max_bytes: int = limits.QUERY_CACHE_BYTES) -> None:
        self._held: dict[Hashable, tuple[T, int]] = {}
        self._bytes = 0
        self._max_bytes = max_bytes
        self._version: int | None = None
        self._misses = 0  # since the last hit, of reads without a look-up too

    def should_probe(self) -> bool:
        """Return whether to look the next question up at all."""
        if self._misses < _MISSES_MAX or self._misses % _SAMPLE == 0:
            return True
        self._misses += 1
        _MISSES.inc()
        return False

    def find(self, version: int, key: Hashable) -> T | None:
        """Return the answer to `key` if it is of this version.

        Args:
            version: the store's at this moment.
        """
        if version != self._version:
            self._version = version
            if self._held:
                self._held.clear()
                self._resize(-self._bytes)
        found = self._held.get(key)
        if found is None:
            _MISSES.inc()
            self._misses += 1
            return None
        _HITS.inc()
        self._misses = 0
        return found[0]

    def keep(self, version: int, key: Hashable, answer: T, size_bytes: int) -> None:
        """Keep an answer.

        Args:
            version: the store's before the answer was read.
            size_bytes: of the key's and the answer's texts.
        """
        size_bytes += _ENTRY_BYTES
        if version != self._version or size_bytes > self._max_bytes // _BIGGEST_PART:
            return
        old = self._held.pop(key, None)  # another request had the same question
        if old is not None:
            self._resize(-old[1])
        self._held[key] = (answer, size_bytes)
        self._resize(size_bytes)
        while self._bytes > self._max_bytes:
            _, dropped_bytes = self._held.pop(next(iter(self._held)))
            self._resize(-dropped_bytes)

    def _resize(self, by_bytes: int) -> None:
        self._bytes += by_bytes
        metrics.QUERY_CACHE_BYTES.inc(by_bytes)


def version_of(store: Store) -> int:
    """Return a number that changes with every commit."""
    return store.point(_data_version)


def answer_cached(
    answers: QueryCache[bytes], store: Store, key: Hashable, question: bytes,
    read: Callable[[], bytes],
) -> bytes:
    """Return the answer to a question, from memory or by `read`.

    Args:
        key: all that decides the answer besides `question`.
    """
    if not answers.should_probe():
        return read()
    version = version_of(store)
    whole_key = (key, question)
    found = answers.find(version, whole_key)
    if found is None:
        found = read()
        answers.keep(version, whole_key, found, len(question) + len(found))
    return found


def _data_version(reader: Reader) -> int:
    return reader.data_version()
