"""Continuous backup of SQLite: what is captured, what is restored, and that no gap goes unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from pylon import limits
from pylon.errors import BackupInvalid, BackupRefused
from pylon.storage.shipping.catalogue import read_catalogue
from pylon.storage.shipping.segment import decode_segment
from pylon.storage.shipping.target import RestorePoint
from tests.support.shipping import ShippedDatabase


@pytest.fixture
def live(tmp_path: Path) -> Iterator[ShippedDatabase]:
    database = ShippedDatabase(tmp_path)
    database.start()
    yield database
    if database.writer is not None:
        database.crash()


def test_every_commit_can_be_restored_by_its_time_and_by_its_seq(live: ShippedDatabase) -> None:
    live.snapshot()
    live.fill(5)
    live.capture_now()
    live.fill(5)
    assert live.restart_wal()
    live.fill(5)
    live.capture_now()
    live.upload()
    for commit in live.history:
        made, seq = live.restore(RestorePoint(at_ms=commit.at_ms))
        assert seq == commit.seq
        assert made.target.at_ms == commit.at_ms
        assert live.restore(RestorePoint(at_ms=commit.at_ms + 999))[1] == commit.seq
        assert live.restore(RestorePoint(seq=commit.seq))[1] == commit.seq
    assert live.restore(RestorePoint())[1] == 15


def test_wal_does_not_begin_anew_before_its_frames_are_captured(live: ShippedDatabase) -> None:
    live.snapshot()
    live.fill(20)
    live.checkpoints.checkpoint("passive")
    live.fill(20)  # the writer would begin the WAL anew here
    live.checkpoints.checkpoint("passive")
    assert not live.checkpoints.checkpoint("restart")
    live.fill(1)
    live.capture_now()
    live.upload()
    assert live.restore(RestorePoint())[1] == 41
    assert live.restore(RestorePoint(seq=17))[1] == 17


def test_wal_begins_anew_again_and_again_without_a_new_generation(live: ShippedDatabase) -> None:
    live.snapshot()
    for _ in range(6):
        live.fill(10)
        assert live.restart_wal()
    live.fill(1)
    live.capture_now()
    live.upload()
    (generation,) = read_catalogue(live.archive)
    assert {each.name.wal for each in generation.segments} == {1, 2, 3, 4, 5, 6, 7}
    assert live.restore(RestorePoint(seq=33))[1] == 33
    assert live.restore(RestorePoint())[1] == 61


def test_reader_that_keeps_the_wal_from_beginning_anew_loses_no_frame(
    live: ShippedDatabase,
) -> None:
    live.snapshot()
    live.fill(10)
    reader = apsw.Connection(str(live.path), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN; SELECT count(*) FROM a").fetchall()
    live.fill(10)
    assert not live.restart_wal()
    live.fill(10)
    reader.close()
    live.fill(10)
    assert live.restart_wal()
    live.fill(10)
    live.capture_now()
    live.upload()
    assert len(read_catalogue(live.archive)) == 1
    assert live.restore(RestorePoint())[1] == 50


def test_clean_end_goes_on_with_the_same_generation(live: ShippedDatabase) -> None:
    live.snapshot()
    live.fill(10)
    live.stop()
    live.start()
    live.fill(10)
    live.capture_now()
    live.upload()
    assert len(read_catalogue(live.archive)) == 1
    assert live.restore(RestorePoint(seq=7))[1] == 7
    assert live.restore(RestorePoint())[1] == 20


def test_crash_goes_on_with_the_same_generation(live: ShippedDatabase) -> None:
    live.snapshot()
    live.fill(10)
    live.capture_now()
    live.fill(10)
    live.crash()
    live.start()
    live.fill(1)
    live.capture_now()
    live.upload()
    assert len(read_catalogue(live.archive)) == 1
    assert live.restore(RestorePoint())[1] == 21


def test_crash_after_the_wal_began_anew_goes_on_with_the_same_generation(
    live: ShippedDatabase,
) -> None:
    live.snapshot()
    live.fill(10)
    assert live.restart_wal()
    live.crash()  # the file still has the old life
    live.start()
    live.fill(1)
    assert live.restart_wal()
    live.fill(1)
    live.crash()  # the file has a new life that the state does not know
    live.start()
    live.capture_now()
    live.upload()
    assert len(read_catalogue(live.archive)) == 1
    assert live.restore(RestorePoint())[1] == 12


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_write_of_another_program_while_stopped_begins_a_generation(
    live: ShippedDatabase, end: str
) -> None:
    live.snapshot()
    live.fill(5)
    getattr(live, end)()
    other = apsw.Connection(str(live.path))
    other.execute("INSERT INTO a VALUES (1000, 0, 'foreign')")
    other.close()  # empties the WAL
    live.start()
    live.snapshot()
    live.fill(1)
    live.capture_now()
    live.upload()
    assert len(read_catalogue(live.archive)) == 2
    made, seq = live.restore(RestorePoint())
    assert seq == 6
    assert made.target.generation == read_catalogue(live.archive)[1].name


def test_state_that_is_lost_begins_a_generation(live: ShippedDatabase) -> None:
    live.snapshot()
    live.fill(3)
    live.stop()
    (live.capture.spool.folder / "state.json").write_bytes(b"{torn")
    live.start()
    live.fill(1)
    live.capture_now()
    live.upload()
    assert len(read_catalogue(live.archive)) == 2
    # Without a snapshot the new generation does not count yet.
    assert live.restore(RestorePoint())[1] == 3


def test_large_transaction_spans_segments(
    live: ShippedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 3 * 4096)
    live.snapshot()
    live.fill(2)
    live.clock.advance(1)
    live.commit(rows=300)
    live.fill(2)
    live.capture_now()
    live.upload()
    (generation,) = read_catalogue(live.archive)
    assert len(generation.segments) > 8
    for commit in live.history:
        assert live.restore(RestorePoint(at_ms=commit.at_ms))[1] == commit.seq


def test_missing_segment_is_said_and_passed_over_with_the_flag_only(live: ShippedDatabase) -> None:
    live.snapshot()
    for _ in range(4):
        live.fill(2)
        live.capture_now()
    live.upload()
    (generation,) = read_catalogue(live.archive)
    lost = generation.segments[2].name
    live.archive.delete([generation.segments[2].object.name])
    assert live.restore(RestorePoint(seq=lost.seq - 3))[1] == lost.seq - 3
    for point in (RestorePoint(), RestorePoint(seq=lost.seq), RestorePoint(at_ms=lost.at_ms)):
        with pytest.raises(BackupInvalid, match=r"segment 3 of generation .* is missing") as caught:
            live.restore(point)
        assert caught.value.hint is not None
        made, seq = live.restore(point, allow_gap=True)
        assert seq == lost.seq - 2
        assert f"(seq {seq}) cannot be restored" in made.target.gap


def test_snapshot_behind_a_gap_makes_it_harmless(live: ShippedDatabase) -> None:
    live.snapshot()
    live.fill(2)
    live.capture_now()
    live.fill(2)
    assert live.restart_wal()
    live.fill(2)
    live.capture_now()
    live.snapshot()
    live.fill(2)
    live.capture_now()
    live.upload()
    (generation,) = read_catalogue(live.archive)
    live.archive.delete([generation.segments[0].object.name])
    assert live.restore(RestorePoint())[1] == 8


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_damaged_segment_is_found_out(live: ShippedDatabase, damage: str) -> None:
    live.snapshot()
    live.fill(3)
    live.capture_now()
    live.fill(3)
    live.capture_now()
    live.upload()
    first, second = read_catalogue(live.archive)[0].segments[-2:]
    path = live.folder / "archive" / second.object.name
    data = path.read_bytes()
    path.write_bytes({
        "cut": data[:-100], "changed": data[:200] + b"?" + data[201:], "empty": b"",
        "other": (live.folder / "archive" / first.object.name).read_bytes(),
    }[damage])
    with pytest.raises(BackupInvalid, match=r"damaged|cut short|renamed"):
        live.restore(RestorePoint())


def test_frames_that_were_changed_before_their_digest_are_found_out_by_sqlite(
    live: ShippedDatabase,
) -> None:
    from pylon.storage.shipping.segment import Segment, encode_segment

    live.snapshot()
    live.fill(6)
    live.capture_now()
    live.upload()
    segment = read_catalogue(live.archive)[0].segments[-1]
    path = live.folder / "archive" / segment.object.name
    read = decode_segment(path.read_bytes(), "it")
    frames = bytearray(read.frames)
    frames[len(frames) // 2] ^= 1
    path.write_bytes(encode_segment(Segment(read.head, bytes(frames))))
    with pytest.raises(BackupInvalid, match="SQLite takes"):
        live.restore(RestorePoint())


def test_time_before_the_first_snapshot_is_refused_with_the_oldest_time(
    live: ShippedDatabase,
) -> None:
    with pytest.raises(BackupRefused, match="no complete snapshot"):
        live.restore(RestorePoint())
    live.fill(2)
    live.snapshot()
    with pytest.raises(BackupRefused, match=r"its oldest is of 2023-11-14T22:13:22.000Z, seq 2"):
        live.restore(RestorePoint(at_ms=live.history[0].at_ms))


def test_full_spool_ends_the_chain_and_frees_the_wal(
    live: ShippedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.snapshot()
    live.fill(5)
    monkeypatch.setattr(limits, "SPOOL_BYTES", 100)
    live.capture_now()
    assert "wait for the archive" in live.capture.state.broken
    live.fill(5)
    assert live.restart_wal(), "the capture still holds the WAL"
    monkeypatch.undo()
    live.upload()
    assert live.restore(RestorePoint())[1] == 5
    live.capture.begin_generation(live.capture.state.broken)
    live.snapshot()
    live.fill(2)
    live.capture_now()
    live.upload()
    assert live.restore(RestorePoint())[1] == 12


def test_failing_spool_stops_no_write_and_is_made_up_for(live: ShippedDatabase) -> None:
    live.snapshot()
    live.fill(5)
    folder = live.capture.spool.folder
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    folder.write_bytes(b"no folder")
    live.capture_now()
    live.fill(5)
    assert not live.restart_wal(), "the WAL began anew although its frames were not captured"
    folder.unlink()
    hidden.rename(folder)
    assert live.restart_wal()
    live.upload()
    assert live.restore(RestorePoint())[1] == 10


def test_clock_that_is_set_back_keeps_the_order_of_generations(live: ShippedDatabase) -> None:
    live.fill(1)
    live.clock.jump(-3_600)
    live.capture.begin_generation("a test")
    live.snapshot()
    live.fill(2)
    live.capture_now()
    live.upload()
    names = [each.name for each in read_catalogue(live.archive)]
    assert names == sorted(names) and len(names) == 2
    assert names[1] == live.capture.state.generation
    assert live.restore(RestorePoint())[1] == 3


def test_crash_keeps_the_time_and_the_seq_of_commits_that_were_not_captured(
    live: ShippedDatabase,
) -> None:
    live.snapshot()
    live.fill(3)
    live.capture_now()
    live.fill(5)
    live.crash()
    live.clock.advance(100)
    live.start()
    live.capture_now()
    live.upload()
    for commit in live.history:
        assert live.restore(RestorePoint(at_ms=commit.at_ms))[1] == commit.seq
        assert live.restore(RestorePoint(seq=commit.seq))[1] == commit.seq


def test_commit_of_another_program_gets_no_seq_below_its_own(live: ShippedDatabase) -> None:
    live.snapshot()
    live.fill(2)
    other = apsw.Connection(str(live.path))
    other.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    other.execute("INSERT INTO a VALUES (600, 3, 'foreign')").fetchall()
    other.execute("INSERT INTO _pylon_change_log VALUES (3, 'a')").fetchall()
    other.close()
    live.capture_now()
    live.upload()
    assert live.restore(RestorePoint(seq=2))[1] == 2
    assert live.restore(RestorePoint(seq=3))[1] == 3


def test_loss_of_power_begins_a_generation_and_a_clean_reboot_does_not(
    live: ShippedDatabase,
) -> None:
    live.snapshot()
    live.fill(3)
    live.stop()
    live.boot_id = "two"
    live.start()
    live.fill(3)
    live.capture_now()
    assert len({each.generation for each in live.capture.spool.list_segments()}) == 1
    live.fill(3)
    live.crash()
    live.boot_id = "three"
    live.start()
    live.snapshot()
    live.capture_now()
    live.upload()
    assert len(read_catalogue(live.archive)) == 2
    assert live.restore(RestorePoint())[1] == 9
    assert live.restore(RestorePoint(seq=6))[1] == 6


def test_segments_that_a_loss_of_power_has_torn_are_dropped(live: ShippedDatabase) -> None:
    live.snapshot()
    for _ in range(3):
        live.fill(1)
        live.capture_now()
    waiting = live.capture.spool.list_segments()
    live.crash()
    waiting[-2].path.write_bytes(b"")
    live.boot_id = "two"
    live.start()
    live.upload()
    former = read_catalogue(live.archive)[0]
    assert len(former.segments) == len(waiting) - 2
    assert live.restore(RestorePoint())[1] == 1
