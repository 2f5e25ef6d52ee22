"""Log rotation: renames the log file of `pylonctl start --detach` when it has grown.

`<db>.log` becomes `<db>.log.1`, and so on up to `limits.LOG_FILES_KEPT`. The supervisor makes a new
file, and each process goes on there with its next line (`pylon.log`). No line is lost: a process
that has not looked yet writes its line to the renamed file. Any other log is left alone: the
journal rotates itself, and logrotate may rename a file that somebody else opened.

Bounds: PYLON_LOG_MAX_BYTES and a few lines for each file. Log event: log.rotated. Called by the
main loop.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pylon import limits, log
from pylon.data_dir import open_private
from pylon.data_dir_lock import log_file_of
from pylon.errors import StartRefused

_STDERR: Final = 2
_log = log.get_logger("log")


class LogRotation:
    """The rotation of one supervisor's log."""

    def __init__(self, db_path: str, max_bytes: int, fd: int = _STDERR) -> None:
        """Args: `max_bytes`: 0 switches it off."""
        path = log_file_of(Path(db_path))
        self._path = path
        self._fd = fd
        self._max_bytes = max_bytes if log.file_of(fd) == str(path.resolve()) else 0

    def look(self) -> None:
        """Rotate if the file is too large."""
        if not self._max_bytes:
            return
        size_bytes = os.fstat(self._fd).st_size
        if size_bytes < self._max_bytes:
            return
        path = self._path
        try:
            for number in range(limits.LOG_FILES_KEPT - 1, 0, -1):
                older = path.with_name(f"{path.name}.{number}")
                if older.exists():
                    older.replace(path.with_name(f"{path.name}.{number + 1}"))
            path.replace(path.with_name(f"{path.name}.1"))
            os.close(open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
        except (OSError, StartRefused) as ex:
            self._max_bytes = 0
            _log.error("log.not_rotated", path=str(path), error=str(ex),
                       hint="the log grows from now on; restart when the cause is mended")
            return
        _log.info("log.rotated", path=str(path), size_bytes=size_bytes)
