"""Noting how far each client has pulled (`pylon.changelog.hints`), before its answer leaves.

Invariant: a pull is answered only after its note is written. The worker writes one note for each
key and quarter of the window, and another one whenever the cursor is smaller. Bounds: those of
`CursorHints`, which holds the notes that were written lately. Called by `pylon.api.sync.pull`; one
for each HTTP worker.
"""

from __future__ import annotations

from collections.abc import Callable

from pylon.changelog.hints import CursorHints
from pylon.clock import Clock

Write = Callable[[int, int], object]


class HintPublisher:
    """The notes of one HTTP worker. Used from one thread."""

    __slots__ = ("_told", "_write")

    def __init__(self, write: Write, clock: Clock) -> None:
        """Args: `write` puts a key and its cursor where the hubs find it."""
        self._write = write
        self._told = CursorHints(clock)

    def note(self, key: int, cursor: int) -> None:
        """Tell that a client of `key` will have everything up to `cursor`.

        Raises:
            StoreUnavailable: the note cannot be written.
        """
        if self._told.put(key, cursor):
            self._write(key, cursor)
