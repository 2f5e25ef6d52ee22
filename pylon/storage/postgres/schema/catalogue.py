"""PostgreSQL catalogue: implements `pylon.schema.database.Database` for one session.

It reads only. A plan is made under the lock of those who change the schema. Called by the modules
of this package, which pass it to `pylon.schema.plan.make_plan`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from pylon.manifest import references
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest
from pylon.schema import options
from pylon.schema.convert import kinds_of
from pylon.schema.live import LiveColumn, LiveIndex, LiveSchema, LiveTable
from pylon.schema.options import MigrationOptions
from pylon.schema.plan import make_plan
from pylon.schema.steps import Plan
from pylon.storage.postgres import meta
from pylon.storage.postgres.names import NAME_BYTES, fitting_name, quote
from pylon.storage.postgres.schema import ddl
from pylon.storage.postgres.schema.history import own_indexes
from pylon.storage.postgres.schema.live import has_table, introspect, order_text, table_names
from pylon.storage.postgres.schema.results import ask, ask_number, ask_one
from pylon.storage.postgres.statements import Session
from pylon.storage.postgres.wire import BlockingSession
from pylon.values import fold_case

_COLUMNS: Final = 1_600  # MaxHeapAttributeNumber; dropped columns count too
_DECODERS: Final[dict[str, Callable[[str], Any]]] = {
    "BIGINT": int, "INTEGER": int, "SMALLINT": int, "DOUBLE PRECISION": float, "REAL": float,
    "BOOLEAN": lambda text: text == "t",
}

_TEXTS: Final = frozenset({
    FieldType.STRING, FieldType.RICHTEXT, FieldType.ID, FieldType.ENUM, FieldType.DATETIME,
    FieldType.DATE,
})
# Types of columns that other programs make, and the fields that keep all their values.
_LOSSLESS: Final[dict[str, frozenset[FieldType]]] = {
    "TEXT": _TEXTS, "CHARACTER VARYING": _TEXTS, "UUID": _TEXTS,
    "INTEGER": frozenset({FieldType.INT}), "SMALLINT": frozenset({FieldType.INT}),
    "REAL": frozenset({FieldType.FLOAT}),
    "TIMESTAMP WITH TIME ZONE": frozenset({FieldType.DATETIME}),
    "TIMESTAMP WITHOUT TIME ZONE": frozenset({FieldType.DATETIME}),
    "DATE": frozenset({FieldType.DATE}),
    "JSON": frozenset({FieldType.JSON}), "JSONB": frozenset({FieldType.JSON}),
}


def plan_for(
    session: BlockingSession, manifest: Manifest, asked: MigrationOptions = options.NONE
) -> Plan:
    """Compare the database with the manifest. Return the plan."""
    return make_plan(PostgresCatalogue(session), manifest, asked)


def references_by_default(session: Session) -> bool:
    """Whether the database checks references by default: a new one does, one with tables of another
    program does not."""
    if has_table(session, "_pylon_meta"):
        return meta.get(session, references.FACT) == "check"
    return not table_names(session)


def kinds_before(session: Session, entity: str) -> dict[str, str]:
    """Return the field types with which the rows of `entity` were last written, by lower-case
    names."""
    return kinds_of(
        meta.get(session, f"shape:{entity}") if has_table(session, "_pylon_meta") else None
    )


def decoder_of(column_type: str) -> Callable[[str], Any]:
    """Return the function that makes a value of PostgreSQL's text of it."""
    return _DECODERS.get(column_type, str)


