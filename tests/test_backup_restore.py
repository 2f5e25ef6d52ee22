"""Restore: nothing lost, nothing mixed, and every cursor of the lost history voided."""

from __future__ import annotations

import os
from pathlib import Path

import apsw
import pytest

from pylon.clock import ManualClock
from pylon.errors import BackupInvalid
from pylon.storage.backups import RestoreReport
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.backup.create import create_backup
from pylon.storage.sqlite.backup.restore import restore_backup
from pylon.storage.sqlite.backup.verify import verify_backup
from pylon.storage.sqlite.schema import ddl


class BackupStage:
    """A data directory with a database of one lineage, and its manifest."""

    def __init__(self, folder: Path, lineage: str = "abc") -> None:
        folder.mkdir()
        self.folder = folder
        self.db = folder / "pylon.db"
        self.manifest = folder / "app.json"
        self.manifest.write_text('{"name": "first"}')
        self.clock = ManualClock()
        self.conn = apsw.Connection(os.fspath(self.db))
        self.conn.execute("PRAGMA journal_mode = WAL").fetchall()
        self.conn.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        for statement in ddl.SYSTEM_TABLES:
            self.conn.execute(statement)
        self.conn.execute("INSERT INTO _pylon_meta VALUES ('lineage', ?)", (lineage,))

    def write(self, up_to: int) -> None:
        with self.conn:
            for seq in range(self.head() + 1, up_to + 1):
                self.conn.execute(
                    "INSERT INTO _pylon_change_log (seq, entity, row_id, kind, timestamp) "
                    "VALUES (?, 'E', 'r', 'delete', 0)", (seq,),
                )

    def head(self) -> int:
        return bundle.read_facts(self.conn).seq

    def close(self) -> None:
        self.conn.close()

    def back_up(self, name: str) -> Path:
        create_backup(self.db, self.manifest, self.folder / name, self.clock)
        return self.folder / name

    def restore(self, source: Path) -> RestoreReport:
        return restore_backup(source, self.db, self.manifest, self.clock)

    def epochs(self) -> list[tuple[int, int]]:
        with bundle.open_unchanging(self.db) as conn:
            return conn.execute(
                "SELECT void_from, first_seq FROM _pylon_epochs ORDER BY first_seq"
            ).fetchall()


@pytest.fixture
def stage(tmp_path: Path) -> BackupStage:
    return BackupStage(tmp_path / "data")


def test_restore_opens_an_epoch_above_everything_and_keeps_the_old(stage: BackupStage) -> None:
    stage.write(100)
    source = stage.back_up("bundle")
    stage.write(150)
    stage.close()
    stage.manifest.write_text('{"name": "second"}')
    report = stage.restore(source)
    ((void_from, first_seq),) = stage.epochs()
    assert void_from == 100
    assert first_seq >= 150 + 10**9
    assert report.seq == 100
    assert stage.manifest.read_text() == '{"name": "first"}'
    kept_db, kept_manifest = (Path(name) for name in (report.replaced[0], report.replaced[-1]))
    with bundle.open_unchanging(kept_db) as conn:
        assert bundle.read_facts(conn).seq == 150, "the WAL was folded in before it was set aside"
    assert kept_manifest.read_text() == '{"name": "second"}'
    assert not stage.db.with_name("pylon.db-wal").exists()


def test_restore_of_another_database_voids_all_cursors(stage: BackupStage, tmp_path: Path) -> None:
    stage.write(10)
    stage.close()
    other = BackupStage(tmp_path / "other", lineage="xyz")
    other.write(500)
    source = other.back_up("bundle")
    other.close()
    stage.restore(source)
    ((void_from, _),) = stage.epochs()
    assert void_from == 0


def test_restore_onto_nothing(stage: BackupStage, tmp_path: Path) -> None:
    stage.write(5)
    source = stage.back_up("bundle")
    stage.close()
    target = tmp_path / "fresh" / "deep" / "pylon.db"
    report = restore_backup(source, target, tmp_path / "fresh" / "app.json", ManualClock())
    assert report.replaced == ()
    with bundle.open_unchanging(target) as conn:
        assert bundle.read_facts(conn).seq > 10**9
        bundle.check_integrity(conn)
        assert conn.execute("SELECT void_from FROM _pylon_epochs").fetchall() == [(5,)]


def test_new_epoch_is_above_the_replaced_head_even_if_the_clock_went_back(
    stage: BackupStage
) -> None:
    stage.write(3)
    source = stage.back_up("bundle")
    stage.conn.execute("INSERT INTO _pylon_epochs VALUES (?, 3, 'x', 0)", (9 * 10**17,))
    stage.close()
    stage.clock.jump(-10**9)
    stage.restore(source)
    assert stage.epochs() == [(3, 9 * 10**17 + 10**9)]


def test_damaged_bundle_touches_nothing(stage: BackupStage) -> None:
    stage.write(20)
    source = stage.back_up("bundle")
    stage.close()
    raw = bytearray((source / "pylon.db").read_bytes())
    raw[-1] ^= 1
    (source / "pylon.db").write_bytes(bytes(raw))
    before = {path.name: path.read_bytes() for path in stage.folder.iterdir() if path.is_file()}
    with pytest.raises(BackupInvalid, match="SHA-256"):
        stage.restore(source)
    after = {path.name: path.read_bytes() for path in stage.folder.iterdir() if path.is_file()}
    assert after == before


def test_unreadable_live_database_is_replaced_and_kept(stage: BackupStage) -> None:
    stage.write(20)
    source = stage.back_up("bundle")
    stage.close()
    stage.db.write_bytes(b"garbage" * 1000)
    report = stage.restore(source)
    assert report.unreadable
    assert Path(report.replaced[0]).read_bytes() == b"garbage" * 1000
    assert stage.epochs()[0][0] == 20


def test_two_restores_in_one_second_keep_both(stage: BackupStage) -> None:
    stage.write(1)
    source = stage.back_up("bundle")
    stage.close()
    first, second = stage.restore(source), stage.restore(source)
    assert first.replaced[0] != second.replaced[0]
    assert all(Path(name).exists() for name in first.replaced + second.replaced)


def test_restored_database_can_be_backed_up_again(stage: BackupStage) -> None:
    stage.write(8)
    source = stage.back_up("bundle")
    stage.close()
    stage.restore(source)
    again = stage.back_up("again")
    assert verify_backup(again).seq == stage.epochs()[-1][1]
