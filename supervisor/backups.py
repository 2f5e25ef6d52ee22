"""Backups of the running server: `pylonctl` copies, the supervisor keeps the record.

`pylonctl backup` copies the database in its own process. So any folder that its caller may write
to can be the target, whatever sandbox the server runs in. It holds a dialogue meanwhile:

    pylonctl     {"cmd": "backup"}
    supervisor   {"manifest": PATH}        the copy may begin
    supervisor   {"cancel": true, "why": TEXT}   only while the database is read
    pylonctl     {"copied": true}          the database is no longer read
    pylonctl     {"report": {...}}         the bundle is in its place
    supervisor   {"recorded": true, "done": true}

The copy keeps the WAL from being reset. A copy for which the WAL grows beyond
`limits.BACKUP_WAL_BYTES`, or beyond the size of the database if that is more, is cancelled. So is
every copy at the end of the server.

Invariants: one backup at a time; a drain flushes the WAL only after the copy has ended or was
cancelled (`end_copy`). Metrics: `pylon_backups_total`, `pylon_backups_running`, the time and
duration of the last good one, which the backup record keeps over restarts.
Called by the threads of `supervisor.control` and by `supervisor.drain`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from pylon import limits, log, metrics
from pylon.clock import NS_PER_S, Clock
from pylon.errors import InvalidData, Unavailable
from pylon.storage.backups import BackupRecord
from pylon.storage.bundle.record import read_record, write_record
from pylon.storage.records import StoreSizes
from supervisor.control import ClientLeft, Dialogue, Line

_log = log.get_logger("backups")
_POLL_S: Final = 0.1


class _Report(msgspec.Struct, frozen=True):
    """The part of `BackupReport` that is kept."""

    target: str
    seq: int
    size_bytes: int
    duration_s: float


class Backups:
    """`converse` is the dialogue of the command ``backup``."""

    def __init__(
        self, data_path: Path, sizes: Callable[[], StoreSizes], manifest: Path, clock: Clock
    ) -> None:
        """Args: `data_path` and `sizes` are those of the store."""
        self._data_path = data_path
        self._sizes = sizes
        self._manifest = manifest
        self._clock = clock
        self._one = threading.Lock()
        self._ending = threading.Event()
        self._copied = threading.Event()
        self._copied.set()
        self._copier_pid = 0
        self._show(read_record(data_path))

    def converse(self, _request: Line, dialogue: Dialogue) -> Line:
        """Accompany one backup."""
        if not self._one.acquire(blocking=False):
            raise Unavailable("Another backup is being made")
        report: _Report | None = None
        try:
            self._copier_pid = dialogue.peer_pid
            self._copied.clear()
            if self._ending.is_set():
                raise Unavailable("The server is stopping")
            metrics.BACKUP_RUNNING.set(1)
            report = self._accompany(dialogue)
        except ClientLeft:
            _log.warning("backup.abandoned", pid=self._copier_pid,
                         hint="pylonctl ended before the bundle was complete; it says why")
        finally:
            self._copied.set()
            metrics.BACKUP_RUNNING.set(0)
            metrics.BACKUPS.labels("ok" if report is not None else "failed").inc()
            self._one.release()
        if report is not None:
            self._keep(report)
        return {"recorded": report is not None}

    def end_copy(self, wait_s: float) -> int | None:
        """Cancel every copy; the pid of a copying process that does not give up."""
        self._ending.set()
        return None if self._copied.wait(wait_s) else self._copier_pid

    def _accompany(self, dialogue: Dialogue) -> _Report:
        dialogue.send_line({"manifest": str(self._manifest)})
        has_cancelled = False
        while True:
            line = dialogue.read_line(_POLL_S)
            if line is None:
                why = None if has_cancelled or self._copied.is_set() else self._reason_to_cancel()
                if why is not None:
                    has_cancelled = True
                    dialogue.send_line({"cancel": True, "why": why})
            elif line.get("copied"):
                self._copied.set()
            elif "report" in line:
                try:
                    return msgspec.convert(line["report"], _Report)
                except msgspec.ValidationError as ex:
                    raise InvalidData(f"report: {ex}") from ex
            else:
                raise InvalidData(f"Unknown line {line!r}; known: copied, report")

    def _reason_to_cancel(self) -> str | None:
        if self._ending.is_set():
            return ("The server is stopping, so the backup was given up: make it again once the "
                    "server runs, or while it is stopped")
        sizes = self._sizes()
        wal_bytes = sizes.wal_bytes
        most_bytes = max(limits.BACKUP_WAL_BYTES, sizes.data_bytes)
        if wal_bytes <= most_bytes:
            return None
        _log.warning("backup.cancelled", wal_bytes=wal_bytes, limit_bytes=most_bytes,
                     pid=self._copier_pid)
        return (f"The backup was given up: while it read the database, {wal_bytes} bytes of writes "
                f"gathered in the WAL (at most {most_bytes}). Name a target on a faster disk, or "
                "back up when less is written")

    def _keep(self, report: _Report) -> None:
        record = BackupRecord(
            self._clock.wall_ns() // NS_PER_S, report.duration_s, report.target, report.seq,
            report.size_bytes,
        )
        self._show(record)
        try:
            write_record(self._data_path, record)
        except OSError as ex:
            _log.warning("backup.not_recorded", error=str(ex),
                         hint="the backup is good; after a restart its time is not known")

    def _show(self, record: BackupRecord | None) -> None:
        if record is not None:
            metrics.BACKUP_LAST_SUCCESS.set(record.at_s)
            metrics.BACKUP_DURATION.set(record.duration_s)
            metrics.BACKUP_BYTES.set(record.size_bytes)
