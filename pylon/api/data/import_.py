"""Import of rows, for admins (spec/http.md §3.16): accepts both forms of `/api/export`.

Rows keep their ids, so that references hold. A row without an id gets a new one; with
``?ids=new`` all rows do. Every row is checked like an insert and makes its change event. The rows
are written in portions, so that other writes come in between. A row that is refused is counted,
and the first limits.IMPORT_ERRORS of them are described; it stops no other row. A row that names
a row of a later portion is tried again at the end; rows that name each other in a circle are
inserted in one transaction.

The response to JSON lines is JSON lines: the progress after each portion, and at the end the
object that the JSON form gets, with ``"done": true``.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import Any

import falcon
import gevent
import msgspec
import orjson

from pylon import limits
from pylon.api.data.bodies import ImportBody
from pylon.api.data.export import JSON_LINES
from pylon.api.data.import_order import Numbered, in_order_of_references
from pylon.api.http.body import decode_raw, read_body
from pylon.api.http.callers import caller_of
from pylon.api.http.parameters import read_text
from pylon.api.http.responses import send_json
from pylon.api.http.unreadable import decode_changes, problem_of
from pylon.api.services import DataServices
from pylon.auth_context import ADMIN
from pylon.errors import (
    SHOWN_CHARS,
    EntityNotFound,
    Forbidden,
    InvalidData,
    InvalidId,
    InvalidQuery,
    MissingField,
    PylonError,
    ReferenceNotFound,
)
from pylon.storage.ops import InsertRow, Transact
from pylon.values import decode_body

Sent = tuple[object, object]  # entity and row, as the client sent them


class _ImportResult(msgspec.Struct):
    """The outcome so far."""

    inserted: dict[str, int] = msgspec.field(default_factory=dict)
    failed: dict[str, int] = msgspec.field(default_factory=dict)
    errors: list[dict[str, Any]] = msgspec.field(default_factory=list)
    rows: int = 0
    waiting: list[Numbered] = msgspec.field(default_factory=list)  # their row is missing

    def fail(self, number: int, entity: object, error: PylonError) -> None:
        name = entity[:SHOWN_CHARS] if isinstance(entity, str) else "(not text)"
        self.failed[name] = self.failed.get(name, 0) + 1
        if len(self.errors) < limits.IMPORT_ERRORS:
            self.errors.append({"row": number, "entity": name, **error.body()["error"]})

    def progress(self) -> dict[str, Any]:
        return {"imported": sum(self.inserted.values()), "failed": sum(self.failed.values())}

    def summary(self) -> dict[str, Any]:
        names = sorted(self.inserted.keys() | self.failed.keys())
        out: dict[str, Any] = self.progress()
        out["by_entity"] = [
            {"entity": name, "inserted": self.inserted.get(name, 0),
             "failed": self.failed.get(name, 0)}
            for name in names
        ]
        if self.errors:
            out["errors"] = self.errors
        return out


class Import:
    """``POST /api/import``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        if not caller_of(req, self._services.requests).auth.is_admin:
            raise Forbidden("Admin access required for data import")
        ids = read_text(req, "ids") or "keep"
        if ids not in ("keep", "new"):
            raise InvalidQuery(f'ids is "{ids[:SHOWN_CHARS]}": expected keep or new')
        raw = read_body(req).removeprefix(codecs.BOM_UTF8)  # files often have one
        if JSON_LINES in (req.env.get("CONTENT_TYPE") or ""):
            resp.content_type = JSON_LINES
            resp.stream = self._stream_lines(_read_lines(raw), ids == "keep")
            return
        result = _ImportResult()
        sent = decode_raw(req, self._services.requests, raw, _read_document)
        for _ in self._run_portions(sent, ids == "keep", result):
            pass
        send_json(resp, result.summary())

    def _stream_lines(
        self, sent: Iterator[Sent | PylonError], keep_ids: bool
    ) -> Iterator[bytes]:
        result = _ImportResult()
        try:
            for _ in self._run_portions(sent, keep_ids, result):
                yield orjson.dumps(result.progress()) + b"\n"
        except PylonError as error:  # the response has begun: its last line is the error
            yield orjson.dumps({**result.summary(), "done": False, **error.body()}) + b"\n"
            return
        yield orjson.dumps({**result.summary(), "done": True}) + b"\n"

    def _run_portions(
        self, sent: Iterator[Sent | PylonError], keep_ids: bool, result: _ImportResult
    ) -> Iterator[None]:
        """Execute the import; yield after each portion.

        Raises:
            WriteQueueFull, WriterUnavailable, StoreUnavailable: the rows of `result` are done.
        """
        portion: list[Numbered] = []
        size_bytes = 0
        for entry in sent:
            result.rows += 1
            if result.rows % limits.OPERATIONS_PORTION == 0:
                gevent.sleep(0)  # rows that fail never wait: let other requests run
            if isinstance(entry, PylonError):
                result.fail(result.rows, None, entry)
                continue
            try:
                op = self._make_insert(*entry, keep_ids)
            except PylonError as error:
                result.fail(result.rows, entry[0], error)
                continue
            portion.append((result.rows, op))
            size_bytes += len(op.row_json)
            is_full = len(portion) == limits.OPERATIONS_PORTION
            if is_full or size_bytes >= limits.IMPORT_PORTION_BYTES:
                self._write(portion, result)
                yield
                portion, size_bytes = [], 0
        if portion:
            self._write(portion, result)
        waiting, result.waiting = result.waiting, []
        ordered, circular = in_order_of_references(self._services.app.manifest, waiting)
        for begin in range(0, len(ordered), limits.OPERATIONS_PORTION):
            self._write(
                ordered[begin : begin + limits.OPERATIONS_PORTION], result, is_last_try=True
            )
            yield
        if circular:
            self._write_together(circular, result)

    def _make_insert(self, name: object, row: object, keep_ids: bool) -> InsertRow:
        app = self._services.app
        codec = app.codecs.get(name) if isinstance(name, str) else None
        if codec is None:
            known = ", ".join(sorted(app.codecs)) or "none"
            raise EntityNotFound(f"Unknown entity -- known entities: {known}")
        given = row.get("id") if keep_ids and isinstance(row, dict) else None
        if given is not None and not _is_id(given):
            raise InvalidId(
                f"id must be text of 1 to {limits.ROW_ID_CHARS} characters without NUL",
                hint="?ids=new gives every row a new id",
            )
        row_id = app.ids.new() if given is None else str(given)
        # An import keeps the values of fixed fields.
        row = app.defaults[codec.entity.name].fill(row, row_id, ADMIN)
        encoded = codec.insert(row, row_id)
        return InsertRow(
            codec.entity.name, row_id, encoded.values, encoded.row_json, given is not None
        )

    def _write(
        self, portion: list[Numbered], result: _ImportResult, *, is_last_try: bool = False
    ) -> None:
        """Insert the rows, each by itself. Rows whose reference is missing wait for the end."""
        replies = self._services.writer.submit_all([op for _, op in portion])
        for (number, op), reply in zip(portion, replies, strict=True):
            if reply.error is None:
                result.inserted[op.entity] = result.inserted.get(op.entity, 0) + 1
                continue
            error = reply.error.to_exception()
            if error.status == 503:
                raise error
            if isinstance(error, ReferenceNotFound) and not is_last_try:
                result.waiting.append((number, op))
            else:
                result.fail(number, op.entity, error)

    def _write_together(self, rows: list[Numbered], result: _ImportResult) -> None:
        """Insert rows that name each other in a circle, all or none."""
        reply = self._services.writer.submit(Transact([op for _, op in rows]))
        refused = (reply.results or [])[-1].error
        for number, op in rows:
            if refused is None:
                result.inserted[op.entity] = result.inserted.get(op.entity, 0) + 1
            else:
                result.fail(number, op.entity, refused.to_exception())


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= limits.ROW_ID_CHARS and "\0" not in value


