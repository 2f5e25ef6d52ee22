"""Backups: a bundle is one commit, verified before it is used; a restore voids newer cursors."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylon.errors import BackupInvalid, BackupRefused
from tests.storage_contract.backends import StoreStage
from tests.support.storage import row_id, task, update

pytestmark = pytest.mark.stores


def test_bundle_is_restored_with_everything_up_to_its_commit(
    stage: StoreStage, tmp_path: Path
) -> None:
    stage.apply(task(1, title="kept"))
    target = tmp_path / "bundle"
    report = stage.backend.backups.create(target, None)
    assert report.seq == 1
    assert stage.backend.backups.verify(target).seq == 1
    stage.apply(update("Task", 1, {"title": "later"}), task(2))
    lost_head = stage.writer.head
    stage.close()
    stage.backend.backups.restore(target, tmp_path / "manifest.json")
    again = StoreStage(stage.backend, clock=stage.clock)
    assert [(row["id"], row["title"]) for row in again.rows("Task")] == [(row_id(1), "kept")]
    (reply,) = again.apply(task(3))
    assert reply.seq > lost_head, "no seq is used twice"
    void = again.reader.void_ranges()
    assert any(low < lost_head < high for low, high in void)
    again.close()


def test_damaged_bundle_is_refused_and_touches_nothing(
    stage: StoreStage, tmp_path: Path
) -> None:
    stage.apply(task(1))
    target = tmp_path / "bundle"
    stage.backend.backups.create(target, None)
    largest = max((p for p in target.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    with pytest.raises(BackupInvalid):
        stage.backend.backups.verify(target)
    stage.close()
    with pytest.raises(BackupInvalid):
        stage.backend.backups.restore(target, tmp_path / "manifest.json")
    again = StoreStage(stage.backend, clock=stage.clock)
    assert len(again.rows("Task")) == 1
    again.close()


def test_target_with_files_is_refused(stage: StoreStage, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(BackupRefused):
        stage.backend.backups.create(target, None)
    assert [p.name for p in target.iterdir()] == ["mine.txt"]
