"""Dialect of PostgreSQL: what its SQL has in its own way (see `pylon.storage.sql.predicate_sql`).

`operands` has brought the values into the types of their columns before. A literal beside a column
is a parameter whose type the server infers; everywhere else it has its type with it. A list of
values is one array. Marks are ``?``; `numbered` makes them ``$1``, ``$2``, ….

Called by `reads` for its compilers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from pylon.manifest.model import Entity, Manifest
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
    Predicate,
    Value,
)
from pylon.storage.core.names import quote
from pylon.storage.postgres.comparisons import Number, SqlType, exact_digits
from pylon.storage.postgres.functions import (
    ARITHMETIC,
    ELEMENT_OF_KIND,
    EXACT,
    HAS_MEMBER,
    REMAINDER,
    WHOLE,
)
from pylon.storage.postgres.operands import Converted, Operands
from pylon.storage.postgres.patterns import count_marks, like_parts, like_text
from pylon.storage.postgres.schema.ddl import where_text
from pylon.storage.postgres.search import match_condition, match_expression
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.predicate_sql import (
    Dialect,
    PredicateWriter,
    Sql,
    complete_writes,
    join,
)
from pylon.storage.sql.shapes import Params, Shape, complete_walks

ALL: Final = SqlClause("TRUE")
NOTHING: Final = SqlClause("FALSE")
_TYPE_NAMES: Final[dict[type, str]] = {
    str: "text", bool: "boolean", int: "bigint", float: "double precision",
}
_MARKS: Final = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\?""")
_CONVERSIONS: Final[dict[tuple[SqlType, SqlType], tuple[str, str]]] = {
    ("bigint", "double precision"): ("(", ")::double precision"),
    ("bigint", "numeric"): ("(", ")::numeric"),
    ("double precision", "numeric"): (f"{EXACT}(", ")"),
    ("double precision", "bigint"): (f"{WHOLE}(", ")"),
}


@lru_cache(maxsize=2_048)  # PERF: 0.1 us in place of 12 for a page of three conditions
def numbered(text: str) -> str:
    """Return a statement with ``$1``, ``$2``, … in place of its marks."""
    count = 0

    def number(found: re.Match[str]) -> str:
        nonlocal count
        if found[0] != "?":
            return found[0]
        count += 1
        return f"${count}"

    return _MARKS.sub(number, text)


# --- Walks: see `pylon.storage.sql.shapes` ------------------------------------------------------


def _walk_compare(node: Compare, shape: Shape, params: Params) -> None:
    left, right = node.left, node.right
    if type(left) is Column and type(right) is Literal:
        shape += (node.sign, left.field)
        params.append(right.value)
        return
    shape += ("compare", node.sign)
    _WALKS[type(left)](left, shape, params)
    _WALKS[type(right)](right, shape, params)


def _walk_compare_tuple(node: CompareTuple, shape: Shape, params: Params) -> None:
    if node.values == (None,):
        shape += ("above null", node.fields)
        return
    shape += ("tuple", node.is_below, node.fields)
    params += node.values


def _walk_in_values(node: InValues, shape: Shape, params: Params) -> None:
    shape += ("in", node.field, node.has_null, node.is_negated)
    params.append(node.values)


def _walk_has_member(node: HasMember, shape: Shape, params: Params) -> None:
    shape += ("has member", node.field, type(node.member))
    params += (node.path, _member_of(node))


def _member_of(node: HasMember) -> object:
    if isinstance(node.member, (str, bool)):
        return node.member
    return exact_digits(node.member)


def _walk_literal(node: Literal, shape: Shape, params: Params) -> None:
    shape += ("value", type(node.value))
    params.append(node.value)


def _walk_number(node: Number, shape: Shape, params: Params) -> None:
    shape.append("number")
    params.append(node.digits)


def _walk_converted(node: Converted, shape: Shape, params: Params) -> None:
    shape += ("converted", node.source, node.target)
    _WALKS[type(node.operand)](node.operand, shape, params)


def _walk_element(node: Element, shape: Shape, params: Params) -> None:
    shape += ("element", node.field, node.kind)
    params.append(node.path)


_WALKS: Final = complete_walks({
    Compare: _walk_compare, CompareTuple: _walk_compare_tuple, InValues: _walk_in_values,
    HasMember: _walk_has_member, Literal: _walk_literal, Element: _walk_element,
    Number: _walk_number, Converted: _walk_converted,
}, like_parts, match_expression)

# --- SQL ----------------------------------------------------------------------------------------


def _write_compare(writer: PredicateWriter, node: Compare) -> Sql:
    if type(node.left) is Column and type(node.right) is Literal:
        return join(f"{writer.column(node.left.field)} {node.sign} ", writer.param())
    return writer.compared(node)


