"""Many operations in one request: a batch, each by itself, and a transaction, all or nothing
(spec/http.md §3.8).

Everybody may send both; each operation is judged by its entity's policy. What can be known
without the rows (shapes, values, insert policies) is judged before the writer is asked.
"""

from __future__ import annotations

from typing import Any, Final

import falcon

from pylon import limits
from pylon.api import idempotency
from pylon.api.answers import send
from pylon.api.body import decode_json, decoded, read_body
from pylon.api.callers import address_of, caller_of
from pylon.api.conflicts import Address, submit_all, transact
from pylon.api.entities import SEQ_HEADER
from pylon.api.operations import Operation, operation
from pylon.api.services import Services
from pylon.api.unreadable import decode_changes, problem_of
from pylon.auth_context import AuthContext
from pylon.errors import InvalidJson, LimitExceeded, MissingOperations, PylonError
from pylon.storage.ops import OpKey, Transact, WriteReply

# Written in portions, so that one long batch leaves room for others in the writes in flight.
_PORTION_OPS: Final = 256


class Batch:
    """``POST /api/batch``: each operation succeeds or fails alone."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        auth = caller_of(req, services).auth
        raw = read_body(req)
        body, is_doubtful = decoded(req, services, raw, decode_changes)
        sent = body.get("operations") if isinstance(body, dict) else None
        if not isinstance(sent, list):
            raise MissingOperations(
                "operations array is required",
                hint='Send {"operations": [{"op", "entity", "id", "data"}, ...]}',
            )
        _check_count(len(sent), "BATCH_OPS", limits.BATCH_OPS)
        key = idempotency.key_of(req, services, auth, raw)
        if key is not None:
            # Claimed first, for the whole request: another one with this key ends here.
            services.writer.submit(Transact([], key))
        entries = [
            operation(
                services.app, auth, entry, idempotency.part(key, number),
                problem=problem_of(entry) if is_doubtful else None,
            )
            for number, entry in enumerate(sent)
        ]
        replayed = _carry_out(services, auth, lambda: address_of(req, services), entries)
        done = [entry for entry in entries if entry.error is None]
        if done and replayed == len(done):
            idempotency.say_replayed(resp)
        send(resp, {
            "results": [_batch_result(entry) for entry in entries],
            "succeeded": len(done),
            "failed": len(entries) - len(done),
        })


class Transaction:
    """``POST /api/transact``: all operations, or none."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        auth = caller_of(req, services).auth
        raw = read_body(req)
        sent = decode_json(req, services, raw)
        if not isinstance(sent, list):
            raise InvalidJson(
                "Invalid request body", hint='Send an array of {"op", "entity", "id", "data"}'
            )
        _check_count(len(sent), "TRANSACT_OPS", limits.TRANSACT_OPS)
        key = idempotency.key_of(req, services, auth, raw)
        entries = self._prepared(auth, sent)
        if entries and entries[-1].error is not None:
            send(resp, _outcome(entries, committed=False), 400)
            return
        reply = transact(
            services, auth, lambda: address_of(req, services), _transact(entries, key)
        )
        _note_replies(entries, reply)
        results = reply.results or []
        if results and results[-1].error is not None:
            send(resp, _outcome(entries[: len(results)], committed=False), 400)
            return
        if reply.seq:
            resp.set_header(SEQ_HEADER, str(reply.seq))
        if reply.replayed:
            idempotency.say_replayed(resp)
        send(resp, _outcome(entries, committed=True))

    def _prepared(self, auth: AuthContext, sent: list[Any]) -> list[Operation]:
        """The operations up to the first that cannot be."""
        entries: list[Operation] = []
        for entry in sent:
            made = operation(self._services.app, auth, entry, earlier=entries)
            entries.append(made)
            if made.error is not None:
                break
        return entries


def _transact(entries: list[Operation], key: OpKey | None) -> Transact:
    return Transact([entry.write for entry in entries if entry.write is not None], key)


def _note_replies(entries: list[Operation], reply: WriteReply) -> None:
    """What became of each operation. A repetition answers the ids of the first time."""
    for entry, result in zip(entries, reply.results or [], strict=False):
        if result.error is not None:
            entry.error = result.error.to_exception()
        else:
            entry.row_id = result.row_id


def _outcome(entries: list[Operation], committed: bool) -> dict[str, Any]:
    results = [
        {**entry.named(), "id": entry.row_id} if entry.error is None
        else {**entry.named(), "error": entry.error.message}
        for entry in entries
    ]
    return {"committed": committed, "results": results}


def _batch_result(entry: Operation) -> dict[str, Any]:
    out = {**entry.named(), "ok": entry.error is None}
    if entry.row_id is not None:
        out["id"] = entry.row_id
    if entry.error is not None:
        out["error"] = entry.error.message
        if entry.op == "insert":  # there is no row of this id
            out.pop("id", None)
    return out


def _carry_out(
    services: Services, auth: AuthContext, address: Address, entries: list[Operation]
) -> int:
    """Have the writer do what was prepared, in order; how many had been done before."""
    todo = [(entry, entry.write) for entry in entries if entry.write is not None]
    replayed = 0
    for start in range(0, len(todo), _PORTION_OPS):
        portion = todo[start : start + _PORTION_OPS]
        try:
            replies = submit_all(services, auth, address, [write for _, write in portion])
        except PylonError as error:
            # Not reached or not answered: so says each of them, beside those that are done.
            for entry, _ in todo[start:]:
                entry.error = error
            break
        for (entry, _), reply in zip(portion, replies, strict=True):
            if reply.error is not None:
                entry.error = reply.error.to_exception()
            else:
                entry.row_id = reply.row_id
                replayed += reply.replayed
    return replayed


def _check_count(count: int, name: str, most: int) -> None:
    if count > most:
        raise LimitExceeded(
            f"{count} operations in one request exceed the limit of {most} ({name})",
            hint="Send them in several requests",
        )
