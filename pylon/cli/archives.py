"""Archives in `pylonctl`: the commit that an operator asks for, and its bundle.

Called by `pylon.cli.restore` and `pylon.cli.backup`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click

from pylon.archive.hook import HookEvent, call_hook
from pylon.archive.interface import Archive
from pylon.archive.url import open_archive
from pylon.cli.output import note
from pylon.clock import SystemClock
from pylon.config import Config
from pylon.disk_errors import describe_os_error
from pylon.errors import BackupRefused, PylonError
from pylon.storage.bundle.encrypted import read_identities
from pylon.storage.bundle.point_in_time import PointInTime, PointInTimeReader, restore_workspace
from pylon.storage.factory import open_store
from pylon.storage.shipping.names import show_time
from pylon.storage.shipping.spool import Spool, spool_folder
from pylon.storage.shipping.target import RestorePoint


def open_configured(config: Config, url: str | None) -> Archive:
    """Return the archive of a command: the one that it names, else that of PYLON_BACKUP_URL.

    Raises:
        BackupRefused: there is none, or the store is PostgreSQL.
    """
    if config.database_url is not None:
        raise BackupRefused(
            "the data are in PostgreSQL (DATABASE_URL), which archives its own log and restores to "
            "a point in time by it: see docs/postgres-backup.md"
        )
    chosen = url or config.backup_url
    if chosen is None:
        raise BackupRefused("name an archive (file:///folder or s3://…), or set PYLON_BACKUP_URL")
    return open_archive(chosen, config.bucket_access)


def parse_point(at: str | None, seq: int | None) -> RestorePoint:
    """Return the point of --at and --seq.

    Raises:
        click.UsageError: both are given, or the time has no time zone.
    """
    if at is None:
        return RestorePoint(seq=seq)
    if seq is not None:
        raise click.UsageError("--at and --seq exclude each other")
    try:
        time = datetime.fromisoformat(at)
    except ValueError:
        raise click.UsageError(
            f"--at {at}: expected a time as 2026-11-28T12:00:00Z, or with +01:00 at its end"
        ) from None
    if time.tzinfo is None:
        raise click.UsageError(f"--at {at}: give it a time zone: {at}Z is UTC, {at}+01:00 another")
    return RestorePoint(at_ms=int(time.timestamp() * 1000))


@contextmanager
def point_in_time(
    config: Config, archive: Archive, point: RestorePoint, identity: Path | None, *, allow_gap: bool
) -> Iterator[PointInTime]:
    """Give the bundle of a commit, which is removed after the block.

    Raises:
        PylonError: see `PointInTimeReader.make_bundle`.
    """
    _note_waiting(config)
    identities = () if identity is None else read_identities(identity)
    parent = config.data_dir if config.data_dir.is_dir() else None
    with restore_workspace(parent) as folder:
        reader = PointInTimeReader(archive, folder, identities)
        made = reader.make_bundle(point, open_store(config).backups, allow_gap=allow_gap)
        if made.target.gap:
            note(f"warning: {made.target.gap}")
        yield made


def describe_target(made: PointInTime) -> str:
    """Return which commit a bundle is of, for people."""
    target = made.target
    return (
        f"the commit of {show_time(target.at_ms)}, seq {made.seq} (snapshot of "
        f"{show_time(target.snapshot.name.at_ms)}, {len(target.segments)} segments)"
    )


def target_json(made: PointInTime) -> dict[str, object]:
    """Return which commit a bundle is of, for programs."""
    target = made.target
    return {
        "generation": target.generation, "at": show_time(target.at_ms), "seq": made.seq,
        "snapshot_at": show_time(target.snapshot.name.at_ms), "segments": len(target.segments),
        "gap": target.gap,
    }


def text_of(error: PylonError | OSError) -> str:
    """Return the text of an error, for people."""
    return error.message if isinstance(error, PylonError) else describe_os_error(error)


def tell_hook(config: Config, step: str, place: str, error: str) -> None:
    """Tell PYLON_BACKUP_HOOK that a step of a backup failed."""
    if config.backup_hook is None:
        return
    at = show_time(SystemClock().wall_ns() // 1_000_000)
    problem = call_hook(config.backup_hook, HookEvent("backup.failed", step, error, place, at))
    if problem is not None:
        note(f"warning: PYLON_BACKUP_HOOK failed: {problem}")


def _note_waiting(config: Config) -> None:
    """Say that the newest commits are not in the archive yet."""
    folder = spool_folder(Path(config.db_path).absolute())
    try:
        waiting = Spool(folder).list_segments()
    except OSError:  # there is none, or it belongs to another user
        return
    if waiting:
        note(
            f"warning: {len(waiting)} segments in {folder} are not in the archive yet; a started "
            "server uploads them"
        )
