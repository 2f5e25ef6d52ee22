"""Telling the hubs how far each client has pulled (`pylon.changelog.notes`).

A note leaves at the end of the turn of the event loop in which the pull was answered, and all of
a turn leave in one signal: under load that is one message for many pulls, to every hub. The
client needs a connection of its own before it can be missed there, which takes longer.

Invariant: what was said in the last window is said again when a hub asks (`NotesWanted`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final

from pylon.bus.messages import PulledTo, Signal
from pylon.changelog.notes import CursorNotes
from pylon.clock import Clock

_KEYS_A_SIGNAL: Final = 1_000

Later = Callable[[Callable[[], None]], object]


class NoteTeller:
    """The notes of one HTTP worker, on their way. Used from one thread."""

    __slots__ = ("_kept", "_later", "_send", "_waiting")

    def __init__(self, send: Callable[[Signal], None], clock: Clock, later: Later) -> None:
        """Args: `later` runs a function at the end of this turn of the event loop."""
        self._send = send
        self._later = later
        self._kept = CursorNotes(clock)
        self._waiting: dict[str, int] = {}  # of this turn

    def note(self, key: str, cursor: int) -> None:
        """Remember, and tell, that a client of `key` has everything up to `cursor`."""
        self._kept.put(key, cursor)
        is_first = not self._waiting
        self._waiting[key] = min(cursor, self._waiting.get(key, cursor))
        if is_first:
            self._later(self._tell)

    def repeat(self) -> None:
        """Tell all recent notes again: a hub has started and asked."""
        notes = iter(self._kept.all().items())
        while some := dict(islice(notes, _KEYS_A_SIGNAL)):
            self._send(PulledTo(some))

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._send(PulledTo(waiting))
