"""SQLite reader: implements `pylon.storage.interface.Reader` on one read-only connection.

It returns rows as their stored JSON. SQLite joins the rows of a list with a separator that no JSON
text contains, and the reader splits them again. PERF: that takes as long as fetching single rows
(265 us for 1,000 rows; 305 us as text with encode). But it is one step of SQLite in place of 1,000,
so a scanning thread takes the interpreter lock once, not for each row. CAST AS BLOB returns bytes
as fast as text, and saves the encoding. For `page`, SQLite joins the rows with commas, and the
reader does not split them.

`Statements` limits the time of each statement. Within a group (`within`) the reader runs no
full-text match, and no pattern on texts that may be long.

Invariant: one thread at a time uses a reader, except for `interrupt_late`. Made by `backend` and
`pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
from msgspec.structs import replace

from pylon import limits
from pylon.clock import Clock, SystemClock
from pylon.errors import EntityNotFound, LimitExceeded, QueryTimeout
from pylon.manifest.model import Manifest
from pylon.query.aggregate import Aggregate
from pylon.query.graph import GraphNode
from pylon.query.patterns import Meter
from pylon.query.predicate import FALSE, TRUE, Predicate, Scalar
from pylon.query.predicate_parts import find_closed_checks
from pylon.query.rows import Query
from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import Value
from pylon.storage.events import ChangeEvent
from pylon.storage.interface import Reader
from pylon.storage.records import (
    DocumentUpdate,
    FacetCounts,
    QueryPlan,
    SessionRow,
    StoredDocument,
    StoredPlace,
    StoredShard,
)
from pylon.storage.sql import facet_counts
from pylon.storage.sql.aggregate import aggregate_rows
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.compiler import CompiledCache
from pylon.storage.sql.graph import graph_json, is_one_statement
from pylon.storage.sql.plan_watch import PendingQueries, PlanWatch
from pylon.storage.sqlite import documents, log, records, sessions, shards
from pylon.storage.sqlite.aggregate import AGGREGATES
from pylon.storage.sqlite.connect import open_reader, translate
from pylon.storage.sqlite.deadline import Deadline
from pylon.storage.sqlite.dialect import SQLITE
from pylon.storage.sqlite.explain import explain_select
from pylon.storage.sqlite.graph import GRAPHS
from pylon.storage.sqlite.instants import DatetimeViews
from pylon.storage.sqlite.list_sizes import ListSizes
from pylon.storage.sqlite.patterns import add_functions
from pylon.storage.sqlite.pragmas import release_memory
from pylon.storage.sqlite.reads import EntityReads, selection
from pylon.storage.sqlite.statements import SCAN_CHECK_STEPS, SizeLimit, Statements
from pylon.values import unknown_column

T = TypeVar("T")

_SEPARATOR: Final = b"\x1e"  # a control character, which JSON always escapes
_FEWER: Final = 8  # if rows are too large, the next try reads this fraction of them
_ROW_BYTES: Final = 1_000_000_000  # SQLite's own limit: a single row is always read


class SqliteReader:
    """See the module, and `pylon.storage.interface.Reader` for the methods."""

    __slots__ = (
        "_bounded", "_by_name", "_clock", "_conn", "_deadline", "_execute", "_list_sizes",
        "_noted", "_run", "_views", "meter",
    )

    def __init__(
        self,
        path: str | Path,
        manifest: Manifest,
        clock: Clock | None = None,
        check_steps: int = SCAN_CHECK_STEPS,
        plans: PlanWatch | None = None,
    ) -> None:
        """
        Args:
            check_steps: SQLite instructions between two checks of the clock.
            plans: judges the queries of this reader (`judge_plans`).

        Raises:
            StoreUnavailable: the database cannot be opened.
        """
        cache = CompiledCache()
        self._by_name = {e.name: EntityReads(e, cache) for e in manifest.entities}
        self._clock = clock or SystemClock()
        self._noted = PendingQueries(plans)
        self._list_sizes = ListSizes(self._count_up_to, self._clock)
        self._conn = open_reader(path)
        self._deadline = Deadline(self._clock, limits.READ_TIMEOUT_S)
        self.meter = Meter(self._deadline.is_over)  # of the patterns of this connection
        add_functions(self._conn, self.meter)
        try:
            self._views = DatetimeViews(self._conn, manifest.entities, self._clock)
        except apsw.Error as error:
            raise translate(error) from error
        self._bounded = SizeLimit(self._conn, limits.LIST_BYTES)
        self._execute = self._conn.execute
        self._run = Statements(self._conn, self._clock, self._deadline, check_steps)

    def get(self, entity: str, row_id: str) -> bytes | None:
        sql = self._by_name.get(entity)
        if sql is None:
            raise _unknown(entity)
        self._deadline.start_statement()
        try:
            found: bytes | None = self._execute(sql.get, (row_id,)).get
        except apsw.Error as error:
            raise translate(error) from error
        return found

    def get_version(
        self, entity: str, row_id: str, allowed: Predicate = TRUE
    ) -> tuple[bytes, int | None] | None:
        sql = self._by_name.get(entity)
        if sql is None:
            raise _unknown(entity)
        text = sql.get_version
        params: tuple[object, ...] = (row_id,)
        if allowed is not TRUE:
            where = sql.compile_rule(allowed)
            text, params = f"{text} AND ({where.sql})", (row_id, *where.params)
        self._deadline.start_statement()
        try:
            found: tuple[bytes, int | None] | None = self._execute(text, params).get
        except apsw.Error as error:
            raise translate(error) from error
        return found

    def within(self, timeout_s: float, read: Callable[[Reader], T]) -> T:
        """Run `read` on this reader with a shorter time limit, for all its statements together.

        Raises:
            QueryTimeout: the time is over, or a statement is known to need more.
        """
        self._run.begin_group(timeout_s)
        try:
            return read(self)
        finally:
            self._deadline.end_group()

    def lookup(
        self, entity: str, field: str, value: Scalar, allowed: Predicate = TRUE
    ) -> bytes | None:
        sql = self._by_name.get(entity)
        if sql is None:
            raise _unknown(entity)
        if field not in sql.entity.columns:
            raise unknown_column(sql.entity, field)
        select = sql.lookup(field, value, allowed)
        self._deadline.start_statement()
        try:
            found: bytes | None = self._execute(select.sql, select.params).get
        except apsw.Error as error:
            raise translate(error) from error
        return found

    def rows(self, entity: str, query: Query) -> list[bytes]:
        return self._rows(entity, query, self._bounded)

    def rows_within(
        self, entity: str, query: Query, size_bytes: int
    ) -> tuple[list[bytes], bool]:
        limit = query.limit
        bounded = SizeLimit(self._conn, size_bytes)
        while limit > 1:
            try:
                rows = self._rows(entity, replace(query, limit=limit), bounded)
            except LimitExceeded:  # SQLite has read at most `size_bytes` of the rows
                limit //= _FEWER
                continue
            return rows, len(rows) == limit
        rows = self._rows(entity, replace(query, limit=1), SizeLimit(self._conn, _ROW_BYTES))
        return rows, len(rows) == 1

    def _rows(self, entity: str, query: Query, bounded: SizeLimit) -> list[bytes]:
        if self._selects_nothing(entity, query.where):
            return []
        selected, params = self._selection(entity, query)
        with bounded:
            joined: bytes | None = self._run.one(
                f"SELECT CAST(group_concat(_j, char(30)) AS BLOB) FROM ({selected})", params
            )
        return [] if joined is None else joined.split(_SEPARATOR)

    def page(self, entity: str, query: Query) -> tuple[int, bytes]:
        if self._selects_nothing(entity, query.where):
            return 0, b"[]"
        selected, params = self._selection(entity, query)
        self._noted.add(entity, query)
        with self._bounded:
            ((count, joined),) = self._run.all(
                f"SELECT count(*), CAST(group_concat(_j) AS BLOB) FROM ({selected})", params
            )
        return count, b"[%b]" % (joined or b"")

    def _selection(self, entity: str, query: Query) -> tuple[str, tuple[object, ...]]:
        """Return the SELECT of a query and its parameters, if it may run now."""
        if self._deadline.in_group and query.relevance is not None:
            raise QueryTimeout("a full-text match must run in a thread")
        reads = self._sql(entity)
        select = selection(reads, query)
        if (
            select.has_list and query.relevance is None
            and self._list_sizes.lists_many(reads, query.where)
        ):
            select = selection(reads, query, looks_up=True)
        if self._deadline.in_group and select.cost:
            self._run.refuse_long(entity, select)
        return select.sql, select.params

    def _selects_nothing(self, entity: str, where: Predicate) -> bool:
        """Whether no row fulfils the condition, as far as that is known without a look at one.

        PERF: the page of a stranger in a room of 165,000 messages: 1 ms in place of 300 ms.
        """
        if where is FALSE:
            self._sql(entity)
            return True
        return any(
            not self.has_row(check.entity, check.where) for check in find_closed_checks(where)
        )

    def count(self, entity: str, where: Predicate) -> int:
        if self._selects_nothing(entity, where):
            return 0
        sql, clause = self._compile(entity, where)
        found = self._run.one(f"SELECT count(*) FROM {sql.table} WHERE {clause.sql}", clause.params)
        return int(found)

    def has_row(self, entity: str, where: Predicate) -> bool:
        sql = self._sql(entity)
        clause = sql.compile(where)
        return bool(self._run.one(f"{sql.has_row}{clause.sql})", clause.params))

    def count_within(self, entity: str, where: Predicate, max_rows: int) -> int:
        if self._selects_nothing(entity, where):
            return 0
        reads, clause = self._compile(entity, where)
        return self._count_up_to(reads.table, clause, max_rows)

    def facet_counts(
        self, entity: str, where: Predicate, fields: Sequence[str], most: int
    ) -> FacetCounts:
        sql, clause = self._compile(entity, where)
        select = facet_counts.statement(SQLITE, sql.table, clause, fields, most)
        return facet_counts.fold(fields, sql.converters, self._run.all(select.sql, select.params))

    def explain(self, entity: str, query: Query) -> QueryPlan:
        text, params = self._selection(entity, query)
        return explain_select(self._run.all, entity, query, text, params)

    def judge_plans(self) -> None:
        """Judge the plans of the queries that this reader has run since the last call."""
        self._noted.judge(self)

    def select(self, entity: str, query: Query) -> SqlClause:
        """See `PlanSource`."""
        return selection(self._sql(entity), query)

    def plan(self, entity: str, query: Query, select: SqlClause) -> QueryPlan:
        """See `PlanSource`."""
        return explain_select(self._run.all, entity, query, select.sql, select.params)

    def count_rows(self, entity: str, most: int) -> int:
        """See `PlanSource`."""
        table = self._sql(entity).table
        return int(self._run.one(f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT ?)", (most,)))

    def graph(self, nodes: Sequence[GraphNode]) -> bytes:
        for node in nodes:
            self._noted.add(node.entity.name, Query(
                node.where, limits.GRAPH_ROWS if node.limit is None else node.limit,
                order=node.order, position=node.position, allowed=node.allowed,
            ))
            if self._deadline.in_group:
                self._refuse_long_node(node, False)

        def read() -> bytes:
            with self._bounded:
                return graph_json(GRAPHS, self._run.all, self._compile_node, nodes)

        return read() if is_one_statement(nodes) else self.at_one_commit(read)

    def aggregate(self, entity: str, aggregate: Aggregate) -> list[dict[str, Any]]:
        self._noted.add(entity, Query(aggregate.where, 1))
        sql, clause = self._compile(entity, aggregate.where)
        return aggregate_rows(AGGREGATES, self._run.all, sql.entity, aggregate, clause)

    def head_seq(self) -> int:
        return self._run.call(log.head_seq)

    def oldest_seq(self) -> int:
        return self._run.call(log.oldest_seq)

    def events_after(self, seq: int, limit: int) -> list[ChangeEvent]:
        return self._run.call(log.events_after, seq, limit)

    def events_of(
        self, entities: Collection[str], seq: int, limit: int
    ) -> list[ChangeEvent]:
        return self._run.call(log.events_of, entities, seq, limit)

    def newest_events(self, limit: int) -> list[ChangeEvent]:
        return self._run.call(log.newest_events, limit)

    def void_ranges(self) -> list[tuple[int, int]]:
        return self._run.call(log.void_ranges)

    def session(self, session_id: str) -> SessionRow | None:
        return self._run.call(sessions.find, session_id)

    def shard(self, shard_id: str) -> StoredShard | None:
        return self._run.call(shards.find, shard_id)

    def shard_place(self, shard_id: str) -> StoredPlace | None:
        return self._run.call(shards.place, shard_id)

    def shards(self, limit: int) -> list[StoredShard]:
        return self._run.call(shards.listed, limit)

    def family_ends(self, families: Sequence[str]) -> dict[str, int]:
        return self._run.call(sessions.family_ends, families)

    def records(
        self, table: str, where: Sequence[Condition], order: Sequence[str] = (), limit: int = 100
    ) -> list[dict[str, Value]]:
        return self._run.call(records.find, table, where, order, limit)

    def count_records(self, table: str, where: Sequence[Condition]) -> int:
        return self._run.call(records.count, table, where)

    def document(
        self, entity: str, row_id: str, where: Predicate | None = None
    ) -> StoredDocument | None:
        def read() -> StoredDocument | None:
            if where is not None and not self.count(entity, where):
                return None
            return documents.stored_document(self._conn, entity, row_id)

        return self._run.at_one_commit(read)

    def document_updates(self, number: int, limit: int) -> list[DocumentUpdate]:
        return self._run.call(documents.updates_after, number, limit)

    def document_update(self, number: int) -> bytes | None:
        return self._run.call(documents.update_data, number)

    def document_number(self) -> int:
        return self._run.call(documents.head_number)

    def is_empty(self) -> bool:
        return all(
            self._run.one(f"SELECT 1 FROM {sql.table} LIMIT 1", ()) is None
            for sql in self._by_name.values()
        )

    def data_version(self) -> int:
        # Connection.data_version() changes only after a statement has read the file, so an idle
        # connection would never see a commit.
        return int(self._run.one("PRAGMA data_version", ()))

    def at_one_commit(self, read: Callable[[], T]) -> T:
        return self._run.at_one_commit(read)

    def close(self) -> None:
        self._conn.close()

    def interrupt_late(self) -> None:
        """Interrupt a statement that another thread runs on this reader, if its time is over."""
        self._run.interrupt_late()

    def release_memory(self) -> None:
        """Free the page cache, and unmap the database file. The next reads fill and map them."""
        with suppress(apsw.Error):  # the next read reports what is wrong
            release_memory(self._conn)

    def _sql(self, entity: str) -> EntityReads:
        sql = self._by_name.get(entity)
        if sql is None:
            raise _unknown(entity)
        if self._views.waiting:
            self._deadline.start_statement()
            try:
                self._views.drop_converted()
            except apsw.Error as error:
                raise translate(error) from error
        return sql

    def _compile(self, entity: str, where: Predicate) -> tuple[EntityReads, SqlClause]:
        """Return the reads of an entity and a condition, if it may be evaluated now."""
        reads = self._sql(entity)
        clause = reads.compile(where)
        if self._deadline.in_group and clause.cost:
            self._run.refuse_long(entity, clause)
        return reads, clause

    def _refuse_long_node(self, node: GraphNode, is_led: bool) -> None:
        clause = self._compile_node(node, is_led)
        if clause.cost:
            self._run.refuse_long(node.entity.name, clause)
        for include in node.includes:
            self._refuse_long_node(include.node, True)

    def _compile_node(self, node: GraphNode, is_led: bool) -> SqlClause:
        reads = self._sql(node.entity.name)
        clause = reads.compile(node.where, is_led)
        if clause.has_list and self._list_sizes.lists_many(reads, node.where):
            return reads.compile(node.where, is_led, True)
        return clause

    def _count_up_to(self, table: str, where: SqlClause, limit: int) -> int:
        """Count the rows of a table up to a number."""
        text = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {where.sql} LIMIT ?)"
        return int(self._run.one(text, (*where.params, limit)))


def _unknown(entity: str) -> EntityNotFound:
    return EntityNotFound(f'Unknown entity "{entity}"')
