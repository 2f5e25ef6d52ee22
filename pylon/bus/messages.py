"""What travels on the bus: typed messages, msgpack-encoded. See `pylon.bus` for the sockets.

    writes    worker DEALER -> writer ROUTER   one frame: list[WriteRequest]
              writer ROUTER -> worker DEALER   one frame: list[WriteReply]
    changes   writer PUB -> SUB                one frame: ChangeBatch
    signals   anyone PUB -> XSUB/XPUB -> SUB   two frames: tag, Signal
    status    worker PUSH -> supervisor PULL   one frame: WorkerStatus

Invariants: a `WriteRequest.id` is unique within its worker process; every request gets
exactly one reply, after its batch has been committed or refused; requests of one call
(`submit_all`) are carried out, and answered, in the order sent, while calls about large rows may
be overtaken by others. Each request is atomic by itself. The messages of the write path
are not looked at by the cyclic collector: nothing in them can refer back to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pylon.auth.context import AuthContext
from pylon.changelog.event import ChangeBatch
from pylon.errors import PylonError

# --- Writes --------------------------------------------------------------------------------


class OpKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Names a client's operation, so that it is carried out once (spec/realtime.md §1.5).

    `digest` stands for the whole request where the name must not be used for another one.
    """

    identity: str
    op_id: str
    digest: str | None = None


class InsertRow(msgspec.Struct, frozen=True, array_like=True, tag="insert", gc=False):
    """Insert a row that the worker has validated, encoded and checked against policy."""

    entity: str
    row_id: str
    values: Sequence[Any]  # SQL values in the entity's field order, `id` not among them
    row_json: bytes  # the whole row as JSON text, `id` included
    client_id_given: bool = False  # the id came from the client: a clash is its conflict
    op: OpKey | None = None


class UpdateRow(msgspec.Struct, frozen=True, array_like=True, tag="update", gc=False):
    """Change fields of a row. The writer judges the policy, on the row as it is at commit."""

    entity: str
    row_id: str
    patch: dict[str, Any]  # validated JSON values by field
    auth: AuthContext
    op: OpKey | None = None
    if_match: int | tuple[int, ...] | None = None  # seqs, one of which its last change must have


class DeleteRow(msgspec.Struct, frozen=True, array_like=True, tag="delete", gc=False):
    """Delete a row. The writer judges the policy."""

    entity: str
    row_id: str
    auth: AuthContext
    op: OpKey | None = None
    if_match: int | tuple[int, ...] | None = None


RowOp = InsertRow | UpdateRow | DeleteRow


class Transact(msgspec.Struct, frozen=True, array_like=True, tag="transact", gc=False):
    """Carry out all of `ops`, whose own keys do not count, or none of them.

    The reply's `results` has one reply for each, up to and including the first that failed;
    if one did, nothing was changed and the reply itself has no error.
    """

    ops: list[RowOp]
    key: OpKey | None = None


class OpenDocument(msgspec.Struct, frozen=True, array_like=True, tag="open_document", gc=False):
    """Make a row's document, if it has none; who asks has judged who may see it."""

    entity: str
    row_id: str


class PushDocument(msgspec.Struct, frozen=True, array_like=True, tag="push_document", gc=False):
    """Merge an update into a row's document, and the document into the row. The writer judges
    the policy as for `UpdateRow`. The reply's seq is 0 where the row stays as it was."""

    entity: str
    row_id: str
    update: bytes  # as Loro exports it
    auth: AuthContext


class PutSession(msgspec.Struct, frozen=True, array_like=True, tag="put_session"):
    """Store a session under the hash of its token (hex)."""

    session_id: str
    user_id: str
    is_guest: bool
    created_at_s: int
    expires_at_s: int  # 0: never
    device: str
    tenant_id: str | None = None


class DropSession(msgspec.Struct, frozen=True, array_like=True, tag="drop_session"):
    session_id: str


class PutShard(msgspec.Struct, frozen=True, array_like=True, tag="put_shard"):
    """Keep the state of a simulation, in place of the one before."""

    shard_id: str
    tick: int
    data: bytes


class MoveShard(msgspec.Struct, frozen=True, array_like=True, tag="move_shard"):
    """Have a shard live at the shards worker `home`; None: where its id says."""

    shard_id: str
    home: str | None


class DropShard(msgspec.Struct, frozen=True, array_like=True, tag="drop_shard"):
    """Forget a shard's state and where it was moved to."""

    shard_id: str


