"""PostgreSQL backup manager: implements `pylon.storage.backups.BackupManager` for one schema.

A backup needs no server of Pylon, and hinders none. Made by `pylon.storage.postgres.backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pylon.clock import Clock, SystemClock
from pylon.errors import BackupRefused
from pylon.storage.backups import BackupReport, Progress, RestoreReport, VerifyReport
from pylon.storage.postgres.backup.create import create_backup
from pylon.storage.postgres.backup.restore import restore_backup
from pylon.storage.postgres.backup.verify import verify_backup, verify_deeply
from pylon.storage.shipping.segment import Segment


class PostgresBackups:
    """See the module."""

    holds_log = False

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self._url = url
        self._clock = clock or SystemClock()

    def create(
        self, target: Path, manifest: Path | None, on_progress: Progress | None = None,
        on_copied: Callable[[], None] | None = None, *, key_file: Path | None = None,
    ) -> BackupReport:
        """See `BackupManager`."""
        return create_backup(
            self._url, manifest, target, self._clock, on_progress, on_copied, key_file
        )

    def verify(self, source: Path, *, deep: bool = False) -> VerifyReport:
        """See `BackupManager`."""
        if deep:
            return verify_deeply(source, self._url, self._clock)
        return verify_backup(source)

    def replay(
        self, snapshot: Path, segments: Iterable[Segment], last_frame: int, target: Path
    ) -> BackupReport:
        """See `BackupManager`."""
        raise BackupRefused(
            "PostgreSQL restores to a point in time by its own means: docs/postgres-backup.md"
        )

    def restore(self, source: Path, manifest: Path, *, replace: bool = True) -> RestoreReport:
        """See `BackupManager`."""
        return restore_backup(source, self._url, manifest, self._clock, replace=replace)
