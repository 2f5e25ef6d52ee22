"""Resumable uploads by the protocol tus 1.0.0 (https://tus.io/protocols/resumable-upload).

Extensions: creation, creation-with-upload, expiration, termination, checksum (sha256). An upload is
a pending record and an incoming file; its offset is the size of that file. A request that is cut
off keeps what has come, synced. One request at a time writes an upload: it locks the file.

A request with a checksum whose bytes turn out wrong leaves nothing of them, even when the worker is
killed meanwhile: the offset before stands in a file beside, and whoever opens the upload next goes
back to it.

When the last byte has come, the file is complete and is `/api/files/<id>`, where the id is the last
segment of the upload's URL. Bounds: PYLON_FILE_RESUMABLE_MAX_BYTES; limits.UPLOAD_KEPT_S.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Final

import falcon
import orjson

from pylon import limits, metrics
from pylon.api.files.receiving import (
    ReadableBody,
    admitted,
    in_thread,
    now_s,
    receive,
    require_room,
    require_same_caller,
    too_large,
    uploader_of,
)
from pylon.api.files.staged import abandon, finish, pending_file
from pylon.api.services import FilesServices
from pylon.errors import (
    SHOWN_CHARS,
    ChecksumMismatch,
    FileNotFound,
    InvalidData,
    LimitExceeded,
    UnsupportedMediaType,
    UploadConflict,
    UploadVersion,
)
from pylon.files import records, types
from pylon.files.disk import Incoming
from pylon.files.names import clean_name, key_of, make_id
from pylon.files.records import PENDING, FileRecord

TUS: Final = "/api/files/tus"
VERSION: Final = "1.0.0"
TUS_HEADERS: Final = (  # of the answer to OPTIONS
    ("tus-resumable", VERSION), ("tus-version", VERSION),
    ("tus-extension", "creation,creation-with-upload,expiration,termination,checksum"),
    ("tus-checksum-algorithm", "sha256"),
)
_BODY_TYPE: Final = "application/offset+octet-stream"
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


class Uploads:
    """``/api/files/tus``: creation, and what the server can do."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        _begin(req, resp)
        auth = uploader_of(req, services).auth
        config = services.app.config
        size_bytes = _number(req, "Upload-Length")
        if size_bytes > config.file_resumable_max_bytes:
            raise too_large(config.file_resumable_max_bytes)
        meta = _metadata(req.get_header("Upload-Metadata"))
        name = clean_name(meta.pop("filename", None) or meta.pop("name", None))
        kind = meta.pop("filetype", None) or meta.pop("type", None) or types.OCTETS
        text = orjson.dumps(meta).decode() if meta else None
        has_body = (req.content_type or "").strip().lower() == _BODY_TYPE
        require_room(services, size_bytes)
        record = FileRecord(
            make_id(name, services.app.clock, services.app.random), auth.user_id, auth.tenant_id,
            name, kind[:limits.FILE_NAME_BYTES], size_bytes, None, PENDING, False,
            now_s(services), now_s(services) + limits.UPLOAD_KEPT_S, meta=text,
        )
        with admitted(req, services) as stream:
            reply = services.writer.submit(records.put(record, config.files_quota_bytes))
            records.raise_refused(reply, config.files_quota_bytes)
            in_thread(services.folder.begin, key_of(record.id)).close()
            resp.status = 201
            resp.set_header("location", f"{TUS}/{record.id}")
            if has_body or not size_bytes:
                append(req, resp, services, record, stream if has_body else _Nothing())
            else:
                _set_expiry(resp, record)


