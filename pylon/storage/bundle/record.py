"""Backup record: the file `<data path>.backup.json` describes the last good backup.

It outlives restarts, so that `pylon_backup_last_success_timestamp_seconds` keeps its value. A
bundle does not contain it: a restored database was not backed up.

Invariants: the file is complete or missing (temporary name, rename). It belongs to the owner of the
data, also when root makes the backup. The supervisor reads it. The supervisor writes it, or
`pylonctl backup` when no supervisor runs.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pylon.clock import SystemRandom
from pylon.data_dir import give_to_owner
from pylon.storage.backups import BackupRecord


def record_path(data_path: Path) -> Path:
    """Return the path of the record of the store with this `Backend.data_path`."""
    return data_path.with_name(data_path.name + ".backup.json")


def write_record(data_path: Path, record: BackupRecord) -> None:
    """Replace the record.

    Raises:
        OSError: the data directory cannot be written to.
    """
    path = record_path(data_path)
    copy = path.with_name(f".{path.name}.{SystemRandom().token_hex(4)}")
    # O_EXCL follows no symlink: another user owns the folder when root writes here.
    fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(record) + b"\n")
            give_to_owner(file.fileno(), data_path)
        copy.rename(path)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def read_record(data_path: Path) -> BackupRecord | None:
    """Return the record; None if it is missing or unreadable."""
    try:
        return msgspec.json.decode(record_path(data_path).read_bytes(), type=BackupRecord)
    except (OSError, msgspec.MsgspecError):
        return None
