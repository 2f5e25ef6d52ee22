"""SQLite backup manager: implements `pylon.storage.backups.BackupManager` for one SQLite file.

Made by `pylon.storage.sqlite.backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pylon.clock import Clock, SystemClock
from pylon.errors import BackupRefused
from pylon.storage.backups import BackupReport, Progress, RestoreReport, VerifyReport
from pylon.storage.sqlite.backup.create import create_backup
from pylon.storage.sqlite.backup.restore import restore_backup
from pylon.storage.sqlite.backup.verify import verify_backup


class SqliteBackups:
    """See the module."""

    holds_log = True

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._path = path
        self._clock = clock or SystemClock()

    def create(
        self, target: Path, manifest: Path | None, on_progress: Progress | None = None,
        on_copied: Callable[[], None] | None = None, *, key_file: Path | None = None,
    ) -> BackupReport:
        """See `BackupManager`."""
        return create_backup(
            self._path, manifest, target, self._clock, on_progress, on_copied, key_file
        )

    def verify(self, source: Path, *, deep: bool = False) -> VerifyReport:
        """See `BackupManager`. SQLite's integrity check reads every row in any case."""
        return verify_backup(source)

    def restore(self, source: Path, manifest: Path, *, replace: bool = True) -> RestoreReport:
        """See `BackupManager`."""
        if not replace and self._path.exists():
            raise BackupRefused(f"there is a database at {self._path} already")
        return restore_backup(source, self._path, manifest, self._clock)
