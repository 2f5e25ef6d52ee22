"""Drivers of the paths that write: entity routes, batches, transactions, pushes, documents.

A driver sends one operation, and returns the outcome that the answer claims; the test compares the
claim with the model and the stored row with the claim. `WRITES` has all drivers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.matrix.model import DENIED, MISSING, OK, Outcome
from tests.matrix.stand import Answer, Caller, Stand

_DENIALS: Final = ("POLICY_DENIED", "SCOPE_DENIED", "READONLY_FIELD")


@dataclass(frozen=True, slots=True)
class Operation:
    """An insert, an update or a delete; an insert brings its own id."""

    kind: str
    entity: str
    row_id: str
    body: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        return {"id": self.row_id, **self.body} if self.kind == "insert" else self.body


Driver = Callable[[Stand, Caller, Operation], Outcome]


def outcome_of(answer: Answer) -> Outcome:
    """Return the outcome of an answer.

    Raises: AssertionError for an answer that is neither success nor a refusal of rights.
    """
    if answer.status in (200, 201):
        return OK
    return _outcome_of_code(answer.code, answer)


def _outcome_of_code(code: str | None, answer: object) -> Outcome:
    if code == "NOT_FOUND":
        return MISSING
    assert code in _DENIALS, answer
    return DENIED


def entity_route(stand: Stand, caller: Caller, op: Operation) -> Outcome:
    path = f"/api/entities/{op.entity}"
    if op.kind == "insert":
        return outcome_of(stand.call("POST", path, op.data, caller.token))
    method, body = ("PATCH", op.data) if op.kind == "update" else ("DELETE", None)
    return outcome_of(stand.call(method, f"{path}/{op.row_id}", body, caller.token))


def batch(stand: Stand, caller: Caller, op: Operation) -> Outcome:
    """Send a batch; its results have the texts of errors, and no codes."""
    answer = stand.call("POST", "/api/batch", {"operations": [_enveloped(op)]}, caller.token)
    return OK if answer.body["failed"] == 0 else _outcome_of_result(answer)


def transact(stand: Stand, caller: Caller, op: Operation) -> Outcome:
    """Send a transaction; a refusal of the writer has a text, and one of the worker a code."""
    answer = stand.call("POST", "/api/transact", [_enveloped(op)], caller.token)
    return _outcome_of_result(answer) if answer.status == 400 else outcome_of(answer)


def _outcome_of_result(answer: Answer) -> Outcome:
    text = str(answer.body["results"][0]["error"]).lower()
    if "not found" in text:
        return MISSING
    assert any(word in text for word in ("denied by policy", "lacks the scope", "read-only")), text
    return DENIED


def push(stand: Stand, caller: Caller, op: Operation) -> Outcome:
    change = {
        "kind": op.kind, "entity": op.entity, "row_id": op.row_id, "data": op.data,
        "op_id": f"{caller.name} {op.kind} {op.row_id} {sorted(op.body)}"[:120],
    }
    body = {"changes": [change], "client_id": "matrix"}
    answer = stand.call("POST", "/api/sync/push", body, caller.token)
    if answer.status != 200:
        return outcome_of(answer)
    if answer.body["applied"] == 1:
        return OK
    return _outcome_of_code(answer.body["results"][0]["error"]["code"], answer)


def document(stand: Stand, caller: Caller, op: Operation) -> Outcome:
    """Push an update to the row's document; the administrator has read the document."""
    client = stand.open_document(op.entity, op.row_id)
    update = b""
    if client is not None:
        for name, value in op.body.items():
            client.doc.get_map("row").insert(name, value)
        update = client.update()
    body = {"update": update.hex()}
    answer = stand.call("POST", f"/api/crdt/{op.entity}/{op.row_id}", body, caller.token)
    return DENIED if answer.code in ("AUTH_REQUIRED", "NOT_SUPPORTED") else outcome_of(answer)


def _enveloped(op: Operation) -> dict[str, Any]:
    body = {"op": op.kind, "entity": op.entity, "id": op.row_id}
    return {**body, "data": op.data} if op.kind != "delete" else body


WRITES: Final[dict[str, Driver]] = {
    "entity_route": entity_route, "batch": batch, "transact": transact, "push": push,
    "document": document,
}
UPDATES_ONLY: Final = frozenset({"document"})  # and by users only
NEED_SYNC: Final = frozenset({"push"})
