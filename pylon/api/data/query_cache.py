"""QueryCache that are the same until the next commit.

A read whose answer follows from the database, the question and the caller's rights alone is
answered from memory while nothing has been committed since. The store is asked for its version
before each look (some 3 us, against 6 to 90 for a read), so a client that was told of a write
finds it in its next read, and nobody else's write is overlooked either.

Where answers are hardly ever wanted again (writes come all the time, or each question is
another one), only one question of sixteen is looked for, so that the others cost nothing here.

Invariants: an answer is kept under the version that was the store's *before* it was read, and
only while that is still the newest one known: it may be newer than its version, never older. A
new version forgets everything. At most `max_bytes` of keys and answers; the oldest go first, and
what takes more than a sixteenth of it is not kept. Metrics: pylon_answers_total,
pylon_answers_bytes. For the greenlets of one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from pylon import limits, metrics
from pylon.storage.interface import Reader, Store

T = TypeVar("T")

_ENTRY_BYTES: Final = 500  # what an entry takes besides its texts, about
_BIGGEST_PART: Final = 16
# A hit is worth several misses: a look costs 6 us, a read that is spared at least 15.
_HIT_WORTH: Final = 4
_MAX_HIT_SCORE: Final = 1_000
_LEAST_LUCK: Final = -100
_SAMPLE: Final = 16
_HITS: Final = metrics.ANSWERS.labels("remembered")
_MISSES: Final = metrics.ANSWERS.labels("read")


class QueryCache(Generic[T]):
    """One for each kind of answer in each process."""

    __slots__ = ("_bytes", "_held", "_hit_score", "_max_bytes", "_turn", "_version")

    def __init__(self, max_bytes: int = limits.ANSWERS_BYTES) -> None:
        self._held: dict[Hashable, tuple[T, int]] = {}
        self._bytes = 0
        self._max_bytes = max_bytes
        self._version: int | None = None
        self._hit_score = _MAX_HIT_SCORE
        self._turn = 0

    def should_probe(self) -> bool:
        """Whether to look for the next question at all."""
        if self._hit_score >= 0:
            return True
        self._turn = (self._turn + 1) % _SAMPLE
        if self._turn:
            _MISSES.inc()
        return not self._turn

    def find(self, version: int, key: Hashable) -> T | None:
        """The answer to `key`, if it is still true.

        Args:
            version: the store's at this moment.
        """
        if version != self._version:
            self._held.clear()
            self._resize(-self._bytes)
            self._version = version
        found = self._held.get(key)
        if found is None:
            _MISSES.inc()
            if self._hit_score > _LEAST_LUCK:
                self._hit_score -= 1
            return None
        _HITS.inc()
        if self._hit_score < _MAX_HIT_SCORE:
            was, self._hit_score = self._hit_score, self._hit_score + _HIT_WORTH
            if was < 0 <= self._hit_score:
                self._hit_score = _MAX_HIT_SCORE  # again a fair chance for all questions
        return found[0]

    def keep(self, version: int, key: Hashable, answer: T, size_bytes: int) -> None:
        """Remember an answer.

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
        metrics.ANSWERS_BYTES.inc(by_bytes)


def version_of(store: Store) -> int:
    """What changes with every commit."""
    return store.point(_data_version)


def answered(
    answers: QueryCache[bytes], store: Store, key: Hashable, question: bytes,
    read: Callable[[], bytes],
) -> bytes:
    """The answer to a question, from memory or by `read`.

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
