"""Hold a data directory as a supervisor does, so that none starts meanwhile.

The supervisor locks `<db_path>.pid` (flock) for as long as it lives and writes JSON into it;
a lock, not the file's being there, says that somebody runs. Used by `pylonctl restore` and
by a backup that is made without a supervisor.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pylon.data_dir import open_private
from pylon.storage.sqlite.backup.record import give_to_owner


class DataDirLocked(Exception):
    """Another process holds the data directory."""


def pidfile_of(db_path: Path) -> Path:
    """Where the supervisor of this database keeps its pid and its lock."""
    return db_path.with_name(db_path.name + ".pid")


def is_locked(db_path: Path) -> bool:
    """Whether a live process holds the data directory of `db_path`.

    Raises:
        StartRefused: the pidfile is a symlink, or no plain file.
    """
    try:
        fd = open_private(pidfile_of(db_path), os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        # Shared: two that look at once do not take each other for a supervisor.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def lock_data_dir(db_path: Path) -> Iterator[None]:
    """Hold the data directory of `db_path` until the block ends.

    Raises:
        DataDirLocked: somebody else does.
        StartRefused: the pidfile is a symlink, or no plain file.
    """
    path = pidfile_of(db_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirLocked(str(path)) from None
        os.ftruncate(fd, 0)  # what a killed supervisor left is no longer true
        give_to_owner(fd, db_path)
        yield
    finally:
        os.close(fd)
