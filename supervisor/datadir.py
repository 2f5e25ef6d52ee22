"""Where the database file lies: the data directory, or memory.

PYLON_IN_MEMORY keeps the file in a private folder of /dev/shm (a file, because several
processes read it) and removes it at exit; that of a killed server goes at the next start.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pylon.config import Config
from pylon.data_dir import data_dir_problems
from pylon.disk_errors import start_error
from pylon.errors import StartRefused
from pylon.private_folders import (
    collect_dead_folders,
    make_private_folder,
    remove_private_folder,
)

_SHARED_MEMORY: Final = Path("/dev/shm")
_MEMORY_PREFIX: Final = "pylon-memory-"
_MEMORY_FILES: Final = ("memory.db*",)


def prepare_data_dir(config: Config) -> None:
    """Make the data directory if it is missing, and see that files can be made in it.

    Raises:
        StartRefused: it cannot be made or written to, or others may put files in its place.
    """
    path = config.data_dir
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as ex:
        what = f"The data directory {path} (PYLON_DB_PATH sets it) cannot be written to"
        raise start_error(ex, path, what) from ex
    for problem in data_dir_problems(config):
        raise StartRefused(problem)


@contextmanager
def database(config: Config) -> Iterator[Path]:
    """The absolute path of the database file of this run."""
    if not config.in_memory:
        yield Path(config.db_path).absolute()
        return
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    collect_dead_folders(_MEMORY_PREFIX, _MEMORY_FILES, parent)
    folder = make_private_folder(_MEMORY_PREFIX, parent)
    try:
        yield folder / "memory.db"
    finally:
        remove_private_folder(folder, _MEMORY_FILES)


def sync_files(db_path: Path) -> None:
    """fsync the database and its folder: the last step before an orderly end.

    Raises:
        OSError: the disk refused.
    """
    for path in (db_path, db_path.parent):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def size_bytes(path: Path) -> int:
    """The size of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def free_bytes(folder: Path) -> int:
    """The bytes that this user may still write on the folder's disk; 0 if unknown."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize
