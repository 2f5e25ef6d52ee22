"""WAL readers: finds the processes that read a SQLite database now, for the log.

A read transaction in WAL mode holds a shared lock on one byte of the `-shm` file, and `/proc/locks`
lists the process that holds it. This module does not open the file: closing it would drop the POSIX
locks of the whole process. Called by `checkpoints` and `maintenance` if the WAL cannot be emptied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LOCKS: Final = Path("/proc/locks")
_FIRST_BYTE: Final = 123  # WAL_READ_LOCK(0) in SQLite's shm file
_LAST_BYTE: Final = 127
_COMMAND_CHARS: Final = 120


@dataclass(frozen=True, slots=True)
class ReadingProcess:
    """A process with an open read transaction."""

    pid: int
    command: str  # "" where /proc does not show it, as with another user's process

    def __str__(self) -> str:
        return f"pid {self.pid}" + (f" ({self.command})" if self.command else "")


def find_readers(db_path: Path) -> list[ReadingProcess]:
    """Return the processes with a read transaction on the database, by pid; none without /proc."""
    try:
        inode = db_path.with_name(db_path.name + "-shm").stat().st_ino
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return []
    pids = {pid for line in lines if (pid := _reading_pid(line, inode)) is not None}
    return [ReadingProcess(pid, _command_of(pid)) for pid in sorted(pids)]


def _reading_pid(line: str, inode: int) -> int | None:
    # "3: POSIX  ADVISORY  READ 1234 fd:01:5678 124 124"; a waiting lock has "->" behind the number.
    words = line.split()
    if len(words) != 8 or words[1] != "POSIX" or words[3] != "READ":
        return None
    # Ignore the device: on overlay file systems it differs from that of stat.
    if not words[5].endswith(f":{inode}"):
        return None
    first, last = int(words[6]), _LAST_BYTE if words[7] == "EOF" else int(words[7])
    return int(words[4]) if first <= _LAST_BYTE and last >= _FIRST_BYTE else None


def _command_of(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()[:_COMMAND_CHARS]
