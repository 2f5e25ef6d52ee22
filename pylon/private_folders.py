"""Private folders: makes temporary folders of one run, and removes those of killed runs.

A folder contains a file `lock`. The process that made the folder holds a lock on the file (flock)
while it lives, and the kernel releases the lock of a killed process. So the next start can
distinguish a dead folder from one in use (`collect_dead_folders`), also after a pid was reused.

Invariants: a folder is removed only if this user owns it, no process holds its lock, and it
contains only files that the caller names. Removal follows no symlink, and skips a folder without a
lock file, because another process may be making it. Called by `pylon.bus.runtime`,
`pylon.storage.sqlite.backend` and `pylon.storage.bundle.encrypted`.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from pylon import log

LOCK: Final = "lock"
_RANDOM: Final = re.compile(r"[a-z0-9_]{8}")  # as `tempfile` ends names

_log = log.get_logger("folders")
_held: dict[Path, int] = {}  # descriptors of the locks of this process


def make_private_folder(prefix: str, parent: Path | None = None) -> Path:
    """Make a folder (0700) and lock it until this process ends or removes it. Return its path.

    Args:
        parent: the folder to make it in; None: the system's folder for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    # Rename the file after locking it. Another server that starts and finds it unlocked would treat
    # this folder as that of a killed process.
    unnamed = path / f"{LOCK}.new"
    fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unnamed.rename(path / LOCK)
    _held[path] = fd
    return path


def remove_private_folder(path: Path, patterns: Iterable[str]) -> None:
    """Remove the files and empty folders of `patterns` from a folder, in their order, and the
    folder if nothing else is in it."""
    for pattern in (*patterns, LOCK):
        for found in path.glob(pattern):
            if found.is_dir() and not found.is_symlink():
                with suppress(OSError):  # it is not empty
                    found.rmdir()
            else:
                found.unlink(missing_ok=True)
    fd = _held.pop(path, None)
    if fd is not None:
        os.close(fd)
    try:
        path.rmdir()
    except OSError:
        # It is not empty, or it is the RuntimeDirectory that systemd removes itself.
        return


def collect_dead_folders(
    prefix: str, patterns: Iterable[str], parent: Path | None = None
) -> list[Path]:
    """Remove the folders that killed processes left behind. Return the removed paths.

    Args:
        patterns: glob patterns of the files that such a folder may contain.
    """
    folder = Path(tempfile.gettempdir()) if parent is None else parent
    removed = []
    for path in folder.glob(f"{prefix}*"):
        if _RANDOM.fullmatch(path.name.removeprefix(prefix)) and _is_dead(path):
            remove_private_folder(path, patterns)
            if not path.exists():
                removed.append(path)
    if removed:
        _log.info("folders.collected", count=len(removed), parent=str(folder))
    return removed


def _is_dead(path: Path) -> bool:
    """Whether this user owns the folder, and no process holds its lock."""
    try:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
