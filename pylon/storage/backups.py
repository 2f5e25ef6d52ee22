"""Backups of a store: what a backend offers, and its reports.

A bundle is a folder (see `pylon.storage.bundle`). `BackupRecord` describes the last good one; it is
a file beside the data (`pylon.storage.bundle.record`), so metrics have it after a restart too.

Called by `pylonctl backup`, `restore` and `schema apply`, and by the supervisor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from pylon.storage.shipping.names import SnapshotName
    from pylon.storage.shipping.segment import Segment
    from pylon.storage.shipping.spool import Spool, SpoolState


Progress = Callable[[int, int], None]  # pages remaining, pages in all


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A written bundle. `to_json` is the answer of `pylonctl --json backup`."""

    target: str
    manifest: bool
    seq: int
    lineage: str
    schema_hash: str
    version: str
    created_at: str
    size_bytes: int
    duration_s: float
    secret_key: bool = False  # whether the bundle has the key file
    encrypted: bool = False

    def to_json(self) -> dict[str, Any]:
        """spec/http.md §8.1 (`ok`, `target`, `db`, `manifest`, `uploaded_files`) and ours."""
        return {"ok": True, "db": True, "uploaded_files": 0, **asdict(self)}


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A bundle that passed."""

    source: str
    seq: int
    lineage: str
    schema_hash: str
    version: str
    created_at: str
    files: int
    size_bytes: int
    secret_key: bool = False  # whether it has the key file
    rows: int = 0  # of all tables, on SQLite

    def to_json(self) -> dict[str, Any]:
        return {"ok": True, **asdict(self)}


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """The restored data. `to_json` is the answer of `pylonctl --json restore`."""

    source: str
    manifest: bool
    seq: int  # head of the bundle
    lineage: str
    replaced: tuple[str, ...]  # files kept under new names
    unreadable: str  # why the replaced database could not be read; "" if it could
    secret_key: bool = False  # whether the key file was put back

    def to_json(self) -> dict[str, Any]:
        """spec/http.md §8.1 (`ok`, `source`, `db`, `manifest`, `restored_files`) and ours."""
        return {"ok": True, "db": True, "restored_files": 0, **asdict(self)}


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """A bundle at a place of a continuous backup."""

    generation: str
    name: SnapshotName
    bundle: BackupReport


class BackupRecord(msgspec.Struct, frozen=True):
    """Time, target and size of the last good backup."""

    at_s: int  # Unix time
    duration_s: float
    target: str
    seq: int
    size_bytes: int


class LogCapture(Protocol):
    """Copies the log of a store for a continuous backup (`pylon.storage.shipping`)."""

    spool: Spool

    @property
    def complete_s(self) -> float:
        """Return the monotonic time at which the spool or the archive had all commits."""

    @property
    def state(self) -> SpoolState:
        """Return where the capture stands."""

    def begin_generation(self, why: str) -> None:
        """End the chain of segments, and begin another one, which needs a snapshot."""

    def snapshot(
        self, target: Path, manifest: Path | None, key_file: Path | None,
        on_progress: Progress | None = None,
    ) -> SnapshotReport:
        """Write a bundle of this moment to the folder `target`, which must be missing or empty.

        Raises:
            BackupInvalid: the copy does not pass the check, or the chain has ended.
            PylonError, OSError: nothing half made stays.
        """

    def close(self) -> None:
        """End, after the store has been closed."""


class BackupManager(Protocol):
    """Backups of one store. From any process; one call at a time."""

    @property
    def holds_log(self) -> bool:
        """Whether a copy keeps the write-ahead log of a running server from being emptied, so that
        the server must know of it. Without a server the copy needs the data directory's lock."""

    def create(
        self, target: Path, manifest: Path | None, on_progress: Progress | None = None,
        on_copied: Callable[[], None] | None = None, *, key_file: Path | None = None,
    ) -> BackupReport:
        """Write a bundle of one commit to a folder that is missing or empty, while others write.

        Args:
            manifest: the app's manifest; None, or a missing file, is left out.
            key_file: the file with the secret key; None, or a missing file, is left out.
            on_progress: called now and then; the copy ends with what it raises.
            on_copied: called once the store is no longer read.

        Raises:
            BackupRefused: the target is taken, or there is no database.
            BackupInvalid: the copy does not pass the check.
            OSError: the disk refused; nothing half made stays.
        """

    def verify(self, source: Path, *, deep: bool = False) -> VerifyReport:
        """Check every byte of a bundle.

        Args:
            deep: also restore it into a scratch place, and compare every table there.

        Raises:
            BackupInvalid: says which file, and what is wrong with it.
            BackupRefused: it cannot be checked here; the text says what is missing.
        """

    def replay(
        self, snapshot: Path, segments: Iterable[Segment], last_frame: int, target: Path
    ) -> BackupReport:
        """Write a bundle of a later commit than that of the bundle `snapshot`, whose data file is
        used up.

        Args:
            segments: of a continuous backup, without a gap; `last_frame`: in the last one, where
                the commit ends.

        Raises:
            BackupInvalid: the segments do not fit, or the result is damaged.
            BackupRefused: the store has no continuous backup.
            OSError: the disk refused.
        """

    def restore(self, source: Path, manifest: Path, *, replace: bool = True) -> RestoreReport:
        """Replace the data, the manifest and the key file by those of a bundle. The caller holds
        the lock of the data directory. What was replaced is kept under another name.

        Args:
            replace: False: refuse it where there are data.

        Raises:
            BackupInvalid: the bundle does not pass `verify`; nothing was touched.
            BackupRefused: there are data, or a server runs on them.
            OSError: the disk refused; the old data are still in their place.
        """
