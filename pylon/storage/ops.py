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
from pylon.storage.auth_ops import (
    CheckRecords,
    DropRecords,
    EndSessions,
    LimitRecords,
    PutRecord,
    SetRecords,
    TakeRates,
)


class OpKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Names a client's operation, so that it is carried out once (spec/realtime.md §1.5).

    `digest` stands for the whole request where the name must not be used for another one.
    """

    identity: str
    op_id: str
    digest: str | None = None


class InsertRow(msgspec.Struct, frozen=True, array_like=True, tag="insert", gc=False):
    """Insert a row that the worker has validated, encoded and checked against policy.

    With an `auth` the writer judges the policy: the rule asks other rows, which are certain only
    in the writer's transaction.
    """

    entity: str
    row_id: str
    values: Sequence[Any]  # SQL values in the entity's field order, `id` not among them
    row_json: bytes  # the whole row as JSON text, `id` included
    client_id_given: bool = False  # the id came from the client: a clash is its conflict
    op: OpKey | None = None
    auth: AuthContext | None = None
    has_checked_references: bool = False  # the rows that it refers to are there, or will be


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


class PutSession(msgspec.Struct, frozen=True, array_like=True, tag="put_session"):
    """Store a session under the hash of its token (hex). `SessionRow` describes the fields."""

    session_id: str
    user_id: str
    is_guest: bool
    created_at_s: int
    expires_at_s: int  # 0: never
    device: str
    tenant_id: str | None = None
    family: str = ""  # empty: the session is the first of its family
    auth_time_s: int = 0  # 0: when it was made
    methods: str = ""
    token_hint: str = ""
    last_seen_at_s: int = 0  # 0: when it was made


class DropSession(msgspec.Struct, frozen=True, array_like=True, tag="drop_session"):
    session_id: str


RowOp = InsertRow | UpdateRow | DeleteRow
TransactOp = (
    RowOp | PutSession | DropSession | PutRecord | SetRecords | DropRecords | CheckRecords
    | LimitRecords | EndSessions | TakeRates
)


class Transact(msgspec.Struct, frozen=True, array_like=True, tag="transact", gc=False):
    """Carry out all of `ops`, whose own keys do not count, or none of them.

    The reply's `results` has one reply for each, up to and including the first that failed;
    if one did, nothing was changed and the reply itself has no error.
    """

    ops: Sequence[TransactOp]
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


class ClaimShard(msgspec.Struct, frozen=True, array_like=True, tag="claim_shard"):
    """Give a shard to a worker, unless another one has claimed it under a lease that lasts. The
    reply has `count` 1 and the new generation as its `seq`, or `count` 0."""

    shard_id: str
    owner: str  # "node/worker"
    lease: str  # of the node of the owner
    region: str  # of a shard that is not stored yet


# With a `generation`, the operations below are refused with `ShardLeaseLost` if the shard has been
# claimed again since; without one they are carried out in any case.


class PutShard(msgspec.Struct, frozen=True, array_like=True, tag="put_shard"):
    """Keep the state of a simulation, in place of the one before."""

    shard_id: str
    tick: int
    data: bytes
    generation: int | None = None


class MoveShard(msgspec.Struct, frozen=True, array_like=True, tag="move_shard"):
    """Have a shard live at the shards worker `home`; None: where its id says."""

    shard_id: str
    home: str | None
    generation: int | None = None


class DropShard(msgspec.Struct, frozen=True, array_like=True, tag="drop_shard"):
    """Forget a shard's state, where it was moved to, and its claim."""

    shard_id: str
    generation: int | None = None


class ReleaseShard(msgspec.Struct, frozen=True, array_like=True, tag="release_shard"):
    """End a claim, and forget the shard if nothing of it is stored. Without effect if the shard
    has been claimed again."""

    shard_id: str
    generation: int


class ResetRows(msgspec.Struct, frozen=True, array_like=True, tag="reset_rows"):
    """Delete every row of every entity, with a change event for each (test reset)."""


WriteOp = (
    InsertRow | UpdateRow | DeleteRow | Transact | ResetRows | OpenDocument | PushDocument
    | PutSession | DropSession | ClaimShard | PutShard | MoveShard | DropShard | ReleaseShard
    | PutRecord | SetRecords | DropRecords | CheckRecords | LimitRecords | EndSessions | TakeRates
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
