"""PostgreSQL reader: implements `pylon.storage.interface.Reader` on a session.

It returns rows as their stored JSON. No answer above `limits.LIST_BYTES` comes into memory: the
server sends no row that a page has no room for. The server ends a statement that takes longer than
`limits.READ_TIMEOUT_S` (`connect.open_reader`).

Many greenlets may use one reader at a time, if its session lets them (`pipe`): it keeps nothing of
a call. Only within `at_one_commit` does it belong to one of them, because the pipe refuses a
transaction.

Invariants: a call is one statement, or all of it is within one transaction, where it needs one
commit. No value of a client is in a statement's text. Made by `backend`, `scanners` and `store`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg import errors
from psycopg.pq.abc import PGresult

from pylon import limits
from pylon.clock import Clock
from pylon.errors import EntityNotFound, LimitExceeded, PylonError
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
from pylon.storage.postgres.connect import translate
from pylon.storage.postgres.dialect import dialect_of, numbered
from pylon.storage.postgres.graph import graphs_of
from pylon.storage.postgres.key_reads import KeyStatement, Row
from pylon.storage.postgres.parameters import bytea_of
from pylon.storage.postgres.reads import VERSION, EntityReads, bounded, counted, select_by_id
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

_LARGE_PAGES: Final = 64  # pages of an entity after one with a large row
_SPARE: Final = 4  # of the bytes that one page of many sends
_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresReader:
    """See the module, and `pylon.storage.interface.Reader` for the methods."""

    __slots__ = (
        "_aggregates", "_by_name", "_clock", "_dialect", "_execute", "_graphs",
        "_is_at_one_commit", "_large_rows", "_noted", "_session",
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
        self._execute = session.execute
        self._is_at_one_commit = False
        self._large_rows: dict[str, int] = {}  # pages to come, by entity

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
            raise _too_large()
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
        """Return the first rows that a query selects, as many as `size_bytes` holds and one at
        least, and whether there are more.

        Rows are usually so small that a page of the largest allowed ones is not too large. If one
        is larger, the server adds the sizes up, for the next pages of the entity too.

        Args:
            spare: how many times `size_bytes` the server may send.
        """
        reads = self._reads(entity)
        if self._selects_nothing(query.where):
            return [], False
        self._noted.add(entity, query)
        select = reads.select(query)
        large = self._large_rows.get(entity, 0)
        if not large:
            row_bytes = min(size_bytes * spare, limits.LIST_BYTES) // max(query.limit, 1)
            result = self._run(*bounded(select, row_bytes))
            value = result.get_value
            rows = [value(row, 0) for row in range(result.ntuples)]
            if None not in rows:
                return _cut(cast("list[bytes]", rows), size_bytes)
            large = _LARGE_PAGES
        self._large_rows[entity] = large - 1
        result = self._run(*counted(select, size_bytes))
        value, count = result.get_value, result.ntuples
        found = [row for n in range(count) if (row := value(n, 0)) is not None]
        total = int(value(count - 1, 1) or 0) if count else 0
        return found, total > size_bytes and len(found) < count

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
            raise _failed(error) from error
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
        if self._is_at_one_commit:
            return read()
        self._run(_BEGIN)
        self._is_at_one_commit = True
        end = "ROLLBACK"
        try:
            answer = read()
            end = "COMMIT"
        finally:
            self._is_at_one_commit = False
            self._run(end)
        return answer

    def close(self) -> None:
        if isinstance(self._session, BlockingSession):  # the pipe's owner closes it
            self._session.close()

    # --- Statements ----------------------------------------------------------------------------

    def _reads(self, entity: str) -> EntityReads:
        reads = self._by_name.get(entity)
        if reads is None:
            raise _unknown(entity)
        return reads

    def _ask(self, text: str, params: Sequence[Any]) -> list[list[bytes | None]]:
        """Carry out a statement with marks, and return all its rows."""
        return list(rows_of(self._execute(numbered(text), params)))

    def _fetch(self, text: str, params: Sequence[Any]) -> list[list[bytes | None]]:
        """As `_ask`; raises Pylon's errors."""
        try:
            return self._ask(text, params)
        except psycopg.Error as error:
            raise _failed(error) from error

    def _run(self, text: str, params: Sequence[Any] = ()) -> PGresult:
        """Carry out a statement whose values a row can have."""
        try:
            return self._execute(text, params)
        except psycopg.Error as error:
            raise _failed(error) from error

    def _select(self, text: str, params: Sequence[Any]) -> PGresult | None:
        """Carry out a statement that finds rows by a key; None if no key can be such a text."""
        try:
            return self._execute(text, params)
        except errors.CharacterNotInRepertoire:
            return None
        except psycopg.Error as error:
            raise _failed(error) from error

    def _row(
        self, statement: KeyStatement, row_id: str, params: Sequence[Any] = ()
    ) -> Row | None:
        """Return a row by its id; None if no id can be such a text."""
        try:
            return self._session.read_by_key(statement, row_id, params)
        except errors.CharacterNotInRepertoire:
            return None
        except psycopg.Error as error:
            raise _failed(error) from error

    def _list(
        self, make: Callable[[list[bytes | None]], T], text: str, params: Sequence[Any] = ()
    ) -> list[T]:
        result = self._select(text, params)
        return [] if result is None else [make(row) for row in rows_of(result)]

    def _find(
        self, make: Callable[[list[bytes | None]], T], text: str, params: Sequence[Any]
    ) -> T | None:
        found = self._list(make, text, params)
        return found[0] if found else None


def _int(result: PGresult) -> int:
    """Return the number in the first column of the first row."""
    return int(result.get_value(0, 0) or 0)


def _cut(rows: list[bytes], size_bytes: int) -> tuple[list[bytes], bool]:
    """Return the first rows that `size_bytes` hold, one at least, and whether there are more."""
    total = sum(map(len, rows))
    if total <= size_bytes:
        return rows, False
    count = len(rows)
    while count > 1 and total > size_bytes:
        count -= 1
        total -= len(rows[count])
    return rows[:count], count < len(rows)


def _failed(error: psycopg.Error) -> PylonError:
    return _too_large() if isinstance(error, errors.ProgramLimitExceeded) else translate(error)


def _too_large() -> LimitExceeded:
    return LimitExceeded(
        f"the rows of an answer have {limits.LIST_BYTES} bytes at most",
        hint="ask for fewer at a time: limit and offset, or pages of "
        "GET /api/entities/<Entity>/cursor; a single row by its id",
    )


def _unknown(entity: str) -> EntityNotFound:
    return EntityNotFound(f'Unknown entity "{entity}"')
