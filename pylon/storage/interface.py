"""The interface of a store: readers, one writer, and its maintenance.

Backends implement these protocols, and all other packages know nothing else of a store. Rows travel
as the JSON text that the store keeps; `records` has the other values.

Invariants: a reader returns committed data only, and sees each commit whole. Only the writer
changes rows. The change log has every change of a row, in the transaction of the change. `Store`
says which calls may switch greenlets. Called by the API, the hub, the change log, the supervisor
and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from pylon.query.aggregate import Aggregate
from pylon.query.graph import GraphNode
from pylon.query.predicate import TRUE, Predicate, Scalar
from pylon.query.rows import Query
from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import Value
from pylon.storage.events import ChangeEvent
from pylon.storage.ops import WriteRequest
from pylon.storage.records import (
    BatchRefusal,
    BatchResult,
    ConversionStep,
    DocumentUpdate,
    FacetCounts,
    GuestStep,
    IndexSpec,
    LogFacts,
    LogRetention,
    QueryPlan,
    SessionNote,
    SessionRow,
    StoredDocument,
    StoredPlace,
    StoredShard,
    StoreSizes,
)

T = TypeVar("T")

SERVER: Final = "server"  # the caller of the server's own scans


class Reader(Protocol):
    """One read-only connection, used by one thread at a time.

    Raises, from every method: QueryTimeout when a statement ran for longer than
    `limits.READ_TIMEOUT_S`; StoreUnavailable when the database cannot be read;
    EntityNotFound for an entity that the manifest does not have.
    """

    def get(self, entity: str, row_id: str) -> bytes | None:
        """The row's JSON, or None."""

    def get_version(
        self, entity: str, row_id: str, allowed: Predicate = TRUE
    ) -> tuple[bytes, int | None] | None:
        """The row's JSON and the seq of its last change (None: not known); None if there is no
        such row among the rows of `allowed`."""

    def lookup(
        self, entity: str, field: str, value: Scalar, allowed: Predicate = TRUE
    ) -> bytes | None:
        """The first row of `allowed`, by id, whose `field` is `value`. A text for a field that
        is no text stands for the value of `pylon.query.operands.value_of_text`. A field that is
        unique without regard to case is compared in this way.

        Raises:
            InvalidColumn: the entity has no such field.
        """

    def rows(self, entity: str, query: Query) -> list[bytes]:
        """The JSON of each row that the query selects, in its order.

        Raises:
            LimitExceeded: more than `limits.LIST_BYTES`.
        """

    def rows_within(
        self, entity: str, query: Query, size_bytes: int
    ) -> tuple[list[bytes], bool]:
        """The first rows that the query selects: as many as `size_bytes` holds, and one at least;
        and whether there may be more."""

    def facet_counts(
        self, entity: str, where: Predicate, fields: Sequence[str], most: int
    ) -> FacetCounts:
        """Count the rows that `where` selects, and for each of `fields` their values, `most` of
        them, the most frequent first and equally frequent ones in their order. Booleans are
        bools; null is no value."""

    def page(self, entity: str, query: Query) -> tuple[int, bytes]:
        """How many rows the query selects, and all of them as one JSON array.

        Raises:
            LimitExceeded: more than `limits.LIST_BYTES`.
        """

    def explain(self, entity: str, query: Query) -> QueryPlan:
        """How the store finds the rows of a query."""

    def count(self, entity: str, where: Predicate) -> int:
        """How many rows `where` holds for."""

    def has_row(self, entity: str, where: Predicate) -> bool:
        """Whether `where` holds for a row."""

    def count_within(self, entity: str, where: Predicate, max_rows: int) -> int:
        """How many rows `where` holds for, but `max_rows` at most; the rest is not looked for."""

    def graph(self, nodes: Sequence[GraphNode]) -> bytes:
        """A JSON object with an array of rows for each node, under its entity's name; all are
        of the same commit. A to-one relation that leads nowhere is left out of its row.

        Raises:
            LimitExceeded: more than `limits.GRAPH_ROWS` rows, or `limits.LIST_BYTES`.
        """

    def aggregate(self, entity: str, aggregate: Aggregate) -> list[dict[str, Any]]:
        """The answer's rows, ordered by their groups. Booleans are bools.

        Raises:
            LimitExceeded: more than `limits.AGGREGATE_GROUPS` rows.
        """

    def head_seq(self) -> int:
        """The highest seq in use: the newest event's, or the mark of the newest epoch."""

    def oldest_seq(self) -> int:
        """The oldest retained event's seq; head + 1 when the log is empty."""

    def events_after(self, seq: int, limit: int) -> list[ChangeEvent]:
        """The first `limit` events with a seq above `seq`, ascending."""

    def events_of(
        self, entities: Collection[str], seq: int, limit: int
    ) -> list[ChangeEvent]:
        """The first `limit` events of some entities with a seq above `seq`, ascending. A scan of
        the log behind `seq`."""

    def newest_events(self, limit: int) -> list[ChangeEvent]:
        """The newest events, ascending: `limit` of them, fewer when they are very large."""

    def void_ranges(self) -> list[tuple[int, int]]:
        """(void_from, first_seq) of each epoch: cursors strictly between are void."""

    def session(self, session_id: str) -> SessionRow | None:
        """The session, expired or not, or None."""

    def records(
        self, table: str, where: Sequence[Condition], order: Sequence[str] = (), limit: int = 100
    ) -> list[dict[str, Value]]:
        """The first `limit` records of an auth table that fulfil all conditions, each with all
        columns (`pylon.storage.auth_tables`).

        Args:
            order: columns; "-created_at" for descending. Nulls are the smallest. Empty: by key.
        """

    def count_records(self, table: str, where: Sequence[Condition]) -> int:
        """How many records of an auth table fulfil all conditions."""

    def document(
        self, entity: str, row_id: str, where: Predicate | None = None
    ) -> StoredDocument | None:
        """The stored parts of the row's document, or None; also where, at the same commit, the row
        does not fulfil `where`."""

    def document_updates(self, number: int, limit: int) -> list[DocumentUpdate]:
        """The first `limit` updates of any documents after `number`, ascending. Of each
        document that has changed since there is at least the newest one."""

    def document_update(self, number: int) -> bytes | None:
        """The bytes of an update, or None if only the whole document has them by now."""

    def document_number(self) -> int:
        """The number of the newest update of any document."""

    def shard(self, shard_id: str) -> StoredShard | None:
        """Return the stored state and placement of a shard, or None."""

    def shard_place(self, shard_id: str) -> StoredPlace | None:
        """Return the placement of a shard alone, or None."""

    def shards(self, limit: int) -> list[StoredShard]:
        """All such shards, by id, without their states."""

    def family_ends(self, families: Sequence[str]) -> dict[str, int]:
        """When those of the families that there are expire: Unix seconds, 0 for never. A session
        whose token was replaced does not count."""

    def is_empty(self) -> bool:
        """Whether no entity has a row."""

    def data_version(self) -> int:
        """A number that is another one after each commit that changed a row, a document or a
        session. A reader sees such a commit only once the number has changed, so an answer that was
        read after this number is at least as new as it. Asked for before each answer from memory:
        it must cost microseconds."""

    def at_one_commit(self, read: Callable[[], T]) -> T:
        """Run `read`: all that it reads through this reader is of the same commit. To be
        short, since the store cannot tidy up behind it meanwhile."""

    def close(self) -> None:
        """Give the connection back. Idempotent."""


