"""SQLite backend: implements `pylon.storage.backend.Backend` for one database file.

With PYLON_IN_MEMORY the file lies in a private folder of /dev/shm, because several processes read
it. It is removed at exit; the next start removes the folder of a killed server.

Made by `pylon.storage.factory`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import apsw

from pylon import limits
from pylon.clock import Clock, RandomSource
from pylon.data_dir import sync_path
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from pylon.private_folders import (
    collect_dead_folders,
    make_private_folder,
    remove_private_folder,
)
from pylon.storage.backend import Capabilities
from pylon.storage.interface import Store
from pylon.storage.nodes import NodeFacts
from pylon.storage.public_rows import public_store
from pylon.storage.shipping.spool import Spool, spool_folder
from pylon.storage.sqlite.backup.manager import SqliteBackups
from pylon.storage.sqlite.bare_reads import SqliteBareReads
from pylon.storage.sqlite.key_probe import read_probe, replace_probe
from pylon.storage.sqlite.reader import SqliteReader
from pylon.storage.sqlite.schema.manager import SqliteSchema
from pylon.storage.sqlite.transfer.manager import SqliteTransfer

# The supervisor loads no gevent, and workers no engine.
if TYPE_CHECKING:
    from pylon.storage.sqlite.engine import SqliteEngine
    from pylon.storage.sqlite.shipping.capture import SqliteCapture

_SHARED_MEMORY: Final = Path("/dev/shm")  # nosec B108 # a private folder with a random name
_MEMORY_PREFIX: Final = "pylon-memory-"
_MEMORY_FILES: Final = ("memory.db*",)
_CAPABILITIES: Final = Capabilities(own_writes_only=True, search=True)


class SqliteBackend:
    """See the module."""

    name = "sqlite"
    engine_version = apsw.sqlite_lib_version()
    capabilities = _CAPABILITIES

    def __init__(
        self, path: Path, *, durability: str = "normal", row_max_bytes: int = limits.BODY_BYTES,
        in_memory: bool = False,
    ) -> None:
        """
        Args:
            durability: `normal` or `full` (PYLON_DURABILITY).
            row_max_bytes: of a row's JSON (PYLON_ROW_MAX_BYTES).
            in_memory: `provision` makes a file in memory, in place of `path`.
        """
        self.data_path = path
        self.place = str(path)
        self._durability = durability
        self._row_max_bytes = row_max_bytes
        self._in_memory = in_memory
        self._capture: SqliteCapture | None = None
        self.schema = SqliteSchema(path, is_new=in_memory)
        self.backups = SqliteBackups(path)
        self.transfer = SqliteTransfer(path)

    def exists(self) -> bool:
        """See `Backend`."""
        return self.data_path.is_file()

    @contextmanager
    def provision(self) -> Iterator[SqliteBackend]:
        """See `Backend`. The path is absolute."""
        if not self._in_memory:
            yield self._at(self.data_path.absolute())
            return
        parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
        collect_dead_folders(_MEMORY_PREFIX, _MEMORY_FILES, parent)
        folder = make_private_folder(_MEMORY_PREFIX, parent)
        try:
            yield self._at(folder / "memory.db")
        finally:
            remove_private_folder(folder, _MEMORY_FILES)

    def worker_settings(self) -> Mapping[str, str]:
        """See `Backend`."""
        return {"PYLON_DB_PATH": str(self.data_path)}

    def open_writer(self, manifest: Manifest, rules: RuleSet, clock: Clock) -> SqliteEngine:
        """See `Backend`."""
        from pylon.storage.sqlite.engine import SqliteEngine

        return SqliteEngine.open(
            self.data_path, manifest, rules, clock, self._durability,
            row_max_bytes=self._row_max_bytes, capture=self._capture,
        )

    def capture_log(
        self, clock: Clock, random: RandomSource, interval_s: float
    ) -> SqliteCapture:
        """See `Backend`."""
        from pylon.storage.sqlite.shipping.capture import SqliteCapture

        spool = Spool(spool_folder(self.data_path))
        self._capture = SqliteCapture(self.data_path, spool, clock, random, interval_s)
        return self._capture

    def open_reader(self, manifest: Manifest) -> SqliteReader:
        """See `Backend`."""
        return SqliteReader(self.data_path, manifest)

    def open_readers(self, manifest: Manifest, clock: Clock) -> Store:
        """See `Backend`."""
        from pylon.storage.sqlite.pool import ReaderPool

        return public_store(ReaderPool(self.data_path, manifest, clock), manifest)

    def open_bare_reads(self) -> SqliteBareReads:
        """See `Backend`."""
        return SqliteBareReads(self.data_path)

    def changes(self, clock: Clock, random: RandomSource, poll_s: float) -> None:
        """See `Backend`."""

    def nodes(self, facts: NodeFacts, clock: Clock, random: RandomSource) -> None:
        """See `Backend`."""

    def running_nodes(self) -> list[str]:
        """See `Backend`."""
        return []

    def key_probe(self) -> str | None:
        """See `Backend`."""
        return read_probe(self.data_path) if self.data_path.is_file() else None

    def put_key_probe(self, probe: str, before: str | None) -> str | None:
        """See `Backend`."""
        return replace_probe(self.data_path, probe, before)

    def sync(self) -> None:
        """See `Backend`."""
        for path in (self.data_path, self.data_path.parent):
            sync_path(path)

    def _at(self, path: Path) -> SqliteBackend:
        return SqliteBackend(
            path, durability=self._durability, row_max_bytes=self._row_max_bytes
        )
