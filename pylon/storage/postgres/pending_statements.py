"""Pending statements of a pipe: those that wait for results, and what it knows of texts.

Bound: `TextMemory` knows `_TEXTS_KEPT` texts of each kind; the oldest one makes room for the next.
Called by `pipe` and by those who read over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from psycopg.pq.abc import PGresult

from pylon.clock import Clock
from pylon.storage.postgres.parameters import Parameter

T = TypeVar("T")

_SLOW_S: Final = 10.0
_TEXTS_KEPT: Final = 256  # of those that failed, and of those that were slow


class PipeRefused(Exception):
    """The read needs a connection for itself. Not an error: a scanner runs it.

    `was_slow`: it has just run into the server's limit.
    """

    def __init__(self, *, was_slow: bool = False) -> None:
        self.was_slow = was_slow


class PendingStatement:
    """A statement that waits for its result; `readers` greenlets wait for it.

    `waiter` is called in the hub when it has a result or an error.
    """

    __slots__ = (
        "attempts", "error", "leading", "parameters", "readers", "result", "text", "waiter",
    )

    def __init__(self, text: str, parameters: Sequence[Parameter], readers: int = 1) -> None:
        self.text = text
        self.parameters = parameters
        self.readers = readers
        self.waiter: Callable[[PendingStatement], object] | None = None
        self.result: PGresult | None = None
        self.error: Exception | None = None
        self.attempts = 0
        self.leading = 0  # results before its own: of the preparation

    @property
    def is_open(self) -> bool:
        """Whether neither a result nor an error has come."""
        return self.result is None and self.error is None

    def wake(self) -> None:
        """Call the waiter, once: a greenlet runs at once. It has none if that was killed."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None:
            waiter(self)


class TextMemory:
    """The texts that have failed, and those that ran into the server's limit."""

    __slots__ = ("_clock", "_failed", "_slow_until_s")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failed: dict[str, None] = {}
        self._slow_until_s: dict[str, float] = {}

    def note_failed(self, text: str) -> None:
        """Note a text that has failed."""
        _keep(self._failed, text, None)

    def has_failed(self, text: str) -> bool:
        """Whether a text has failed before."""
        return text in self._failed

    def note_slow(self, text: str) -> None:
        """Note a text that ran into the limit, for `_SLOW_S`."""
        _keep(self._slow_until_s, text, self._clock.monotonic_s() + _SLOW_S)

    def is_slow(self, text: str) -> bool:
        """Whether a text ran into the limit in the last `_SLOW_S`."""
        until_s = self._slow_until_s.get(text)
        if until_s is None:
            return False
        if until_s > self._clock.monotonic_s():
            return True
        del self._slow_until_s[text]
        return False


def _keep(texts: dict[str, T], text: str, value: T) -> None:
    """Note a text; the oldest one is forgotten for it."""
    if text not in texts and len(texts) >= _TEXTS_KEPT:
        del texts[next(iter(texts))]
    texts[text] = value
