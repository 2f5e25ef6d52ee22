"""Cursor notes: how far each client has pulled, told to the socket workers.

A client pulls and then connects; what is committed in between would be lost if the hub did not
know where the pull ended (spec/realtime.md §1.7). So each pull sends a note, before its answer
is finished, and a hub that has just started may ask for the recent ones again.

Invariants: notes are sent in the order of the pulls; those of the last 2 × NOTE_TTL_S are kept,
at most limits.NOTES of them. When full the oldest is dropped and counted
(`pylon_cursor_notes_dropped_total`): its client falls back to the hub's replay of the
newest events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from pylon import limits, metrics
from pylon.auth.context import Caller
from pylon.bus.messages import CursorNote, Signal
from pylon.clock import Clock

_KEPT_S: Final = 2 * limits.NOTE_TTL_S


class CursorNotes:
    """The notes of one process. Used from one thread."""

    __slots__ = ("_clock", "_kept", "_send")

    def __init__(self, send: Callable[[Signal], None], clock: Clock) -> None:
        self._send = send
        self._clock = clock
        self._kept: deque[tuple[float, CursorNote]] = deque()

    def note(self, key: str, cursor: int) -> None:
        """Remember and tell that the client `key` has everything up to `cursor`."""
        now_s = self._clock.monotonic_s()
        note = CursorNote(key, cursor)
        self._forget(now_s)
        if len(self._kept) >= limits.NOTES:
            self._kept.popleft()
            metrics.NOTES_DROPPED.inc()
        self._kept.append((now_s, note))
        self._send(note)

    def repeat(self) -> None:
        """Tell all recent notes again: a hub has started and asked (`NotesWanted`)."""
        self._forget(self._clock.monotonic_s())
        for _, note in list(self._kept):
            self._send(note)

    def __len__(self) -> int:
        return len(self._kept)

    def _forget(self, now_s: float) -> None:
        while self._kept and now_s - self._kept[0][0] > _KEPT_S:
            self._kept.popleft()


def note_key(caller: Caller, address: str) -> str:
    """What a caller's notes are filed under: its session, or its address without one."""
    return f"s:{caller.session_id}" if caller.session_id is not None else f"ip:{address}"