class PruneLog(msgspec.Struct, frozen=True, array_like=True, tag="prune_log"):
    """Drop at most `limit` old change events, and as many op_ids (retention). An event is old by
    its time or by its seq, since its time may come from a clock that was wrong."""

    keep_events: int
    older_than_s: int  # Unix seconds: what is younger stays
    limit: int
    old_seq: int = 0  # events up to this seq are old, whatever their time
    drop_to_seq: int = 0  # these events go, however few they are


class PruneSessions(msgspec.Struct, frozen=True, array_like=True, tag="prune_sessions"):
    """Drop at most `limit` expired sessions, and as many guests that were made before
    `unused_before_s` (Unix time) and never used (retention)."""

    limit: int
    unused_before_s: int


class UseSessions(msgspec.Struct, frozen=True, array_like=True, tag="use_sessions"):
    """The tokens of these guests were presented, so they stay until they expire."""

    session_ids: list[str]


class ResetRows(msgspec.Struct, frozen=True, array_like=True, tag="reset_rows"):
    """Delete every row of every entity, with a change event for each (test reset)."""


class PutIndexes(msgspec.Struct, frozen=True, array_like=True, tag="put_indexes"):
    """Make the manifest's indexes these ones, while others read and wait to write."""

    indexes: tuple[tuple[str, str, tuple[str, ...], bool], ...]  # entity, name, fields, unique


class RenewSearch(msgspec.Struct, frozen=True, array_like=True, tag="renew_search"):
    """Renew the search index of some rows of an entity, in id order; the reply names the last of
    them in `row_id`, and none after the last portion."""

    entity: str
    after_id: str  # "" begins
    rows: int


class MarkClean(msgspec.Struct, frozen=True, array_like=True, tag="mark_clean"):
    """The last write of a drain: this run ended in order."""


WriteOp = (
    InsertRow | UpdateRow | DeleteRow | Transact | PutSession | DropSession | PutShard | MoveShard
    | DropShard | PruneLog | PruneSessions | UseSessions | ResetRows | PutIndexes | RenewSearch
    | MarkClean | OpenDocument | PushDocument
)


class WriteRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`has_more`: the next request belongs to the same call, and is carried out after this one."""

    id: int
    op: WriteOp
    has_more: bool = False


class WriteError(msgspec.Struct, frozen=True, array_like=True):
    """A `PylonError` on its way back to the worker."""

    code: str
    message: str
    hint: str | None
    details: dict[str, Any]

    @classmethod
    def of(cls, error: PylonError) -> WriteError:
        return cls(*error.to_wire())

    def to_exception(self) -> PylonError:
        return PylonError.from_wire(self.code, self.message, self.hint, self.details)


class WriteReply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`seq` is the change's seq (0 where there is none), `count` the rows touched."""

    id: int
    seq: int = 0
    row_id: str = ""
    replayed: bool = False
    count: int = 0
    error: WriteError | None = None
    results: list[WriteReply] | None = None  # of a `Transact`


# --- Signals ---------------------------------------------------------------------------------


class SessionRevoked(msgspec.Struct, frozen=True, tag="session_revoked"):
    session_id: str


class DocumentsChanged(msgspec.Struct, frozen=True, tag="documents_changed"):
    """Documents have changed without an event of their rows: look in the store."""


class RoleState(msgspec.Struct, frozen=True):
    wanted: int
    ready: int


class RolesReport(msgspec.Struct, frozen=True, tag="roles"):
    """The supervisor's view of its children and of the database file, once a second; readiness
    is judged by it."""

    roles: dict[str, RoleState]
    draining: bool
    store_problem: str | None = None  # why the store refuses writes, or will


Signal = SessionRevoked | DocumentsChanged | RolesReport


# --- Status ----------------------------------------------------------------------------------


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One line of the metrics page."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    name: str
    help: str
    kind: str  # counter, gauge, histogram
    samples: list[Sample]


class WorkerStatus(msgspec.Struct, frozen=True, array_like=True):
    """A heartbeat, once a second: alive, ready, the process's metrics, and the sessions of guests
    whose tokens it saw for the first time."""

    role: str
    worker: str  # unique name of the process within the role, e.g. "1"
    pid: int
    ready: bool
    connections: int
    metrics: list[Family]
    used_guests: list[str] = []


write_requests = msgspec.msgpack.Decoder(list[WriteRequest])
write_replies = msgspec.msgpack.Decoder(list[WriteReply])
change_batch = msgspec.msgpack.Decoder(ChangeBatch)
signal = msgspec.msgpack.Decoder(Signal)
worker_status = msgspec.msgpack.Decoder(WorkerStatus)
encode = msgspec.msgpack.Encoder().encode
