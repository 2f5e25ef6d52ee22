"""Head marks: the head of the change log at some times of the last minutes.

A client that connects without a cursor and without a cursor hint has pulled within the last
window, or never. It has everything up to the head of that time, so the hub replays from the head
of a window ago (`window_cursor`). Marks record that head.

The supervisor writes a mark every few seconds while the head moves; the hubs read the file when
they need it. The file lies beside the database and outlives the server. A mark's time is
CLOCK_MONOTONIC, never wall-clock time. After a boot the supervisor moves all marks so that the
newest is of now, as if the machine had been down for 0 s. That makes windows longer, never shorter.

Invariants: at a mark's time, and ever after, the committed head was at least its seq. Times and
seqs never decrease. Bounds: `_MARKS` marks, one page of 4 KiB, written in one piece; a reader
reads a half-written page again. Called by `supervisor.hints`, `supervisor.loop`,
`workers.hub.service` and `workers.hub.start_cursors`.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from pylon import log
from pylon.clock import Clock

PERIOD_S: Final = 5.0
_MARKS: Final = 64  # 320 s with the period above
_FILE_BYTES: Final = 4_096
_TRIES: Final = 3

_log = log.get_logger("marks")


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """A time (monotonic) at which the head was `seq` or more."""

    at_s: float
    seq: int


class _Content(msgspec.Struct, frozen=True):
    boot_id: str
    marks: list[Mark]


_decode = msgspec.json.Decoder(_Content).decode


def marks_path(db_path: Path) -> Path:
    """Return the path of a database's marks."""
    return db_path.with_name(db_path.name + ".marks")


def window_cursor(marks: Sequence[Mark], before_s: float) -> Mark:
    """Return the newest mark that is not younger than `before_s`, or else the oldest mark."""
    found = marks[0]
    for mark in marks:
        if mark.at_s > before_s:
            break
        found = mark
    return found


class HeadMarks:
    """Writes the marks, in the supervisor. Used from one thread."""

    __slots__ = ("_boot_id", "_clock", "_due_s", "_is_broken", "_marks", "_path")

    def __init__(self, path: Path, boot_id: str, clock: Clock) -> None:
        """Take over the marks of the previous run."""
        self._path = path
        self._boot_id = boot_id
        self._clock = clock
        self._marks: deque[Mark] = deque(maxlen=_MARKS)
        self._due_s = float("-inf")
        self._is_broken = False
        found = _read(path)
        if found is not None and found.marks:
            now_s = clock.monotonic_s()
            same_boot = boot_id != "" and found.boot_id == boot_id
            last_s = found.marks[-1].at_s
            shift_s = 0.0 if same_boot and last_s <= now_s else now_s - last_s
            self._marks += [Mark(mark.at_s + shift_s, mark.seq) for mark in found.marks]

    def __len__(self) -> int:
        return len(self._marks)

    def forget(self) -> None:
        """Forget the marks of earlier runs."""
        self._marks.clear()

    def begin(self, head: int, bottom: int) -> None:
        """Record the head at the start of the server.

        Args:
            head: the head of the log, after the new epoch if the start opened one.
            bottom: the cursor from which hubs replay if there is no mark of an earlier run.
        """
        while self._marks and self._marks[-1].seq > head:  # a mark of another database
            self._marks.pop()
        if not self._marks:
            self._marks.append(Mark(0.0, bottom))
        self._append(head)

    def record(self, head: int) -> None:
        """Write a mark if the head has moved and the last mark is `PERIOD_S` old."""
        if head > self._marks[-1].seq and self._clock.monotonic_s() >= self._due_s:
            self._append(head)

    def _append(self, head: int) -> None:
        now_s = self._clock.monotonic_s()
        self._due_s = now_s + PERIOD_S
        self._marks.append(Mark(now_s, head))
        text = msgspec.json.encode(_Content(self._boot_id, list(self._marks)))
        data = b"%08x %b\n" % (zlib.crc32(text), text)
        try:
            fd = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                os.pwrite(fd, data.ljust(_FILE_BYTES), 0)
            finally:
                os.close(fd)
        except OSError as ex:
            # The hubs then use older marks: replays are longer, but no client misses an event.
            if not self._is_broken:
                _log.warning("marks.not_written", path=str(self._path), error=str(ex),
                             hint="sockets without a cursor are sent more than they need")
            self._is_broken = True
        else:
            self._is_broken = False


class MarkReader:
    """Reads the marks, in a hub."""

    __slots__ = ("_marks", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: list[Mark] = []

    def read(self) -> Sequence[Mark]:
        """Return all marks, ascending; empty only if no supervisor has ever written one."""
        for _ in range(_TRIES):
            found = _read(self._path)
            if found is not None:
                self._marks = found.marks
                break
        return self._marks


def _read(path: Path) -> _Content | None:
    """Return the content of the file; None if the file is missing, torn or invalid."""
    try:
        data = path.read_bytes()
        check, _, text = data.rstrip().partition(b" ")
        return _decode(text) if int(check, 16) == zlib.crc32(text) else None
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
