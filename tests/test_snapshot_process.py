"""Snapshots of large databases: another process copies the files of an open read transaction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from pylon import limits
from pylon.errors import BackupInvalid
from pylon.storage.shipping.target import RestorePoint
from pylon.storage.sqlite.shipping.snapshot import SnapshotRequest, copy_files, recover
from pylon.storage.sqlite.shipping.wal_file import read_header, wal_path
from pylon.storage.sqlite.shipping.wal_readers import begin_reading, connect_reader
from tests.support.shipping import ShippedDatabase

CHANGES = "SELECT max(seq) FROM _pylon_change_log"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[ShippedDatabase]:
    database = ShippedDatabase(tmp_path)
    database.start()
    yield database
    if database.writer is not None:
        database.crash()


@pytest.mark.usefixtures("processes")
def test_snapshots_of_another_process_are_places_of_the_chain(
    live: ShippedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_PROCESS_BYTES", 0)
    live.fill(20)
    live.checkpoints.checkpoint("passive")
    live.fill(10)
    assert live.snapshot().bundle.seq == 30  # the file and the WAL have a part each
    live.fill(10)
    assert live.restart_wal(), "the transaction has ended"
    assert live.snapshot().bundle.seq == 40  # the file has all
    live.fill(10)
    live.capture_now()
    live.upload()
    for seq in (30, 35, 40, 45, 50):
        assert live.restore(RestorePoint(seq=seq))[1] == seq


@pytest.mark.usefixtures("processes")
def test_an_error_of_the_process_is_told_and_a_cancelled_one_ends(
    live: ShippedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_PROCESS_BYTES", 0)
    live.fill(3)
    taken = live.folder / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(BackupInvalid, match="taken"):
        live.capture.snapshot(taken, None, None)

    def cancel(_remaining: int, _pages: int) -> None:
        raise InterruptedError("the server is stopping")

    with pytest.raises(InterruptedError):
        live.capture.snapshot(live.folder / "cancelled", None, None, cancel)
    assert not (live.folder / "cancelled").exists()
    assert live.restart_wal(), "no transaction is left"


def test_the_copy_is_of_the_transaction_whatever_is_written_afterwards(
    live: ShippedDatabase,
) -> None:
    live.fill(10)
    live.checkpoints.checkpoint("passive")
    live.fill(10)
    reader = connect_reader(live.path)
    begin_reading(reader)
    frames, header = live.capture._readers.count_frames(), read_header(wal_path(live.path))  # type: ignore[union-attr]
    assert header is not None
    live.fill(10)
    live.checkpoints.checkpoint("passive")  # up to the transaction
    request = SnapshotRequest(str(live.path), frames, header.salts, "", None, None)
    assert last_change(request, live.folder / "copy.db") == 20
    reader.close()


def test_frames_of_another_life_of_the_wal_are_left_out(live: ShippedDatabase) -> None:
    """Then the file had all frames of the transaction before the WAL began anew."""
    live.fill(10)
    header = read_header(wal_path(live.path))
    assert header is not None and live.restart_wal()
    live.fill(5)
    request = SnapshotRequest(str(live.path), 10, header.salts, "", None, None)
    assert last_change(request, live.folder / "copy.db") == 10


def last_change(request: SnapshotRequest, copy: Path) -> int:
    """Copy, recover and check; return the seq of the copy."""
    copy_files(request, copy)
    recover(copy)
    assert not wal_path(copy).exists()
    conn = apsw.Connection(os.fspath(copy), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ((seq,),) = conn.execute(CHANGES).fetchall()
        return int(seq)
    finally:
        conn.close()
