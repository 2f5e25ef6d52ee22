"""Push: a client's queued changes, executed in order, each with its own outcome
(spec/realtime.md §1.5).

Any caller may push; the policy of its entity judges each change. An op_id makes a change happen
once: its scope is the user, or the client of a caller without a user. A repetition gets the
result of the first time. An Idempotency-Key does the same for changes without an op_id.

`pylon.api.data.operations` writes the changes; this module reads the envelope of a push and makes
its response.

Invariants: a replayed change counts as applied, because the official client keeps what is not
counted there and sends it for ever. Of a longer list the first limits.PUSH_CHANGES are executed,
and of one that a rate interrupts those before it; the response says how many remain. The official
client sends those again by itself, while a refusal would leave its queue stuck.

Within one push a `_pending_` id stands for the row that an earlier insert of the same push made
(spec/realtime.md §1.5): as `row_id`, and in `data` as `id` or in a field of type id(...). Called
by `pylon.api.sync.pull`.
"""

from __future__ import annotations

from typing import Any, Final

import falcon
import msgspec

from pylon import limits
from pylon.api.data.operations import KINDS, Entry, Envelope, OperationRun, read_entry
from pylon.api.http.body import decode_raw, read_body
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.idempotency import identity_of, key_of, mark_replayed, operation_key
from pylon.api.http.responses import send_json
from pylon.api.http.unreadable import decode_changes
from pylon.api.services import DataServices
from pylon.api.sync.bodies import PUSH, PushedChange
from pylon.auth_context import AuthContext
from pylon.errors import SHOWN_CHARS, InvalidData, InvalidJson, LimitExceeded, RateLimited
from pylon.json_text import check_bounds
from pylon.manifest.model import Entity, FieldType
from pylon.storage.ops import (
    OpKey,
    Transact,
)
from pylon.values import decode_body

_PENDING: Final = "_pending_"  # how clients name rows that have no id yet
_NULL: Final = msgspec.Raw(b"null")
_ENVELOPE: Final = Envelope(
    PushedChange, "A change", "a row_id", "kind must be one of insert, update, delete"
)


