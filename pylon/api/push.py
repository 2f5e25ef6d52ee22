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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pylon import limits
from pylon.api import changes
from pylon.api.access import entity_named
from pylon.api.idempotency import identity_of, part
from pylon.api.services import Services
from pylon.app import App
from pylon.auth.context import AuthContext
from pylon.bus.messages import OpKey, RowOp, Transact, WriteReply
from pylon.errors import InvalidData, InvalidJson, PylonError

_KINDS: Final = ("insert", "update", "delete")
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
    op: RowOp | None = None
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


def push(
    services: Services, auth: AuthContext, body: object, address: str, key: OpKey | None = None
) -> dict[str, Any]:
    """Carry out a push and describe its outcome.

    Args:
        body: the decoded request.
        address: the client's address; scopes the op_ids of a client without any name.
        key: of the request as a whole.

    Raises:
        InvalidJson: the body has no list `changes`.
        IdempotencyKeyReused: `key` came with another request.
        WriteQueueFull, WriterUnavailable, StoreUnavailable: try again; what has been done
            already is recognised by its op_ids.
    """
    sent = body.get("changes") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(sent, list):
        raise InvalidJson("Invalid request body")
    identity = identity_of(auth, body.get("client_id"), address)
    if key is not None:
        # Claimed first, for the whole request: another one with this key ends here.
        services.writer.submit(Transact([], key))
    entries = [
        _prepared(services.app, auth, identity, change, part(key, number))
        for number, change in enumerate(sent[: limits.PUSH_CHANGES])
    ]
    _carry_out(services, entries)
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


def _prepared(
    app: App, auth: AuthContext, identity: str, change: object, key: OpKey | None
) -> _Entry:
    """The entry of one change, with its operation or with why there is none."""
    if not isinstance(change, dict):
        return _Entry(None, None, None, None, error=InvalidData("A change must be an object"))
    entry = _Entry(
        change.get("kind"), change.get("entity"), change.get("row_id"), change.get("op_id")
    )
    try:
        entry.op = _operation(app, auth, identity, change, key)
    except PylonError as ex:
        entry.error = ex
    return entry


def _operation(
    app: App, auth: AuthContext, identity: str, change: dict[str, Any], key: OpKey | None
) -> RowOp:
    kind, row_id, data = change.get("kind"), change.get("row_id"), change.get("data")
    if kind not in _KINDS:
        raise InvalidData(f"kind must be one of {', '.join(_KINDS)}")
    key = _op_key(identity, change.get("op_id")) or key
    entity = entity_named(app, change.get("entity"), auth)
    if kind != "delete" and data is None:
        raise InvalidData(f"An {kind} needs data")
    if kind == "insert":
        return changes.insert(app, entity, auth, data, key)
    if not isinstance(row_id, str) or not row_id:
        raise InvalidData(f"A change of kind {kind} needs a row_id")
    if kind == "update":
        return changes.update(app, entity, auth, row_id, data, key)
    return changes.delete(entity, auth, row_id, key)


def _op_key(identity: str, op_id: object) -> OpKey | None:
    if op_id is None or op_id == "":
        return None
    if not isinstance(op_id, str) or len(op_id) > limits.OP_ID_CHARS:
        raise InvalidData(f"op_id must be text of at most {limits.OP_ID_CHARS} characters")
    return OpKey(identity, op_id)


def _carry_out(services: Services, entries: list[_Entry]) -> None:
    """Have the writer do what was prepared, in order, and note each outcome."""
    todo = [(entry, entry.op) for entry in entries if entry.op is not None]
    for start in range(0, len(todo), _PORTION_OPS):
        portion = todo[start : start + _PORTION_OPS]
        replies = services.writer.submit_all([op for _, op in portion])
        for (entry, _), reply in zip(portion, replies, strict=True):
            if reply.error is None:
                entry.reply = reply
                continue
            entry.error = reply.error.to_exception()
            if entry.error.status == 503:
                # Not this change's fault: the official client must keep it and try again,
                # which it does with every answer that is not a success.
                raise entry.error


def _shown(value: object) -> str:
    return value[:_SHOWN_CHARS] if isinstance(value, str) else "(not text)"
