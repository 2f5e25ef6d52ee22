"""Records: the values that a store returns and takes, besides rows and events.

All are immutable, and every backend makes the same ones. Called by `pylon.storage.interface`, the
backends, and the callers of readers and maintenance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pylon.storage.events import ChangeBatch
from pylon.storage.ops import WriteReply, WriteRequest


class FacetCounts(msgspec.Struct, frozen=True):
    """The number of rows, and by field the number of rows with each value.

    The most frequent value is first. Null does not count as a value.
    """

    total: int
    by_field: dict[str, list[tuple[object, int]]]


class QueryPlan(msgspec.Struct, frozen=True):
    """How a store finds the rows of a query, in its own words, step by step.

    `is_indexed`: it neither scans a table for a filter nor sorts all rows. Otherwise `index` has
    the fields of the index that would help, as a manifest has them; none if no single one would.
    `patterns`: text fields of which a pattern is looked for, where the store has an index for that.
    """

    steps: tuple[str, ...]
    is_indexed: bool
    index: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


class SessionRow(msgspec.Struct, frozen=True):
    """A stored session.

    `session_id` is the hash of its token. `expires_at_s` is 0 for a session without an end.
    `is_unused`: the store has noted no request of this guest.

    A sign-in begins a family, and each rotation of the token adds a session to it. `family` is the
    id of the first session, and `created_at_s` the time of the sign-in. `rotated_at_s` is when a
    successor was made, or 0. `auth_time_s` is when the user last proved who they are, by `methods`
    (words with spaces between). `last_seen_at_s` lags by up to a tenth of the lifetime.
    """

    session_id: str
    user_id: str
    is_guest: bool
    created_at_s: int
    expires_at_s: int
    device: str
    tenant_id: str | None
    is_unused: bool = False
    family: str = ""
    rotated_at_s: int = 0
    auth_time_s: int = 0
    methods: str = ""
    last_seen_at_s: int = 0
    token_hint: str = ""


class SessionNote(NamedTuple):
    """The note of the use of sessions. Times are Unix seconds."""

    now_s: int
    seen_before_s: int  # sessions whose last noted use is later stay as they are
    prolong_to_s: int  # the end that use moves a session to; 0: it moves none
    max_age_s: int  # the end lies at most so long after the sign-in; 0: no bound


class GuestStep(NamedTuple):
    """A step of the collection of idle guests."""

    dropped: int
    last_id: str  # of the sessions that it looked at; "": these were the last ones


class BatchRefusal(NamedTuple):
    """The reason of a refused batch: a label for metrics, and a sentence with the path."""

    reason: str
    message: str


class BatchResult(msgspec.Struct, frozen=True):
    """The result of one transaction."""

    replies: list[WriteReply]  # in order, one for each request that was not deferred
    batch: ChangeBatch | None  # the changes to publish; None: no row changed
    commit_s: float  # from BEGIN to the end of COMMIT
    documents: bool = False  # whether a document changed without an event
    deferred: Sequence[WriteRequest] = ()  # in order
    large_rows: int = 0  # that changed
    large_bytes: int = 0  # of large rows, read and written
    refusal: BatchRefusal | None = None  # of all requests


class LogFacts(NamedTuple):
    """Measures of the change log."""

    head_seq: int
    oldest_seq: int  # 0: the log is empty
    size_bytes: int  # of all events, too large by a page at most


class StoreSizes(NamedTuple):
    """The disk space that a store uses, and the space that is left; 0 if unknown."""

    data_bytes: int
    wal_bytes: int  # of the write-ahead log that is in use
    free_bytes: int


class DatabaseFacts(NamedTuple):
    """The settings of a database server, and how it answers."""

    settings: dict[str, str]
    connect_s: float
    answer_s: float  # of one query
    clock_ahead_s: float  # of this machine's clock; below 0: behind
    is_standby: bool
    connections: int  # of all clients
    is_encrypted: bool  # this connection
    # Of the oldest transaction of a client that this role may see, 0: there is none; and whose it
    # is, its pid and the name of its application.
    oldest_transaction_s: float = 0.0
    oldest_transaction: str = ""
    unused_slots: tuple[str, ...] = ()  # replication slots that nobody reads


class IndexSpec(NamedTuple):
    """An index as maintenance makes it; see `pylon.manifest.model.Index`."""

    entity: str
    name: str
    fields: tuple[str, ...]
    unique: bool
    descending: tuple[str, ...] = ()
    where: str | None = None


class LogRetention(msgspec.Struct, frozen=True):
    """One step of retention: drop at most `limit` old events, and as many op_ids.

    An event is old by its time or by its seq, because a wrong clock may have set its time.
    """

    keep_events: int
    older_than_s: int  # Unix seconds: younger events stay
    limit: int
    old_seq: int = 0  # events up to this seq are old, whatever their time
    drop_to_seq: int = 0  # these events go, however few they are


class DocumentView(msgspec.Struct, frozen=True):
    """One change of the fields that decide who may read a document's row."""

    before: bytes  # version before the change (`Document.encoded_version`); empty: no content
    after: bytes  # version after the change
    facts: str  # the fields of the read policy as JSON; null: unknown


class StoredDocument(msgspec.Struct, frozen=True):
    """The stored parts of a row's document, which merge into the document.

    `number` is that of its newest update, or 0. `views` tell who could read the row at which
    version; without views, that are the callers who may read it now.
    """

    snapshot: bytes
    updates: tuple[bytes, ...]
    number: int
    views: tuple[DocumentView, ...] = ()

    @property
    def parts(self) -> tuple[bytes, ...]:
        """Return the parts to merge, in order."""
        return (self.snapshot, *self.updates)


class DocumentUpdate(msgspec.Struct, frozen=True):
    """One update of a document."""

    number: int
    prev: int  # number of the document's previous update; 0: none, -1: reload the document
    seq: int  # head of the change log at that time
    entity: str
    row_id: str


class StoredShard(msgspec.Struct, frozen=True):
    """A stored shard: its saved state and its placement."""

    id: str
    tick: int
    data: bytes | None  # the saved state; None: none is saved
    home: str | None  # the worker that it was moved to; None: the worker of its id
    saved_at_s: int
    # In a list only (`StoredPlace` has more of one shard):
    owner: str | None = None
    is_held: bool = False


class StoredPlace(msgspec.Struct, frozen=True):
    """The placement of a stored shard, and the lease that it is under where nodes share a store."""

    home: str | None  # as in `StoredShard`
    generation: int = 0  # of the newest claim; 0: there was none
    owner: str | None = None  # the worker that has claimed it: "node/worker"
    region: str | None = None
    is_held: bool = False  # whether the lease of the claim lasts
    owner_lives: bool = False  # whether the node of the owner has any lease that lasts


class ConversionStep(msgspec.Struct, frozen=True):
    """One step of the conversion of datetimes: the rows that it has changed."""

    entity: str
    rows: int  # in this step
    rows_done: int  # of the entity, with those of earlier steps
    rows_left: int  # of the entity: their unique datetime is another row's already
    is_last: bool  # of the entity
    entities_left: int  # with rows that no step has looked at
