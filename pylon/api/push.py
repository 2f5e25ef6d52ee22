"""Push: a client's queued operations, carried out in order, each with its own outcome
(spec/realtime.md §1.5).

Everybody may push; each change is judged by its entity's policy. An op_id makes an operation
happen once: it is scoped to the user, or to the client where there is no user, and a repetition
answers what the first time answered. An Idempotency-Key does the same for changes without one.

Invariants: operations reach the writer in the order sent; one that fails stops no other; a
replayed one counts as applied too, since the official client keeps what is not counted there
and sends it for ever. Of a longer list the first limits.PUSH_CHANGES are carried out and the
answer says how many remain: the official client sends those again by itself, while a refusal
would leave its queue stuck.

Within one push a `_pending_` id stands for the row that an earlier insert of the same push made
(spec/realtime.md §1.5): as `row_id`, and in `data` as `id` or in a field of type id(...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import msgspec

from pylon import limits
from pylon.api import changes
from pylon.api.access import entity_named
from pylon.api.conflicts import submit_all
from pylon.api.idempotency import identity_of, part
from pylon.api.services import Services
from pylon.api.unreadable import decode_changes, problem_of, readable
from pylon.auth_context import AuthContext
from pylon.errors import InvalidData, InvalidJson, LimitExceeded, PylonError
from pylon.json_text import check_bounds
from pylon.manifest.model import Entity, FieldType
from pylon.storage.ops import (
    OpKey,
    RowOp,
    Transact,
    WriteReply,
)
from pylon.values import decode_body

_KINDS: Final = ("insert", "update", "delete")
_PENDING: Final = "_pending_"  # how clients name rows that have no id yet
_SHOWN_CHARS: Final = 100
# Written in portions, so that one long push leaves room for others in the writes in flight.
_PORTION_OPS: Final = 256


@dataclass(slots=True)
class _Entry:
    """One change of the request: how it is named in the answer, and what becomes of it."""

    kind: object
    entity: object
    row_id: object
    op_id: object
    error: PylonError | None = None
    reply: WriteReply | None = None

    def describe(self, problem: PylonError) -> str:
        """The entry of `errors`: ``<kind> <Entity>[/<row_id>]: <message>``."""
        row = f"/{_shown(self.row_id)}" if self.kind in ("update", "delete") else ""
        return f"{_shown(self.kind)} {_shown(self.entity)}{row}: {problem.message}"

    def result(self) -> dict[str, Any]:
        """The entry of `results`."""
        out: dict[str, Any] = {
            "op_id": self.op_id,
            "entity": self.entity,
            "kind": self.kind,
            "row_id": self.row_id,
            "seq": 0,
        }
        if self.error is not None:
            out["status"] = "error"
            out["error"] = self.error.body()["error"]
        elif self.reply is not None:
            out["status"] = "replayed" if self.reply.replayed else "applied"
            out["row_id"] = self.reply.row_id or self.row_id
            out["seq"] = self.reply.seq
        return out


_NULL: Final = msgspec.Raw(b"null")


class _LongPush(msgspec.Struct):
    changes: list[msgspec.Raw]
    client_id: msgspec.Raw = _NULL


def decode_push(raw: bytes) -> tuple[Any, bool]:
    """The body of a push, and whether some of its changes may be unreadable.

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


def push(
    services: Services, auth: AuthContext, body: object, address: str, key: OpKey | None = None,
    *, is_doubtful: bool = False,
) -> dict[str, Any]:
    """Carry out a push and describe its outcome.

    Args:
        body: the decoded request.
        address: the client's address; scopes the op_ids of a client without any name.
        key: of the request as a whole.
        is_doubtful: some changes may be unreadable (`pylon.api.unreadable`).

    Raises:
        InvalidJson: the body has no list `changes`.
        IdempotencyKeyReused: `key` came with another request.
        WriteQueueFull, WriterUnavailable, StoreUnavailable: try again; what has been done
            already is recognised by its op_ids.
        RateLimited: likewise, later (`pylon.api.conflicts`).
    """
    sent = body.get("changes") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(sent, list):
        raise InvalidJson("Invalid request body")
    identity = identity_of(auth, body.get("client_id"), address)
    if key is not None:
        # Claimed first, for the whole request: another one with this key ends here.
        services.writer.submit(Transact([], key))
    run = _Run(services, auth, identity, address)
    for number, change in enumerate(sent[: limits.PUSH_CHANGES]):
        problem = problem_of(change) if is_doubtful else None
        run.add(change, part(key, number), problem)
    run.write()
    entries = run.entries
    failed = [entry for entry in entries if entry.error is not None]
    answer: dict[str, Any] = {
        "applied": len(entries) - len(failed),
        "deduped": sum(1 for e in entries if e.reply is not None and e.reply.replayed),
        "errors": [entry.describe(entry.error) for entry in failed if entry.error is not None],
        "cursor": {"last_seq": services.store.point(lambda reader: reader.head_seq())},
        "results": [entry.result() for entry in entries],
    }
    if len(sent) > len(entries):
        answer["remaining"] = len(sent) - len(entries)
    return answer


