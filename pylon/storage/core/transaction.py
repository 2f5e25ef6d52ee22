"""Row transaction: the primitive operations that a backend implements for `pylon.storage.core`.

A transaction object belongs to one writer, which uses it for every batch: `begin`, operations,
`commit`; or `roll_back` at any time. `table(...)` returns the rows of one entity; the change log,
the documents, the sessions, the records and the shards are parts of it.

A database may have one writer or several. With several, `begin` does not lock the others out: it
gives *provisional* seqs, from `PROVISIONAL_SEQ` on, and `commit` returns what they became. A
transaction that another writer has overtaken raises `OutdatedError`; the engine executes it again,
*locked*. A statement that the database refuses after its primitive has returned raises
`RequestsFailed`; the engine executes the transaction again without these requests.

A primitive reports failures of these kinds. `ConstraintFailed`, or a PylonError about a value: the
statement changed nothing; the transaction goes on. One of `store_failures`: the database failed, or
one of the two exceptions above; the caller rolls back. `ForeignWriterError`: another program has
written into the change log. Any other exception is a defect.

Invariants: a primitive that raises has changed nothing. A primitive sees the changes of those
before it. `roll_back` undoes everything since `begin`. Called by one thread at a time. Implemented
by `pylon.storage.sqlite.transaction` and `pylon.storage.postgres.transaction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

from pylon.errors import PylonError, ShardLeaseLost
from pylon.manifest.model import Entity
from pylon.policy.entity_rules import EntityRules
from pylon.query.predicate import Predicate
from pylon.storage.auth_ops import Condition
from pylon.storage.events import ChangeEvent
from pylon.storage.ops import WriteRequest
from pylon.storage.records import (
    BatchRefusal,
    DocumentView,
    SessionNote,
    SessionRow,
    StoredDocument,
)

DocumentKey = tuple[str, str]  # entity, row id
OpName = tuple[str, str]  # identity, op_id

PROVISIONAL_SEQ: Final = 1 << 62  # above every seq that a change will ever have


# An executed operation: seq, row id (of several rows their ids as JSON), digest of the request.
# PERF: a plain tuple. A named one, and one call more to find it, cost each push 1.2 of 12 µs.
DoneOp = tuple[int, str, str | None]


class LoggedEvent(NamedTuple):
    """The fields of an event that retention needs."""

    seq: int
    timestamp_s: int
    size_bytes: int  # size of both images


class ConstraintFailed(Exception):
    """A row broke a constraint of its table.

    The `fields` must be unique together, or the one field may not be null. `fields` is None for a
    constraint that the manifest does not name.
    """

    def __init__(self, kind: Literal["unique", "not_null", "other"],
                 fields: tuple[str, ...] | None) -> None:
        super().__init__(kind, fields)
        self.kind = kind
        self.fields = fields


class ForeignWriterError(Exception):
    """The change log has events that this writer did not append."""


class OutdatedError(Exception):
    """Another writer has changed rows that this transaction has read. Nothing was written."""


def lease_lost(shard_id: str) -> ShardLeaseLost:
    """Return the refusal of a write about a shard that has been claimed again."""
    return ShardLeaseLost(f'another worker has claimed the shard "{shard_id}"')


class RequestsFailed(Exception):
    """The database refused changes of these requests after their primitives had returned. Nothing
    was written.

    `errors`: by the `position` of the request.
    """

    def __init__(self, errors: Mapping[int, PylonError]) -> None:
        super().__init__(errors)
        self.errors = errors


class OutcomeUnknownError(Exception):
    """The connection was lost during a commit, and nobody can tell whether it happened."""


class Shift(NamedTuple):
    """The seqs that a commit made of provisional ones."""

    head: int  # before the commit
    by: int  # to be added to each provisional seq


class RowTable(Protocol):
    """The stored rows of one entity."""

    def find(self, row_id: str) -> tuple[bytes, int | None] | None:
        """Return the row's JSON and the seq of its last change (None: not known), or None."""

    def find_small(self, row_id: str) -> tuple[bytes | None, int | None] | None:
        """Do as `find`, but return None in place of a JSON above `limits.JUDGED_FIRST_BYTES`.

        The JSON is not read then.
        """

    def has(self, row_id: str) -> bool:
        """Whether there is a row with this id."""

    def find_referring(self, field: str, row_id: str, limit: int) -> list[str]:
        """Return the ids of at most `limit` rows whose `field` has this value, in any order.

        An index serves it (`pylon.manifest.references.with_reference_indexes`).
        """

    def find_judged(self, row_id: str) -> tuple[int, dict[str, Any]]:
        """Return the size of the row's JSON in bytes, and the fields that policies need."""

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
            before: the whole row before the change.
            row: the whole row after the change.

        Raises:
            ConstraintFailed
        """

    def delete(self, row_id: str) -> None:
        """Remove a row."""

    def take_all(self) -> list[tuple[str, bytes, int | None]]:
        """Remove all rows. Return their ids, JSON and versions, sorted by id."""


class DocumentRows(Protocol):
    """The stored documents of rows. The updates of all documents share one sequence of numbers."""

    def document_number(self, key: DocumentKey) -> int | None:
        """Return the number of the newest update of a row's document (0: it has none); None if
        there is no document."""

    def document_keys(self) -> Iterable[DocumentKey]:
        """Yield the rows that have a document."""

    def find_document(self, key: DocumentKey) -> StoredDocument | None:
        """Return the stored parts of a row's document, or None."""

    def put_snapshot(self, key: DocumentKey, snapshot: bytes, now_s: int) -> None:
        """Store a whole document; it replaces the previous snapshot."""

    def append_update(self, key: DocumentKey, prev: int, seq: int, data: bytes) -> int:
        """Store an update. Return its number. See `pylon.storage.records.DocumentUpdate`."""

    def drop_updates_before(self, key: DocumentKey, number: int) -> None:
        """Remove the updates of a document below a number."""

    def last_view(self, key: DocumentKey) -> tuple[int | None, int]:
        """Return the number of the newest view of a document (or None), and how many it has."""

    def put_view(self, key: DocumentKey, number: int, view: DocumentView) -> None:
        """Store a view under its number; it replaces one with the same number."""

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
        """Store a session and its `is_unused`; it replaces one with the same id."""

    def drop_session(self, session_id: str) -> int:
        """Remove a session. Return how many were removed (0 or 1)."""

    def end_sessions(
        self, where: Sequence[Condition], keep: Sequence[str], limit: int | None
    ) -> list[str]:
        """Remove the sessions that fulfil all conditions, but those of `keep`, and `limit` at most,
        the oldest first. Return the family of each, in any order."""


