"""Backend: the handle of a configured store, by which each process gets its part of it.

`pylon.storage.factory.open_store` makes one from the settings. The supervisor provisions it, opens
the writer and hands its settings to the workers, which open their readers. Commands of `pylonctl`
use the managers of schema and backups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from pylon.clock import Clock, RandomSource
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from pylon.storage.backups import BackupManager, LogCapture
from pylon.storage.events import ChangeBatch
from pylon.storage.interface import Reader, Store, WriteEngine
from pylon.storage.nodes import NodeFacts, NodeLink
from pylon.storage.schemas import SchemaManager
from pylon.storage.transfer import TransferManager


class Capabilities(msgspec.Struct, frozen=True):
    """Properties of a backend that callers may rely on beyond the interface.

    `own_writes_only`: every change is committed by this server's writer, so the batches that it
    publishes are all there are.
    `search`: full-text indexes exist; without them a search looks through the texts.
    Whether reads are local is a property of the readers: `Store.local_reads`.
    """

    own_writes_only: bool
    search: bool


class ChangeReport(NamedTuple):
    """The findings of a `ChangeSource` in one turn."""

    batches: list[ChangeBatch]  # in commit order
    has_documents: bool  # documents have changed without an event of their rows
    ended_families: list[str]  # of sessions that were ended, on whatever node


class ChangeSource(Protocol):
    """Committed changes in commit order, whoever committed them: for the one thread that publishes
    them on the bus (`pylon.bus.changes`).

    A store with `Capabilities.own_writes_only` has none: its writer publishes what it commits. On
    any other store the writer hands its batches over, and the source puts those of others in
    between. Each batch names the head before it (`ChangeBatch.prev_seq`). Where a receiver's own
    head is another one, it has a gap, and reads it from the log. After a new epoch, or when the log
    no longer reaches back to what was given last, the source gives a batch without events that
    makes such a gap, so that every receiver checks its head against the log.
    """

    @property
    def head(self) -> int:
        """The seq up to which all changes were given. From any thread."""

    @property
    def lag_seqs(self) -> int:
        """How far `head` is behind the newest seq that the source has heard of. Any thread."""

    @property
    def behind_s(self) -> float:
        """For how long it has been behind, or without a connection; 0: it is current. Any
        thread."""

    @property
    def away_s(self) -> float:
        """For how long the store has not answered; 0: it answers. Any thread."""

    def begin(self) -> None:
        """Connect, and begin behind the present head. Before the first `receive`.

        Raises:
            StoreUnavailable
        """

    def receive(self, timeout_s: float) -> ChangeReport:
        """Wait for changes, `timeout_s` at the longest, and return what there is. It reconnects
        by itself, and raises nothing of the store."""

    def hand_over(self, batch: ChangeBatch) -> None:
        """Take a batch that this node's writer has committed; from any thread. Never blocks."""

    def wake(self) -> None:
        """End the `receive` of another thread."""

    def close(self) -> None:
        """Close the connection. Idempotent."""


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
    server. `place`: where the data are, for people, without a password. `data_path`: the files of
    this node are named after it; for SQLite the database file."""

    @property
    def name(self) -> str: ...

    @property
    def engine_version(self) -> str: ...

    @property
    def place(self) -> str: ...

    @property
    def data_path(self) -> Path: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def schema(self) -> SchemaManager: ...

    @property
    def backups(self) -> BackupManager: ...

    @property
    def transfer(self) -> TransferManager: ...

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

    def capture_log(
        self, clock: Clock, random: RandomSource, interval_s: float
    ) -> LogCapture | None:
        """Copy the log for a continuous backup, from the next `open_writer` on; None: the store has
        means of its own (docs/postgres-backup.md).

        Args:
            interval_s: between two rounds (PYLON_BACKUP_INTERVAL_S).
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

    def changes(
        self, clock: Clock, random: RandomSource, poll_s: float
    ) -> ChangeSource | None:
        """The committed changes of all nodes; None: the writer of this node has them all. One for
        each backend object, whose writer hands its batches over.

        Args:
            poll_s: how often to look although nothing was heard (PYLON_DATABASE_POLL_S).
        """

    def nodes(self, facts: NodeFacts, clock: Clock, random: RandomSource) -> NodeLink | None:
        """The link to the other nodes that share this store; None: there can be none."""

    def running_nodes(self) -> list[str]:
        """The names of the nodes that run on this store, as its registry shows them; none where
        the lock of the data directory says it all.

        Raises:
            StoreUnavailable
        """

    def key_probe(self) -> str | None:
        """The probe of the secret key (`pylon.auth.keys`) that the database has; None: it has
        none, or is not there.

        Raises:
            StoreUnavailable
        """

    def put_key_probe(self, probe: str, before: str | None) -> str | None:
        """Replace the probe `before` (None: there was none), unless another node has done so. The
        probe that the database has then. Only once the writer has been opened.

        Raises:
            StoreUnavailable
        """

    def sync(self) -> None:
        """Have the disk keep everything that was written: the last step of an orderly end.

        Raises:
            OSError: the disk refused.
        """
