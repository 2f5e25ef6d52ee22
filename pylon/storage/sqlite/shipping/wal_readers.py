"""WAL readers: the connections of the capture, one of which holds the WAL.

While a read transaction is open, SQLite does not begin the WAL anew. Two connections take turns:
one has an open transaction, and the other begins the next one before the first ends. So one is
always open. A third connection counts the frames of the WAL.

Invariants: at most one transaction is open between two rounds; no connection writes a checkpoint.
Called by `shipping.capture`, under its lock.
"""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from pylon.errors import StoreUnavailable


class WalReaders:
    """The connections to one database."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            apsw.Error: the database cannot be opened.
        """
        self._readers = (connect_reader(path), connect_reader(path))
        self._probe = connect_reader(path)
        self._held: apsw.Connection | None = None  # its transaction holds the WAL

    @property
    def is_holding(self) -> bool:
        """Return whether a transaction holds the WAL."""
        return self._held is not None

    def close(self) -> None:
        """Close the connections, which ends their transactions."""
        self._held = None
        for conn in (*self._readers, self._probe):
            conn.close()

    def hold(self) -> None:
        """Hold the WAL from now on. Idempotent."""
        if self._held is None:
            self._held = self._readers[0]
            begin_reading(self._held)

    def release(self) -> None:
        """Let SQLite begin the WAL anew. Idempotent."""
        if self._held is not None:
            self._held.execute("ROLLBACK")
            self._held = None

    def begin(self) -> apsw.Connection:
        """Begin a transaction with the connection that does not hold the WAL, and return it."""
        reader = self._readers[self._held is self._readers[0]]
        begin_reading(reader)
        return reader

    def end(self, reader: apsw.Connection, *, keeps: bool) -> None:
        """End a round.

        Args:
            reader: what `begin` returned.
            keeps: its transaction holds the WAL from now on, and the present one ends; else its own
                ends.
        """
        if keeps:
            held, self._held = self._held, reader
            if held is not None:
                held.execute("ROLLBACK")
        elif reader.in_transaction:
            reader.execute("ROLLBACK")

    def count_frames(self) -> int:
        """Return the number of frames in the WAL.

        Raises:
            StoreUnavailable: it cannot be counted now.
        """
        try:
            frames, _ = self._probe.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        except apsw.BusyError as ex:
            raise StoreUnavailable("The WAL cannot be measured now") from ex
        return max(0, frames)


def connect_reader(path: Path) -> apsw.Connection:
    """Return a connection that reads the WAL, and writes no checkpoint.

    Raises:
        apsw.Error
    """
    conn = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE)
    conn.set_busy_timeout(5_000)
    conn.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    conn.execute("PRAGMA cache_size = -256").fetchall()
    conn.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    return conn


def begin_reading(conn: apsw.Connection) -> None:
    """Begin a read transaction: SQLite takes its snapshot with the first read, not with BEGIN."""
    conn.execute("BEGIN")
    conn.execute("SELECT count(*) FROM sqlite_schema").fetchall()