class RecordRows(Protocol):
    """The records of the auth tables. With `expected` a method changes nothing if the conditions
    select another number of records, and returns 0."""

    def put_record(self, table: str, values: Mapping[str, Any], *, replaces: bool) -> bool:
        """Store a record. Return False if its key, or a value that must be unique, is taken.

        Args:
            replaces: replace the record that has the key.
        """

    def set_records(
        self, table: str, where: Sequence[Condition], values: Mapping[str, Any],
        added: Mapping[str, int], expected: int | None,
    ) -> int:
        """Set columns of records. Return how many. Args: `added`: see `SetRecords.add`."""

    def drop_records(self, table: str, where: Sequence[Condition], expected: int | None) -> int:
        """Remove records. Return how many."""

    def count_records(self, table: str, where: Sequence[Condition]) -> int:
        """Return how many records fulfil all conditions."""

    def add_up_records(self, table: str, column: str, where: Sequence[Condition]) -> int:
        """Return the sum of an int column over the records that fulfil all conditions."""

    def find_records(self, table: str, where: Sequence[Condition]) -> list[dict[str, Any]]:
        """Return the first hundred records that fulfil all conditions, by key."""

    def find_tats(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the `tat` of each of these buckets of "limits" that is stored."""

    def put_tats(self, tats: Mapping[str, int]) -> None:
        """Store the `tat` of buckets."""


class ShardRows(Protocol):
    """The stored shards.

    With a `generation`, a method raises `ShardLeaseLost`, at once or at the commit, if the shard
    has another one: it has been claimed again since. Without one it does not look.
    """

    def claim_shard(
        self, shard_id: str, owner: str, lease: str, region: str, now_s: int
    ) -> int:
        """Give a shard to a worker, unless another one has it under a lease that lasts. Return the
        new generation, which is higher than all before; 0 if another one has it."""

    def put_shard(
        self, shard_id: str, tick: int, data: bytes, now_s: int, generation: int | None
    ) -> None:
        """Store the state of a shard; it replaces the previous one."""

    def place_shard(
        self, shard_id: str, home: str | None, now_s: int, generation: int | None
    ) -> None:
        """Store the worker that runs a shard; None: the worker that its id maps to."""

    def drop_shard(self, shard_id: str, generation: int | None) -> int:
        """Remove a shard. Return how many were removed (0 or 1)."""

    def release_shard(self, shard_id: str, generation: int) -> None:
        """End a claim, and remove the shard if it has no state and no placement. Without effect if
        the shard has another generation."""


class LogRows(Protocol):
    """The change log, and the executed operations."""

    def head_seq(self) -> int:
        """Return the highest seq in use."""

    def append_events(self, events: Sequence[ChangeEvent]) -> None:
        """Append events whose seqs ascend from the head.

        Raises:
            ForeignWriterError
        """

    def find_op(self, name: OpName) -> DoneOp | None:
        """Return the outcome of an executed operation, or None."""

    def put_ops(self, ops: Mapping[OpName, DoneOp], now_s: int) -> None:
        """Store executed operations."""


class MaintenanceRows(Protocol):
    """The scans of retention, and of the collection of sessions, within a step of maintenance.

    A backend whose upkeep has a connection of its own does without.
    """

    def drop_session(self, session_id: str) -> int:
        """See `SessionRows`."""

    def note_sessions_used(self, session_ids: Sequence[str], note: SessionNote) -> int:
        """Mark sessions as used. Return how many of them were unused before."""

    def expired_sessions(self, now_s: int, limit: int) -> list[str]:
        """Return the ids of expired sessions."""

    def unused_sessions(self, made_before_s: int, limit: int) -> list[str]:
        """Return the ids of unused sessions made before that time, oldest first."""

    def list_sessions(
        self, after_id: str, limit: int, seen_before_s: int
    ) -> list[tuple[str, bool]]:
        """Return the first `limit` sessions after an id, in the order of ids; whether each is a
        guest that was last seen before that time."""

    def count_events(self) -> int:
        """Return the number of events; a scan."""

    def oldest_events(self, limit: int) -> list[LoggedEvent]:
        """Return the oldest events, ascending."""

    def drop_events(self, to_seq: int) -> int:
        """Remove the events up to a seq. Return how many."""

    def count_ops(self) -> int:
        """Return the number of stored operations; a scan."""

    def drop_ops(self, limit: int, older_than_s: int, old_seq: int) -> int:
        """Remove old ones among the `limit` oldest operations. Return how many.

        Old: executed before `older_than_s` (Unix time), or with a seq up to `old_seq`.
        """


class RowTransaction(Protocol):
    """See the module. `store_failures`: exceptions by which the database reports that it fails.
    `errors`: all exceptions of its driver, these included. `position`: the engine sets it to the
    position of the request that it executes. The other attributes are its parts."""

    position: int

    @property
    def log(self) -> LogRows: ...

    @property
    def documents(self) -> DocumentRows: ...

    @property
    def sessions(self) -> SessionRows: ...

    @property
    def records(self) -> RecordRows: ...

    @property
    def shards(self) -> ShardRows: ...

    @property
    def shares_documents(self) -> bool:
        """Whether other writers change documents, too."""

    @property
    def store_failures(self) -> tuple[type[Exception], ...]: ...

    @property
    def errors(self) -> tuple[type[Exception], ...]: ...

    def table(self, entity: Entity, rules: EntityRules) -> RowTable:
        """Return the rows of an entity. Args: `rules` determine the fields that policies need."""

    def has_row(self, entity: str, where: Predicate) -> bool:
        """Return whether `where` holds for a row of an entity that `table` was called for."""

    def begin(self, requests: Sequence[WriteRequest], head: int, locked: bool) -> int:
        """Open a transaction. Return the seq before its first one.

        Args:
            requests: those that it will execute, so that it may read ahead.
            head: the newest seq that this writer has seen.
            locked: no other writer may commit meanwhile. With one writer it is always so.
        """

    def begin_step(self) -> None:
        """Open a transaction for a step of maintenance, which changes no row."""

    def commit(self) -> Shift | None:
        """Make everything since `begin` durable as configured, and visible to readers. Return what
        became of provisional seqs; None: the seqs are final.

        Raises:
            OutdatedError, RequestsFailed, OutcomeUnknownError: see the module.
        """

    def roll_back(self) -> None:
        """Undo everything since `begin`, if a transaction is open."""

    def open_savepoint(self) -> None:
        """Begin a step that `undo_savepoint` may undo. Savepoints do not nest."""

    def keep_savepoint(self) -> None:
        """End the step and keep its changes."""

    def undo_savepoint(self) -> None:
        """End the step and undo its changes."""

    def get_fact(self, key: str) -> str | None:
        """Return a stored fact about the database, or None. Facts outlive runs."""

    def put_fact(self, key: str, value: str) -> None:
        """Store a fact about the database."""

    def end_run(self, head: int) -> None:
        """Note that the run ends cleanly at this head."""

    def resume_run(self) -> None:
        """Undo `end_run`."""

    def refusal_of(self, error: Exception) -> tuple[BatchRefusal, str]:
        """Return the kind of refusal that an error causes, and its text without paths."""

    def find_problem(self) -> BatchRefusal | None:
        """Return a problem that forbids to acknowledge writes though the database accepts them.

        The engine calls it after each commit. PERF: 1.2 us for SQLite.
        """
