"""Transfers: all data of a store, read at one commit, or written into an empty store.

Every backend offers both ends, in terms that do not depend on it: tables with the same columns, and
rows as tuples of Python values, in the order of their primary keys (by code points, so that all
stores have the same order). `pylon.migrate` moves data from one end to the other.

A move carries rows with their versions, the change log, op_ids, the auth tables, documents, epochs,
shards and the lineage. So cursors stay valid. It leaves out what the target derives from the rows:
search indexes, and notes about a run or about the layout of the tables (`is_moved_fact`).

Invariants: a source shows one commit, whatever others write. A target has data under its final name
only after `TransferTarget.publish`; until then it has the note of an unfinished move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from pylon.manifest.model import Entity, Field, FieldType, Manifest
from pylon.storage.auth_tables import TABLES, AuthTable, Kind

Row: TypeAlias = tuple[Any, ...]
Key: TypeAlias = tuple[Any, ...]


class ColumnKind(Enum):
    """The Python type of a column's values; any may be None."""

    TEXT = "text"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    BYTES = "bytes"


class TransferTable(msgspec.Struct, frozen=True):
    """A table whose rows are moved. Its primary key are the first `key_size` columns."""

    name: str
    columns: tuple[str, ...]
    kinds: tuple[ColumnKind, ...]
    key_size: int
    entity: Entity | None = None  # None: a system table

    @property
    def key(self) -> tuple[str, ...]:
        """Return the columns of the primary key."""
        return self.columns[: self.key_size]


JSON_COLUMN: Final = "_json"
SEQ_COLUMN: Final = "_seq"
FOLD_PREFIX: Final = "_fold_"

_KINDS: Final[dict[FieldType, ColumnKind]] = {
    FieldType.INT: ColumnKind.INT, FieldType.FLOAT: ColumnKind.FLOAT,
    FieldType.BOOL: ColumnKind.BOOL,
}
_KIND_BY_LETTER: Final = {
    "t": ColumnKind.TEXT, "i": ColumnKind.INT, "b": ColumnKind.BYTES, "?": ColumnKind.BOOL,
}
_KIND_BY_COLUMN: Final[dict[Kind, ColumnKind]] = {
    "text": ColumnKind.TEXT, "int": ColumnKind.INT, "bytes": ColumnKind.BYTES,
    "bool": ColumnKind.BOOL,
}
CHANGE_LOG: Final = "_pylon_change_log"
DOCUMENT_UPDATES: Final = "_pylon_crdt_updates"
HISTORY: Final = "_pylon_schema_history"


def _system(name: str, key_size: int, columns: str) -> TransferTable:
    pairs = [column.split(":") for column in columns.split()]
    return TransferTable(
        name, tuple(name for name, _ in pairs),
        tuple(_KIND_BY_LETTER[letter] for _, letter in pairs), key_size,
    )


def _auth_table(table: AuthTable) -> TransferTable:
    return TransferTable(
        table.sql_name, tuple(column.name for column in table.columns),
        tuple(_KIND_BY_COLUMN[column.kind] for column in table.columns), len(table.key),
    )


SYSTEM_TABLES: Final = (
    _system(CHANGE_LOG, 1, "seq:i entity:t row_id:t kind:t data:t prev_data:t timestamp:i"),
    _system("_pylon_change_seq", 1, "id:i value:i"),
    _system("_pylon_op_ids", 2, "identity:t op_id:t seq:i row_id:t at:i digest:t"),
    *map(_auth_table, TABLES),
    _system("_pylon_unused_guests", 1, "session_id:t created_at:i"),
    _system("_pylon_epochs", 1, "first_seq:i void_from:i reason:t at:i"),
    _system("_pylon_crdt_snapshots", 2, "entity:t row_id:t snapshot:b updated_at:t"),
    _system(DOCUMENT_UPDATES, 1, "number:i entity:t row_id:t prev:i seq:i data:b"),
    _system("_pylon_crdt_views", 3, "entity:t row_id:t number:i before:b after:b facts:t"),
    _system("_pylon_shards", 1, "id:t tick:i data:b home:t saved_at:i"),
    _system(HISTORY, 1, "id:i manifest_version:i app_version:t applied_at:t operation_count:i "
            "baseline:t plan_json:t"),
)

# Keys of `_pylon_meta` that belong to the run of a server, or to the layout of one store.
_OWN_FACTS: Final = frozenset({
    "boot_id", "clean", "durability", "history_id", "history_rows", "indexes", "schema_format",
})
_MOVED_PREFIXES: Final = ("constraints:", "document_rules:")
_MOVED_FACTS: Final = ("lineage", "references", "key_probe")


def is_moved_fact(key: str) -> bool:
    """Whether a key of `_pylon_meta` is moved."""
    return key in _MOVED_FACTS or key.startswith(_MOVED_PREFIXES)


def list_tables(manifest: Manifest) -> list[TransferTable]:
    """Return the tables that are moved: those of the entities, then the system tables."""
    return [*map(_entity_table, manifest.entities), *SYSTEM_TABLES]


