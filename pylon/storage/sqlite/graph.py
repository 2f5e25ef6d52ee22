"""Graph queries in SQL: rows as JSON text with their related rows inside (spec/http.md §3.5).

A to-one relation is spliced into its row's text by the same statement, a look-up by primary key
for each row. A to-many relation is one statement for all rows of its level: the text has a hole
with the row's id where its array belongs, and the arrays come grouped by the id they are for.
So there are as many statements as entities and to-many relations in the query, whatever the
number of rows, and no row is decoded.

A row's text is ``{``, ``"relation":...,`` for each, and the row's own text without its ``{``:
to cut there costs a quarter more than not to cut at all, to put it right in Python one and a half
times as much (measured). A hole is GS, the include's number, ``:``, the id as JSON, GS; JSON has
this control character escaped only.

Invariants: a node's `where` (with the caller's read policy) stands in the one SELECT from the
node's table, whose columns it names without a prefix; names are from the manifest, values are
parameters. Called by `SqliteReader.graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import orjson

from pylon import limits
from pylon.errors import LimitExceeded
from pylon.query.graph import GraphInclude, GraphNode
from pylon.query.predicate import FALSE
from pylon.storage.sqlite.clause import SqlClause
from pylon.storage.sqlite.compiler import ALL
from pylon.storage.sqlite.names import quote

Fetch = Callable[[str, tuple[object, ...]], list[tuple[Any, ...]]]
Compile = Callable[[GraphNode, bool], SqlClause]  # a node's condition; whether other rows lead

_GS: Final = "\x1d"
_HOLE: Final = _GS.encode()
_NO_LIMIT: Final = 2**62


def order_by(order: Iterable[tuple[str, bool]], alias: str = "") -> str:
    """The terms of ORDER BY; ties go by id."""
    prefix = f"{alias}." if alias else ""
    terms = "".join(f"{prefix}{quote(f)} {'DESC' if desc else 'ASC'}, " for f, desc in order)
    return f"{terms}{prefix}id"


def is_one_statement(nodes: Sequence[GraphNode]) -> bool:
    """Whether the whole query is a single statement, hence of one commit by itself."""
    return len(nodes) == 1 and not any(_has_many(include) for include in nodes[0].includes)


def _has_many(include: GraphInclude) -> bool:
    return include.relation.many or any(_has_many(i) for i in include.node.includes)


def graph_json(fetch: Fetch, compile_node: Compile, nodes: Sequence[GraphNode]) -> bytes:
    """See `pylon.storage.interface.Reader.graph`.

    Args:
        fetch: runs a statement and gives all its rows.
        compile_node: gives the SQL of a node's condition; an included node is led by the rows
            that it belongs to.
    """
    return _Graph(fetch, compile_node).answer(nodes)


class _Graph:
    """One query: the rows it may still read, and the holes of the texts so far."""

    __slots__ = ("_aliases", "_bytes_left", "_compile", "_fetch", "_holes", "_rows_left")

    def __init__(self, fetch: Fetch, compile_node: Compile) -> None:
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
        """The rows of an entity of the query itself."""
        if node.where is FALSE:
            return b""
        where = self._compile(node, False)
        alias = self._alias()
        params: list[object] = []
        table, row = quote(node.entity.name), self._row(node, alias, params)
        limited = (*where.params, *self._span(node))
        if node.order:
            # Sorted by id alone: a sorter keeps whatever is selected, for all rows there are.
            sorted_ids = self._alias()
            source = (
                f"(SELECT id AS _id FROM {table} WHERE {where.sql} "
                f"ORDER BY {order_by(node.order)} LIMIT ? OFFSET ?) AS {sorted_ids} "
                f"CROSS JOIN {table} AS {alias} ON {alias}.id = {sorted_ids}._id"
            )
        else:
            source = (
                f"{table} AS {alias} WHERE {where.sql} ORDER BY {alias}.id LIMIT ? OFFSET ?"
            )
        ((count, text),) = self._fetch(
            f"SELECT count(*), CAST(group_concat(_j) AS BLOB) FROM (SELECT {row} AS _j "
            f"FROM {source})", (*params, *limited),
        )
        self._take(count)
        return text or b""

    def _arrays(self, include: GraphInclude, ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """The rows of a to-many relation for each of these rows that has any.

        Args:
            ids: of the rows that they belong to, as JSON.
        """
        node = include.node
        where = self._compile(node, True)
        alias, chosen = self._alias(), self._alias()
        params: list[object] = []
        table, row = quote(node.entity.name), self._row(node, alias, params)
        field = quote(include.relation.field)
        first, count, offset = self._rows_left + 1, node.limit, node.offset
        last = _NO_LIMIT if count is None else offset + count
        found = self._fetch(
            f"SELECT json_quote({chosen}._k), CAST(group_concat({row}, ',' "
            f"ORDER BY {chosen}._n) AS BLOB), count(*) FROM (SELECT _k, _id, _n FROM ("
            f"SELECT {field} AS _k, id AS _id, row_number() OVER (PARTITION BY {field} "
            f"ORDER BY {order_by(node.order)}) AS _n FROM {table} WHERE {field} IN "
            f"(SELECT value FROM json_each(?)) AND ({where.sql})"
            f") WHERE _n > ? AND _n <= ? LIMIT ?) AS {chosen} "
            f"CROSS JOIN {table} AS {alias} ON {alias}.id = {chosen}._id GROUP BY {chosen}._k",
            (*params, (b"[" + b",".join(ids) + b"]").decode(), *where.params,
             offset, last, first),
        )
        for _, _, rows in found:
            self._take(rows)
        texts = self._filled([text for _, text, _ in found])
        return {key.encode(): text for (key, _, _), text in zip(found, texts, strict=True)}

    def _row(self, node: GraphNode, alias: str, params: list[object]) -> str:
        """SQL for a row's text. Its parameters are added to `params`."""
        names = {include.relation.name for include in node.includes}
        own = f"{alias}._json"
        for name in sorted(names & set(node.entity.columns)):  # the relation takes its place
            own = f"json_remove({own}, {_literal('$.' + orjson.dumps(name).decode())})"
        if not node.includes:
            return own
        parts = [_literal("{")]
        for include in node.includes:
            parts += self._member(include, alias, params)
        return " || ".join([*parts, f"substr({own}, 2)"])

    def _member(self, include: GraphInclude, alias: str, params: list[object]) -> list[str]:
        """SQL for ``"relation":...,``, in parts."""
        key = f"{orjson.dumps(include.relation.name).decode()}:"
        node = include.node
        is_empty = node.where is FALSE or node.limit == 0
        if include.relation.many:
            if is_empty:
                return [_literal(f"{key}[],")]
            self._holes.append(include)
            mark = f"{key}{_GS}{len(self._holes) - 1}:"
            return [_literal(mark), f"json_quote({alias}.id)", _literal(f"{_GS},")]
        if is_empty:
            return []
        target = self._alias()
        row = self._row(node, target, params)
        where = self._compile(node, True)
        params += where.params
        condition = "" if where is ALL else f" AND ({where.sql})"
        return [
            f"ifnull({_literal(key)} || (SELECT {row} FROM {quote(node.entity.name)} AS {target} "
            f"WHERE {target}.id = {alias}.{quote(include.relation.field)}{condition}) || ',', '')"
        ]

    def _filled(self, texts: list[bytes]) -> list[bytes]:
        """The texts as JSON, their holes filled."""
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
                # The row of a to-one relation is there again and again, each time with its own
                # rows: what they come to is known before they are joined.
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
        """LIMIT and OFFSET: one row more than may be read shows that there are too many."""
        most = self._rows_left + 1
        return (most if node.limit is None else min(node.limit, most)), node.offset

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


def _literal(text: str) -> str:
    """A SQL literal of a text of ours or from the manifest."""
    return "'" + text.replace("'", "''") + "'"