class _Run:
    """The changes of one push: prepared and written in order, in portions.

    A change that refers to a row by its `_pending_` id waits until the insert of that row has
    been answered: an insert that is repeated has the id of its first time.
    """

    __slots__ = (
        "_address", "_app", "_auth", "_identity", "_inserts", "_portion", "_services", "entries",
    )

    def __init__(
        self, services: Services, auth: AuthContext, identity: str, address: str
    ) -> None:
        self._services = services
        self._address = address
        self._app = services.app
        self._auth = auth
        self._identity = identity
        self._inserts: dict[str, _Entry] = {}  # by the `_pending_` id of the row
        self._portion: list[tuple[_Entry, RowOp]] = []
        self.entries: list[_Entry] = []

    def add(self, change: object, key: OpKey | None, problem: PylonError | None) -> None:
        """Prepare a change, and write it with its portion.

        Raises: see `push`.
        """
        if not isinstance(change, dict):
            problem = InvalidData("A change must be an object")
            self.entries.append(_Entry(None, None, None, None, error=problem))
            return
        kind, row_id = readable(change.get("kind")), readable(change.get("row_id"))
        entry = _Entry(
            kind, readable(change.get("entity")), row_id, readable(change.get("op_id")), problem
        )
        self.entries.append(entry)
        if problem is None:
            try:
                op = self._operation(change, key)  # which may write what waits
                self._portion.append((entry, op))
            except PylonError as ex:
                if ex.status in (429, 503):
                    raise
                entry.error = ex
        if kind == "insert" and _is_pending(row_id):
            self._inserts[row_id] = entry
        if len(self._portion) == _PORTION_OPS:
            self.write()

    def write(self) -> None:
        """Have the writer do what was prepared, in order, and note each outcome."""
        portion, self._portion = self._portion, []
        if not portion:
            return
        replies = submit_all(
            self._services, self._auth, lambda: self._address, [op for _, op in portion]
        )
        for (entry, _), reply in zip(portion, replies, strict=True):
            if reply.error is None:
                entry.reply = reply
                continue
            entry.error = reply.error.to_exception()
            if entry.error.status == 503:
                # Not this change's fault: the official client must keep it and try again,
                # which it does with every answer that is not a success.
                raise entry.error

    def _operation(self, change: dict[str, Any], key: OpKey | None) -> RowOp:
        app, auth = self._app, self._auth
        kind, row_id, data = change.get("kind"), change.get("row_id"), change.get("data")
        if kind not in _KINDS:
            raise InvalidData(f"kind must be one of {', '.join(_KINDS)}")
        key = _op_key(self._identity, change.get("op_id")) or key
        entity = entity_named(app, change.get("entity"), auth)
        if kind != "delete" and data is None:
            raise InvalidData(f"An {kind} needs data")
        if self._inserts:
            data = self._with_row_ids(entity, data)
        if kind == "insert":
            return changes.insert(app, entity, auth, data, key)
        if not isinstance(row_id, str) or not row_id:
            raise InvalidData(f"A change of kind {kind} needs a row_id")
        row_id = self._row_id(row_id)
        if kind == "update":
            return changes.update(app, entity, auth, row_id, data, key)
        return changes.delete(entity, auth, row_id, key)

    def _with_row_ids(self, entity: Entity, data: Any) -> Any:
        """`data`, with row ids in place of `_pending_` ids in its `id` and id(...) fields."""
        if not isinstance(data, dict):
            return data
        return {
            name: self._row_id(value)
            if isinstance(value, str) and value in self._inserts and _is_reference(entity, name)
            else value
            for name, value in data.items()
        }

    def _row_id(self, named: str) -> str:
        """The id of the row that a `_pending_` id stands for; any other id as it is.

        Raises:
            InvalidData: the insert of that row has failed.
        """
        insert = self._inserts.get(named)
        if insert is None:
            return named
        if insert.reply is None and insert.error is None:
            self.write()
        if insert.reply is None:
            raise InvalidData(
                f'The row "{_shown(named)}" was not made: its insert, earlier in this push, failed',
                hint="Mend the insert; the errors of this answer say what is wrong with it",
            )
        return insert.reply.row_id


def _is_pending(row_id: object) -> TypeGuard[str]:
    return isinstance(row_id, str) and row_id.startswith(_PENDING)


def _is_reference(entity: Entity, name: str) -> bool:
    field = entity.by_name.get(name)
    return name == "id" if field is None else field.type is FieldType.ID


def _op_key(identity: str, op_id: object) -> OpKey | None:
    if op_id is None or op_id == "":
        return None
    if not isinstance(op_id, str) or len(op_id) > limits.OP_ID_CHARS:
        raise InvalidData(f"op_id must be text of at most {limits.OP_ID_CHARS} characters")
    return OpKey(identity, op_id)


def _shown(value: object) -> str:
    return value[:_SHOWN_CHARS] if isinstance(value, str) else "(not text)"
