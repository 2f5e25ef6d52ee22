"""Retention of backups: what stays, what goes, and that what stays can be restored."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pylon.archive.interface import ArchivedObject
from pylon.clock import ManualClock
from pylon.errors import BackupRefused
from pylon.setting_values import KeepRules, keep_rules
from pylon.storage.bundle.retention import drop_bundle, plan_bundles
from pylon.storage.shipping.catalogue import read_catalogue
from pylon.storage.shipping.retention import choose_kept, plan_prune
from pylon.storage.shipping.target import RestorePoint
from pylon.storage.sqlite.backup.create import create_backup
from tests.support.shipping import ShippedDatabase
from tests.test_backup_bundle import make_database

DAY_S = 86_400
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def daily(count: int) -> list[tuple[str, int]]:
    """One a day at 03:00, oldest first."""
    times = [NOW.replace(hour=3) - timedelta(days=number) for number in range(count)]
    return [(f"{at:%Y-%m-%d}", ms(at)) for at in reversed(times)]


def test_newest_of_each_day_week_and_month_stays() -> None:
    kept = choose_kept(daily(120), KeepRules(days=2, daily=4, weekly=3, monthly=4), ms(NOW))
    assert sorted(kept) == [
        "2026-08-31", "2026-09-30", "2026-10-31",  # months; November is there already
        "2026-11-15", "2026-11-22",  # weeks end on Sunday
        "2026-11-25", "2026-11-26", "2026-11-27", "2026-11-28",
    ]


def test_newest_stays_whatever_the_rules_say() -> None:
    old = [("old", ms(NOW - timedelta(days=900))), ("newer", ms(NOW - timedelta(days=800)))]
    assert choose_kept(old, KeepRules(1, 0, 0, 0), ms(NOW)) == {"newer"}


def test_several_on_one_day_leave_the_last_one() -> None:
    day = NOW - timedelta(days=5)
    times = [(f"at {hour}", ms(day.replace(hour=hour))) for hour in (1, 5, 9)]
    kept = choose_kept([*times, ("now", ms(NOW))], KeepRules(1, 10, 0, 0), ms(NOW))
    assert kept == {"at 9", "now"}


@pytest.mark.parametrize(
    "text", ["days=0", "days=1,days=2", "yearly=3", "days", "days=x", "daily=99999", "days=-1"]
)
def test_rules_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        keep_rules(text)


def test_rules_that_are_not_named_keep_nothing_of_their_kind() -> None:
    assert keep_rules("days=3, weekly=2") == KeepRules(3, 0, 2, 0)


def test_pruned_archive_brings_back_each_moment_of_its_days(tmp_path: Path) -> None:
    live = ShippedDatabase(tmp_path)
    live.start()
    for _day in range(10):
        live.snapshot()
        for _ in range(3):
            live.clock.advance(DAY_S / 3)
            live.commit()
        live.restart_wal()
        live.upload()
    now_ms = live.clock.wall_ns() // 1_000_000
    rules = KeepRules(days=3, daily=5, weekly=0, monthly=0)
    before = read_catalogue(live.archive)
    plan = plan_prune(before, rules, now_ms)
    assert plan.segments > 0 and plan.snapshots and plan.size_bytes > 0
    live.archive.delete([each.name for each in plan.objects])
    after = read_catalogue(live.archive)
    assert len(after[0].snapshots) == len(plan.kept_snapshots) < len(before[0].snapshots)
    assert plan_prune(after, rules, now_ms).objects == (), "pruning twice changes more"
    for commit in live.history:
        if commit.at_ms >= now_ms - 3 * DAY_S * 1000:
            assert live.restore(RestorePoint(at_ms=commit.at_ms))[1] == commit.seq
    oldest = after[0].snapshots[0].name  # restored as it is
    assert live.restore(RestorePoint(at_ms=oldest.at_ms), allow_gap=True)[1] == oldest.seq
    live.stop()


def test_former_generations_go_when_their_days_are_over(tmp_path: Path) -> None:
    live = ShippedDatabase(tmp_path)
    live.start()
    live.snapshot()
    live.commit()
    live.capture_now()
    live.clock.advance(30 * DAY_S)
    live.capture.begin_generation("a test")
    live.snapshot()
    live.clock.advance(5 * DAY_S)
    live.commit()
    live.capture_now()
    live.upload()
    other = tmp_path / "archive" / "notes.txt"
    other.write_text("of somebody else")
    plan = plan_prune(
        read_catalogue(live.archive), KeepRules(4, 0, 0, 0), live.clock.wall_ns() // 1_000_000
    )
    live.archive.delete([each.name for each in plan.objects])
    (generation,) = read_catalogue(live.archive)
    assert generation.name == live.capture.state.generation
    assert other.read_text() == "of somebody else"
    assert live.restore(RestorePoint())[1] == 2
    live.stop()


def test_upload_that_never_ended_goes_after_two_days(tmp_path: Path) -> None:
    live = ShippedDatabase(tmp_path)
    live.start()
    report = live.snapshot()
    folder = tmp_path / "archive" / report.generation / "snapshots"
    partial = folder / str(report.name).replace("-000001-", "-000002-")
    partial.mkdir()
    (partial / "pylon.db").write_bytes(b"half")
    now_ms = live.clock.wall_ns() // 1_000_000
    generations = read_catalogue(live.archive)
    assert [each.size_bytes for each in generations[0].unfinished] == [4]
    assert plan_prune(generations, KeepRules(), now_ms).objects == ()
    (gone,) = plan_prune(generations, KeepRules(), now_ms + 2 * DAY_S * 1000 + 1).objects
    assert gone == ArchivedObject(f"{report.generation}/snapshots/{partial.name}/pylon.db", 4)
    live.stop()


def test_bundles_below_a_folder_are_pruned_and_nothing_else(tmp_path: Path) -> None:
    make_database(tmp_path / "live.db", rows=5).close()
    folder = tmp_path / "bundles"
    for number in range(6):
        clock = ManualClock(NOW.timestamp() - number * DAY_S)
        create_backup(tmp_path / "live.db", None, folder / f"b{number}", clock)
    (folder / "not a bundle").mkdir()
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "pylon.db").write_bytes(b"")
    newer = json.loads((folder / "b5" / "MANIFEST.json").read_text()) | {"format": 99}
    (folder / "b5" / "MANIFEST.json").write_text(json.dumps(newer))  # of a newer version
    plan = plan_bundles(folder, KeepRules(1, 3, 0, 0), ms(NOW))
    assert [path.name for path in plan.dropped] == ["b4", "b3"]
    assert [path.name for path in plan.kept] == ["b2", "b1", "b0"]
    for path in plan.dropped:
        drop_bundle(path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "b0", "b1", "b2", "b5", "not a bundle", "unfinished",
    ]
    with pytest.raises(BackupRefused, match="has no bundle"):
        plan_bundles(tmp_path, KeepRules(), ms(NOW))