def _write_compare_tuple(writer: PredicateWriter, node: CompareTuple) -> Sql:
    if node.values == (None,):
        return Sql(f"{quote(node.fields[0])} IS NOT NULL")
    return writer.tuple_compared(node, [writer.param() for _ in node.values])


def _write_in_values(writer: PredicateWriter, node: InValues) -> Sql:
    """PERF: the server keeps planning for the list at hand, and hashes it: 2,000 texts and a table
    of 100,000 rows without an index take 25 ms.
    """
    column = writer.column(node.field)
    words = "<> ALL (" if node.is_negated else "= ANY ("
    sql = join(f"{column} {words}", writer.param(), ")")
    return join("(", sql, f" OR {column} IS NULL)") if node.has_null else sql


def _write_affix(writer: PredicateWriter, node: Affix) -> Sql:
    prefixed = writer.prefixed(node)
    if prefixed is not None:
        return prefixed
    whole, ending = writer.value(node.text), writer.value(node.affix)
    if node.at_end:
        return join("right(", whole, ", length(", ending, ")) = ", ending)
    return join("left(", whole, ", length(", ending, ")) = ", ending)


def _write_like(writer: PredicateWriter, node: Like) -> Sql:
    form, mark = like_parts(node)[0], writer.param()
    text = like_text(form, writer.column(node.field), mark.text)
    return Sql(text, mark.params * count_marks(form))


def _write_has_member(writer: PredicateWriter, node: HasMember) -> Sql:
    kind = _TYPE_NAMES[type(node.member)]
    kind = kind if kind in HAS_MEMBER else "numeric"
    path, member = writer.param("?::text[]"), writer.param(f"?::{kind}")
    return join(f"{HAS_MEMBER[kind]}({quote(node.field)}, ", path, ", ", member, ")")


def _write_match(writer: PredicateWriter, _: Match) -> Sql:
    mark = writer.param()
    return Sql(match_condition(mark.text), mark.params)


def _write_literal(writer: PredicateWriter, node: Literal) -> Sql:
    if isinstance(node.value, str):
        return writer.param('?::text COLLATE "C"')
    return writer.param(f"?::{_TYPE_NAMES[type(node.value)]}")


def _write_number(writer: PredicateWriter, _: Number) -> Sql:
    return writer.param("?::numeric")


def _write_converted(writer: PredicateWriter, node: Converted) -> Sql:
    before, behind = _CONVERSIONS[node.source, node.target]
    return join(before, writer.value(node.operand), behind)


def _write_element(writer: PredicateWriter, node: Element) -> Sql:
    function = ELEMENT_OF_KIND[node.kind]
    element = join(f"{function}({quote(node.field)}, ", writer.param("?::text[]"), ")")
    return join(element, ' COLLATE "C"') if node.kind == "text" else element


def _write_arithmetic(writer: PredicateWriter, node: Arithmetic) -> Sql:
    function = REMAINDER if node.op == "%" else ARITHMETIC[node.op]
    return join(f"{function}(", writer.value(node.left), ", ", writer.value(node.right), ")")


def _equal_any(
    column: str, values: Sequence[tuple[Value, Sql]], lists: Sequence[tuple[InValues, Sql]]
) -> Sql:
    first: Any = lists[0][0].values[0] if lists else values[0][0]
    kind = _TYPE_NAMES[type(first.value if isinstance(first, Literal) else first)]
    numbers = (*[sql.params[0] for _, sql in lists], *[sql.params[0] for _, sql in values])
    arrays = [f"?::{kind}[]"] * len(lists)
    if values:
        arrays.append(f"ARRAY[{', '.join('?' * len(values))}]::{kind}[]")
    return Sql(f"{column} = ANY ({' || '.join(arrays)})", numbers)


def dialect_of(manifest: Manifest) -> Dialect:
    """Return the dialect for the entities of a manifest: it fits operands to their types."""
    fit: Callable[[Entity, Predicate], Predicate] = Operands(manifest).fit
    return Dialect(
        walks=_WALKS,
        writes=complete_writes({
            Compare: _write_compare, CompareTuple: _write_compare_tuple,
            InValues: _write_in_values, Affix: _write_affix, Like: _write_like,
            HasMember: _write_has_member, Match: _write_match, Literal: _write_literal,
            Element: _write_element, Arithmetic: _write_arithmetic, Number: _write_number,
            Converted: _write_converted,
        }),
        true=ALL, false=NOTHING, alias=" AS _s", as_text="::text", ascending=" NULLS FIRST",
        descending=" DESC NULLS LAST", leads_by_lists=False, equal_any=_equal_any,
        where_text=where_text, fit=fit,
    )
