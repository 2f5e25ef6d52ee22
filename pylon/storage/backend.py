"""Backend: the handle of a configured store, by which each process gets its part of it.

`pylon.storage.factory.open_store` makes one from the settings. The supervisor provisions it, opens
the writer and hands its settings to the workers, which open their readers. Commands of `pylonctl`
use the managers of schema and backups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pylon.clock import Clock
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from pylon.storage.backups import BackupManager
from pylon.storage.events import ChangeBatch
from pylon.storage.interface import Reader, Store, WriteEngine
from pylon.storage.schemas import SchemaManager


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Properties of a backend that callers may rely on beyond the interface.

    `own_writes_only`: every change is committed by this server's writer, so the batches that it
    publishes are all there are.
    `search`: full-text indexes exist; without them a search looks through the texts.
    Whether reads are local is a property of the readers: `Store.local_reads`.
    """

    own_writes_only: bool
    search: bool


class ChangeSource(Protocol):
    """Committed changes in commit order, whoever committed them.

    Each batch names the head before it (`ChangeBatch.prev_seq`): a receiver whose own head is
    another one has a gap, and reads it from the log. Every worker receives from the bus
    (`pylon.bus.changes`). With `Capabilities.own_writes_only` the writer publishes there what it
    has committed; without, the backend has a source to publish from.
    """

    def receive(self) -> ChangeBatch:
        """The next batch; waits for it. After a loss of the connection the next batch may leave a
        gap."""


class BareReads(Protocol):
    """Reads by the driver alone, for the bench."""

    def get(self, entity: str) -> Callable[[str], Any]:
        """Return the function that reads a row by its id."""

    def lookup(self, entity: str, field: str) -> Callable[[object], Any]:
        """Return the function that reads the first row with a value in a field."""

    def close(self) -> None:
        """Close the connection."""


class Backend(Protocol):
    """See the module. `name`: as `pylonctl` shows it. `engine_version`: of the database library or
    server. `data_path`: files beside the data are named after it; for SQLite the database file."""

    @property
    def name(self) -> str: ...

    @property
    def engine_version(self) -> str: ...

    @property
    def data_path(self) -> Path: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def schema(self) -> SchemaManager: ...

    @property
    def backups(self) -> BackupManager: ...

    def exists(self) -> bool:
        """Whether there is a database. Commands that need one are refused without."""

    def provision(self) -> AbstractContextManager[Backend]:
        """Make the place of the data for this run; the supervisor only. The backend that it gives
        is the one to use until the block ends.

        Raises:
            StartRefused: the data directory cannot be made or written to, or others may put files
                in its place.
        """

    def worker_settings(self) -> Mapping[str, str]:
        """The settings by which a worker of this run opens the same store."""

    def open_writer(self, manifest: Manifest, rules: RuleSet, clock: Clock) -> WriteEngine:
        """Open the store for writing, bring its schema to the manifest and note the start. One at a
        time, in the process that holds the lock of the data directory.

        Raises:
            SchemaRefused: the schema cannot be reached by additive steps.
            StartRefused: the store cannot be opened or written. StartDelayed: it may work later.
        """

    def open_reader(self, manifest: Manifest) -> Reader:
        """One connection that reads.

        Raises:
            StoreUnavailable
        """

    def open_readers(self, manifest: Manifest, clock: Clock) -> Store:
        """The readers of a worker, for its greenlets.

        Raises:
            StoreUnavailable
        """

    def open_bare_reads(self) -> BareReads:
        """Reads by the driver alone.

        Raises:
            StoreUnavailable
        """

    def sync(self) -> None:
        """Have the disk keep everything that was written: the last step of an orderly end.

        Raises:
            OSError: the disk refused.
        """
