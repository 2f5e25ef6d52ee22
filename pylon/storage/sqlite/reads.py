"""Entity reads: the SQL texts of an entity's reads, made once or for one query.

They select rows as the JSON texts stored beside their columns. Called by `reader`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from pylon.manifest.model import Entity, Index
from pylon.query.conditions import guarded
from pylon.query.operands import CONVERTED, value_of_text
from pylon.query.predicate import TRUE, Column, Compare, Literal, Predicate, Scalar
from pylon.query.rows import Query
from pylon.schema.columns import fold_column, fold_fields
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.compiler import CompiledCache, PredicateCompiler
from pylon.storage.sql.page_sql import PageColumn, order_by, select_page, select_span
from pylon.storage.sqlite.dialect import SQLITE
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.search import RELEVANCE, match_expression, relevant
from pylon.values import fold_case
from pylon.values.types import row_value_of

_ROW: Final = PageColumn("_json", "_j")


class EntityReads:
    """The fixed SQL texts of one entity: `get` and `get_version` by id, `has_row` by a condition.
    `compile` compiles a condition on its rows, `compile_rule` a read policy."""

    __slots__ = (
        "_compile_lookup", "_converted", "_folds", "_lookups", "compile", "compile_rule",
        "converters", "entity", "get", "get_version", "has_row", "table",
    )

    def __init__(self, entity: Entity, cache: CompiledCache) -> None:
        self.entity = entity
        self.table = quote(entity.name)
        self.get = f"SELECT CAST(_json AS BLOB) FROM {self.table} WHERE id = ?"
        self.get_version = (
            f"SELECT CAST(_json AS BLOB), _seq FROM {self.table} WHERE id = ?"
        )
        self.has_row = f"SELECT EXISTS (SELECT 1 FROM {self.table} WHERE "
        # An id is unique. Several rows may share a value of another field: take the first by id.
        self._lookups = {
            name: f"SELECT CAST(_json AS BLOB) FROM {self.table} WHERE {quote(name)} = ? "
            "ORDER BY id LIMIT 1"
            for name in (*entity.columns, *map(fold_column, fold_fields(entity)))
        }
        self._folds = {field.name: fold_column(field) for field in fold_fields(entity)}
        self.converters = {
            f.name: convert for f in entity.fields if (convert := row_value_of(f)) is not None
        }
        self._converted = {f.name: f for f in entity.fields if f.type in CONVERTED}
        compiler = PredicateCompiler(SQLITE, entity, cache)
        self.compile = compiler.compile
        self.compile_rule = compiler.compile_rule
        # Of look-ups only: no filter of a client names a fold column.
        indexes = [Index(column, (column,), True) for column in self._folds.values()]
        self._compile_lookup = self.compile if not indexes else PredicateCompiler(
            SQLITE, replace(entity, indexes=(*entity.indexes, *indexes)), CompiledCache()
        ).compile

    def lookup(self, field: str, value: Scalar, allowed: Predicate) -> SqlClause:
        """Return the SELECT of the first row by id, among `allowed`, whose field has the value."""
        if field in self._folds:
            field, value = self._folds[field], fold_case(value)
        elif field in self._converted and isinstance(value, str):
            value = value_of_text(self._converted[field], value)
        if allowed is TRUE:
            return SqlClause(self._lookups[field], (value,))
        same = Compare("=", Column(field), Literal(value))
        where = self._compile_lookup(guarded(allowed, same))
        text = f"SELECT CAST(_json AS BLOB) FROM {self.table} WHERE {where.sql} ORDER BY id LIMIT 1"
        return SqlClause(text, where.params)


def selection(reads: EntityReads, query: Query, looks_up: bool = False) -> SqlClause:
    """Return the SELECT of a query's rows, as `_j`.

    Args:
        looks_up: see `predicate_sql.write_predicate`.
    """
    if query.relevance is None and query.after_id is None:
        compile_where = partial(reads.compile, looks_up=True) if looks_up else reads.compile
        return select_page(
            SQLITE, reads.entity, _ROW, compile_where, query, query.limit, query.offset
        )
    clause = reads.compile(query.where, query.relevance is not None, looks_up)
    source, order = reads.table, order_by(SQLITE, query.order)
    where, params = clause.sql, clause.params
    if query.after_id is not None:
        where = f"({where}) AND id > ?"
        params = (*params, query.after_id)
    sorts_ids = clause.has_list
    if query.relevance is not None:
        source, order, sorts_ids = relevant(reads.entity), f"{RELEVANCE}, id", False
        params = (match_expression(query.relevance), *params)
    text = select_span(source, "_json AS _j", where, order, "LIMIT ? OFFSET ?", sorts_ids)
    return SqlClause(text, (*params, query.limit, query.offset), clause.cost, clause.has_list)
