"""PostgreSQL reader: implements `pylon.storage.interface.Reader` on a session.

It returns rows as their stored JSON; `row_pages` bounds their bytes. The server ends a statement
that takes longer than `limits.READ_TIMEOUT_S` (`connect.open_reader`).

Many greenlets may use one reader at a time, if its session lets them (`pipe`): it keeps nothing of
a call. Only within `at_one_commit` does it belong to one of them, because the pipe refuses a
transaction.

Invariants: a call is one statement, or all of it is within one transaction, where it needs one
commit. No value of a client is in a statement's text. Made by `backend`, `scanners` and `store`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq.abc import PGresult

from pylon import limits
from pylon.clock import Clock
from pylon.errors import EntityNotFound
from pylon.manifest.model import Manifest
from pylon.query.aggregate import Aggregate
from pylon.query.graph import GraphNode
from pylon.query.predicate import FALSE, TRUE, Predicate, Scalar
from pylon.query.predicate_parts import find_closed_checks
from pylon.query.rows import Query
from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import Value
from pylon.storage.events import ChangeEvent
from pylon.storage.postgres import explain, record_rows, system_reads
from pylon.storage.postgres.aggregate import aggregates_of, value_decoder
from pylon.storage.postgres.dialect import dialect_of, numbered
from pylon.storage.postgres.graph import graphs_of
from pylon.storage.postgres.parameters import bytea_of
from pylon.storage.postgres.reader_session import ReaderSession, failed, too_large
from pylon.storage.postgres.reads import VERSION, EntityReads, select_by_id
from pylon.storage.postgres.row_pages import RowPages
from pylon.storage.postgres.sequences import HEAD
from pylon.storage.postgres.statements import Session
from pylon.storage.postgres.system_reads import rows_of, text_of
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.records import (
    DocumentUpdate,
    FacetCounts,
    QueryPlan,
    SessionRow,
    StoredDocument,
    StoredPlace,
    StoredShard,
)
from pylon.storage.sql import facet_counts, record_sql
from pylon.storage.sql.aggregate import aggregate_rows
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.compiler import CompiledCache
from pylon.storage.sql.graph import graph_json, is_one_statement
from pylon.storage.sql.plan_watch import PendingQueries, PlanWatch
from pylon.values import unknown_column

T = TypeVar("T")

_SPARE: Final = 4  # of the bytes that one page of many sends


class PostgresReader:
    """See the module, and `pylon.storage.interface.Reader` for the methods."""

    __slots__ = (
        "_aggregates", "_ask", "_by_name", "_clock", "_dialect", "_fetch", "_find", "_graphs",
        "_list", "_noted", "_pages", "_row", "_run", "_session", "_statements",
    )

    def __init__(
        self, session: Session, manifest: Manifest, clock: Clock, plans: PlanWatch | None = None
    ) -> None:
        """
        Args:
            session: belongs to the reader, which closes it.
            plans: judges the queries of this reader (`judge_plans`).
        """
        self._noted = PendingQueries(plans)
        cache, dialect = CompiledCache(), dialect_of(manifest)
        self._dialect = dialect
        self._aggregates = aggregates_of(dialect)
        self._graphs = graphs_of(dialect)
        self._by_name = {e.name: EntityReads(dialect, e, cache) for e in manifest.entities}
        self._clock = clock
        self._session = session
        statements = self._statements = ReaderSession(session)
        # PERF: bound once, since a read by key has no time for more than one call.
        self._run, self._row = statements.run, statements.row
        self._list, self._find = statements.all_of, statements.find
        self._ask, self._fetch = statements.ask, statements.fetch
        self._pages = RowPages(statements.run)

    def get(self, entity: str, row_id: str) -> bytes | None:
        reads = self._by_name.get(entity)
        if reads is None:
            raise _unknown(entity)
        row = self._row(reads.get, row_id)
        return None if row is None else row[0]

    def get_version(
        self, entity: str, row_id: str, allowed: Predicate = TRUE
    ) -> tuple[bytes, int | None] | None:
        reads = self._reads(entity)
        if allowed is TRUE:
            row = self._row(reads.get_version, row_id)
        else:
            where = reads.compile_rule(allowed)
            statement = select_by_id(reads.table, VERSION, where.sql)
            row = self._row(statement, row_id, where.params)
        return None if row is None else (row[0] or b"", None if row[1] is None else int(row[1]))

    def lookup(
        self, entity: str, field: str, value: Scalar, allowed: Predicate = TRUE
    ) -> bytes | None:
        reads = self._reads(entity)
        if field not in reads.entity.columns:
            raise unknown_column(reads.entity, field)
        select = reads.lookup(field, value, allowed)
        result = self._run(numbered(select.sql), select.params)
        return result.get_value(0, 0) if result.ntuples else None

    def rows(self, entity: str, query: Query) -> list[bytes]:
        rows, has_more = self._rows(entity, query, limits.LIST_BYTES, 1)
        if has_more:
            raise too_large()
        return rows

    def rows_within(
        self, entity: str, query: Query, size_bytes: int
    ) -> tuple[list[bytes], bool]:
        rows, has_more = self._rows(entity, query, size_bytes, _SPARE)
        return rows, has_more or len(rows) == query.limit

    def page(self, entity: str, query: Query) -> tuple[int, bytes]:
        rows = self.rows(entity, query)
        count = len(rows)
        if not rows:
            return 0, b"[]"
        rows[0] = b"[" + rows[0]  # PERF: so that the whole text is copied once
        rows[-1] += b"]"
        return count, b",".join(rows)

    def _rows(
        self, entity: str, query: Query, size_bytes: int, spare: int
    ) -> tuple[list[bytes], bool]:
        """Return the first rows that a query selects, and whether there are more; see `RowPages`.
        """
        reads = self._reads(entity)
        if self._selects_nothing(query.where):
            return [], False
        self._noted.add(entity, query)
        return self._pages.read(entity, reads.select(query), query.limit, size_bytes, spare)

    def _selects_nothing(self, where: Predicate) -> bool:
        """Whether no row fulfils the condition, as far as that is known without a look at one."""
        if where is FALSE:
            return True
        return any(
            not self.has_row(check.entity, check.where) for check in find_closed_checks(where)
        )

    def count(self, entity: str, where: Predicate) -> int:
        reads = self._reads(entity)
        if self._selects_nothing(where):
            return 0
        clause = reads.compile(where)
        text = f"SELECT count(*) FROM {reads.table} WHERE {clause.sql}"
        return _int(self._run(numbered(text), clause.params))

    def has_row(self, entity: str, where: Predicate) -> bool:
        reads = self._reads(entity)
        clause = reads.compile(where)
        result = self._run(numbered(f"{reads.has_row}{clause.sql})"), clause.params)
        return result.get_value(0, 0) == b"t"

    def count_within(self, entity: str, where: Predicate, max_rows: int) -> int:
        reads = self._reads(entity)
        if self._selects_nothing(where):
            return 0
        clause = reads.compile(where)
        text = (
            f"SELECT count(*) FROM (SELECT 1 FROM {reads.table} WHERE {clause.sql} LIMIT ?) AS _s"
        )
        return _int(self._run(numbered(text), (*clause.params, max_rows)))

    def facet_counts(
        self, entity: str, where: Predicate, fields: Sequence[str], most: int
    ) -> FacetCounts:
        reads = self._reads(entity)
        clause = reads.compile(where)
        select = facet_counts.statement(self._dialect, reads.table, clause, fields, most)
        converters = {name: value_decoder(reads.entity, name) for name in fields}
        return facet_counts.fold(fields, converters, self._fetch(select.sql, select.params))

    def explain(self, entity: str, query: Query) -> QueryPlan:
        return self.plan(entity, query, self.select(entity, query))

    def judge_plans(self) -> None:
        """Judge the plans of the queries that this reader has run since the last call."""
        if self._noted.are_there:
            self._noted.judge(self)

    def select(self, entity: str, query: Query) -> SqlClause:
        """See `PlanSource`."""
        return self._reads(entity).select(query)

    def plan(self, entity: str, query: Query, select: SqlClause) -> QueryPlan:
        """See `PlanSource`."""
        text = numbered(f"EXPLAIN (FORMAT JSON) {select.sql}")

        def read(settings: str) -> bytes:
            self._run(settings)
            return self._run(text, select.params).get_value(0, 0) or b""

        plan = explain.plan_of(
            self.at_one_commit(lambda: read(explain.SETTINGS)), entity, query
        )
        if plan.is_indexed or not plan.patterns:
            return plan
        other = explain.plan_of(
            self.at_one_commit(lambda: read(explain.PATTERN_SETTINGS)), entity, query,
            may_sort=True,
        )
        return other if other.is_indexed else plan

    def count_rows(self, entity: str, most: int) -> int:
        """See `PlanSource`."""
        table = self._reads(entity).table
        return _int(self._run(f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT $1) AS _s",
                              (most,)))

    def graph(self, nodes: Sequence[GraphNode]) -> bytes:
        for node in nodes:
            self._noted.add(node.entity.name, Query(
                node.where, limits.GRAPH_ROWS if node.limit is None else node.limit,
                order=node.order, position=node.position, allowed=node.allowed,
            ))

        def read() -> bytes:
            return graph_json(self._graphs, self._fetch, self._compile_node, nodes)

        return read() if is_one_statement(nodes) else self.at_one_commit(read)

    def _compile_node(self, node: GraphNode, is_led: bool) -> SqlClause:
        return self._reads(node.entity.name).compile(node.where, is_led)

    def aggregate(self, entity: str, aggregate: Aggregate) -> list[dict[str, Any]]:
        self._noted.add(entity, Query(aggregate.where, 1))
        reads = self._reads(entity)
        clause = reads.compile(aggregate.where)
        usual, reaching = self._aggregates
        try:
            return aggregate_rows(usual, self._ask, reads.entity, aggregate, clause)
        except errors.NumericValueOutOfRange:  # a sum that no double can hold
            pass
        except psycopg.Error as error:
            raise failed(error) from error
        return aggregate_rows(reaching, self._fetch, reads.entity, aggregate, clause)

    # --- Pylon's own tables --------------------------------------------------------------------

    def head_seq(self) -> int:
        return _int(self._run(HEAD))

    def oldest_seq(self) -> int:
        return _int(self._run(system_reads.OLDEST))

    def events_after(self, seq: int, limit: int) -> list[ChangeEvent]:
        return self._list(system_reads.event_of, system_reads.EVENTS_AFTER, (seq, limit))

    def events_of(
        self, entities: Collection[str], seq: int, limit: int
    ) -> list[ChangeEvent]:
        return self._list(
            system_reads.event_of, system_reads.EVENTS_OF, (seq, list(entities), limit)
        )

    def newest_events(self, limit: int) -> list[ChangeEvent]:
        return self._list(system_reads.event_of, system_reads.NEWEST_EVENTS, (limit,))

    def void_ranges(self) -> list[tuple[int, int]]:
        return self._list(
            lambda row: (int(row[0] or 0), int(row[1] or 0)), system_reads.VOID_RANGES
        )

    def session(self, session_id: str) -> SessionRow | None:
        return self._find(system_reads.session_of, system_reads.SESSION, (session_id,))

    def family_ends(self, families: Sequence[str]) -> dict[str, int]:
        return dict(self._list(
            lambda row: (text_of(row[0]), int(row[1] or 0)), system_reads.FAMILY_ENDS,
            (list(families),),
        ))

    def records(
        self, table: str, where: Sequence[Condition], order: Sequence[str] = (), limit: int = 100
    ) -> list[dict[str, Value]]:
        declared = record_sql.table_of(table)
        text, params = record_sql.select(record_rows.DIALECT, declared, where, order, limit)
        return self._list(
            lambda row: record_sql.decode_row(declared, row, record_rows.DECODERS), text, params
        )

    def count_records(self, table: str, where: Sequence[Condition]) -> int:
        declared = record_sql.table_of(table)
        return _int(self._run(*record_sql.count(record_rows.DIALECT, declared, where)))

    def shard(self, shard_id: str) -> StoredShard | None:
        return self._find(system_reads.shard_of, system_reads.SHARD, (shard_id,))

    def shard_place(self, shard_id: str) -> StoredPlace | None:
        return self._find(system_reads.place_of, system_reads.SHARD_PLACE, (shard_id,))

    def shards(self, limit: int) -> list[StoredShard]:
        return self._list(system_reads.shard_of, system_reads.SHARDS, (limit,))

    def document(
        self, entity: str, row_id: str, where: Predicate | None = None
    ) -> StoredDocument | None:
        text = system_reads.DOCUMENT
        params: tuple[object, ...] = (entity, row_id)
        if where is not None:
            reads = self._reads(entity)
            clause = reads.compile(where)
            text = f"{text} AND ({reads.has_row}{clause.sql}))"
            params = (*params, *clause.params)
        return self._find(system_reads.document_of, numbered(text), params)

    def document_updates(self, number: int, limit: int) -> list[DocumentUpdate]:
        return self._list(system_reads.update_of, system_reads.UPDATES, (number, limit))

    def document_update(self, number: int) -> bytes | None:
        found = self._find(lambda row: row[0], system_reads.UPDATE, (number,))
        return None if found is None else bytea_of(found)

    def document_number(self) -> int:
        return _int(self._run(system_reads.DOCUMENT_NUMBER))

    def is_empty(self) -> bool:
        asked = [f"EXISTS (SELECT 1 FROM {reads.table})" for reads in self._by_name.values()]
        result = self._run(f"SELECT {' OR '.join(asked) or 'FALSE'}")
        return result.get_value(0, 0) != b"t"

    def data_version(self) -> int:
        (row,) = rows_of(self._run(system_reads.VERSION))
        return system_reads.version_of(row)

    def at_one_commit(self, read: Callable[[], T]) -> T:
        return self._statements.at_one_commit(read)

    def close(self) -> None:
        if isinstance(self._session, BlockingSession):  # the pipe's owner closes it
            self._session.close()

    def _reads(self, entity: str) -> EntityReads:
        reads = self._by_name.get(entity)
        if reads is None:
            raise _unknown(entity)
        return reads


def _int(result: PGresult) -> int:
    """Return the number in the first column of the first row."""
    return int(result.get_value(0, 0) or 0)


def _unknown(entity: str) -> EntityNotFound:
    return EntityNotFound(f'Unknown entity "{entity}"')
