"""Cursor notes and head marks across runs, so that a restart of the server loses no change.

With socket units a client's pull is answered by the old server and its connect is accepted by
the new one. So a run saves its notes beside the database at its end (`save_notes`), and the next
run puts them into its journal at its start (`Continuity.begin`). A killed run saves nothing, but
its runtime folder may still exist: the pidfile names it. If neither exists, a record marks that
notes may be missing, and the hubs replay the whole window for a while.

Invariants: a saved file is used once. Notes of another history (void, or ahead of the head) are
dropped, and their clients pull again within `EPOCH_RESYNC_S`. Called by `supervisor.main`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pylon import limits, log
from pylon.bus.runtime import Runtime
from pylon.changelog.hint_journal import LOST, NO_KEY, Hint, make_journal, now_us, read_journal
from pylon.changelog.marks import HeadMarks, marks_path
from pylon.clock import NS_PER_S, Clock
from pylon.disk_errors import describe_os_error
from pylon.storage.interface import Reader

_US_PER_S: Final = 1_000_000
# A note lives in the hubs for this long, and what is missing matters as long.
_KEPT_US: Final = int(1.25 * limits.HINT_WINDOW_S * _US_PER_S)

_log = log.get_logger("notes")


class Continuity:
    """The notes of the run before. Made before its runtime folder is cleared."""

    def __init__(
        self, db_path: Path, left_behind: Mapping[str, Any], boot_id: str, clock: Clock
    ) -> None:
        """
        Args:
            left_behind: the pidfile of a run that did not end in order.
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
                self._found = read_journal(Runtime(Path(runtime_dir)).notes, now)
            else:
                self._found = read_journal(self._saved, now)
        except OSError as ex:
            _log.warning("notes.not_read", error=str(ex),
                         hint="sockets without a cursor are sent all of the last minute")

    def begin(self, reader: Reader, runtime: Runtime) -> None:
        """Make the journal and the first mark of this run.

        Args:
            reader: of the store, as it is before anything is written in this run.

        Raises:
            OSError: the runtime folder cannot be written to.
        """
        head, oldest = reader.head_seq(), reader.oldest_seq()
        # Without marks no Pylon has served this database here, or one without marks just has.
        is_served = self._has_run or _is_recent(reader, self._clock)
        self.marks.begin(head, oldest - 1 if is_served else head)
        self._saved.unlink(missing_ok=True)
        notes = self._carried(head, reader.void_ranges())
        if self._found is None and is_served:
            notes.append(Hint(NO_KEY, LOST, now_us(self._clock)))
        _log.debug("notes.carried", notes=len(notes))
        make_journal(runtime.notes, self._boot_id, notes, self._clock)

    def _carried(self, head: int, void_ranges: list[tuple[int, int]]) -> list[Hint]:
        """The notes that still matter."""
        if self._found is None:
            return []
        boot_id, notes = self._found
        now = now_us(self._clock)
        if not boot_id or boot_id != self._boot_id:  # nobody knows how old they are
            notes = [Hint(note.key, note.cursor, now) for note in notes]
        return [
            note for note in notes
            if now - note.at_us < _KEPT_US and (note.key == NO_KEY or (
                note.cursor <= head
                and not any(low < note.cursor < high for low, high in void_ranges)
            ))
        ]


def saved_path(db_path: Path) -> Path:
    """The path of the notes between two runs."""
    return db_path.with_name(db_path.name + ".notes")


def save_notes(db_path: Path, runtime: Runtime, boot_id: str, clock: Clock) -> None:
    """Keep the notes of this run for the next. No HTTP worker may live any more."""
    try:
        found = read_journal(runtime.notes, now_us(clock))
        if found is not None:
            make_journal(saved_path(db_path), boot_id, found[1], clock)
    except OSError as ex:
        # The next start finds none, and says so to the hubs.
        with suppress(OSError):
            saved_path(db_path).unlink(missing_ok=True)
        _log.warning("notes.not_saved", error=describe_os_error(ex, saved_path(db_path)),
                     hint="clients that connect after the next start pull again")


def _is_recent(reader: Reader, clock: Clock) -> bool:
    """Whether the newest event is so young that somebody may have pulled before it."""
    newest = reader.newest_events(1)
    return bool(newest) and (
        newest[0].timestamp_s > clock.wall_ns() // NS_PER_S - limits.LOG_MIN_AGE_S
    )