class Push:
    """``POST /api/sync/push``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        address = address_of(req, services.requests)
        raw = read_body(req)
        body, is_doubtful = decode_raw(req, services.requests, raw, decode_push)
        answer = execute_push(
            services, auth, body, address, key_of(req, services.requests, auth, raw),
            is_doubtful=is_doubtful,
        )
        if answer["deduped"] and answer["deduped"] == answer["applied"]:
            mark_replayed(resp)
        send_json(resp, answer)


class _LongPush(msgspec.Struct):
    """A push with more values than a body may have, its changes not decoded yet."""

    changes: list[msgspec.Raw]
    client_id: msgspec.Raw = _NULL


def decode_push(raw: bytes) -> tuple[Any, bool]:
    """Return the decoded body of a push, and whether some of its changes may be unreadable.

    A queue with more values than a body may have is not refused: the first changes are decoded,
    and the others are only counted.

    Raises:
        InvalidJson, LimitExceeded: as `decode_body`.
    """
    try:
        return decode_changes(raw)
    except LimitExceeded:
        check_bounds(raw, limits.PUSH_NODES)
    try:
        push = msgspec.json.decode(raw, type=_LongPush)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidJson("Invalid request body") from None
    first, rest = push.changes[: limits.PUSH_CHANGES], push.changes[limits.PUSH_CHANGES :]
    changes, is_doubtful = decode_changes(b"[%b]" % b",".join(map(bytes, first)))
    client_id = decode_body(bytes(push.client_id))
    return {"changes": changes + [None] * len(rest), "client_id": client_id}, is_doubtful


def execute_push(
    services: DataServices, auth: AuthContext, body: object, address: str, key: OpKey | None = None,
    *, is_doubtful: bool = False,
) -> dict[str, Any]:
    """Execute a push and describe its outcome.

    Args:
        body: the decoded request.
        address: the client's address; scopes the op_ids of a client without any name.
        key: of the request as a whole.
        is_doubtful: some changes may be unreadable (`pylon.api.http.unreadable`).

    Raises:
        InvalidJson: the body has no list `changes`.
        IdempotencyKeyReused: `key` came with another request.
        WriteQueueFull, WriterUnavailable, StoreUnavailable: try again; the op_ids of the changes
            that are written already keep them from being written twice.
        RateLimited: no change was executed; likewise, later.
    """
    typed = PUSH.convert(body)
    identity = identity_of(auth, typed.client_id, address)
    if key is not None:
        # Claimed first, for the whole request: another request with this key ends here.
        services.writer.submit(Transact([], key))
    run = OperationRun(services, auth, lambda: address, _ENVELOPE, raises_unavailable=True)
    pending = _PendingRows(run)
    try:
        for number, change in enumerate(typed.changes[: limits.PUSH_CHANGES]):
            entry = read_entry(change, _ENVELOPE, is_doubtful=is_doubtful)
            own_key = None
            if entry.error is None and entry.sent.kind in KINDS:  # else `add` reports the kind
                try:
                    own_key = _op_key(identity, entry.sent)
                except InvalidData as error:
                    entry.error = error
            run.add(entry, own_key or operation_key(key, number), pending.any_known())
            pending.note(entry)
        run.flush()
    except RateLimited:
        if not run.answered:
            raise
    entries = run.entries[: run.answered]
    failed = [(entry, entry.error) for entry in entries if entry.error is not None]
    answer: dict[str, Any] = {
        "applied": len(entries) - len(failed),
        "deduped": run.replayed,
        "errors": [_describe_error(entry.sent, error.message) for entry, error in failed],
        "cursor": {"last_seq": services.store.point(lambda reader: reader.head_seq())},
        "results": [_describe_result(entry) for entry in entries],
    }
    if len(typed.changes) > len(entries):
        answer["remaining"] = len(typed.changes) - len(entries)
    return answer


class _PendingRows:
    """The rows that this push inserts, by the `_pending_` ids that its changes give them.

    A change that refers to such a row waits until the writer has answered the insert: a repeated
    insert has the id of its first time.
    """

    __slots__ = ("_inserts", "_run")

    def __init__(self, run: OperationRun[PushedChange]) -> None:
        self._run = run
        self._inserts: dict[str, Entry[PushedChange]] = {}

    def any_known(self) -> _PendingRows | None:
        """Return the references, or None while there is no row to refer to."""
        return self if self._inserts else None

    def note(self, entry: Entry[PushedChange]) -> None:
        """Remember the row if the entry inserts one under a `_pending_` id."""
        row_id = entry.sent.row_id
        if entry.sent.kind == "insert" and isinstance(row_id, str) and row_id.startswith(_PENDING):
            self._inserts[row_id] = entry

    def resolve(self, text: str) -> str:
        """Return the id of the row that `text` stands for; any other id as it is.

        Raises:
            InvalidData: the insert of that row has failed.
        """
        insert = self._inserts.get(text)
        if insert is None:
            return text
        if insert.reply is None and insert.error is None:
            self._run.flush()
        if insert.reply is None:
            raise InvalidData(
                f'The row "{_shorten_name(text)}" was not made: its insert, earlier in this push, '
                "failed",
                hint="Mend the insert; the errors of this answer say what is wrong with it",
            )
        return insert.reply.row_id

    def may_stand_in(self, entity: Entity, name: str) -> bool:
        """Return whether the field is `id` or of type id(...)."""
        field = entity.by_name.get(name)
        return name == "id" if field is None else field.type is FieldType.ID


def _op_key(identity: str, change: PushedChange) -> OpKey | None:
    op_id = change.op_id
    if op_id is None or op_id == "":
        return None
    if not isinstance(op_id, str) or len(op_id) > limits.OP_ID_CHARS:
        raise InvalidData(f"op_id must be text of at most {limits.OP_ID_CHARS} characters")
    return OpKey(identity, op_id)


def _describe_error(change: PushedChange, message: str) -> str:
    """Return the entry of `errors`: ``<kind> <Entity>[/<row_id>]: <message>``."""
    row = f"/{_shorten_name(change.row_id)}" if change.kind in ("update", "delete") else ""
    return f"{_shorten_name(change.kind)} {_shorten_name(change.entity)}{row}: {message}"


def _describe_result(entry: Entry[PushedChange]) -> dict[str, Any]:
    """Return the entry of `results`."""
    change = entry.sent
    out: dict[str, Any] = {
        "op_id": change.op_id,
        "entity": change.entity,
        "kind": change.kind,
        "row_id": change.row_id,
        "seq": 0,
    }
    if entry.error is not None:
        out["status"] = "error"
        out["error"] = entry.error.body()["error"]
    elif entry.reply is not None:
        out["status"] = "replayed" if entry.reply.replayed else "applied"
        out["row_id"] = entry.reply.row_id or change.row_id
        out["seq"] = entry.reply.seq
    return out


def _shorten_name(value: object) -> str:
    return value[:SHOWN_CHARS] if isinstance(value, str) else "(not text)"