class OneUpload:
    """``/api/files/tus/{file_id}``: its offset, further bytes, its end."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services

    def on_head(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        services = self._services
        _begin(req, resp)
        record = pending_file(req, services, file_id)
        offset = record.size_bytes
        if record.state == PENDING:
            found = in_thread(services.folder.offset, key_of(record.id))
            if found is None:
                raise FileNotFound("The upload has no bytes on this server")
            offset = found
            _set_expiry(resp, record)
        resp.set_header("upload-offset", str(offset))
        resp.set_header("upload-length", str(record.size_bytes))
        resp.set_header("cache-control", "no-store")

    def on_get(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        self.on_head(req, resp, file_id)

    def on_patch(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        services = self._services
        _begin(req, resp)
        if (req.content_type or "").strip().lower() != _BODY_TYPE:
            raise UnsupportedMediaType(f"PATCH takes a body of the type {_BODY_TYPE}")
        record = pending_file(req, services, file_id)
        offset = _number(req, "Upload-Offset")
        if record.state != PENDING:
            raise UploadConflict(f"The upload is complete, at {record.size_bytes} bytes")
        with admitted(req, services) as stream:
            append(req, resp, services, record, stream, offset)
        resp.status = 204

    def on_delete(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        services = self._services
        _begin(req, resp)
        record = pending_file(req, services, file_id)
        if record.state != PENDING:
            services.writer.submit(records.drop(record.id))
            in_thread(services.folder.remove, key_of(record.id))
        else:
            abandon(services, record)
        resp.status = 204


def append(
    req: falcon.Request, resp: falcon.Response, services: FilesServices, record: FileRecord,
    stream: ReadableBody, offset: int = 0,
) -> None:
    """Append the body to an upload; complete the file with its last byte.

    Raises:
        UploadConflict: the upload has another offset.
        ChecksumMismatch: the bytes are not those of Upload-Checksum.
        PylonError: as `receive`; the bytes that have come are kept.
    """
    checksum = _checksum(req.get_header("Upload-Checksum"))
    with _opened(services, record) as incoming:
        if incoming.size_bytes != offset:
            raise UploadConflict(
                f"The upload has {incoming.size_bytes} bytes, and Upload-Offset is {offset}",
                offset=incoming.size_bytes,
            )
        if (req.content_length or 0) > record.size_bytes - offset:
            raise too_large(record.size_bytes)
        if checksum is not None:
            in_thread(services.folder.mark, incoming)
            incoming.hash = hashlib.sha256()
        try:
            receive(stream, incoming, record.size_bytes)
            require_same_caller(req, services)
            if checksum is not None and incoming.hash.digest() != checksum:
                raise ChecksumMismatch("The bytes have another checksum; they were dropped")
        except BaseException:
            if checksum is not None:
                in_thread(incoming.cut, offset)
            in_thread(incoming.sync)
            if checksum is not None:
                in_thread(services.folder.unmark, incoming)
            raise
        in_thread(incoming.sync)
        if checksum is not None:
            in_thread(services.folder.unmark, incoming)
        resp.set_header("upload-offset", str(incoming.size_bytes))
        if incoming.size_bytes == record.size_bytes:
            finish(services, record, incoming)
            metrics.FILE_UPLOADS.labels("tus").inc()
        else:
            _set_expiry(resp, record)


class _Nothing:
    def read(self, size: int = -1, /) -> bytes:
        return b""


@contextmanager
def _opened(services: FilesServices, record: FileRecord) -> Iterator[Incoming]:
    try:
        incoming = in_thread(services.folder.resume, key_of(record.id))
    except FileNotFoundError:
        raise FileNotFound("The upload has no bytes on this server") from None
    try:
        yield incoming
    finally:
        incoming.close()


def _begin(req: falcon.Request, resp: falcon.Response) -> None:
    """Check the version of the protocol, and set that of the response."""
    resp.set_header("tus-resumable", VERSION)
    if req.get_header("Tus-Resumable") != VERSION:
        resp.set_header("tus-version", VERSION)
        raise UploadVersion(f"This server speaks tus {VERSION}: send Tus-Resumable: {VERSION}")


def _set_expiry(resp: falcon.Response, record: FileRecord) -> None:
    resp.set_header("upload-expires", formatdate(record.expires_at_s or 0, usegmt=True))


def _number(req: falcon.Request, name: str) -> int:
    text = req.get_header(name)
    if text is None or _NUMBER.fullmatch(text) is None:
        raise InvalidData(
            f'{name} is "{(text or "")[:SHOWN_CHARS]}": expected a number of bytes'
            + (" (this server does not defer it)" if name == "Upload-Length" else "")
        )
    return int(text)


def _metadata(header: str | None) -> dict[str, str]:
    """Return the pairs of Upload-Metadata: a name, and a value in base64."""
    if header is not None and len(header) > limits.FILE_META_BYTES:
        raise LimitExceeded(f"Upload-Metadata exceeds {limits.FILE_META_BYTES} bytes")
    found = {}
    for pair in (header or "").split(","):
        name, _, value = pair.strip().partition(" ")
        if not name:
            continue
        try:
            found[name] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidData(
                f'Upload-Metadata: the value of "{name[:SHOWN_CHARS]}" is no base64 of UTF-8'
            ) from None
    return found


def _checksum(header: str | None) -> bytes | None:
    if header is None:
        return None
    name, _, value = header.partition(" ")
    try:
        found = base64.b64decode(value.strip(), validate=True)
    except binascii.Error:
        found = b""
    if name != "sha256" or len(found) != 32:
        raise InvalidData("Upload-Checksum takes sha256, a space, and the checksum in base64")
    return found