class PointRead(Protocol):
    """`Store.point` or `Store.point_inline`, for a function that both kinds of callers use."""

    def __call__(self, read: Callable[[Reader], T], /) -> T: ...


class Store(Protocol):
    """The readers of one process, for any number of its greenlets.

    **Switches of greenlets.** `point` and `scan` may switch: other greenlets may run between the
    call and its return, and change what the caller has in memory. A caller that compares or joins
    an answer with its memory either runs `read_settled`, or looks at its memory again afterwards.
    With `local_reads`, `point` never switches, so libev's callbacks may call it; without, they use
    a greenlet (`workers.hub.acceptor`).
    `point_inline` never switches, so the state of the process is the same before and after it. On a
    store without `local_reads` the whole process waits meanwhile, so only rare reads use it, in
    callbacks that have no other way: verdicts on related rows (`workers.hub.memberships`), and the
    last step of a replay, where reads are local.
    """

    @property
    def local_reads(self) -> bool:
        """Whether reads by key are answered in this process, in microseconds."""

    def point(self, read: Callable[[Reader], T], /) -> T:
        """Run a read of a few rows. May switch greenlets. `read` must have no effect but its
        answer.

        Raises: what the reader raises.
        """

    def point_inline(self, read: Callable[[Reader], T], /) -> T:
        """Run a read of a few rows without a switch of greenlets; also in libev's callbacks.

        Without `local_reads` all such reads of a second together wait for
        `limits.INLINE_READ_TIMEOUT_S` at the most.

        Raises: what the reader raises; StoreUnavailable after that time.
        """

    def scan(
        self, read: Callable[[Reader], T], inline: bool = True, caller: str = SERVER
    ) -> T:
        """Run a read that may be long, without stopping other requests. `read` must have no
        effect but its answer: it may be interrupted and begun again. `inline` False: it may
        be hard to interrupt, so it is not to be tried where other requests would wait. Scans
        share the connections by `caller` (`pylon.admission`)."""

    def release_memory(self) -> None:
        """Release caches that fill again by themselves: for an idle process. Never switches."""

    def close(self) -> None:
        """Close all connections. No scan may be under way."""


