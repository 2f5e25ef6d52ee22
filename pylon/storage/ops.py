"""Operations: the requests that a writer carries out, and its replies.

An operation is one change of the store. A `WriteRequest` numbers it, and a `WriteReply` answers
that number. Workers make them, the bus carries them as they are, and every backend's writer carries
them out (`pylon.storage.interface`).

Invariants: a `WriteRequest.id` is unique within its worker process. Each operation is atomic by
itself. No operation or reply refers to itself, so the cyclic collector ignores them (`gc=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pylon.auth_context import AuthContext
from pylon.errors.wire import WireError


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


class WriteReply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`seq` is the change's seq (0 where there is none), `count` the rows touched."""

    id: int
    seq: int = 0
    row_id: str = ""
    replayed: bool = False
    count: int = 0
    error: WireError | None = None
    results: list[WriteReply] | None = None  # of a `Transact`
