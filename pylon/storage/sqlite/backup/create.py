"""SQLite backup: copies a database file into a bundle, also while a writer commits to it.

The source connection opens a read transaction first, and copies with SQLite's backup API through
that connection. In WAL mode its snapshot does not change. So the copy is of one commit, does not
start over when clients write, and lets no writer wait. The cost: SQLite cannot reset the WAL until
the copy is done.

Called by `manager`, for `pylonctl backup` and `pylonctl schema apply`, and by
`pylon.storage.sqlite.transfer`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from pylon.clock import Clock
from pylon.data_dir import sync_path
from pylon.errors import BackupInvalid, BackupRefused
from pylon.storage.backups import BackupReport, Progress
from pylon.storage.bundle.contents import Facts
from pylon.storage.bundle.create import check_target, create_bundle
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.error_text import error_text

_STEP_PAGES: Final = 512  # between two calls of on_progress: 2 MiB of 4 KiB pages
# PERF: written back as it grows. The kernel lets every writer of a disk wait once too many pages
# are unwritten: writes to the database waited up to 1.1 s.
_SYNC_PAGES: Final = 4_096


def create_backup(
    db_path: Path,
    manifest_path: Path | None,
    target: Path,
    clock: Clock,
    on_progress: Progress | None = None,
    on_copied: Callable[[], None] | None = None,
    key_file: Path | None = None,
) -> BackupReport:
    """Write a bundle of `db_path` to the folder `target`, which must be missing or empty.

    Args:
        db_path: the SQLite file; other processes may have it open and write to it.
        manifest_path: the app's manifest; the bundle has none if the path is None or missing.
        on_progress: called after each step with the pages left and the total pages; an
            exception that it raises ends the copy.
        on_copied: called after the last read of the database.
        key_file: the file with the secret key; the bundle has none if it is None or missing.

    Raises:
        BackupRefused: the target exists and is not empty, or there is no database.
        BackupInvalid: the copy does not pass the integrity check.
        OSError: the disk failed; the temporary folder has been removed.
    """
    check_target(target.absolute())
    if not db_path.is_file():
        raise BackupRefused(f"there is no database at {db_path} (PYLON_DB_PATH)")

    def copy_data(folder: Path) -> Facts:
        copy_database(db_path, folder / bundle.DATABASE, on_progress)
        if on_copied is not None:
            on_copied()
        return bundle.check_copy(folder / bundle.DATABASE)

    return create_bundle(target, manifest_path, clock, copy_data, key_file)


def copy_database(source_path: Path, target_path: Path, on_progress: Progress | None) -> None:
    """Copy a database file at one commit; see the module.

    Raises:
        BackupInvalid: the source cannot be read, or the target cannot be written.
    """
    try:
        source = apsw.Connection(os.fspath(source_path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as ex:
        raise BackupInvalid(f"{source_path} cannot be opened: {error_text(ex)}") from None
    try:
        source.set_busy_timeout(5_000)
        source.execute("BEGIN")
        # A deferred BEGIN takes its snapshot with the first read.
        source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        copy_connection(source, target_path, on_progress)
    except apsw.Error as ex:
        raise BackupInvalid(f"{source_path} cannot be copied: {error_text(ex)}") from None
    finally:
        source.close()


def copy_connection(
    source: apsw.Connection, target_path: Path, on_progress: Progress | None
) -> None:
    """Copy the database of a connection with an open read transaction, as that sees it.

    Raises:
        apsw.Error
    """
    target = apsw.Connection(os.fspath(target_path))
    synced_pages = 0
    try:
        with target.backup("main", source, "main") as copy:
            while not copy.done:
                copy.step(_STEP_PAGES)
                synced_pages += _STEP_PAGES
                if synced_pages >= _SYNC_PAGES:
                    synced_pages = 0
                    sync_path(target_path)
                if on_progress is not None:
                    on_progress(copy.remaining, copy.page_count)
        # The copied header says WAL; a bundle has a single plain file.
        target.execute("PRAGMA journal_mode = DELETE").fetchall()
    finally:
        target.close()