def _read_document(raw: bytes) -> Iterator[Sent | PylonError]:
    """Yield the rows of a document. Each is decoded when its turn comes, so that a document may
    have more values than a decoder may make at once."""
    try:
        entities = msgspec.json.decode(raw, type=ImportBody).entities
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_small_document(*decode_changes(raw))  # raises what is wrong
    return (
        _decode_row(name, bytes(row)) for name, rows in entities.items() for row in rows
    )


def _decode_row(name: str, row: bytes) -> Sent | PylonError:
    try:
        return name, decode_body(row)
    except PylonError as error:
        return error


def _read_small_document(body: Any, is_doubtful: bool) -> Iterator[Sent | PylonError]:
    entities = body.get("entities") if isinstance(body, dict) else None
    if not isinstance(entities, dict):
        raise MissingField(
            "entities is required", field="entities",
            hint='Send {"entities": {"<Entity>": [rows]}}, as /api/export answers',
        )
    for name, rows in entities.items():
        if not isinstance(rows, list):
            raise InvalidData(f'entities["{name[:SHOWN_CHARS]}"] must be an array of rows')
    return (
        (is_doubtful and problem_of(row)) or (name, row)
        for name, rows in entities.items() for row in rows
    )


def _read_lines(raw: bytes) -> Iterator[Sent | PylonError]:
    for line in io.BytesIO(raw):  # one at a time: there may be ten million
        if not line.strip():
            continue
        try:
            entry = decode_body(line)
        except PylonError as error:
            yield error
            continue
        if isinstance(entry, dict):
            yield entry.get("entity"), entry.get("row")
        else:
            yield InvalidData('A line must be {"entity", "row"}')
