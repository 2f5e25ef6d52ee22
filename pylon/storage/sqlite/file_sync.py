"""File sync: syncs the pages of a database to the disk before the last checkpoint of a round.

SQLite syncs the database file only in the checkpoint that reaches the end of the WAL. Under
continuous commits the writer pauses for that checkpoint, which must sync the pages of all earlier
ones. PERF: with an earlier sync the pause takes 12 ms instead of 36 ms (12,000 inserts/s).

This module uses a descriptor that SQLite has open. Closing another descriptor of the file would
drop all locks of the process on it (fcntl(2)). Called by `checkpoints`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_DESCRIPTORS: Final = Path("/proc/self/fd")


def sync_open_file(path: Path) -> bool:
    """Sync a file that this process has open. Return False if it has no descriptor of the file."""
    wanted = path.stat()
    for entry in os.listdir(_DESCRIPTORS):  # noqa: PTH208  (numbers, no paths)
        with contextlib.suppress(OSError):  # another thread may close a descriptor meanwhile
            found = os.fstat(int(entry))
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                os.fdatasync(int(entry))
                return True
    return False
