"""SQLite backup manager: implements `pylon.storage.backups.BackupManager` for one SQLite file.

Made by `pylon.storage.sqlite.backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pylon.clock import Clock, SystemClock
from pylon.data_dir import KEY_FILE
from pylon.errors import BackupRefused
from pylon.storage.backups import BackupReport, Progress, RestoreReport, VerifyReport
from pylon.storage.bundle.contents import APP_MANIFEST, Facts
from pylon.storage.bundle.create import create_bundle
from pylon.storage.shipping.segment import Segment
from pylon.storage.sqlite.backup.bundle import DATABASE, check_copy
from pylon.storage.sqlite.backup.create import create_backup
from pylon.storage.sqlite.backup.restore import restore_backup
from pylon.storage.sqlite.backup.trial_restore import verify_deeply
from pylon.storage.sqlite.backup.verify import verify_backup
from pylon.storage.sqlite.shipping.replay import replay_segments


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
        """See `BackupManager`. The scratch place is where temporary files are (TMPDIR)."""
        return verify_deeply(source, self._clock) if deep else verify_backup(source)

    def replay(
        self, snapshot: Path, segments: Iterable[Segment], last_frame: int, target: Path
    ) -> BackupReport:
        """See `BackupManager`."""

        def copy_data(folder: Path) -> Facts:
            data_file = folder / DATABASE
            (snapshot / DATABASE).rename(data_file)
            replay_segments(data_file, segments, last_frame)
            return check_copy(data_file)

        return create_bundle(
            target, snapshot / APP_MANIFEST, self._clock, copy_data, snapshot / KEY_FILE
        )

    def restore(self, source: Path, manifest: Path, *, replace: bool = True) -> RestoreReport:
        """See `BackupManager`."""
        if not replace and self._path.exists():
            raise BackupRefused(f"there is a database at {self._path} already")
        return restore_backup(source, self._path, manifest, self._clock)
