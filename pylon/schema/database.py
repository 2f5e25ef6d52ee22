"""Database: what a plan asks of one backend's database, and the statements of its steps.

A backend implements `Database` for one connection. All answers are of one moment: a plan is made
within a transaction, or under the lock of those who change schemas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pylon.manifest.model import Entity, Field, Index
from pylon.schema.live import LiveColumn, LiveIndex, LiveSchema, LiveTable


class Database(Protocol):
    """See the module. Statements are texts of the backend; `plan` puts them into steps."""

    @property
    def title(self) -> str:
        """How messages name the engine, for example `SQLite`."""

    @property
    def column_limit(self) -> int:
        """How many columns a table may have."""

    @property
    def name_bytes(self) -> int | None:
        """How long the names of tables and columns may be; None: of any length."""

    @property
    def reserved_prefixes(self) -> tuple[str, ...]:
        """The prefixes that no name of an entity may have, in lower case."""

    @property
    def has_case(self) -> bool:
        """Whether two names that differ in case only are two names."""

    @property
    def adds_uniqueness(self) -> bool:
        """Whether a field becomes unique by one more index, without a new table."""

    # --- What there is -----------------------------------------------------------------------

    def introspect(self, names: Sequence[str]) -> LiveSchema:
        """Return the tables among `names`, and every index of the database."""

    def own_indexes(self) -> Mapping[str, str]:
        """Return the indexes that Pylon made for manifests: lower-case name to entity."""

    def references_by_default(self) -> bool:
        """Whether the database checks the references about which the manifest says nothing."""

    def kinds_before(self, entity: str) -> Mapping[str, str]:
        """Return the field types with which the rows were last written, by lower-case names of
        fields; empty for a table that Pylon has not written."""

    def foreign_search(self, table: str) -> Sequence[tuple[str, str]]:
        """Return the objects of another server's text search that would break writes to a table,
        each with the statement that drops it."""

    def has_default(self, table: LiveTable, column: LiveColumn) -> bool:
        """Whether an insert may leave a column out that is NOT NULL."""

    def count_rows(self, table: LiveTable) -> int:
        """Return the number of rows."""

    def count_nulls(self, table: LiveTable, column: LiveColumn) -> int:
        """Return the number of rows that have null in a column."""

    def has_values(self, table: LiveTable, column: LiveColumn) -> bool:
        """Whether any row has a value in a column."""

    def values(self, table: LiveTable, column: LiveColumn) -> Iterable[tuple[str, Any]]:
        """Yield the id of each row with a value in a column, and the value."""

    def find_repeated(
        self, table: LiveTable, columns: Sequence[LiveColumn], where: str, *, is_folded: bool,
        limit: int,
    ) -> Sequence[tuple[Sequence[object], int]]:
        """Return values that several rows share, each with the number of these rows. A null is
        equal to nothing.

        Args:
            where: the condition of a partial index (`where_text`); "" for all rows.
            is_folded: values are equal if they differ in case only.
        """

    def is_same_index(self, existing: LiveIndex, entity: Entity, index: Index) -> bool:
        """Whether an index that there is has the definition of the manifest's."""

    # --- Statements --------------------------------------------------------------------------

    def column_type(self, field: Field) -> str:
        """Return the type of a field's column, as `LiveColumn.type` has it."""

    def key_change(self, column: LiveColumn) -> str:
        """Return why the column `id` has to be written anew; "" if it is as it should be."""

    def is_lossless(self, column: LiveColumn, field: Field) -> bool:
        """Whether every value of a column of another server fits the type of a field's column."""

    def fitting_name(self, name: str) -> str:
        """Return the name under which the database keeps an index."""

    def where_text(self, entity: Entity, index: Index) -> str:
        """Return the condition of a partial index."""

    def create_table(self, entity: Entity) -> str: ...

    def add_column(self, entity: Entity, field: Field) -> str: ...

    def add_filled_column(self, entity: Entity, field: Field, constant: Any) -> str: ...

    def add_json_column(self, entity: Entity) -> str: ...

    def add_seq_column(self, entity: Entity) -> str: ...

    def add_fold_column(self, entity: Entity, field: Field) -> str: ...

    def fill_folds(self, entity: Entity, field: Field) -> str: ...

    def drop_not_null(self, table: str, column: str) -> str:
        """Return the statement after which a column may be null; "" if the table has to be
        rebuilt for that."""

    def drop_column(self, table: str, column: str) -> str: ...

    def create_index(self, name: str, entity: Entity, index: Index) -> str: ...

    def drop_index(self, name: str) -> str: ...