class PostgresCatalogue:
    """See the module."""

    title = "PostgreSQL"
    name_bytes = NAME_BYTES
    column_limit = _COLUMNS
    reserved_prefixes = ("pg_", "_pylon_")
    has_case = True
    adds_uniqueness = True

    def __init__(self, session: BlockingSession) -> None:
        self._session = session
        self._compression: str | None = None
        self._kinds: dict[str, Mapping[str, str]] = {}  # by entity: a plan asks for each field

    # --- What there is -----------------------------------------------------------------------

    def introspect(self, names: Sequence[str]) -> LiveSchema:
        """See `Database`."""
        return introspect(self._session, names)

    def own_indexes(self) -> Mapping[str, str]:
        """See `Database`."""
        return own_indexes(self._session)

    def references_by_default(self) -> bool:
        """See `Database`."""
        return references_by_default(self._session)

    def kinds_before(self, entity: str) -> Mapping[str, str]:
        """See `Database`. As they were when this catalogue was first asked."""
        if entity not in self._kinds:
            self._kinds[entity] = kinds_before(self._session, entity)
        return self._kinds[entity]

    def foreign_search(self, table: str) -> Sequence[tuple[str, str]]:
        """See `Database`. The published server's search on PostgreSQL breaks no writes."""
        return ()

    def has_default(self, table: LiveTable, column: LiveColumn) -> bool:
        """See `Database`."""
        return ask_one(
            self._session,
            "SELECT 1 FROM pg_attribute WHERE attrelid = $1::regclass AND attname = $2 "
            "AND (atthasdef OR attidentity <> '')", (quote(table.source), column.source),
        ) is not None

    def count_rows(self, table: LiveTable) -> int:
        """See `Database`."""
        return ask_number(self._session, f"SELECT count(*) FROM {quote(table.source)}")

    def count_nulls(self, table: LiveTable, column: LiveColumn) -> int:
        """See `Database`."""
        return ask_number(
            self._session,
            f"SELECT count(*) FROM {quote(table.source)} WHERE {quote(column.source)} IS NULL",
        )

    def has_values(self, table: LiveTable, column: LiveColumn) -> bool:
        """See `Database`."""
        return ask_one(
            self._session,
            f"SELECT 1 FROM {quote(table.source)} WHERE {quote(column.source)} IS NOT NULL LIMIT 1",
        ) is not None

    def values(self, table: LiveTable, column: LiveColumn) -> Iterator[tuple[str, Any]]:
        """See `Database`."""
        name = quote(column.source)
        decode = decoder_of(column.type)
        for part in self._session.stream(
            f"SELECT id, {name} FROM {quote(table.source)} WHERE {name} IS NOT NULL"
        ):
            for row in range(part.ntuples):
                row_id, value = part.get_value(row, 0), part.get_value(row, 1)
                yield (row_id or b"").decode(), decode((value or b"").decode())

    def find_repeated(
        self, table: LiveTable, columns: Sequence[LiveColumn], where: str, *, is_folded: bool,
        limit: int,
    ) -> Sequence[tuple[Sequence[object], int]]:
        """See `Database`."""
        if is_folded:
            (column,) = columns
            counts = Counter(fold_case(value) for _, value in self.values(table, column))
            return [((value,), n) for value, n in counts.most_common(limit) if n > 1]
        names = [quote(column.source) for column in columns]
        group = ", ".join(names)
        rows = ask(
            self._session,
            f"SELECT {group}, count(*) FROM {quote(table.source)} "
            f"WHERE {' AND '.join(f'{name} IS NOT NULL' for name in names)} "
            f"AND ({where or 'TRUE'}) GROUP BY {group} HAVING count(*) > 1 LIMIT {limit}",
        )
        return [(values, int(count or 0)) for *values, count in rows]

    def is_same_index(self, existing: LiveIndex, entity: Entity, index: Index) -> bool:
        """See `Database`."""
        keys = ddl.key_columns(index)
        where = None if index.where is None else ddl.where_text(entity, index)
        return (
            existing.table == entity.name and existing.unique == index.unique
            and existing.fields == tuple([name for name, _ in keys])
            and existing.sql == order_text(keys, where, "btree")
        )

    # --- Statements --------------------------------------------------------------------------

    @property
    def compression(self) -> str:
        """How `_json` is compressed: by lz4, where the server has it."""
        if self._compression is None:
            found = ask_one(
                self._session, "SELECT 1 FROM pg_settings WHERE name = 'default_toast_compression' "
                "AND 'lz4' = ANY (enumvals)"
            )
            self._compression = "lz4" if found else ""
        return self._compression

    def column_type(self, field: Field) -> str:
        """See `Database`."""
        return ddl.COLUMN_TYPES[field.type]

    def key_change(self, column: LiveColumn) -> str:
        """See `Database`."""
        return "" if column.type == "TEXT" else f"the type changes from {column.type} to TEXT"

    def is_lossless(self, column: LiveColumn, field: Field) -> bool:
        """See `Database`."""
        kind = column.type.split(" COLLATE ")[0].split("(")[0]
        return field.type in _LOSSLESS.get(kind, ())

    def create_table(self, entity: Entity) -> str:
        """See `Database`."""
        return ddl.create_table(entity, compression=self.compression)

    def add_json_column(self, entity: Entity) -> str:
        """See `Database`."""
        return ddl.add_json_column(entity, self.compression)

    def fill_folds(self, entity: Entity, field: Field) -> str:
        """See `Database`: `backfill` computes the values, in steps."""
        return ""

    # The other statements are functions of `ddl`.
    fitting_name = staticmethod(fitting_name)
    where_text = staticmethod(ddl.where_text)
    add_column = staticmethod(ddl.add_column)
    add_filled_column = staticmethod(ddl.add_filled_column)
    add_seq_column = staticmethod(ddl.add_seq_column)
    add_fold_column = staticmethod(ddl.add_fold_column)
    drop_not_null = staticmethod(ddl.drop_not_null)
    drop_column = staticmethod(ddl.drop_column)
    create_index = staticmethod(ddl.create_index)
    drop_index = staticmethod(ddl.drop_index)
