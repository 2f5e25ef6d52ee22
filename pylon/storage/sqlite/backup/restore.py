"""Restore: replaces the live database by that of a bundle.

The order of the steps is: verify the bundle; checkpoint the old WAL into the old database; copy the
bundle's database to a temporary name and open a new epoch in the copy; give the old file a second
name; rename the old side files; rename the copy over the old file. So a crash at any point leaves
either the old database or the new one. SQLite would replay an old WAL into a new file.

Invariants: no replaced file is deleted; it stays as `<db>.replaced-<time>`. The new epoch voids the
cursors of the replaced history that do not fit the restored one. The caller holds the lock of the
data directory (`pylon.data_dir_lock.lock_data_dir`). Called by `manager`, for `pylonctl restore`.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw

from pylon.clock import Clock, SystemRandom
from pylon.data_dir import KEY_FILE, give_path_to_owner, sync_path
from pylon.errors import BackupInvalid
from pylon.storage.backups import RestoreReport
from pylon.storage.bundle.contents import APP_MANIFEST, Facts, read_contents
from pylon.storage.bundle.create import entry_of
from pylon.storage.bundle.restore import (
    find_free_stamp,
    kept_path,
    put_key_file,
    put_manifest,
)
from pylon.storage.sqlite import log
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.backup.verify import verify_backup
from pylon.storage.sqlite.epochs import open_epoch
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.schema import ddl

_SIDE_FILES: Final = ("-wal", "-shm")


def restore_backup(
    source: Path, db_path: Path, manifest_path: Path, clock: Clock
) -> RestoreReport:
    """Replace the files at `db_path` and `manifest_path` by those of the bundle `source`.

    Raises:
        BackupInvalid: the bundle does not pass `verify_backup`; nothing was changed.
        OSError: the disk failed; the old database is still in its place.
    """
    verified = verify_backup(source)
    db_path = db_path.absolute()
    db_path.parent.mkdir(parents=True, exist_ok=True)
    stamp = find_free_stamp(
        lambda tried: any(
            kept_path(path, tried).exists()
            for path in (db_path, manifest_path, db_path.with_name(KEY_FILE))
        ),
        clock,
    )
    old, unreadable = _checkpoint_old_database(db_path)
    copy = db_path.with_name(f".{db_path.name}.restore-{SystemRandom().token_hex(4)}")
    try:
        shutil.copyfile(source / bundle.DATABASE, copy)
        copy.chmod(0o600)
        _check_copy(copy, source)
        _void_cursors(copy, old, clock)
        give_path_to_owner(copy)
        sync_path(copy)
        replaced = _keep_old_database(db_path, stamp)
        copy.rename(db_path)
    except BaseException:  # Ctrl-C too must leave no partial copy behind
        copy.unlink(missing_ok=True)
        raise
    has_manifest = (source / APP_MANIFEST).is_file()
    if has_manifest:
        replaced += put_manifest(source / APP_MANIFEST, manifest_path.absolute(), stamp)
    has_key = (source / KEY_FILE).is_file()
    if has_key:
        replaced += put_key_file(source / KEY_FILE, db_path.with_name(KEY_FILE), stamp)
    sync_path(db_path.parent)
    return RestoreReport(
        source=str(source),
        manifest=has_manifest,
        seq=verified.seq,
        lineage=verified.lineage,
        replaced=tuple(replaced),
        unreadable=unreadable,
        secret_key=has_key,
    )


def _checkpoint_old_database(db_path: Path) -> tuple[Facts | None, str]:
    """Checkpoint the old database. Return its facts, or the reason why it is unreadable.

    An unreadable database does not stop a restore: it may be the reason for the restore.
    """
    if not db_path.exists():
        return None, ""
    try:
        conn = apsw.Connection(os.fspath(db_path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            conn.set_busy_timeout(5_000)
            facts = bundle.read_facts(conn)
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            conn.close()
    except apsw.Error as ex:
        return None, error_text(ex)
    return facts, ""


def _check_copy(copy: Path, source: Path) -> None:
    if entry_of(copy) != read_contents(source).files[bundle.DATABASE]:
        raise BackupInvalid(f"{copy} came out unlike {source / bundle.DATABASE}")


def _void_cursors(copy: Path, old: Facts | None, clock: Clock) -> None:
    """Open an epoch that voids every cursor that the restored history does not contain.

    Cursors above the restored head are void in any case, and the new epoch begins above all seqs
    of the replaced database. If the replaced database had another lineage, cursors below the head
    refer to other events, so all cursors are void.
    """
    conn = apsw.Connection(os.fspath(copy), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        conn.execute("PRAGMA synchronous = FULL")
        facts = bundle.read_facts(conn)
        foreign = old is not None and (old.lineage != facts.lineage or not facts.lineage)
        with conn:
            for statement in ddl.SYSTEM_TABLES:
                conn.execute(statement)
            log.put_counter(conn, max(facts.seq, old.seq if old is not None else 0))
            open_epoch(conn, "restore", clock, void_from=0 if foreign else facts.seq)
    finally:
        conn.close()


def _keep_old_database(db_path: Path, stamp: str) -> list[str]:
    if not db_path.exists():
        return []
    kept = kept_path(db_path, stamp)
    try:
        os.link(db_path, kept)
    except OSError:  # without hard links there is no database for a moment
        db_path.rename(kept)
    names = [str(kept)]
    for side in _SIDE_FILES:
        with suppress(FileNotFoundError):
            db_path.with_name(db_path.name + side).rename(kept.with_name(kept.name + side))
            names.append(str(kept) + side)
    return names
