"""The record of the last good backup, beside the database: `<db_path>.backup.json`.

It outlives restarts, so that `pylon_backup_last_success_timestamp_seconds` says the same
after a start as before it. A bundle does not contain it: a restored database was not backed up.

Invariants: the file is whole or not there (temporary name, rename); it belongs to the owner
of the database, also when root makes the backup. The supervisor reads it; the supervisor, or
`pylonctl backup` where none runs, writes it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pylon.clock import SystemRandom
from pylon.data_dir import give_to_owner
from pylon.storage.backups import BackupRecord


def record_path(db_path: Path) -> Path:
    """The path of a database's record."""
    return db_path.with_name(db_path.name + ".backup.json")


def write_record(db_path: Path, record: BackupRecord) -> None:
    """Replace the record.

    Raises:
        OSError: the data directory cannot be written to.
    """
    path = record_path(db_path)
    copy = path.with_name(f".{path.name}.{SystemRandom().token_hex(4)}")
    # O_EXCL follows no link: the folder belongs to the service, and root may be writing.
    fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(record) + b"\n")
            give_to_owner(file.fileno(), db_path)
        copy.rename(path)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def read_record(db_path: Path) -> BackupRecord | None:
    """The record, or None where there is none that can be read."""
    try:
        return msgspec.json.decode(record_path(db_path).read_bytes(), type=BackupRecord)
    except (OSError, msgspec.MsgspecError):
        return None
