"""The SQL texts of an entity's reads: made once, or for one query.

Rows are selected as the JSON texts that are stored beside their columns. Called by `reader`.
"""

from __future__ import annotations

from pylon.manifest.model import Entity, FieldType
from pylon.storage.clause import SqlClause
from pylon.storage.interface import Query
from pylon.storage.names import quote
from pylon.storage.sqlite.graph import order_by
from pylon.storage.sqlite.search import RELEVANCE, relevant
from pylon.storage.where import ALL, judged_first


class EntityReads:
    """The fixed texts of one entity: `get`, `get_version` by id; `lookups` by each column."""

    __slots__ = ("_indexed", "bools", "entity", "get", "get_version", "lookups", "table")

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.table = quote(entity.name)
        self.get = f"SELECT CAST(_json AS BLOB) FROM {self.table} WHERE id = ?"
        self.get_version = (
            f"SELECT CAST(_json AS BLOB), _seq FROM {self.table} WHERE id = ?"
        )
        # An id is found once, other fields may be in several rows: the first by id.
        self.lookups = {
            name: f"SELECT CAST(_json AS BLOB) FROM {self.table} WHERE {quote(name)} = ? "
            "ORDER BY id LIMIT 1"
            for name in entity.columns
        }
        self.bools = frozenset(f.name for f in entity.fields if f.type is FieldType.BOOL)
        self._indexed = frozenset(columns[0] for columns in entity.index_columns)

    def lookup_among(
        self, field: str, value: object, allowed: SqlClause
    ) -> tuple[str, tuple[object, ...]]:
        """A look-up among the rows that the caller may read, and its parameters."""
        equal = SqlClause(f"{quote(field)} = ?", (value,))
        path = equal if field in self._indexed else ALL
        where = judged_first(allowed, equal, path)
        text = f"SELECT CAST(_json AS BLOB) FROM {self.table} WHERE {where.sql} ORDER BY id LIMIT 1"
        return text, where.params


def selection(reads: EntityReads, query: Query) -> tuple[str, tuple[object, ...]]:
    """The SELECT of a query's rows, as `_j`, and its parameters."""
    source, order = reads.table, order_by(query.order)
    where, params = query.where.sql, query.where.params
    if query.after_id is not None:
        where = f"({where}) AND id > ?"
        params = (*params, query.after_id)
    if query.relevance is not None:
        source, order = relevant(reads.entity), f"{RELEVANCE}, id"
        params = (query.relevance, *params)
    text = f"SELECT _json AS _j FROM {source} WHERE {where} ORDER BY {order} LIMIT ?"
    if not query.offset:  # which would be counted for each row
        return text, (*params, query.limit)
    return f"{text} OFFSET ?", (*params, query.limit, query.offset)
