"""An upload in three requests: ``init`` names it, ``PUT`` brings the bytes, ``confirm`` stores it.

``init`` stores a pending record, so a file that is too large, or too much for the quota, is refused
before a byte moves. Each PUT writes a file of its own, which replaces the bytes of the PUT before
when it is complete. So ``confirm`` finds the bytes of one whole PUT, or none. It moves them to
their final path, reads them for their SHA-256, and makes the record ready. A ``confirm`` that was
cut off between these steps may be repeated, and so may one that succeeded.

Only the caller who made the upload may send and confirm it. Bound: limits.UPLOAD_URL_S.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import falcon

from pylon import limits, metrics
from pylon.api.files import bodies
from pylon.api.files.access import absent
from pylon.api.files.receiving import (
    admitted,
    in_thread,
    now_s,
    receive,
    require_room,
    require_same_caller,
    stored,
    too_large,
    uploader_of,
    url_of,
)
from pylon.api.http.body import read_typed
from pylon.api.http.responses import send_json
from pylon.api.services import FilesServices
from pylon.errors import FileQuotaExceeded, RecordConflict, UploadFinished, UploadIncomplete
from pylon.files import records, types
from pylon.files.disk import Incoming
from pylon.files.names import clean_name, key_of, make_id
from pylon.files.records import PENDING, READY, FileRecord
from pylon.storage.auth_ops import Condition, DropRecords

UPLOADS: Final = "/api/files/uploads"


def pending_file(req: falcon.Request, services: FilesServices, file_id: str) -> FileRecord:
    """Return the record of an upload of the caller, complete or not.

    Raises:
        FileNotFound: there is none, or it has expired.
    """
    started_s = services.app.clock.monotonic_s()
    auth = uploader_of(req, services).auth
    record = records.find_record(services.store, file_id) if key_of(file_id) is not None else None
    if (
        record is None or record.owner != auth.user_id
        or (record.expires_at_s is not None and record.expires_at_s <= now_s(services))
    ):
        raise absent(services, started_s)
    return record


def finish(services: FilesServices, record: FileRecord, incoming: Incoming | None) -> FileRecord:
    """Move the bytes of an upload to their final path, and make its record ready.

    Args:
        incoming: None: they are there already.

    Raises:
        UploadIncomplete: their number or their SHA-256 is not what the client has declared.
        FileNotFound: the upload was deleted meanwhile.
        FileQuotaExceeded: the owner would have too much; the bytes and the record are deleted.
    """
    folder, key = services.folder, key_of(record.id) or ""

    def publish() -> tuple[str, int, str]:
        if incoming is not None:
            _check(record, incoming)
            folder.publish(incoming, key)
        fd = folder.open(key)
        done = Incoming(fd, Path(), 0)
        try:
            kind = types.stored_type(record.type, done.read_head(types.SNIFFED_BYTES))
            return kind, folder.size_of(key), done.digest()
        finally:
            done.close()

    try:
        kind, size_bytes, digest = in_thread(publish)
    except FileNotFoundError:  # the upload was deleted meanwhile
        raise absent(services, services.app.clock.monotonic_s()) from None
    quota_bytes = services.app.config.files_quota_bytes
    op = records.complete(record, kind, size_bytes, digest, quota_bytes)
    try:
        records.raise_refused(services.writer.submit(op), quota_bytes)
    except FileQuotaExceeded:
        abandon(services, record)
        raise
    except RecordConflict:  # another request was faster
        found = records.find_record(services.store, record.id)
        if found is None or found.state != READY:
            in_thread(folder.remove, key)
            raise absent(services, services.app.clock.monotonic_s()) from None
        return found
    return replace(
        record, type=kind, size_bytes=size_bytes, sha256=digest, state=READY, expires_at_s=None
    )


def abandon(services: FilesServices, record: FileRecord) -> None:
    """Delete an upload that is not complete, if it is still that."""
    where = [Condition("id", "=", record.id), Condition("state", "=", PENDING)]
    if services.writer.submit(DropRecords(records.TABLE, where)).count:
        in_thread(services.folder.remove, key_of(record.id))


class Init:
    """``POST /api/files/init``."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        config = services.app.config
        auth = uploader_of(req, services).auth
        body = read_typed(req, services.requests, bodies.INIT)
        size_bytes = body.size or 0
        if size_bytes > config.file_max_bytes:
            raise too_large(config.file_max_bytes)
        require_room(services, size_bytes)
        name = clean_name(body.filename)
        expires_at_s = now_s(services) + limits.UPLOAD_URL_S
        record = FileRecord(
            make_id(name, services.app.clock, services.app.random), auth.user_id, auth.tenant_id,
            name, (body.content_type or types.OCTETS)[:limits.FILE_NAME_BYTES], size_bytes,
            body.sha256, PENDING, False, now_s(services), expires_at_s,
        )
        reply = services.writer.submit(records.put(record, config.files_quota_bytes))
        records.raise_refused(reply, config.files_quota_bytes)
        at = datetime.fromtimestamp(expires_at_s, UTC).isoformat().replace("+00:00", "Z")
        send_json(resp, {
            "assetId": record.id, "uploadUrl": f"{UPLOADS}/{record.id}",
            "cdnUrl": url_of(record.id), "expiresAt": at,
        })


class StagedBytes:
    """``PUT /api/files/uploads/{file_id}``."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services

    def on_put(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        services = self._services
        folder = services.folder
        record = pending_file(req, services, file_id)
        if record.state != PENDING:
            raise UploadFinished("The upload is complete; begin a new one")
        limit_bytes = record.size_bytes or services.app.config.file_max_bytes
        if (req.content_length or 0) > limit_bytes:
            raise too_large(limit_bytes)
        key = key_of(record.id) or ""
        with admitted(req, services) as stream:
            incoming = in_thread(folder.begin, f"{key}.{services.app.random.token_hex(8)}")
            try:
                receive(stream, incoming, limit_bytes)
                require_same_caller(req, services)
                in_thread(folder.keep_incoming, incoming, key)
            except BaseException:
                in_thread(folder.drop_incoming, incoming.path.name)
                raise
            finally:
                incoming.close()
        resp.status = 204


class Confirm:
    """``POST /api/files/confirm``."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        uploader_of(req, services)
        body = read_typed(req, services.requests, bodies.CONFIRM)
        record = pending_file(req, services, body.asset_id)
        if record.state == PENDING:
            record = self._finish(record)
            metrics.FILE_UPLOADS.labels("staged").inc()
        send_json(resp, stored(record))

    def _finish(self, record: FileRecord) -> FileRecord:
        services, key = self._services, key_of(record.id) or ""
        try:
            incoming = in_thread(services.folder.resume, key)
        except FileNotFoundError:
            if in_thread(services.folder.has, key):
                return finish(services, record, None)  # a confirmation was cut off here
            raise UploadIncomplete(
                "The upload has no bytes yet", hint=f"PUT them to {UPLOADS}/{record.id}"
            ) from None
        try:
            return finish(services, record, incoming)
        finally:
            incoming.close()


def _check(record: FileRecord, incoming: Incoming) -> None:
    if record.size_bytes and incoming.size_bytes != record.size_bytes:
        raise UploadIncomplete(
            f"The upload has {incoming.size_bytes} bytes, and its size is {record.size_bytes}",
            hint="Send all bytes again",
        )
    if record.sha256 is not None and incoming.digest() != record.sha256:
        raise UploadIncomplete(
            "The bytes have another SHA-256 than the upload declared", hint="Send them again"
        )
