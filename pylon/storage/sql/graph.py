"""Graph queries: builds the JSON text of rows with their related rows inside (spec/http.md §3.5).

The statement of a row also inserts its to-one relations into the text, with a look-up by primary
key for each row. A to-many relation is one statement for all rows of its level. A row's text has a
placeholder with the row's id in the place of the array, and the statement groups the arrays by that
id. So a query has one statement for each entity and each to-many relation, whatever the number of
rows, and decodes no row.

A row's text is ``{``, ``"relation":...,`` for each relation, and the row's own text without its
``{``. PERF: cutting the text in SQL costs 25 % more than not cutting it; correcting it in Python
costs 1.5 times as much. A placeholder is GS, the include's number, ``:``, the id as JSON, GS. JSON
always escapes this control character.

Invariants: a node's `where`, which includes the caller's read policy, is in the only SELECT from
the node's table, and names its columns without a prefix. Names come from the manifest; values are
parameters. Called by the readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import orjson
from msgspec.structs import replace

from pylon import limits
from pylon.errors import LimitExceeded
from pylon.query.graph import GraphInclude, GraphNode
from pylon.query.predicate import FALSE
from pylon.storage.core.names import quote
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.page_sql import PageColumn, order_by, select_page
from pylon.storage.sql.predicate_sql import Dialect

Fetch = Callable[[str, tuple[object, ...]], Sequence[Sequence[Any]]]
# Compiles a node's condition; the flag: whether the store finds its rows through other rows.
Compile = Callable[[GraphNode, bool], SqlClause]

_GS: Final = "\x1d"
_HOLE: Final = _GS.encode()
_NO_LIMIT: Final = 2**62


class GraphDialect(msgspec.Struct, frozen=True, eq=False):
    """The SQL that a store writes in its own way; the others are of `base`.

    `rows` selects the number and the joined texts of all rows, from the SQL of a row's text and of
    their source. `sorted_rows` is the source of the rows whose ids a SELECT has, in its order.
    `arrays` selects the id as JSON, the joined texts and their number, for each `_k` of a SELECT of
    `_k`, `_id` and the place `_n`. `among` is the condition that a column has one of some ids, and
    `ids` the parameter for it, from ids as JSON. `id_json` writes a column's text as JSON, and
    `without` removes a member from a row's text.
    """

    base: Dialect
    rows: Callable[[str, str], str]
    sorted_rows: Callable[[str, str, str, str], str]
    arrays: Callable[[str, str, str, str, str], str]
    among: str
    ids: Callable[[Iterable[bytes]], object]
    id_json: str
    without: Callable[[str, str], str]


def is_one_statement(nodes: Sequence[GraphNode]) -> bool:
    """Whether the whole query is a single statement, and so reads one commit by itself."""
    return len(nodes) == 1 and not any(_has_many(include) for include in nodes[0].includes)


def _has_many(include: GraphInclude) -> bool:
    return include.relation.many or any(_has_many(i) for i in include.node.includes)


def graph_json(
    dialect: GraphDialect, fetch: Fetch, compile_node: Compile, nodes: Sequence[GraphNode]
) -> bytes:
    """See `pylon.storage.interface.Reader.graph`.

    Args:
        fetch: runs a statement and gives all its rows; texts as bytes.
        compile_node: gives the SQL of a node's condition; an included node is led by the rows
            that it belongs to.
    """
    return _Graph(dialect, fetch, compile_node).answer(nodes)


class _Graph:
    """One query: the number of rows it may still read, and the placeholders so far."""

    __slots__ = (
        "_aliases", "_bytes_left", "_compile", "_dialect", "_fetch", "_holes", "_rows_left",
    )

    def __init__(self, dialect: GraphDialect, fetch: Fetch, compile_node: Compile) -> None:
        self._dialect = dialect
        self._fetch = fetch
        self._compile = compile_node
        self._holes: list[GraphInclude] = []
        self._aliases = 0
        self._rows_left = limits.GRAPH_ROWS
        self._bytes_left = limits.GRAPH_BYTES

    def answer(self, nodes: Sequence[GraphNode]) -> bytes:
        members = []
        for node in sorted(nodes, key=lambda n: n.entity.name):
            (rows,) = self._filled([self._rows(node)])
            members.append(b"%b:[%b]" % (orjson.dumps(node.entity.name), rows))
        return b"{%b}" % b",".join(members)

    def _rows(self, node: GraphNode) -> bytes:
        """Return the rows of a top-level entity of the query."""
        if node.where is FALSE:
            return b""
        alias = self._alias()
        params: list[object] = []
        table, row = quote(node.entity.name), self._row(node, alias, params)
        limited: tuple[object, ...]
        if node.order or node.position is not None:
            # Sort ids only: a sorter stores every selected column of all rows.
            sorted_ids = self._alias()
            limit, offset = self._span(node)
            ids = select_page(
                self._dialect.base, node.entity, PageColumn("id", "_id"),
                lambda where: self._compile(replace(node, where=where), False),
                node, limit, offset,
            )
            limited = ids.params
            source = self._dialect.sorted_rows(ids.sql, sorted_ids, table, alias)
        else:
            where = self._compile(node, False)
            limited = (*where.params, *self._span(node))
            source = (
                f"{table} AS {alias} WHERE {where.sql} ORDER BY {alias}.id LIMIT ? OFFSET ?"
            )
        ((count, text),) = self._fetch(self._dialect.rows(row, source), (*params, *limited))
        self._take(int(count))
        return text or b""

    def _arrays(self, include: GraphInclude, ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the array of a to-many relation by id, for each row that has related rows.

        Args:
            ids: the ids of the rows, as JSON.
        """
        node = include.node
        where = self._compile(node, True)
        alias, chosen = self._alias(), self._alias()
        params: list[object] = []
        table, row = quote(node.entity.name), self._row(node, alias, params)
        field = quote(include.relation.field)
        first, count, offset = self._rows_left + 1, node.limit, node.offset
        last = _NO_LIMIT if count is None else offset + count
        dialect = self._dialect
        order = order_by(dialect.base, node.order)
        places = (
            f"SELECT _k, _id, _n FROM ("
            f"SELECT {field} AS _k, id AS _id, row_number() OVER (PARTITION BY {field} "
            f"ORDER BY {order}) AS _n FROM {table} WHERE {field} {dialect.among} "
            f"AND ({where.sql})){dialect.base.alias} WHERE _n > ? AND _n <= ? LIMIT ?"
        )
        found = self._fetch(
            dialect.arrays(places, chosen, row, table, alias),
            (*params, dialect.ids(ids), *where.params, offset, last, first),
        )
        for _, _, rows in found:
            self._take(int(rows))
        texts = self._filled([text for _, text, _ in found])
        return {key: text for (key, _, _), text in zip(found, texts, strict=True)}

    def _row(self, node: GraphNode, alias: str, params: list[object]) -> str:
        """Return the SQL of a row's text. Adds its parameters to `params`."""
        names = {include.relation.name for include in node.includes}
        own = f"{alias}._json"
        for name in sorted(names & set(node.entity.columns)):  # the relation takes its place
            own = self._dialect.without(own, name)
        if not node.includes:
            return own
        parts = [literal("{")]
        for include in node.includes:
            parts += self._member(include, alias, params)
        return " || ".join([*parts, f"substr({own}, 2)"])

    def _member(self, include: GraphInclude, alias: str, params: list[object]) -> list[str]:
        """Return the SQL of ``"relation":...,``, in parts."""
        key = f"{orjson.dumps(include.relation.name).decode()}:"
        node = include.node
        is_empty = node.where is FALSE or node.limit == 0
        if include.relation.many:
            if is_empty:
                return [literal(f"{key}[],")]
            self._holes.append(include)
            mark = f"{key}{_GS}{len(self._holes) - 1}:"
            shown = self._dialect.id_json.format(f"{alias}.id")
            return [literal(mark), shown, literal(f"{_GS},")]
        if is_empty:
            return []
        target = self._alias()
        row = self._row(node, target, params)
        where = self._compile(node, True)
        params += where.params
        condition = "" if where is self._dialect.base.true else f" AND ({where.sql})"
        return [
            f"coalesce({literal(key)} || (SELECT {row} FROM {quote(node.entity.name)} AS {target} "
            f"WHERE {target}.id = {alias}.{quote(include.relation.field)}{condition}) || ',', '')"
        ]

    def _filled(self, texts: list[bytes]) -> list[bytes]:
        """Return the texts joined as JSON, with their placeholders replaced."""
        if not any(_HOLE in text for text in texts):
            return texts
        pieces = [text.split(_HOLE) for text in texts]
        wanted: dict[int, dict[bytes, None]] = {}
        for parts in pieces:
            for hole in parts[1::2]:
                number, _, row_id = hole.partition(b":")
                wanted.setdefault(int(number), {})[row_id] = None
        arrays = {n: self._arrays(self._holes[n], row_ids) for n, row_ids in wanted.items()}
        for parts in pieces:
            for place in range(1, len(parts), 2):
                number, _, row_id = parts[place].partition(b":")
                # The row of a to-one relation may occur many times, each time with its own rows.
                # So the total size is computed before the texts are joined.
                array = arrays[int(number)].get(row_id, b"")
                self._bytes_left -= len(array)
                if self._bytes_left < 0:
                    raise LimitExceeded(
                        f"A graph query answers {limits.GRAPH_BYTES} bytes of included rows at "
                        "most, counted on each level that they are on",
                        hint="ask for fewer with where and limit, on includes as well",
                    )
                parts[place] = b"[%b]" % array
        return [b"".join(parts) for parts in pieces]

    def _span(self, node: GraphNode) -> tuple[int, int]:
        """Return LIMIT and OFFSET. The limit has one extra row, to detect too many rows."""
        max_rows = self._rows_left + 1
        return (max_rows if node.limit is None else min(node.limit, max_rows)), node.offset

    def _take(self, rows: int) -> None:
        self._rows_left -= rows
        if self._rows_left < 0:
            raise LimitExceeded(
                f"A graph query answers {limits.GRAPH_ROWS} rows at most, included ones counted",
                hint="ask for fewer with where and limit, on includes as well",
            )

    def _alias(self) -> str:
        self._aliases += 1
        return f"_g{self._aliases}"


def literal(text: str) -> str:
    """Return a text of Pylon or of the manifest as SQL."""
    return "'" + text.replace("'", "''") + "'"
