"""Private folders: temporary folders of one run, and the removal of those whose run was killed.

A folder has a file `lock`, which the process that made the folder holds locked (flock) while it
lives. The kernel releases the lock of a killed process. So the next start can tell a dead folder
from one in use (`collect_dead_folders`), even if another process has the dead one's pid.

Invariants: a folder is removed only if this user owns it, no process holds its lock, and nothing
is in it but the files that the caller names; never through a symlink, and never without a lock
file, since the folder may be in the making. Called by `pylon.bus.runtime` and
`pylon.storage.sqlite.backend`.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pylon import log

LOCK: Final = "lock"
_RANDOM: Final = re.compile(r"[a-z0-9_]{8}")  # as `tempfile` ends names

_log = log.get_logger("folders")
_held: dict[Path, int] = {}  # descriptors of the locks of this process


def make_private_folder(prefix: str, parent: Path | None = None) -> Path:
    """A new folder (0700), locked until this process ends or removes it.

    Args:
        parent: where to make it; None: the system's folder for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    # The file gets its name when it is locked: a start of another server that met it unlocked would
    # take this folder for that of a killed process.
    unnamed = path / f"{LOCK}.new"
    fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unnamed.rename(path / LOCK)
    _held[path] = fd
    return path


def remove_private_folder(path: Path, patterns: Iterable[str]) -> None:
    """Remove the files of `patterns` from a folder, and the folder if nothing else is in it."""
    for pattern in (*patterns, LOCK):
        for found in path.glob(pattern):
            found.unlink(missing_ok=True)
    fd = _held.pop(path, None)
    if fd is not None:
        os.close(fd)
    try:
        path.rmdir()
    except OSError:
        # Not empty, or systemd's RuntimeDirectory, which systemd removes itself.
        return


def collect_dead_folders(
    prefix: str, patterns: Iterable[str], parent: Path | None = None
) -> list[Path]:
    """Remove the folders that killed processes left behind; the removed paths.

    Args:
        patterns: of the files that may be in such a folder.
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
