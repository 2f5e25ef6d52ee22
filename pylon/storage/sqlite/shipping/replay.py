"""Replay: brings a database file to a later commit, by the frames that a backup has.

For each life of the WAL it puts a WAL file beside the database, and lets SQLite recover it. So
SQLite itself checks the salts and the checksum of each frame, and a file with a gap or a changed
byte is found out: its frames after the fault do not count.

Invariant: the database belongs to this process alone. Called by `manager`, for restores.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import apsw

from pylon.errors import BackupInvalid
from pylon.storage.shipping.segment import Segment
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.shipping.wal_file import WalHeader, wal_path


def replay_segments(db_path: Path, segments: Iterable[Segment], last_frame: int) -> None:
    """Replay segments, which have no gap and begin with frame 1 of a life of the WAL.

    Args:
        last_frame: of the last life; frames after it are left out. It ends a transaction.

    Raises:
        BackupInvalid: SQLite does not accept the frames.
        OSError
    """
    _set_mode(db_path, "WAL")
    pending = groupby(segments, key=lambda segment: segment.head.wal)
    life = next(pending, None)
    while life is not None:
        frames = _write_life(db_path, life[1])
        life = next(pending, None)
        if life is None:
            frames = _cut(db_path, frames, last_frame)
        _recover(db_path, frames)
    _set_mode(db_path, "DELETE")  # a bundle has a single plain file


def _set_mode(db_path: Path, mode: str) -> None:
    """Say in the header of the file whether it has a WAL; a bundle has none."""
    try:
        conn = apsw.Connection(os.fspath(db_path))
        try:
            conn.execute(f"PRAGMA journal_mode = {mode}").fetchall()
        finally:
            conn.close()
    except apsw.Error as ex:
        raise BackupInvalid(f"the snapshot cannot be opened: {error_text(ex)}") from None


def _write_life(db_path: Path, segments: Iterable[Segment]) -> int:
    """Write the WAL file of one life. Return the number of its frames."""
    frames, header = 0, ""
    with wal_path(db_path).open("wb") as file:
        for segment in segments:
            head = segment.head
            if not header:
                header = head.log_header
                file.write(bytes.fromhex(header))
            if head.log_header != header or head.first != frames + 1:
                raise BackupInvalid(
                    f"segment {head.number} of {head.generation} has frames from {head.first}, "
                    f"where {frames + 1} is the next one"
                )
            file.write(segment.frames)
            frames = head.last
    return frames


def _cut(db_path: Path, frames: int, last_frame: int) -> int:
    path = wal_path(db_path)
    with path.open("r+b") as file:
        header = WalHeader(file.read(32))
        file.truncate(32 + min(frames, last_frame) * header.frame_bytes)
    return min(frames, last_frame)


def _recover(db_path: Path, frames: int) -> None:
    """Let SQLite write the WAL into the database.

    Raises:
        BackupInvalid: it takes fewer frames than there are.
    """
    try:
        conn = apsw.Connection(os.fspath(db_path))
        try:
            conn.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
            conn.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            found, _ = conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if found != frames:
                raise BackupInvalid(
                    f"SQLite takes {max(0, found)} of {frames} frames: the rest is damaged, or "
                    "the last one ends no transaction"
                )
            conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            conn.close()
    except apsw.Error as ex:
        raise BackupInvalid(f"the frames cannot be replayed: {error_text(ex)}") from None
