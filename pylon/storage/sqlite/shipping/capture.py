"""Capture: copies the frames of the WAL into the spool before SQLite can overwrite them.

SQLite begins the WAL anew once all of it is written back and nobody reads it. The capture holds a
read transaction (`wal_readers`), so that does not happen unseen. A round begins a second
transaction, copies the frames since the last round, and ends the first one. To let the WAL begin
anew the flusher pauses the writer and calls `release`, which copies the rest. `hold` goes on after
it.

Invariants: a frame that SQLite overwrites, or that only the database has, is in the spool. At the
first sign that this was not so (the salts of the WAL, the checksum of the last captured frame, the
database file after a clean end) a new generation begins. Bounds: the spool at most
`limits.SPOOL_BYTES`; a WAL that it holds back at most `limits.BACKUP_WAL_BYTES`, or the size of the
database if that is more. Beyond them the chain ends (`broken`), and nothing is held back any more,
until the shipper calls `begin_generation`. A failing disk stops no write and no checkpoint.

Called by `checkpoints` in the flusher's thread, and by `supervisor.shipper`, under a lock.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import apsw
import msgspec

from pylon import limits, log, metrics
from pylon.clock import Clock, RandomSource
from pylon.disk_errors import describe_os_error
from pylon.errors import BackupInvalid, StoreUnavailable
from pylon.runtime.boot_id import read_boot_id
from pylon.storage.backups import Progress, SnapshotReport
from pylon.storage.shipping.names import SegmentName, SnapshotName, make_generation
from pylon.storage.shipping.segment import Segment, SegmentHead, encode_segment
from pylon.storage.shipping.spool import Spool, SpoolState
from pylon.storage.sqlite import log as change_log
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.shipping.commits import NotedCommits
from pylon.storage.sqlite.shipping.snapshot import SnapshotRequest, write_snapshot
from pylon.storage.sqlite.shipping.wal_file import (
    WalHeader,
    find_commits,
    follows,
    read_check,
    read_frames,
    read_header,
    wal_path,
)
from pylon.storage.sqlite.shipping.wal_readers import WalReaders, begin_reading, connect_reader
from pylon.storage.sqlite.turn_lock import TurnLock

_log = log.get_logger("capture")
_COMMITS: Final = "commits"
_TABLES: Final = "SELECT name FROM sqlite_schema WHERE type = 'table'"
_TURN_S: Final = 30.0
_SNAPSHOT_ATTEMPTS: Final = 5
_FAILURE_LOGGED_EVERY_S: Final = 60.0


class SqliteCapture:
    """See the module, and `pylon.storage.backups.LogCapture`."""

    def __init__(
        self, path: Path, spool: Spool, clock: Clock, random: RandomSource, interval_s: float,
        boot_id: str | None = None,
    ) -> None:
        """Make it before the first connection to the database: it looks at the file.

        Args:
            interval_s: between two rounds (PYLON_BACKUP_INTERVAL_S).
            boot_id: names this boot of the machine; None asks the kernel.
        """
        self.spool = spool
        # Whoever takes the writer's turn as well takes this one first.
        self.lock = threading.RLock()
        self.commits = NotedCommits(clock)
        self._path = path
        self._wal = wal_path(path)
        self._clock = clock
        self._random = random
        self._interval_s = interval_s
        self._boot_id = read_boot_id() if boot_id is None else boot_id
        self._state = spool.read_state() or SpoolState("")
        self._was_closed = self._state.closed == _fingerprint(path)
        self._readers: WalReaders | None = None
        self._turns: TurnLock | None = None
        self._captured_s = self._complete_s = clock.monotonic_s()
        self._failure_logged_s = float("-inf")

    @property
    def complete_s(self) -> float:
        """See `LogCapture`."""
        return self._complete_s

    @property
    def state(self) -> SpoolState:
        """Return where the capture stands."""
        return self._state

    # --- Beginning and end ---------------------------------------------------------------------

    def open(self, writer: apsw.Connection, turns: TurnLock) -> None:
        """Begin, before the first checkpoint. Goes on with the generation of the last run if
        nothing was written since that it has not captured.

        Raises:
            OSError: the spool cannot be made.
            apsw.Error
        """
        self.spool.make()
        self._turns = turns
        self._readers = readers = WalReaders(self._path)
        writer.set_wal_hook(self._note_commit)
        with self.lock:
            why = self._find_gap(readers)
            self.commits.open(self.spool.folder / _COMMITS)
            if why is None:
                if not self._was_closed:
                    self.commits.resume()
                readers.hold()
                self._attempt()
            else:
                self._begin_generation(readers, why)

    def close(self) -> None:
        """End, after the last connection of the server to the database has been closed."""
        with self.lock:
            self.disconnect()
            state = self._state
            if state.is_complete and not state.broken:
                self._put_state(msgspec.structs.replace(state, closed=_fingerprint(self._path)))

    def disconnect(self) -> None:
        """Close the connections. The next start finds out what was not captured. Idempotent."""
        with self.lock:
            self.commits.close()
            if self._readers is not None:
                self._readers.close()
                self._readers = None

    def begin_generation(self, why: str) -> None:
        """End the chain of segments, and begin another one, which needs a snapshot."""
        if self._turns is None:
            return
        with self.lock, self._turns.behind(_TURN_S):
            if self._readers is not None:
                self._begin_generation(self._readers, why)

    # --- Rounds --------------------------------------------------------------------------------

    def capture_if_due(self, wal_bytes: int, *, is_urgent: bool) -> None:
        """Capture, if the last round was `interval_s` ago, or at once.

        Args:
            wal_bytes: the used part of the WAL.
        """
        with self.lock:
            now_s = self._clock.monotonic_s()
            if is_urgent or now_s - self._captured_s >= self._interval_s:
                self._captured_s = now_s
                self._attempt()
            most_bytes = max(limits.BACKUP_WAL_BYTES, _size_bytes(self._path))
            is_holding = self._readers is not None and self._readers.is_holding
            if is_holding and wal_bytes > most_bytes:
                self._break(f"the WAL has grown to {wal_bytes} bytes, and could not be captured")

    def release(self) -> bool:
        """Capture the rest, and let the WAL begin anew. The caller has paused the writer, and calls
        `hold` before it goes on. Return whether that worked."""
        with self.lock:
            if self._readers is None or self._state.broken:
                return True
            if not self._attempt():
                return False
            if self._state.salts and not self._state.is_complete:
                try:
                    self._put_state(msgspec.structs.replace(self._state, is_complete=True))
                    self.commits.begin()
                except OSError as ex:
                    self._note_failure(describe_os_error(ex))
                    return False
            self._readers.release()
            return True

    def hold(self) -> None:
        """Hold the WAL again, after `release`."""
        with self.lock:
            if self._readers is not None and not self._state.broken:
                self._readers.hold()

    def snapshot(
        self, target: Path, manifest: Path | None, key_file: Path | None,
        on_progress: Progress | None = None,
    ) -> SnapshotReport:
        """See `LogCapture`."""
        if self._turns is None:
            raise BackupInvalid("the capture has not begun")
        self.capture_if_due(0, is_urgent=True)
        source = connect_reader(self._path)
        try:
            state, frames = self._begin_snapshot(source, self._turns)
            at_ms = self._clock.wall_ns() // 1_000_000
            request = SnapshotRequest(
                str(self._path), frames, state.salts, str(target),
                None if manifest is None else str(manifest),
                None if key_file is None else str(key_file),
            )
            report = write_snapshot(source, request, self._clock, on_progress)
        except apsw.Error as ex:
            raise BackupInvalid(f"{self._path} cannot be copied: {error_text(ex)}") from ex
        finally:
            source.close()
        name = SnapshotName(state.wal_number, state.wal, state.frame, report.seq, at_ms)
        return SnapshotReport(state.generation, name, report)

    def _begin_snapshot(
        self, source: apsw.Connection, turns: TurnLock
    ) -> tuple[SpoolState, int]:
        """Begin a read transaction. Return its place in the chain: the state as it will be once
        everything up to it is captured, and the number of frames in the WAL."""
        for _ in range(_SNAPSHOT_ATTEMPTS):
            with self.lock:
                if self._state.broken or self._readers is None:
                    raise BackupInvalid(f"the chain has ended: {self._state.broken}")
                self._attempt()
                # PERF: only reads while the writer pauses. A capture there, which syncs a file, let
                # writes wait 87 ms on a busy disk.
                with turns.behind(_TURN_S):
                    begin_reading(source)
                    frames = self._readers.count_frames()
                    header = read_header(self._wal) if frames else None
                state = self._state
                if header is None:
                    return state, 0
                if header.salts == state.salts and frames >= state.frame:
                    return msgspec.structs.replace(state, frame=frames), frames
            source.execute("ROLLBACK")  # the WAL began anew just now
        raise BackupInvalid("the WAL began anew each time that a snapshot began; try again")

    # --- Inside --------------------------------------------------------------------------------

    def _note_commit(self, _conn: apsw.Connection, _schema: str, frames: int) -> int:
        self.commits.note(frames)
        return apsw.SQLITE_OK

    def _find_gap(self, readers: WalReaders) -> str | None:
        """Return why the last run's generation cannot go on; None: it can."""
        state, header = self._state, read_header(self._wal)
        if not state.generation:
            return "there was none"
        if state.broken:
            return state.broken
        if not state.closed and (not self._boot_id or self._boot_id != state.boot_id):
            # SQLite may have lost commits that are captured, and the spool may be an older one.
            dropped = self.spool.drop_torn()
            _log.warning("capture.unclean", dropped_segments=dropped)
            return "the machine has restarted, and the last run had no clean end"
        self._state = state = msgspec.structs.replace(state, boot_id=self._boot_id)
        if state.salts and header is not None:
            if header.salts == state.salts:
                if readers.count_frames() < state.frame:
                    return "the WAL is shorter than what was captured: commits were lost"
                if state.frame and read_check(self._wal, header, state.frame) != state.check:
                    return "the WAL has other frames than were captured"
                self._state = msgspec.structs.replace(state, closed="")
                return None
            if state.is_complete and not state.closed and follows(header.salts, state.salts):
                return None
        if self._was_closed:
            self._state = msgspec.structs.replace(
                state, wal=state.wal + 1, wal_number=state.number, frame=0, salts="", check="",
                is_complete=False, closed="",
            )
            return None
        return "the database was changed while the server did not run, or its end was not clean"

    def _begin_generation(self, readers: WalReaders, why: str) -> None:
        """Begin a generation while nobody writes."""
        before = self._state
        generation = make_generation(
            self._clock.wall_ns(), self._random.token_hex(4), before.generation
        )
        _log.info("generation.begun", generation=generation, before=before.generation, why=why)
        self._state = SpoolState(
            generation, seq=before.seq, at_ms=before.at_ms, boot_id=self._boot_id
        )
        try:
            self.commits.begin()
        except OSError as ex:
            self._note_failure(describe_os_error(ex, self.spool.folder))
        metrics.SHIPPING_GENERATIONS.inc()
        readers.hold()
        if self._attempt() and self._state.salts:
            # Where all of the WAL is written back already, the next commit begins it anew.
            self._state = msgspec.structs.replace(self._state, is_complete=True)

    def _attempt(self) -> bool:
        """Capture what is new. Return whether the spool has all of it now. A failure is logged."""
        if self._readers is None or self._state.broken:
            return False
        now_s = self._clock.monotonic_s()
        try:
            done = self._capture(self._readers)
        except OSError as ex:
            self._note_failure(describe_os_error(ex, self.spool.folder))
            return False
        except (apsw.Error, StoreUnavailable, ValueError) as ex:
            self._note_failure(error_text(ex) if isinstance(ex, apsw.Error) else str(ex))
            return False
        if done:
            self._complete_s = now_s
        return done

    def _capture(self, readers: WalReaders) -> bool:
        reader = readers.begin()
        keeps = False
        try:
            frames = readers.count_frames()
            header = read_header(self._wal) if frames else None
            if header is not None and not self._adopt(header, frames):
                return False
            done = True
            if header is not None and frames > self._state.frame:
                before = self._state.frame
                last = self.commits.settled_frame(frames, before)
                self._copy_frames(header, last, reader)
                if self._state.broken:
                    return False
                keeps, done = last > before, last == frames
            keeps = keeps or not readers.is_holding
            return done
        finally:
            readers.end(reader, keeps=keeps)

    def _adopt(self, header: WalHeader, frames: int) -> bool:
        """Recognise the life of the WAL. Return False if the chain has ended."""
        state = self._state
        if header.salts == state.salts:
            if frames < state.frame:
                self._break("the WAL is shorter than what was captured")
                return False
            if frames > state.frame and state.is_complete:
                self._state = msgspec.structs.replace(state, is_complete=False)
            return True
        if not state.salts:
            self._state = msgspec.structs.replace(state, salts=header.salts)
            return True
        if state.is_complete and follows(header.salts, state.salts):
            self._state = msgspec.structs.replace(
                state, wal=state.wal + 1, wal_number=state.number, frame=0, salts=header.salts,
                check="", is_complete=False,
            )
            return True
        self._break("the WAL began anew before all of it was captured")
        return False

    def _copy_frames(self, header: WalHeader, last: int, reader: apsw.Connection) -> None:
        """Write the frames after the last captured one, to `last`, into segments."""
        tables = [name for (name,) in reader.execute(_TABLES)]
        head_seq = change_log.find_head_seq(reader, tables)
        most = max(1, limits.SEGMENT_BYTES // header.frame_bytes)
        while self._state.frame < last:
            state = self._state
            first = state.frame + 1
            end = min(last, state.frame + most)
            frames = read_frames(self._wal, header, first, end)
            commits = self.commits.take(
                find_commits(frames, header.page_bytes, first), state.seq, head_seq,
                self._capture_ms(),
            )
            seq, at_ms = (
                (commits[-1].seq, commits[-1].at_ms) if commits else (state.seq, state.at_ms)
            )
            name = SegmentName(state.number, state.wal, first, end, seq, at_ms)
            head = SegmentHead(
                state.generation, state.number, state.wal, first, end, header.raw.hex(),
                len(frames), commits,
            )
            data = encode_segment(Segment(head, frames))
            self.spool.put(state.generation, name, data)
            self._put_state(msgspec.structs.replace(
                state, number=state.number + 1, frame=end, seq=seq, at_ms=at_ms,
                check=frames[-header.frame_bytes + 16 : -header.frame_bytes + 24].hex(),
            ))
            metrics.SHIPPING_CAPTURED_BYTES.inc(len(frames))
        spooled_bytes = sum(each.size_bytes for each in self.spool.list_segments())
        if spooled_bytes > limits.SPOOL_BYTES:
            self._break(
                f"{spooled_bytes} bytes wait for the archive, more than {limits.SPOOL_BYTES}"
            )

    def _capture_ms(self) -> int:
        """Return the time of commits that nobody noted: the newest write to the WAL, or now."""
        now_ms = self._clock.wall_ns() // 1_000_000
        try:
            return min(now_ms, self._wal.stat().st_mtime_ns // 1_000_000 + 1)
        except OSError:
            return now_ms

    def _break(self, why: str) -> None:
        """End the chain: hold nothing back any more."""
        _log.error("generation.broken", generation=self._state.generation, why=why,
                   hint="a new one begins as soon as the archive answers; between both no commit "
                   "can be restored")
        if self._readers is not None:
            self._readers.release()
        self.commits.clear()
        metrics.SHIPPING_FAILURES.labels("chain").inc()
        self._state = msgspec.structs.replace(self._state, broken=why)
        try:
            self.spool.write_state(self._state)
        except OSError as ex:
            self._note_failure(describe_os_error(ex))

    def _put_state(self, state: SpoolState) -> None:
        self.spool.write_state(state)
        self._state = state

    def _note_failure(self, why: str) -> None:
        metrics.SHIPPING_FAILURES.labels("capture").inc()
        now_s = self._clock.monotonic_s()
        if now_s - self._failure_logged_s >= _FAILURE_LOGGED_EVERY_S:
            self._failure_logged_s = now_s
            _log.error("capture.failed", error=why,
                       hint="writes go on, and the WAL grows until this works again")


def _fingerprint(path: Path) -> str:
    """Return what changes when somebody writes to a database file. It does not open the file: that
    would drop the POSIX locks of this process."""
    try:
        stat = path.stat()
    except OSError:
        return "missing"
    return f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
