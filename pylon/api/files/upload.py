"""``POST /api/files/upload``: a file in one request, as the body itself or as multipart/form-data.

The raw form has the name in X-Filename and the type in Content-Type. Of a multipart body the first
part with a file name is the file; the fields before it are kept as `meta`. What follows the file is
read, and must end as multipart does, but is not kept.

falcon's reader takes multipart apart while it arrives. Bounds: limits.FILE_PARTS parts,
FILE_META_BYTES of fields, PYLON_FILE_MAX_BYTES.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import falcon
import orjson
from falcon.media.multipart import MultipartForm, MultipartParseError, MultipartParseOptions
from falcon.util import BufferedReader

from pylon import limits, metrics
from pylon.api.files.receiving import (
    ReadableBody,
    admitted,
    in_thread,
    now_s,
    receive,
    require_same_caller,
    store_bytes,
    stored,
    too_large,
    uploader_of,
)
from pylon.api.http.responses import send_json
from pylon.api.services import FilesServices
from pylon.auth_context import Caller
from pylon.errors import InvalidMultipart, LimitExceeded, OutcomeUnknown, WriterUnavailable
from pylon.files import records
from pylon.files.names import clean_name, key_of, make_id
from pylon.files.records import READY, FileRecord

_BOUNDARY: Final = re.compile(
    r"""boundary=(?:"([^"]{1,70})"|([!#$%&'*+.^_`|~0-9A-Za-z/:=?,()-]{1,70}))"""
)
_FORM: Final = "multipart/form-data"
_OVERHEAD_BYTES: Final = 65_536  # of a multipart body beside its file
_UNKNOWN: Final = (WriterUnavailable, OutcomeUnknown)


@dataclass(frozen=True, slots=True)
class _Part:
    """The file of a request."""

    stream: ReadableBody
    name: str
    declared: str | None
    meta: str | None = None


class Upload:
    """See the module."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        caller = uploader_of(req, services)
        limit_bytes = services.app.config.file_max_bytes
        is_form = (req.content_type or "").strip().lower().startswith(_FORM)
        length = req.content_length
        if length is not None and length > limit_bytes + (_OVERHEAD_BYTES if is_form else 0):
            raise too_large(limit_bytes)
        with admitted(req, services) as stream:
            if not is_form:
                name = unquote(req.get_header("X-Filename") or "", errors="replace")
                part = _Part(stream, clean_name(name), req.content_type)
                record = self._store(req, caller, part, iter(()))
            else:
                try:
                    parts = _parts(req, stream)
                    record = self._store(req, caller, next(parts), parts)
                except (MultipartParseError, UnicodeDecodeError, ValueError) as ex:
                    reason = getattr(ex, "description", None) or "malformed part"
                    raise InvalidMultipart(f"The body is no valid {_FORM}: {reason}") from None
        metrics.FILE_UPLOADS.labels("request").inc()
        send_json(resp, stored(record), 201)

    def _store(
        self, req: falcon.Request, caller: Caller, part: _Part, rest: Iterator[_Part]
    ) -> FileRecord:
        """Receive the bytes of a part, and store the file.

        Args:
            rest: reads the parts behind it.
        """
        services = self._services
        config, folder = services.app.config, services.folder
        file_id = make_id(part.name, services.app.clock, services.app.random)
        key = key_of(file_id) or ""
        incoming = in_thread(folder.begin, key)
        is_published = False
        try:
            receive(part.stream, incoming, config.file_max_bytes)
            for _ in rest:
                pass
            require_same_caller(req, services)
            kind = store_bytes(services, incoming, key, part.declared)
            is_published = True
            record = FileRecord(
                file_id, caller.auth.user_id, caller.auth.tenant_id, part.name, kind,
                incoming.size_bytes, incoming.hash.hexdigest(), READY, False, now_s(services),
                meta=part.meta,
            )
            reply = services.writer.submit(records.put(record, config.files_quota_bytes))
            records.raise_refused(reply, config.files_quota_bytes)
        except BaseException as ex:
            # A write whose outcome is unknown may have stored the record: `pylonctl files gc`.
            if not (is_published and isinstance(ex, _UNKNOWN)):
                in_thread(folder.remove, key)
            raise
        finally:
            incoming.close()
        return record


def _parts(req: falcon.Request, stream: ReadableBody) -> Iterator[_Part]:
    """Yield the part that is the file, and then nothing, once all further parts were read.

    Raises:
        InvalidMultipart: there is no file.
        MultipartParseError: the body is no multipart body.
    """
    match = _BOUNDARY.search(req.content_type or "")
    if match is None:
        raise InvalidMultipart("The Content-Type names no boundary, or one that is too long")
    options = MultipartParseOptions()
    options.max_body_part_count = limits.FILE_PARTS
    options.max_body_part_buffer_size = limits.FILE_META_BYTES
    length = req.content_length
    reader = BufferedReader(stream.read, (1 << 62) if length is None else length)
    form = MultipartForm(reader, (match[1] or match[2]).encode(), length, options)
    fields: dict[str, str] = {}
    has_file = False
    for part in form:
        if has_file:
            continue  # the next step of the form reads over it
        name = part.filename
        if name is None:
            fields[(part.name or "")[:limits.FILE_NAME_BYTES]] = part.get_data().decode()
            continue
        has_file = True
        meta = orjson.dumps(fields).decode() if fields else None
        if meta is not None and len(meta) > limits.FILE_META_BYTES:
            raise LimitExceeded(
                f"The fields before the file exceed {limits.FILE_META_BYTES} bytes"
            )
        yield _Part(part.stream, clean_name(name), part.content_type, meta)
    if not has_file:
        raise InvalidMultipart("The body has no part with a file name")
