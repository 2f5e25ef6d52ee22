"""Row transaction: the primitive operations that a backend implements for `pylon.storage.core`.

A transaction object belongs to one writer and is used again for each batch: `begin`, operations,
`commit`; or `roll_back` at any time. `table(...)` gives the rows of one entity.

A primitive reports three kinds of failure. `ConstraintFailed`: the statement broke a constraint and
changed nothing; the transaction goes on. One of `store_failures`: the database failed; the caller
rolls back. `ForeignWriterError`: another program has written into the change log. Any other
exception is a defect.

Invariants: a primitive that raises has changed nothing by itself; what a primitive wrote is visible
to the next one; `roll_back` undoes everything since `begin`. Called by one thread at a time.
Implemented by `pylon.storage.sqlite.transaction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from pylon.manifest.model import Entity
from pylon.policy.rules import EntityRules
from pylon.storage.events import ChangeEvent
from pylon.storage.records import BatchRefusal, DocumentView, SessionRow, StoredDocument

DocumentKey = tuple[str, str]  # entity, row id
OpName = tuple[str, str]  # identity, op_id


# An operation that was carried out: seq, row id (of several rows their ids as JSON), digest.
# PERF: a plain tuple. A named one, and one call more to find it, cost each push 1.2 of 12 µs.
DoneOp = tuple[int, str, str | None]


class LoggedEvent(NamedTuple):
    """What retention asks of an event."""

    seq: int
    timestamp_s: int
    size_bytes: int  # of both images


class ConstraintFailed(Exception):
    """A row broke a constraint of its table: `fields` together must be unique, or the one may not
    be null. `fields` is None for a constraint that the manifest does not name."""

    def __init__(self, kind: Literal["unique", "not_null", "other"],
                 fields: tuple[str, ...] | None) -> None:
        super().__init__(kind, fields)
        self.kind = kind
        self.fields = fields


class ForeignWriterError(Exception):
    """The change log has events that this writer did not append."""


class RowTable(Protocol):
    """The stored rows of one entity."""

    def find(self, row_id: str) -> tuple[bytes, int | None] | None:
        """The row's JSON and the seq of its last change (None: not known)."""

    def find_small(self, row_id: str) -> tuple[bytes | None, int | None] | None:
        """As `find`; the JSON is None if it has more than `limits.JUDGED_FIRST_BYTES`, and is not
        read then."""

    def find_judged(self, row_id: str) -> tuple[int, dict[str, Any]]:
        """The size of the row's JSON in bytes, and the fields that policies look at."""

    def insert(
        self, row_id: str, values: Sequence[Any], row_json: bytes, seq: int
    ) -> None:
        """Add a row. `values` are the entity's fields in order, without `id`.

        Raises:
            ConstraintFailed
        """

    def update(
        self, row_id: str, patch: Mapping[str, Any], before: Mapping[str, Any],
        row: Mapping[str, Any], row_json: bytes, seq: int,
    ) -> None:
        """Set the fields of `patch`, the JSON and the version of a row.

        Args:
            before: the whole row as it is stored.
            row: the whole row as it becomes.

        Raises:
            ConstraintFailed
        """

    def delete(self, row_id: str) -> None:
        """Remove a row."""

    def take_all(self) -> list[tuple[str, bytes, int | None]]:
        """Remove all rows; their ids, JSON and versions, by id."""


class DocumentRows(Protocol):
    """The stored documents of rows. Numbers count through the updates of all documents."""

    def document_keys(self) -> Iterable[DocumentKey]:
        """The rows that have a document."""

    def find_document(self, key: DocumentKey) -> StoredDocument | None:
        """The stored parts of a row's document."""

    def put_snapshot(self, key: DocumentKey, snapshot: bytes, now_s: int) -> None:
        """Store a whole document in place of the snapshot before."""

    def append_update(self, key: DocumentKey, prev: int, seq: int, data: bytes) -> int:
        """Store an update; its number. See `pylon.storage.records.DocumentUpdate`."""

    def drop_updates_before(self, key: DocumentKey, number: int) -> None:
        """Remove the updates of a document below a number."""

    def last_view(self, key: DocumentKey) -> tuple[int | None, int]:
        """The number of the newest view of a document, and how many there are."""

    def put_view(self, key: DocumentKey, number: int, view: DocumentView) -> None:
        """Store a view under its number, in place of the one before."""

    def drop_views_before(self, key: DocumentKey, number: int) -> None:
        """Remove the views of a document below a number."""

    def forget_views(self, entity: str, facts: str) -> None:
        """Replace the views of each document of an entity by one with these facts."""

    def drop_document(self, key: DocumentKey) -> None:
        """Remove a document, its updates and views."""

    def drop_documents(self, entity: str) -> None:
        """Remove all documents of an entity."""


