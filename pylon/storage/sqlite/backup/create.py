"""Backup: makes a bundle of a database, also while a writer commits to it.

The source connection opens a read transaction first, and copies with SQLite's backup API through
that connection. In WAL mode its snapshot does not change. So the copy is of one commit, does not
start over when clients write, and lets no writer wait. The cost: SQLite cannot reset the WAL until
the copy is done.

Invariants: the target appears complete or not at all (temporary name, fsync, rename). A folder that
is not empty is never written to. Called by `manager`, for `pylonctl backup` and `pylonctl schema
apply`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import apsw
import msgspec

from pylon import __version__
from pylon.clock import Clock, SystemRandom
from pylon.data_dir import sync_path
from pylon.errors import BackupInvalid, BackupRefused
from pylon.storage.backups import BackupReport, Progress
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.error_text import error_text

_STEP_PAGES: Final = 512  # between two calls of on_progress: 2 MiB of 4 KiB pages

def create_backup(
    db_path: Path,
    manifest_path: Path | None,
    target: Path,
    clock: Clock,
    on_progress: Progress | None = None,
    on_copied: Callable[[], None] | None = None,
) -> BackupReport:
    """Write a bundle of `db_path` to the folder `target`, which must be missing or empty.

    Args:
        db_path: the SQLite file; other processes may have it open and write to it.
        manifest_path: the app's manifest; the bundle has none if the path is None or missing.
        on_progress: called after each step with the pages left and the total pages; an
            exception that it raises ends the copy.
        on_copied: called after the last read of the database.

    Raises:
        BackupRefused: the target exists and is not empty, or there is no database.
        BackupInvalid: the copy does not pass the integrity check.
        OSError: the disk failed; the temporary folder has been removed.
    """
    started_s = clock.monotonic_s()
    target = target.absolute()
    _check_target(target)
    if not db_path.is_file():
        raise BackupRefused(f"there is no database at {db_path} (PYLON_DB_PATH)")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f"{target.name}.tmp-{SystemRandom().token_hex(4)}")
    folder.mkdir(mode=0o700)
    try:
        created_at = datetime.fromtimestamp(clock.wall_ns() // 10**9, UTC).isoformat()
        _copy_database(db_path, folder / bundle.DATABASE, on_progress)
        if on_copied is not None:
            on_copied()
        contents = _fill(folder, manifest_path, created_at)
        try:
            folder.rename(target)  # replaces an empty folder, fails on one that is not
        except OSError as ex:
            raise BackupRefused(f"{target} came into being meanwhile: {ex.strerror}") from None
        sync_path(target.parent)
    except BaseException:  # Ctrl-C too must leave no partial bundle behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return BackupReport(
        target=str(target),
        manifest=bundle.APP_MANIFEST in contents.files,
        seq=contents.seq,
        lineage=contents.lineage,
        schema_hash=contents.schema_hash,
        version=contents.version,
        created_at=contents.created_at,
        size_bytes=sum(entry.size_bytes for entry in contents.files.values()),
        duration_s=round(clock.monotonic_s() - started_s, 3),
    )


def _check_target(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise BackupRefused(
            f"{target} exists and is not an empty folder: "
            "name a new one, for example with a date in it"
        )


def _fill(folder: Path, manifest_path: Path | None, created_at: str) -> bundle.Contents:
    with bundle.open_unchanging(folder / bundle.DATABASE) as conn:
        bundle.check_integrity(conn)
        facts = bundle.read_facts(conn)
    (folder / bundle.VERSION_FILE).write_text(__version__ + "\n")
    if manifest_path is not None and manifest_path.is_file():
        shutil.copyfile(manifest_path, folder / bundle.APP_MANIFEST)
    contents = bundle.Contents(
        format=bundle.FORMAT,
        version=__version__,
        created_at=created_at,
        seq=facts.seq,
        lineage=facts.lineage,
        schema_hash=facts.schema_hash,
        files={path.name: bundle.entry_of(path) for path in sorted(folder.iterdir())},
    )
    text = msgspec.json.format(msgspec.json.encode(contents), indent=2)
    (folder / bundle.CONTENTS).write_bytes(text + b"\n")
    for path in folder.iterdir():
        path.chmod(0o600)
        sync_path(path)
    sync_path(folder)
    return contents


def _copy_database(source_path: Path, target_path: Path, on_progress: Progress | None) -> None:
    try:
        source = apsw.Connection(os.fspath(source_path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as ex:
        raise BackupInvalid(f"{source_path} cannot be opened: {error_text(ex)}") from None
    target = apsw.Connection(os.fspath(target_path))
    try:
        source.set_busy_timeout(5_000)
        source.execute("BEGIN")
        # A deferred BEGIN takes its snapshot with the first read.
        source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        with target.backup("main", source, "main") as copy:
            while not copy.done:
                copy.step(_STEP_PAGES)
                if on_progress is not None:
                    on_progress(copy.remaining, copy.page_count)
        # The copied header says WAL; a bundle has a single plain file.
        target.execute("PRAGMA journal_mode = DELETE").fetchall()
    except apsw.Error as ex:
        raise BackupInvalid(f"{source_path} cannot be copied: {error_text(ex)}") from None
    finally:
        target.close()
        source.close()
