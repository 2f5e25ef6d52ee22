"""Dialect of SQLite: what its SQL has in its own way (`pylon.storage.sql.predicate_sql.Dialect`).

SQLite compares numbers of both kinds exactly, so values go into the SQL as they are; a boolean is 0
or 1. A list of values is one parameter, a JSON text.

Called by `reads`, `transaction` and `graph` for their compilers. PERF: the walk of a usual
comparison has no further calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from pylon.query.predicate import (
    Affix,
    Arithmetic,
    Column,
    Compare,
    CompareTuple,
    Element,
    HasMember,
    InValues,
    Like,
    Literal,
    Match,
    Value,
)
from pylon.storage.core.names import quote
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.predicate_sql import (
    Dialect,
    PredicateWriter,
    Sql,
    complete_writes,
    join,
)
from pylon.storage.sql.shapes import Params, Shape, complete_walks
from pylon.storage.sqlite.functions import ELEMENT, HAS_MEMBER
from pylon.storage.sqlite.patterns import like_parts, like_text
from pylon.storage.sqlite.schema.ddl import where_text
from pylon.storage.sqlite.search import match_condition, match_expression

ALL: Final = SqlClause("1")
NOTHING: Final = SqlClause("0")

# --- Walks: see `pylon.storage.sql.shapes` ------------------------------------------------------


def _walk_compare(node: Compare, shape: Shape, params: Params) -> None:
    left, right = node.left, node.right
    if type(left) is Column and type(right) is Literal:
        value = right.value
        shape += (node.sign, left.field)
        params.append(int(value) if value is True or value is False else value)
        return
    shape += ("compare", node.sign)
    _WALKS[type(left)](left, shape, params)
    _WALKS[type(right)](right, shape, params)


def _walk_compare_tuple(node: CompareTuple, shape: Shape, params: Params) -> None:
    if node.values == (None,):
        shape += ("above null", node.fields)
        return
    shape += ("tuple", node.is_below, node.fields)
    params += [int(value) if isinstance(value, bool) else value for value in node.values]


def _walk_in_values(node: InValues, shape: Shape, params: Params) -> None:
    shape += ("in", node.field, node.has_null, node.is_negated)
    params.append(orjson.dumps(node.values).decode())


def _walk_bytes(node: Affix, shape: Shape, params: Params) -> None:
    text, part = node.text, node.affix
    if type(text) is Literal:
        shape.append("bytes")
        params.append(str(text.value).encode())
    else:
        _WALKS[type(text)](text, shape, params)
    if type(part) is Literal:
        encoded = str(part.value).encode()
        shape.append("bytes")
        params += (encoded, len(encoded))
    else:
        _WALKS[type(part)](part, shape, params)


def _walk_has_member(node: HasMember, shape: Shape, params: Params) -> None:
    shape += ("has member", node.field)
    params += (_path_text(node.path), orjson.dumps(node.member).decode())


def _walk_literal(node: Literal, shape: Shape, params: Params) -> None:
    shape.append("value")
    params.append(int(node.value) if isinstance(node.value, bool) else node.value)


def _walk_element(node: Element, shape: Shape, params: Params) -> None:
    shape += ("element", node.field)
    params += (_path_text(node.path), node.kind)


def _path_text(path: tuple[str, ...]) -> str:
    return orjson.dumps(path).decode()


_WALKS: Final = complete_walks({
    Compare: _walk_compare, CompareTuple: _walk_compare_tuple, InValues: _walk_in_values,
    HasMember: _walk_has_member, Literal: _walk_literal, Element: _walk_element,
}, like_parts, match_expression, _walk_bytes)

# --- SQL ----------------------------------------------------------------------------------------


def _write_compare_tuple(writer: PredicateWriter, node: CompareTuple) -> Sql:
    """`unlikely` makes the planner prefer the index: it takes IS NOT NULL for true of most rows,
    and would sort them all.
    """
    if node.values == (None,):
        return Sql(f"unlikely({quote(node.fields[0])} IS NOT NULL)")
    return writer.tuple_compared(node, [writer.param() for _ in node.values])


def _write_in_values(writer: PredicateWriter, node: InValues) -> Sql:
    """Return the SQL of a list of values, with one parameter for the whole list."""
    column = writer.column(node.field)
    word = "NOT IN" if node.is_negated else "IN"
    writer.note_list(node)
    sql = join(f"{column} {word} (SELECT value FROM json_each(", writer.param(), "))")
    return join("(", sql, f" OR {column} IS NULL)") if node.has_null else sql


def _write_affix(writer: PredicateWriter, node: Affix) -> Sql:
    """Compare bytes: SQLite's text functions stop at NUL, and UTF-8 can be compared as bytes.

    SQLite has no empty part of an empty blob: substr() gives NULL for it.
    """
    prefixed = writer.prefixed(node)
    if prefixed is not None:
        return prefixed
    text, part = node.text, node.affix
    is_present: tuple[Sql | str, ...] = ()
    if type(text) is Literal:
        whole = writer.param()
    else:
        value = writer.value(text)
        whole, is_present = _blob(value), (value, " IS NOT NULL AND ")
    if type(part) is Literal:
        ending, size = writer.param(), writer.param()
    else:
        ending = _blob(writer.value(part))
        size = join("length(", ending, ")")
    if node.at_end:
        rest = ("length(", whole, ") - ", size)
        same = join("substr(", whole, ", ", *rest, " + 1) = ", ending)
        same = join("(", *rest, " >= 0 AND ", same, ")")
    else:
        same = join("substr(", whole, ", 1, ", size, ") = ", ending)
    if type(part) is Literal:  # never empty
        return same
    return join("(", *is_present, size, " = 0 OR ", same, ")")


def _write_like(writer: PredicateWriter, node: Like) -> Sql:
    return Sql(
        like_text(like_parts(node)[0], writer.column(node.field)), writer.param().params
    )


def _write_has_member(writer: PredicateWriter, node: HasMember) -> Sql:
    column = quote(node.field)
    return join(f"{HAS_MEMBER}({column}, ", writer.param(), ", ", writer.param(), ")")


def _write_match(writer: PredicateWriter, _: Match) -> Sql:
    return Sql(match_condition(writer.entity), writer.param().params)


def _write_literal(writer: PredicateWriter, _: Literal) -> Sql:
    return writer.param()


def _write_element(writer: PredicateWriter, node: Element) -> Sql:
    column = quote(node.field)
    return join(f"{ELEMENT}({column}, ", writer.param(), ", ", writer.param(), ")")


def _write_arithmetic(writer: PredicateWriter, node: Arithmetic) -> Sql:
    kind = "INTEGER" if node.op == "%" else "REAL"
    left = join("CAST(", writer.value(node.left), f" AS {kind})")
    right = join("CAST(", writer.value(node.right), f" AS {kind})")
    return join("(", left, f" {node.op} ", right, ")")


def _equal_any(
    column: str, values: Sequence[tuple[Value, Sql]], lists: Sequence[tuple[InValues, Sql]]
) -> Sql:
    numbers = (*[sql.params[0] for _, sql in lists], *[sql.params[0] for _, sql in values])
    if not lists:
        return Sql(f"{column} IN ({', '.join('?' * len(values))})", numbers)
    selects = ["SELECT value FROM json_each(?)"] * len(lists) + ["SELECT ?"] * len(values)
    return Sql(f"{column} IN ({' UNION '.join(selects)})", numbers)


def _blob(value: Sql) -> Sql:
    return join("CAST(", value, " AS BLOB)")


SQLITE: Final = Dialect(
    walks=_WALKS,
    writes=complete_writes({
        Compare: PredicateWriter.compared, CompareTuple: _write_compare_tuple,
        InValues: _write_in_values, Affix: _write_affix, Like: _write_like,
        HasMember: _write_has_member, Match: _write_match, Literal: _write_literal,
        Element: _write_element, Arithmetic: _write_arithmetic,
    }),
    true=ALL, false=NOTHING, alias="", as_text="", ascending="", descending=" DESC",
    leads_by_lists=True,
    equal_any=_equal_any, where_text=where_text,
)