class SessionRows(Protocol):
    """The stored sessions."""

    def put_session(self, session: SessionRow) -> None:
        """Store a session in place of one with its id; `is_unused` is noted with it."""

    def drop_session(self, session_id: str) -> int:
        """Remove a session; how many there were (0 or 1)."""

    def mark_sessions_used(self, session_ids: Sequence[str]) -> int:
        """Note that these were used; how many of them were not until now."""

    def expired_sessions(self, now_s: int, limit: int) -> list[str]:
        """Ids of sessions that have expired."""

    def unused_sessions(self, made_before_s: int, limit: int) -> list[str]:
        """Ids of sessions that were made before then and never used, oldest first."""


class ShardRows(Protocol):
    """The stored shards."""

    def put_shard(self, shard_id: str, tick: int, data: bytes, now_s: int) -> None:
        """Store a state in place of the one before."""

    def place_shard(self, shard_id: str, home: str | None, now_s: int) -> None:
        """Store the worker where a shard lives; None: where its id says."""

    def drop_shard(self, shard_id: str) -> int:
        """Remove a shard; how many there were (0 or 1)."""


class LogRows(Protocol):
    """The change log, and the operations that were carried out."""

    def head_seq(self) -> int:
        """The highest seq in use."""

    def append_events(self, events: Sequence[ChangeEvent]) -> None:
        """Append events, whose seqs ascend from the head.

        Raises:
            ForeignWriterError
        """

    def find_op(self, name: OpName) -> DoneOp | None:
        """What became of an operation."""

    def put_ops(self, ops: Mapping[OpName, DoneOp], now_s: int) -> None:
        """Store operations that were carried out."""

    def count_events(self) -> int:
        """How many events there are; a scan."""

    def oldest_events(self, limit: int) -> list[LoggedEvent]:
        """The oldest events, ascending."""

    def drop_events(self, to_seq: int) -> int:
        """Remove the events up to a seq; how many."""

    def count_ops(self) -> int:
        """How many operations there are; a scan."""

    def drop_ops(self, limit: int, older_than_s: int, old_seq: int) -> int:
        """Remove those of the `limit` oldest operations that were done before a time (Unix
        seconds), or have a seq up to `old_seq`; how many."""


class RowTransaction(DocumentRows, SessionRows, ShardRows, LogRows, Protocol):
    """See the module. `store_failures`: exceptions by which the database reports that it fails.
    `errors`: all exceptions of its driver, these included."""

    @property
    def store_failures(self) -> tuple[type[Exception], ...]: ...

    @property
    def errors(self) -> tuple[type[Exception], ...]: ...

    def table(self, entity: Entity, rules: EntityRules) -> RowTable:
        """The rows of an entity. Args: `rules` say which fields policies look at."""

    def begin(self) -> None:
        """Open a transaction. No other writer has one meanwhile."""

    def commit(self) -> None:
        """Make everything since `begin` durable as configured, and visible to readers."""

    def roll_back(self) -> bool:
        """Undo everything since `begin`; False if no transaction is open."""

    def open_savepoint(self) -> None:
        """Begin a step that `undo_savepoint` may undo. Savepoints do not nest."""

    def keep_savepoint(self) -> None:
        """End the step and keep its changes."""

    def undo_savepoint(self) -> None:
        """End the step and undo its changes."""

    def get_fact(self, key: str) -> str | None:
        """A fact about the database that outlives runs."""

    def put_fact(self, key: str, value: str) -> None:
        """Set such a fact."""

    def end_run(self, head: int) -> None:
        """Note that the run ends in order at this head."""

    def resume_run(self) -> None:
        """Take `end_run` back."""

    def refusal_of(self, error: Exception) -> tuple[BatchRefusal, str]:
        """Why the store refused a batch, and the error's text without paths."""

    def find_problem(self) -> BatchRefusal | None:
        """Why nothing may be acknowledged, though the database accepts writes; called after each
        commit. PERF: 1.2 us for SQLite."""
