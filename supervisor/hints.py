"""Cursor hints and head marks across runs, so that a restart of the server loses no change.

With socket units, the old server answers a client's pull and the new server accepts its connection.
So a run saves its hints beside the database at its end (`save_hints`), and the next run puts them
into its journal at its start (`PreviousRun.begin`). A killed run saves nothing, but the pidfile
names its runtime folder, which may still exist. If neither file exists, a record in the journal
tells that hints may be missing, and the hubs replay the whole window for a while.

Invariants: a start uses a saved file once. It drops hints whose cursor is void or ahead of the
head; their clients pull again within `EPOCH_RESYNC_S`. Called by `supervisor.main`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pylon import limits, log
from pylon.bus.runtime import Runtime
from pylon.changelog.hint_journal import (
    INCOMPLETE,
    NO_KEY,
    Hint,
    make_journal,
    now_us,
    read_journal,
)
from pylon.changelog.marks import HeadMarks, marks_path
from pylon.clock import NS_PER_S, Clock
from pylon.disk_errors import describe_os_error
from pylon.storage.interface import Reader

_US_PER_S: Final = 1_000_000
# The hubs keep a hint, or the record of missing hints, for this long.
_KEPT_US: Final = int(1.25 * limits.HINT_WINDOW_S * _US_PER_S)

_log = log.get_logger("hints")


class PreviousRun:
    """The hints of the previous run. Create it before that run's runtime folder is removed."""

    def __init__(
        self, db_path: Path, left_behind: Mapping[str, Any], boot_id: str, clock: Clock
    ) -> None:
        """
        Args:
            left_behind: the content of the pidfile of a run that was killed; else empty.
        """
        self._saved = saved_path(db_path)
        self._boot_id = boot_id
        self._clock = clock
        self._has_run = marks_path(db_path).exists()
        self.marks = HeadMarks(marks_path(db_path), boot_id, clock)
        runtime_dir, now = left_behind.get("runtime_dir"), now_us(clock)
        self._found: tuple[str, list[Hint]] | None = None
        try:
            if isinstance(runtime_dir, str):
                self._found = read_journal(Runtime(Path(runtime_dir)).hints, now)
            else:
                self._found = read_journal(self._saved, now)
        except OSError as ex:
            _log.warning("hints.not_read", error=str(ex),
                         hint="sockets without a cursor are sent all of the last minute")

    def begin(self, reader: Reader, runtime: Runtime, *, is_shared: bool = False) -> None:
        """Make the journal and the first mark of this run.

        Args:
            reader: reads the store before this run writes to it.
            is_shared: other nodes write to the store, also while this one does not run. Marks of
                earlier runs then say nothing about the last minutes.

        Raises:
            OSError: a write to the runtime folder failed.
        """
        head, oldest = reader.head_seq(), reader.oldest_seq()
        # Without a file of marks, no server has served this database here, or only one that
        # writes no marks, which then has left a recent event.
        is_served = self._has_run or _is_recent(reader, self._clock)
        if is_shared:
            before_s = self._clock.wall_ns() // NS_PER_S - limits.LOG_MIN_AGE_S
            self.marks.forget()
            self.marks.begin(head, _seq_before(reader, before_s, oldest - 1, head))
        else:
            self.marks.begin(head, oldest - 1 if is_served else head)
        self._saved.unlink(missing_ok=True)
        self._saved.with_suffix(".notes").unlink(missing_ok=True)  # its former name
        hints = self._valid_hints(head, reader.void_ranges())
        if self._found is None and is_served:
            hints.append(Hint(NO_KEY, INCOMPLETE, now_us(self._clock)))
        _log.debug("hints.carried", hints=len(hints))
        make_journal(runtime.hints, self._boot_id, hints, self._clock)

    def _valid_hints(self, head: int, void_ranges: list[tuple[int, int]]) -> list[Hint]:
        """Return the hints of the previous run that are young and valid in this history."""
        if self._found is None:
            return []
        boot_id, hints = self._found
        now = now_us(self._clock)
        if not boot_id or boot_id != self._boot_id:  # times of another boot tell no age
            hints = [Hint(hint.key, hint.cursor, now) for hint in hints]
        return [
            hint for hint in hints
            if now - hint.at_us < _KEPT_US and (hint.key == NO_KEY or (
                hint.cursor <= head
                and not any(low < hint.cursor < high for low, high in void_ranges)
            ))
        ]


def saved_path(db_path: Path) -> Path:
    """Return the path of the hints between two runs."""
    return db_path.with_name(db_path.name + ".hints")


def save_hints(db_path: Path, runtime: Runtime, boot_id: str, clock: Clock) -> None:
    """Save the hints of this run for the next. Call it when every HTTP worker has ended."""
    try:
        found = read_journal(runtime.hints, now_us(clock))
        if found is not None:
            make_journal(saved_path(db_path), boot_id, found[1], clock)
    except OSError as ex:
        # The next start finds no file, and records in its journal that hints may be missing.
        with suppress(OSError):
            saved_path(db_path).unlink(missing_ok=True)
        _log.warning("hints.not_saved", error=describe_os_error(ex, saved_path(db_path)),
                     hint="clients that connect after the next start pull again")


def _seq_before(reader: Reader, before_s: int, low: int, high: int) -> int:
    """Return a cursor that has all events of before `before_s` behind it, and hardly a younger one.

    The times are of the clocks of the nodes. `limits.LOG_MIN_AGE_S` is longer than the window, so
    clocks that differ by seconds make it longer or shorter, never shorter than the window.
    """
    while high - low > 1:
        middle = (low + high) // 2
        found = reader.events_after(middle, 1)
        if found and found[0].timestamp_s < before_s:
            low = min(found[0].seq, high)
        else:
            high = middle
    return low


def _is_recent(reader: Reader, clock: Clock) -> bool:
    """Whether the newest event is so young that a client may have pulled just before it."""
    newest = reader.newest_events(1)
    return bool(newest) and (
        newest[0].timestamp_s > clock.wall_ns() // NS_PER_S - limits.LOG_MIN_AGE_S
    )
