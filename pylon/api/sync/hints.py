"""Cursor hints of pulls: how far each client has pulled, published before its response leaves.

The hubs read the hints (`pylon.changelog.hints`), so that the socket that a client opens after a
pull begins where the pull ended.

Invariant: a pull is answered only after its hint is written. The worker writes one hint for each
key and quarter of the window, and another one whenever the cursor is smaller. Bounds: those of
`CursorHints`, which keeps the hints written last. One for each HTTP worker; called by
`pylon.api.sync.pull`.
"""

from __future__ import annotations

from collections.abc import Callable

from pylon.changelog.hints import CursorHints
from pylon.clock import Clock

Write = Callable[[int, int], object]


class HintPublisher:
    """The hints of one HTTP worker. Used from one thread."""

    __slots__ = ("_published", "_write")

    def __init__(self, write: Write, clock: Clock) -> None:
        """
        Args:
            write: puts a key and its cursor where the hubs find them.
        """
        self._write = write
        self._published = CursorHints(clock)

    def publish(self, key: int, cursor: int) -> None:
        """Publish that a client of `key` will have everything up to `cursor`.

        Raises:
            StoreUnavailable: the hint cannot be written.
        """
        if self._published.put(key, cursor):
            self._write(key, cursor)