def read_settled(
    store: Store, read: Callable[[Reader], T], stamp: Callable[[], object]
) -> T:
    """Run a read whose answer is to be joined with the caller's memory: again until `stamp`, which
    stands for that memory, is the same before and after it. With `local_reads` once.

    From the return of this function to the caller's next switch the answer and the memory fit.
    """
    while True:
        before = stamp()
        answer = store.point(read)
        if stamp() == before:
            return answer


class Maintenance(Protocol):
    """The upkeep of a store that is written to, in short steps between its batches; from any
    thread.

    Raises, from every method: StoreUnavailable when the store failed or refuses writes, and
    WriterUnavailable when the writer did not come to the step in time. Nothing was changed then.
    """

    def prune_log(self, step: LogRetention) -> int:
        """Drop old events and op_ids; how many. 0: nothing is left to drop."""

    def prune_sessions(self, limit: int, unused_before_s: int) -> int:
        """Drop at most `limit` expired sessions, and as many guests that were made before
        `unused_before_s` (Unix time) and never used; how many in all."""

    def prune_guests(self, after_id: str, limit: int, seen_before_s: int) -> GuestStep:
        """Look at the next `limit` sessions after an id, and drop the guests among them that were
        last seen before that Unix time."""

    def prune_records(self, limit: int, now_s: int, kept_s: Mapping[str, int]) -> dict[str, int]:
        """Drop at most `limit` expired records of each auth table; how many by table.

        Args:
            kept_s: for how many seconds records of a table stay after their `expires`.
        """

    def note_sessions_used(self, session_ids: Sequence[str], note: SessionNote) -> int:
        """Note that the tokens of these sessions were presented: guests stay until they expire, and
        sessions whose last note is old end later, as the note says. How many have changed."""

    def note_keys_used(self, key_ids: Sequence[str], now_s: int) -> int:
        """Note that these API keys were used; how many there are."""

    def put_indexes(self, indexes: Sequence[IndexSpec]) -> int:
        """Make the manifest's indexes these ones, while others read and wait to write; how many
        were made or dropped.

        Raises:
            SchemaRefused: an index is over something unknown, or its rows are not unique.
        """

    def renew_search(self, entity: str, after_id: str, rows: int) -> tuple[int, str]:
        """Renew the search index of the first `rows` rows of an entity after an id; how many, and
        the id of the last one ("": it was the last portion)."""

    def convert_datetimes(self) -> ConversionStep | None:
        """Convert the next rows whose datetimes have another notation than the stored one, without
        a change event; None: all are converted. Filters and orders are right meanwhile."""

    def end_run(self) -> None:
        """Note that the run ends in order. A later write takes the note back."""

    def checkpoint(self) -> None:
        """One round, about once a second: write back what the write-ahead log has gathered, if it
        is time. No batch waits for it for longer than for a commit."""

    def end_checkpoints(self) -> None:
        """Have the round that is under way end soon; from any thread."""

    def flush_all(self) -> bool:
        """Write everything back, at the end of a drain, when nobody writes any more; False where
        somebody still reads the log that is to be emptied (`list_blockers`)."""

    def list_blockers(self) -> list[str]:
        """The processes that keep `flush_all` from its end, for the log."""

    def find_problem(self) -> BatchRefusal | None:
        """Why the store would refuse a write, or acknowledge none, for readiness."""

    def measure_log(self) -> LogFacts:
        """Measure the change log; reads what is new since the last call."""

    def log_seq_above(self, size_bytes: int) -> int:
        """The seq up to which events must go so that about `size_bytes` stay, as `measure_log`
        found them; 0: none must."""

    def count_sessions(self) -> dict[str, int]:
        """How many sessions are stored, by kind (guest, user). A scan: 0.7 s for a million."""

    def sizes(self) -> StoreSizes:
        """The sizes of the files, from any thread. Raises nothing."""


class WriteEngine(Protocol):
    """The only writer of a store. One thread at a time calls `apply`."""

    @property
    def head(self) -> int:
        """The newest seq that was committed. From any thread."""

    @property
    def maintenance(self) -> Maintenance:
        """The upkeep of this store."""

    def apply(
        self, requests: Sequence[WriteRequest], *, large_bytes: int | None = None
    ) -> BatchResult:
        """Carry out all requests in one transaction. Never raises for a request: a failing one
        fails alone, in its reply; when the store fails, nothing is written and every reply
        carries StoreUnavailable.

        Args:
            large_bytes: how much of large rows to read and write; requests beyond it, with what
                follows them in their calls, are deferred. None: all are carried out.
        """

    def close(self) -> None:
        """Close the connection. Idempotent."""
