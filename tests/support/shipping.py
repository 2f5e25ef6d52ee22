"""A database whose log is captured, and an archive of it, without a server.

Every commit appends to `history`: the seq, the time and the sum that both tables must have.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import apsw

from pylon.archive.folder import FolderArchive
from pylon.archive.interface import Archive
from pylon.clock import ManualClock, SeededRandom
from pylon.storage.backups import SnapshotReport
from pylon.storage.bundle.point_in_time import PointInTime, PointInTimeReader, restore_workspace
from pylon.storage.shipping.names import SEGMENTS, SNAPSHOTS
from pylon.storage.shipping.spool import Spool, spool_folder
from pylon.storage.shipping.target import RestorePoint
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.backup.manager import SqliteBackups
from pylon.storage.sqlite.checkpoints import Checkpoints, open_upkeep
from pylon.storage.sqlite.shipping.capture import SqliteCapture
from pylon.storage.sqlite.turn_lock import TurnLock


@dataclass(frozen=True)
class Committed:
    seq: int
    at_ms: int


class ShippedDatabase:
    """One database over many runs. `crash` ends a run as kill -9 does, `stop` as SIGTERM does."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.folder = folder
        self.path = folder / "live.db"
        self.clock = ManualClock()
        self.random = SeededRandom(seed)
        self.archive: Archive = FolderArchive(folder / "archive")
        self.history: list[Committed] = []
        self.writer: apsw.Connection | None = None
        self.boot_id = "one"

    def start(self) -> None:
        self.capture = SqliteCapture(
            self.path, Spool(spool_folder(self.path)), self.clock, self.random, 5.0, self.boot_id
        )
        self.turns = TurnLock()
        self.writer = apsw.Connection(os.fspath(self.path))
        for pragma in ("journal_mode = WAL", "wal_autocheckpoint = 0", "page_size = 4096"):
            self.writer.execute(f"PRAGMA {pragma}").fetchall()
        self.writer.execute(
            "CREATE TABLE IF NOT EXISTS a(id INTEGER PRIMARY KEY, n INTEGER, filler TEXT);"
            "CREATE TABLE IF NOT EXISTS _pylon_change_log(seq INTEGER PRIMARY KEY, entity TEXT);"
            "CREATE TABLE IF NOT EXISTS _pylon_meta(key TEXT PRIMARY KEY, value TEXT);"
            "INSERT OR IGNORE INTO _pylon_meta VALUES ('lineage', 'abc')"
        )
        self.writer.execute("INSERT OR REPLACE INTO _pylon_meta VALUES ('run', random())")
        self.capture.open(self.writer, self.turns)
        self.capture.commits.settle(len(self.history))
        self.upkeep = open_upkeep(self.path)
        self.checkpoints = Checkpoints(self.upkeep, self.turns, self.clock, self.capture)

    def fill(self, commits: int) -> None:
        """Commit once a second, so often."""
        for _ in range(commits):
            self.clock.advance(1)
            self.commit()

    def commit(self, rows: int = 1) -> None:
        assert self.writer is not None
        self.turns.acquire()
        try:
            with self.writer:
                seq = len(self.history) + 1
                for number in range(rows):
                    self.writer.execute(
                        "INSERT OR REPLACE INTO a VALUES (?, ?, ?)",
                        ((seq * 7 + number) % 500, seq, "x" * 300),
                    )
                self.writer.execute("INSERT INTO _pylon_change_log VALUES (?, 'a')", (seq,))
            self.history.append(Committed(seq, self.clock.wall_ns() // 1_000_000))
            self.capture.commits.settle(seq)
        finally:
            self.turns.release()

    def capture_now(self) -> None:
        self.capture.capture_if_due(0, is_urgent=True)

    def restart_wal(self) -> bool:
        """As the flusher does above the limit of the WAL."""
        self.checkpoints._measure()
        return self.checkpoints._restart_wal()

    def upload(self, count: int | None = None) -> int:
        waiting = self.capture.spool.list_segments()[:count]
        for each in waiting:
            self.archive.put(f"{each.generation}/{SEGMENTS}/{each.name}", each.path)
            self.capture.spool.remove(each)
        return len(waiting)

    def snapshot(self) -> SnapshotReport:
        target = self.folder / f"snapshot-{self.random.token_hex(4)}"
        report = self.capture.snapshot(target, None, None)
        base = f"{report.generation}/{SNAPSHOTS}/{report.name}"
        for path in sorted(target.iterdir(), key=lambda each: each.name == "MANIFEST.json"):
            self.archive.put(f"{base}/{path.name}", path)
        return report

    def crash(self) -> None:
        """The files stay as they are; SQLite's own end would empty the WAL."""
        assert self.writer is not None
        copies = {}
        for path in (self.path, *self.folder.glob("live.db-wal")):
            copies[path] = path.read_bytes()
        times = self.path.stat()
        self._close()
        for path in self.folder.glob("live.db*"):
            if path.is_file():
                path.unlink()
        for path, data in copies.items():
            path.write_bytes(data)
        os.utime(self.path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def stop(self) -> None:
        assert self.checkpoints.flush_all()
        self._close()
        self.capture.close()

    def _close(self) -> None:
        assert self.writer is not None
        self.capture.disconnect()
        self.writer.close()
        self.upkeep.close()
        self.writer = None

    def restore(self, point: RestorePoint, *, allow_gap: bool = False) -> tuple[PointInTime, int]:
        """Return what was restored, and the seq that its rows and its log agree on."""
        with restore_workspace(self.folder) as folder:
            reader = PointInTimeReader(self.archive, folder)
            made = reader.make_bundle(point, SqliteBackups(self.path), allow_gap=allow_gap)
            with bundle.open_unchanging(made.bundle / "pylon.db") as conn:
                ((rows, head),) = conn.execute(
                    "SELECT coalesce((SELECT max(n) FROM a), 0), "
                    "coalesce((SELECT max(seq) FROM _pylon_change_log), 0)"
                ).fetchall()
            assert rows == head == made.seq
            return made, made.seq
