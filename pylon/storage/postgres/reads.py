"""Entity reads: the SQL texts of an entity's reads, made once or for one query.

They select rows as the JSON texts stored beside their columns. Called by `reader`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final

from pylon import limits
from pylon.manifest.model import Entity, Index
from pylon.query.conditions import and_, compare, guarded
from pylon.query.operands import CONVERTED, value_of_text
from pylon.query.predicate import FALSE, Column, Literal, Predicate, Scalar
from pylon.query.rows import Query
from pylon.schema.columns import fold_column, fold_fields
from pylon.storage.core.names import quote
from pylon.storage.postgres.dialect import numbered
from pylon.storage.postgres.key_reads import KeyStatement
from pylon.storage.postgres.search import RELEVANCE, match_expression, relevance_of
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.compiler import CompiledCache, PredicateCompiler
from pylon.storage.sql.page_sql import PageColumn, order_by, select_page, select_span
from pylon.storage.sql.predicate_sql import Dialect
from pylon.values import fold_case

VERSION: Final = "_json, _seq"
_ROW: Final = PageColumn("_json", "_j")


class EntityReads:
    """The fixed SQL texts of one entity, and the compiler of conditions on its rows."""

    __slots__ = (
        "_compile_lookup", "_converted", "_dialect", "_folds", "_unique", "compile",
        "compile_rule", "entity", "get", "get_version", "has_row", "table",
    )

    def __init__(self, dialect: Dialect, entity: Entity, cache: CompiledCache) -> None:
        self._dialect = dialect
        self.entity = entity
        self.table = quote(entity.name)
        self.get = select_by_id(self.table, "_json")
        self.get_version = select_by_id(self.table, VERSION)
        self.has_row = f"SELECT EXISTS (SELECT 1 FROM {self.table} WHERE "
        self._folds = {field.name: fold_column(field) for field in fold_fields(entity)}
        self._unique = frozenset([
            "id", *self._folds.values(), *[f.name for f in entity.fields if f.unique]
        ])
        self._converted = {f.name: f for f in entity.fields if f.type in CONVERTED}
        compiler = PredicateCompiler(dialect, entity, cache)
        self.compile = compiler.compile
        self.compile_rule = compiler.compile_rule
        # Of look-ups only: no filter of a client names a fold column.
        indexes = tuple([Index(column, (column,), True) for column in self._folds.values()])
        self._compile_lookup = self.compile
        if indexes:
            whole = replace(entity, indexes=(*entity.indexes, *indexes))
            self._compile_lookup = PredicateCompiler(dialect, whole, CompiledCache()).compile

    def lookup(self, field: str, value: Scalar, allowed: Predicate) -> SqlClause:
        """Return the SELECT of the first row by id, among `allowed`, whose field has the value."""
        if field in self._folds:
            field, value = self._folds[field], fold_case(value)
        elif field in self._converted and isinstance(value, str):
            value = value_of_text(self._converted[field], value)
        where = self._compile_lookup(
            guarded(allowed, compare("=", Column(field), Literal(value))), looks_up=True
        )
        text = f"SELECT _json FROM {self.table} WHERE {where.sql}"
        if field not in self._unique:
            text += " ORDER BY id LIMIT 1"
        return SqlClause(text, where.params)

    def select(self, query: Query) -> SqlClause:
        """Return the SELECT of a query's rows, as `_j`."""
        dialect = self._dialect
        if query.relevance is None and query.after_id is None:
            return select_page(
                dialect, self.entity, _ROW, self.compile, query, query.limit, query.offset
            )
        where, order = query.where, order_by(dialect, query.order)
        if query.after_id is not None:
            where = and_(where, compare(">", Column("id"), Literal(query.after_id)))
        ordered: tuple[object, ...] = ()
        if query.relevance is not None:
            where = and_(query.relevance, where) if where is not FALSE else FALSE
            order, ordered = f"{RELEVANCE}, id", (match_expression(query.relevance),)
        clause = self.compile(where)
        columns = "_json AS _j"
        if query.relevance is not None:
            columns += f", {relevance_of('?')} AS {RELEVANCE}"
        return SqlClause(
            select_span(self.table, columns, clause.sql, order, "LIMIT ? OFFSET ?", False),
            (*ordered, *clause.params, query.limit, query.offset), clause.cost,
        )


@lru_cache(maxsize=limits.READ_RULES_KEPT)
def select_by_id(table: str, columns: str, condition: str | None = None) -> KeyStatement:
    """Return the SELECT of rows by their ids, of those that fulfil a condition.

    The server finds the rows of many ids first, in a subquery of their own: its planner must not
    take the index of another column, of which one value may have most of the rows. PERF: the server
    plans a statement again for each short array that it sees, for 30 us; it does not see into a
    SELECT of the parameter.

    Args:
        table: its quoted name.
        condition: with marks ``?``.
    """
    one = f"SELECT {columns} FROM {table} WHERE id = ?"
    found = f"FROM {table} WHERE id = ANY ((SELECT ?::text[])::text[])"
    if condition is None:
        return KeyStatement(numbered(one), numbered(f"SELECT id, {columns} {found}"))
    return KeyStatement(
        numbered(f"{one} AND ({condition})"),
        numbered(
            f"SELECT id, {columns} FROM (SELECT * {found} OFFSET 0) AS {table} WHERE {condition}"
        ),
    )


def bounded(select: SqlClause, row_bytes: int) -> tuple[str, tuple[object, ...]]:
    """Return a statement for the rows of a SELECT, in its order. A larger row is null.

    PERF: 1,000 rows of 300 bytes took 376 us in the worker and 808 us in the server; joined there
    to one text 533 and 808 us, and with their sizes added up as they come (`counted`) 707 and
    1,312 us.
    """
    text = (
        f"SELECT CASE WHEN octet_length(_j) <= ? THEN _j END FROM ({select.sql}) AS _p"
    )
    return numbered(text), (row_bytes, *select.params)


def counted(select: SqlClause, size_bytes: int) -> tuple[str, tuple[object, ...]]:
    """Return a statement for the rows of a SELECT, in its order, and the bytes up to each. A row
    behind `size_bytes` is null, unless it is the first one."""
    text = (
        "SELECT CASE WHEN _total <= ? OR _total = octet_length(_j) THEN _j END, _total FROM ("
        "SELECT _j, sum(octet_length(_j)) OVER (ROWS UNBOUNDED PRECEDING) AS _total "
        f"FROM ({select.sql}) AS _p) AS _q"
    )
    return numbered(text), (size_bytes, *select.params)
