"""Schemas of a store: what a backend offers to inspect, plan and apply.

Called by `pylonctl schema`, `search`, `export` and `check-config`, and by `pylon.startup`. A start
brings the schema up by itself (`Backend.open_writer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from pylon.errors import PylonError
from pylon.manifest.model import Entity, Manifest
from pylon.manifest.references import Reference
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import Plan, Step
from pylon.storage.ops import InsertRow


class ColumnInfo(msgspec.Struct, frozen=True):
    """A column as it is declared."""

    name: str
    type: str
    not_null: bool
    primary_key: bool


class IndexInfo(msgspec.Struct, frozen=True):
    """An index of a table."""

    name: str
    fields: tuple[str, ...]
    unique: bool


class TableInfo(msgspec.Struct, frozen=True):
    """A table as the database has it."""

    name: str
    columns: tuple[ColumnInfo, ...]
    indexes: tuple[IndexInfo, ...]


class SearchCheck(msgspec.Struct, frozen=True):
    """How the search index of an entity compares with its rows; no `problems`: exactly."""

    entity: str
    rows: int
    problems: tuple[str, ...]


class BrokenReference(msgspec.Struct, frozen=True):
    """Rows of an entity whose field names rows that do not exist. `examples`: ids and values."""

    reference: Reference
    rows: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ReferenceReport:
    """Whether a database checks references by default, and those that do not hold."""

    is_default: bool
    broken: tuple[BrokenReference, ...]


class SchemaManager(Protocol):
    """The schema of one store.

    Raises, from every method that reads it: SchemaRefused when it is a newer Pylon's, and
    StoreUnavailable when it cannot be read.
    """

    def refuse_unreachable(self, manifest: Manifest) -> None:
        """Try out what a start would do, without touching the database.

        Raises:
            StartRefused: the database cannot be used, or brought to the manifest by additive steps.
        """

    def inspect(self) -> list[TableInfo]:
        """Every table, by name."""

    def history(self, limit: int) -> list[dict[str, Any]]:
        """The newest entries of the schema's history, newest first (spec/http.md §8)."""

    def plan(self, manifest: Manifest, options: MigrationOptions) -> Plan:
        """Return what would be done; a missing database counts as an empty one."""

    def apply(
        self, manifest: Manifest, options: MigrationOptions, *, allow_destructive: bool
    ) -> list[Step]:
        """Bring the database to the manifest, in one transaction; the steps. The caller holds the
        lock of the data directory.

        Raises:
            SchemaRefused: it cannot be done, or may not be; nothing was changed.
        """

    def count_pending(self, manifest: Manifest) -> int:
        """How many steps a start has left for later, without which it serves all the same."""

    def finish_pending(self, manifest: Manifest) -> int:
        """Do what a start has left for later, as far as it can be done now, while the server runs;
        how much is left. May take as long as an index of a large table does.

        Raises:
            StartDelayed: another node changes the schema now.
            SchemaRefused: the database refuses a step.
        """

    def plan_contract(self, manifest: Manifest, options: MigrationOptions) -> Plan:
        """Return what `finish_contract` would do: its removals are `rewrites`."""

    def finish_contract(
        self, manifest: Manifest, options: MigrationOptions, *, allow_destructive: bool
    ) -> list[Step]:
        """End a rolling upgrade while nodes serve: make the database as narrow as the manifest,
        and remove what `options` drop; the steps.

        Raises:
            SchemaRefused: nodes with another manifest live, or the rows do not allow it.
            StartDelayed: another node changes the schema now.
        """

    def trigram_statements(self, entity: str, field: str) -> list[str]:
        """Return the statements of an index that serves patterns in a text field; none where the
        store has no such index, or where this one is there."""

    def make_trigram_index(self, entity: str, field: str) -> None:
        """Carry out `trigram_statements` while nodes serve.

        Raises:
            SchemaRefused: the database refuses it.
            StartDelayed: another node changes the schema now.
        """

    def check_search(self, entities: Sequence[Entity]) -> list[SearchCheck]:
        """Compare the search indexes of entities with their rows, also while others write.

        Raises:
            SchemaRefused: no start has made them yet.
        """

    def build_search(self, entities: Sequence[Entity]) -> dict[str, int]:
        """Build search indexes anew, in one transaction; the rows of each. The caller holds the
        lock of the data directory.

        Raises:
            SchemaRefused: no start has made their tables yet.
        """

    def export(self, entities: Sequence[Entity]) -> Iterator[tuple[Entity, bytes]]:
        """All rows of entities as JSON, of one commit, from the columns: also of a database that no
        start of ours has brought up. Missing columns are null."""

    def has_rows(self, manifest: Manifest) -> bool:
        """Whether any entity has a row."""

    def find_conflict(
        self, manifest: Manifest, inserts: Sequence[InsertRow]
    ) -> tuple[InsertRow, PylonError] | None:
        """Insert rows into empty tables beside the database; the first that its constraints or
        checked references refuse, and why."""

    def references(self, manifest: Manifest) -> ReferenceReport:
        """Return the state of the references, all of which are read."""

    def check_references(self, *, is_default: bool) -> None:
        """Set whether the database checks references by default. The caller holds the lock of the
        data directory.

        Raises:
            SchemaRefused: no start has made its tables yet.
        """
