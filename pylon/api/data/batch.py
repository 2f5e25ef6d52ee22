"""Many operations in one request: a batch, each by itself, and a transaction, all or nothing
(spec/http.md §3.8).

Any caller may send both; the policy of its entity judges each operation. `operations` prepares
and writes the operations; this module reads the two envelopes and makes the responses.

In a transaction ``"$ref:<n>"`` stands for the id of the row that operation n (counted from 0, an
insert and an earlier one) makes: as `id`, or as the value of a string or id(...) field.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import falcon

from pylon import limits
from pylon.api.data.bodies import BATCH, Operation
from pylon.api.data.conflicts import transact
from pylon.api.data.operations import Entry, Envelope, OperationRun, prepare, read_entry
from pylon.api.http import idempotency
from pylon.api.http.body import decode_json, decode_raw, read_body
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.responses import send_json
from pylon.api.http.unreadable import decode_changes
from pylon.api.http.versions import SEQ_HEADER
from pylon.api.services import DataServices
from pylon.auth_context import AuthContext
from pylon.errors import SHOWN_CHARS, InvalidData, InvalidJson, LimitExceeded, ScopeDenied
from pylon.manifest.model import Entity, FieldType
from pylon.storage.ops import InsertRow, Transact, WriteReply

_REFERENCE: Final = re.compile(r"\$ref:([0-9]{1,6})", re.ASCII)
_REFERENCE_TYPES: Final = (FieldType.ID, FieldType.STRING)
_ENVELOPE: Final = Envelope(
    Operation, "An operation", "an id", "unknown operation",
    "op must be one of insert, update, delete",
)


class Batch:
    """``POST /api/batch``: each operation succeeds or fails alone."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        raw = read_body(req)
        body, is_doubtful = decode_raw(req, services.requests, raw, decode_changes)
        sent = BATCH.convert(body).operations
        _check_count(len(sent), "BATCH_OPS", limits.BATCH_OPS)
        key = idempotency.key_of(req, services.requests, auth, raw)
        if key is not None:
            # Claimed first, for the whole request: another request with this key ends here.
            services.writer.submit(Transact([], key))
        run = OperationRun(
            services, auth, lambda: address_of(req, services.requests), _ENVELOPE,
            raises_unavailable=False,
        )
        for number, operation in enumerate(sent):
            entry = read_entry(operation, _ENVELOPE, is_doubtful=is_doubtful)
            run.add(entry, idempotency.operation_key(key, number))
        run.flush()
        succeeded = sum(1 for entry in run.entries if entry.error is None)
        if succeeded and run.replayed == succeeded:
            idempotency.mark_replayed(resp)
        send_json(resp, {
            "results": [_describe_result(entry) for entry in run.entries],
            "succeeded": succeeded,
            "failed": len(run.entries) - succeeded,
        })


class Transaction:
    """``POST /api/transact``: all operations, or none."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        raw = read_body(req)
        sent = decode_json(req, services.requests, raw)
        if not isinstance(sent, list):
            raise InvalidJson(
                "Invalid request body", hint='Send an array of {"op", "entity", "id", "data"}'
            )
        _check_count(len(sent), "TRANSACT_OPS", limits.TRANSACT_OPS)
        key = idempotency.key_of(req, services.requests, auth, raw)
        entries = self._prepare(auth, sent)
        if entries and entries[-1].error is not None:
            send_json(resp, _describe_outcome(entries, committed=False), 400)
            return
        writes = [entry.write for entry in entries if entry.write is not None]
        reply = transact(
            services, auth, lambda: address_of(req, services.requests), writes, key
        )
        _note_replies(entries, reply)
        results = reply.results or []
        if results and results[-1].error is not None:
            send_json(resp, _describe_outcome(entries[: len(results)], committed=False), 400)
            return
        if reply.seq:
            resp.set_header(SEQ_HEADER, str(reply.seq))
        if reply.replayed:
            idempotency.mark_replayed(resp)
        send_json(resp, _describe_outcome(entries, committed=True))

    def _prepare(self, auth: AuthContext, sent: list[Any]) -> list[Entry[Operation]]:
        """Return the entries up to the first that cannot be executed.

        Raises:
            ScopeDenied: the caller's API key does not reach an entity.
        """
        entries: list[Entry[Operation]] = []
        references = _EarlierInserts(entries)
        for operation in sent:
            entry = read_entry(operation, _ENVELOPE)
            prepare(entry, self._services.app, auth, _ENVELOPE, references=references)
            if isinstance(entry.error, ScopeDenied):
                raise entry.error  # about the key, and not about this operation
            entries.append(entry)
            if entry.error is not None:
                break
        return entries


class _EarlierInserts:
    """The rows that the operations before the current one insert, by their numbers."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Sequence[Entry[Operation]]) -> None:
        self._entries = entries

    def resolve(self, text: str) -> str:
        """Return the row id that ``$ref:<n>`` stands for; any other text as it is.

        Raises:
            InvalidData: operation n is no insert, or not an earlier one.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            return text
        number = int(match[1])
        write = self._entries[number].write if number < len(self._entries) else None
        if not isinstance(write, InsertRow):
            raise InvalidData(
                f"{match[0]} does not refer to an earlier insert",
                hint=f"It stands before operation {len(self._entries)}, counted from 0",
            )
        return write.row_id

    def may_stand_in(self, entity: Entity, name: str) -> bool:
        """Return whether the field is of type string or id(...)."""
        field = entity.by_name.get(name)
        return field is not None and field.type in _REFERENCE_TYPES


def _note_replies(entries: list[Entry[Operation]], reply: WriteReply) -> None:
    """Note the outcome of each operation."""
    for entry, result in zip(entries, reply.results or [], strict=False):
        entry.reply = result
        if result.error is not None:
            entry.error = result.error.to_exception()


def _describe_outcome(entries: list[Entry[Operation]], committed: bool) -> dict[str, Any]:
    results = [
        {"op": _kind_of(entry), "id": _row_id_of(entry)} if entry.error is None
        else {"op": _kind_of(entry), "error": entry.error.message, "code": entry.error.code}
        for entry in entries
    ]
    return {"committed": committed, "results": results}


def _describe_result(entry: Entry[Operation]) -> dict[str, Any]:
    error = entry.error
    out: dict[str, Any] = {"op": _kind_of(entry), "ok": error is None}
    row_id = _row_id_of(entry)
    if error is not None:
        out["error"] = error.message
    # The id of an insert that failed is the id of no row.
    if row_id is not None and (error is None or entry.sent.kind != "insert"):
        out["id"] = row_id
    return out


def _kind_of(entry: Entry[Operation]) -> object:
    kind = entry.sent.kind
    return kind[:SHOWN_CHARS] if isinstance(kind, str) else kind


def _row_id_of(entry: Entry[Operation]) -> str | None:
    """Return the id of the row: of a repeated insert, the id of its first time."""
    if entry.reply is not None and entry.reply.error is None:
        return entry.reply.row_id
    if entry.write is not None:
        return entry.write.row_id
    return entry.sent.row_id if isinstance(entry.sent.row_id, str) else None


def _check_count(count: int, name: str, most: int) -> None:
    if count > most:
        raise LimitExceeded(
            f"{count} operations in one request exceed the limit of {most} ({name})",
            hint="Send them in several requests",
        )