def _entity_table(entity: Entity) -> TransferTable:
    folds = [field for field in entity.fields if field.nocase]
    columns = (
        "id", *(field.name for field in entity.fields),
        *(f"{FOLD_PREFIX}{field.name}" for field in folds), JSON_COLUMN, SEQ_COLUMN,
    )
    kinds = (
        ColumnKind.TEXT, *map(_kind_of, entity.fields), *(ColumnKind.TEXT for _ in folds),
        ColumnKind.TEXT, ColumnKind.INT,
    )
    return TransferTable(entity.name, columns, kinds, 1, entity)


def _kind_of(field: Field) -> ColumnKind:
    return _KINDS.get(field.type, ColumnKind.TEXT)


class SourceFacts(msgspec.Struct, frozen=True):
    """The facts that identify the commit of a source.

    `stamp` differs when anything may have been written since: a new event, a document, a start of
    the server. `log_from`: the log has all events above this seq.
    """

    store: str
    place: str  # for people: a path or a URL without its password
    lineage: str
    head: int
    document_number: int  # of the newest update of a document
    log_from: int
    stamp: str


class TransferSource(Protocol):
    """All data of a store at one commit. Used by one thread.

    Raises, from every method: StoreUnavailable when the store cannot be read.
    """

    @property
    def facts(self) -> SourceFacts: ...

    def list_left_behind(self) -> list[str]:
        """Data of the database that are not moved, a sentence each."""

    def count_rows(self, table: TransferTable) -> int:
        """The number of rows."""

    def read_rows(self, table: TransferTable, after: Key | None = None) -> Iterator[Row]:
        """All rows by primary key; those behind a key."""

    def find_rows(self, table: TransferTable, keys: Sequence[Key]) -> list[Row]:
        """The rows of these primary keys that exist, in any order."""

    def read_facts(self) -> dict[str, str]:
        """The facts of `_pylon_meta` that are moved."""

    def close(self) -> None:
        """End the transaction, and close the connection."""


class TransferTarget(Protocol):
    """A store that is being filled. Used by one thread.

    Every method that writes does it in one transaction, together with `note`: what the caller wants
    to find again after it was killed.

    Raises, from every method: StoreUnavailable when the store cannot be written to.
    """

    @property
    def place(self) -> str:
        """For people: a path, or a URL without its password."""

    def read_note(self) -> str | None:
        """The newest note; None: nothing was begun here.

        Raises:
            MigrationRefused: there are data of another origin.
        """

    def make_tables(self, note: str) -> None:
        """Make empty tables without secondary indexes; drops those of an unfinished move."""

    def add_rows(self, table: TransferTable, rows: Sequence[Row], note: str) -> None:
        """Append rows, which come in the order of primary keys."""

    def change_rows(
        self, changes: Sequence[tuple[TransferTable, Collection[Key], Sequence[Row]]], note: str
    ) -> None:
        """Remove the rows of some keys, then add rows; of any number of tables."""

    def make_indexes(self, note: str) -> None:
        """Make the secondary indexes and the search indexes that are missing."""

    def write_facts(self, facts: Mapping[str, str], source: SourceFacts, note: str) -> None:
        """Store the facts that are moved, and set the sequences to the source's head."""

    def count_rows(self, table: TransferTable) -> int:
        """The number of rows."""

    def read_rows(self, table: TransferTable) -> Iterator[Row]:
        """All rows by primary key."""

    def find_rows(self, table: TransferTable, keys: Sequence[Key]) -> list[Row]:
        """The rows of these primary keys that exist, in any order."""

    def read_facts(self) -> dict[str, str]:
        """The facts of `_pylon_meta` that are moved."""

    def publish(self) -> None:
        """Remove the note: a server may start on these data."""

    def close(self) -> None:
        """Close the connection; an unfinished move stays."""


class ValueLimits(msgspec.Struct, frozen=True):
    """The limits of a store; 0: no limit."""

    nul_in_texts: bool  # whether a text may have U+0000
    index_entry_bytes: int  # of all values of one index together
    name_bytes: int  # of a table or column


class TransferManager(Protocol):
    """Both ends of one store."""

    @property
    def limits(self) -> ValueLimits: ...

    def hold_source(self, *, while_running: bool = False) -> AbstractContextManager[None]:
        """Refuse every write to the store until the block ends.

        Args:
            while_running: allow servers that run, where their writes can be refused.

        Raises:
            MigrationRefused: a server runs on it; the text says how to stop it.
        """

    def list_servers(self) -> list[str]:
        """The servers that `hold_source` leaves running, and whose writes it refuses."""

    def open_source(self, manifest: Manifest, *, copy: bool = False) -> TransferSource:
        """Open the store at its newest commit.

        Args:
            copy: read a copy of the data, where a long read would hinder the running server.

        Raises:
            MigrationRefused: this version has not brought its schema to the manifest.
        """

    def forget_copy(self) -> None:
        """Remove the copy that `open_source` has made, if it has made one."""

    def open_target(self, manifest: Manifest) -> TransferTarget:
        """Open an empty store, or one with an unfinished move.

        Raises:
            MigrationRefused: it has other data, or another move runs.
        """
