"""SQLite transfers: implements `pylon.storage.transfer.TransferManager` for one database file.

A running server is not hindered by a long read: `open_source` copies the file first (`copy`), and
the copy stays until `forget_copy`, so that a killed move goes on with the same commit.

Made by `pylon.storage.sqlite.backend`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from pylon.clock import Clock, SystemClock
from pylon.data_dir_lock import DataDirLocked, lock_data_dir
from pylon.errors import MigrationRefused
from pylon.manifest.model import Manifest
from pylon.storage.sqlite.backup.create import copy_database
from pylon.storage.sqlite.transfer.source import SqliteSource, unreadable
from pylon.storage.sqlite.transfer.target import SqliteTarget
from pylon.storage.transfer import ValueLimits

_LIMITS: Final = ValueLimits(nul_in_texts=True, index_entry_bytes=0, name_bytes=0)


class SqliteTransfer:
    """See the module."""

    limits = _LIMITS

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._copy = path.with_name(f"{path.name}.migration-copy")

    @contextmanager
    def hold_source(self, *, while_running: bool = False) -> Iterator[None]:
        """See `TransferManager`. A running server cannot be kept from writing to its file."""
        self._require_database()
        try:
            with lock_data_dir(self._path):
                yield
        except DataDirLocked:
            raise MigrationRefused(
                f"a server runs on {self._path}",
                hint="stop it first (pylonctl stop), or move it while it runs (--online)",
            ) from None

    def list_servers(self) -> list[str]:
        """See `TransferManager`."""
        return []

    def open_source(self, manifest: Manifest, *, copy: bool = False) -> SqliteSource:
        """See `TransferManager`."""
        self._require_database()
        if copy and not self._copy.exists():
            unfinished = self._copy.with_name(f"{self._copy.name}.part")
            unfinished.unlink(missing_ok=True)
            copy_database(self._path, unfinished, None)
            unfinished.rename(self._copy)
        path = self._copy if copy else self._path
        try:
            conn = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE)
            conn.set_busy_timeout(5_000)
            conn.execute("PRAGMA query_only = ON")
        except apsw.Error as ex:
            raise unreadable(str(path), ex) from ex
        return SqliteSource(conn, str(self._path), manifest)

    def forget_copy(self) -> None:
        """See `TransferManager`."""
        for suffix in ("", "-wal", "-shm", ".part"):
            self._copy.with_name(self._copy.name + suffix).unlink(missing_ok=True)

    def open_target(self, manifest: Manifest) -> SqliteTarget:
        """See `TransferManager`."""
        return SqliteTarget(self._path, manifest, self._clock)

    def _require_database(self) -> None:
        if not self._path.is_file():
            raise MigrationRefused(
                f"there is no database at {self._path}", hint="PYLON_DB_PATH, or --from PATH"
            )
