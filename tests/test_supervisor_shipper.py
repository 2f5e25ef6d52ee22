"""The shipper: its uploads, its snapshots, and what it does while the archive fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest

from pylon import limits
from pylon.archive.interface import Archive
from pylon.errors import ArchiveUnavailable
from pylon.setting_values import KeepRules
from pylon.storage.bundle.point_in_time import PointInTimeReader, restore_workspace
from pylon.storage.shipping.catalogue import read_catalogue
from pylon.storage.shipping.target import RestorePoint
from pylon.storage.sqlite.backup.manager import SqliteBackups
from supervisor.shipper import Shipper, ShippingPlan
from tests.support.shipping import ShippedDatabase


class ShipperStage:
    """A database with a shipper whose rounds the test runs."""

    def __init__(self, folder: Path, **plan: object) -> None:
        self.live = ShippedDatabase(folder)
        self.live.start()
        self.manifest = folder / "manifest.json"
        self.manifest.write_text('{"name": "one"}')
        self.hooked = folder / "hooked"
        script = folder / "hook.sh"
        script.write_text(f'#!/bin/sh\ncat >> {self.hooked}; echo >> {self.hooked}\n')
        script.chmod(0o700)
        settings = {
            "url": "file:///x", "snapshot_hours": 24, "keep": KeepRules(), "recipients": (),
            "hook": str(script), "manifest": self.manifest, "key_file": None, **plan,
        }
        self.shipper = Shipper(
            self.live.capture, ShippingPlan(**settings), self.live.clock, self.live.random,
            self.open_place,
        )
        self.is_away = False

    def open_place(self) -> Archive:
        return self.live.archive

    def set_away(self, *, away: bool) -> None:
        archive = self.live.folder / "archive"
        hidden = self.live.folder / "away"
        if away:
            archive.rename(hidden)
            archive.write_bytes(b"")
        else:
            archive.unlink()
            hidden.rename(archive)

    def snapshots(self) -> int:
        return sum(len(each.snapshots) for each in read_catalogue(self.live.archive))

    def events(self) -> list[str]:
        if not self.hooked.exists():
            return []
        return [json.loads(line)["event"] for line in self.hooked.read_text().splitlines() if line]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ShipperStage]:
    made = ShipperStage(tmp_path)
    yield made
    made.live.crash()


def test_first_round_uploads_and_takes_a_snapshot_and_later_ones_do_not(
    stage: ShipperStage,
) -> None:
    stage.live.commit()
    stage.shipper.run_round()
    stage.shipper.run_round()
    assert stage.snapshots() == 1
    assert stage.live.capture.spool.list_segments() == []
    assert stage.live.restore(RestorePoint())[1] == 1
    leftovers = [path.name for path in stage.live.capture.spool.folder.glob(".tmp*")]
    assert leftovers == []


def test_snapshot_is_taken_when_it_is_time_and_when_the_manifest_has_changed(
    stage: ShipperStage,
) -> None:
    stage.shipper.run_round()
    stage.live.clock.advance(23 * 3_600)
    stage.shipper.run_round()
    assert stage.snapshots() == 1
    stage.live.clock.advance(3_601)
    stage.shipper.run_round()
    assert stage.snapshots() == 2
    stage.manifest.write_text('{"name": "two"}')
    stage.live.clock.advance(1)
    stage.shipper.run_round()
    assert stage.snapshots() == 3


def test_lag_grows_while_the_archive_is_away_and_ends_with_it(stage: ShipperStage) -> None:
    stage.shipper.run_round()
    stage.set_away(away=True)
    stage.live.commit()
    stage.live.clock.advance(100)
    stage.live.capture_now()
    with pytest.raises(ArchiveUnavailable):
        stage.shipper.run_round()
    assert stage.shipper.lag_s() >= 100
    stage.set_away(away=False)
    stage.shipper.run_round()
    assert stage.shipper.lag_s() == 0
    assert stage.live.restore(RestorePoint())[1] == 1


def test_chain_that_was_broken_goes_on_as_another_generation_with_a_snapshot(
    stage: ShipperStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.shipper.run_round()
    stage.live.commit()
    stage.set_away(away=True)
    monkeypatch.setattr(limits, "SPOOL_BYTES", 10)
    stage.live.capture_now()
    monkeypatch.undo()
    assert stage.live.capture.state.broken
    with pytest.raises(ArchiveUnavailable):
        stage.shipper.run_round()
    assert stage.live.capture.state.broken, "a generation began while the archive was away"
    stage.set_away(away=False)
    stage.live.commit()
    stage.shipper.run_round()
    assert not stage.live.capture.state.broken
    assert len(read_catalogue(stage.live.archive)) == 2
    assert stage.snapshots() == 2
    stage.live.commit()
    stage.live.capture_now()
    stage.shipper.run_round()
    assert stage.live.restore(RestorePoint())[1] == 3
    assert stage.live.restore(RestorePoint(seq=1))[1] == 1, "the former chain is lost"


def test_hook_is_told_once_of_a_failure_that_lasts_and_of_its_end(stage: ShipperStage) -> None:
    shipper = stage.shipper
    shipper.run_round()
    stage.live.commit()
    stage.live.capture_now()
    stage.set_away(away=True)
    waits = []
    for _ in range(6):
        with pytest.raises(ArchiveUnavailable) as caught:
            shipper.run_round()
        waits.append(shipper._note_failure(caught.value))
        stage.live.clock.advance(60)
    assert stage.events() == ["backup.failed"]
    assert all(1 <= wait_s <= limits.ARCHIVE_DELAY_MAX_S for wait_s in waits)
    stage.live.clock.advance(limits.BACKUP_HOOK_EVERY_S)
    with pytest.raises(ArchiveUnavailable) as caught:
        shipper.run_round()
    shipper._note_failure(caught.value)
    assert stage.events() == ["backup.failed"] * 2
    stage.set_away(away=False)
    shipper.run_round()
    shipper._note_success()
    shipper._note_success()
    assert stage.events() == ["backup.failed", "backup.failed", "backup.recovered"]


def test_stopped_shipper_uploads_the_rest_with_finish(stage: ShipperStage) -> None:
    stage.shipper.run_round()
    stage.live.commit()
    stage.shipper.stop()
    stage.live.capture_now()
    assert stage.shipper.finish() == 0
    assert stage.live.restore(RestorePoint())[1] == 1


def test_encrypted_archive_opens_with_the_identity_only(tmp_path: Path) -> None:
    identity = pyrage.x25519.Identity.generate()
    stage = ShipperStage(tmp_path, recipients=(str(identity.to_public()),))
    stage.shipper.run_round()
    stage.live.commit()
    stage.live.capture_now()
    stage.shipper.run_round()
    files = [path for path in (tmp_path / "archive").rglob("*") if path.is_file()]
    assert files and all(path.suffix == ".age" for path in files)
    assert all(path.read_bytes().startswith(b"age-encryption.org/v1") for path in files)
    with restore_workspace(tmp_path) as folder:
        reader = PointInTimeReader(stage.live.archive, folder, (str(identity),))
        assert reader.make_bundle(RestorePoint(), SqliteBackups(stage.live.path)).seq == 1
    from pylon.errors import BackupInvalid, BackupRefused

    with pytest.raises(BackupRefused, match="--identity"):
        stage.live.restore(RestorePoint())
    stranger = str(pyrage.x25519.Identity.generate())
    with restore_workspace(tmp_path) as folder, pytest.raises(BackupInvalid, match="decrypted"):
        PointInTimeReader(stage.live.archive, folder, (stranger,)).make_bundle(
            RestorePoint(), SqliteBackups(stage.live.path)
        )
    stage.live.crash()
