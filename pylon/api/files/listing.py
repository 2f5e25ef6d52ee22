"""Records of files: one, a list, a signed link, a change, a deletion."""

from __future__ import annotations

from typing import Any

import falcon

from pylon import limits
from pylon.api.files import bodies
from pylon.api.files.access import own_file, owns, readable_file
from pylon.api.files.download import Download
from pylon.api.files.receiving import in_thread, now_s, uploader_of, url_of
from pylon.api.http.body import read_typed
from pylon.api.http.callers import caller_of
from pylon.api.http.parameters import read_flag, read_number, read_text
from pylon.api.http.responses import send_json
from pylon.api.services import FilesServices
from pylon.errors import Forbidden, InvalidData, LimitExceeded, NotSupported
from pylon.files import records, signatures
from pylon.files.names import clean_name, key_of
from pylon.files.records import TABLE, FileRecord, record_of
from pylon.storage.auth_ops import Condition


def shown(record: FileRecord) -> dict[str, Any]:
    """Return a record as its owner sees it."""
    return {
        "id": record.id, "url": url_of(record.id), "name": record.name, "type": record.type,
        "size": record.size_bytes, "sha256": record.sha256, "state": record.state,
        "public": record.is_public, "owner": record.owner, "entity": record.entity,
        "row_id": record.row_id, "field": record.field, "created_at": record.created_at_s,
        "attached_at": record.attached_at_s,
    }


class FileList:
    """``GET /api/files``: the caller's files by id; an administrator's list has all."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        auth = uploader_of(req, services).auth
        owner = read_text(req, "owner")
        if owner is None and not auth.is_admin:
            owner = auth.user_id
        if owner != auth.user_id and not auth.is_admin:
            raise Forbidden("Only administrators list the files of others")
        where = [] if owner is None else [Condition("owner", "=", owner)]
        kind = read_text(req, "type")
        if kind is not None and kind.endswith("/*"):
            where += [
                Condition("type", ">=", kind[:-1]), Condition("type", "<", f"{kind[:-2]}0"),
            ]
        elif kind is not None:
            where.append(Condition("type", "=", kind))
        if read_text(req, "attached") is not None:
            where.append(
                Condition("row_id", "not null" if read_flag(req, "attached") else "null")
            )
        after = read_text(req, "after")
        if after is not None:
            where.append(Condition("id", ">", after))
        limit = min(read_number(req, "limit", 1) or limits.FILES_PAGE_MAX, limits.FILES_PAGE_MAX)
        found = services.store.point(lambda reader: reader.records(TABLE, where, (), limit + 1))
        page = [record_of(values) for values in found[:limit]]
        send_json(resp, {
            "files": [shown(record) for record in page],
            "next": page[-1].id if len(found) > limit else None,
        })

    on_head = on_get


class OneFile:
    """``/api/files/{file_id}``: the bytes; a change of name or ``public``; the deletion."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services
        self._download = Download(services)

    def on_get(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        self._download.send(req, resp, file_id)

    on_head = on_get

    def on_patch(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        services = self._services
        record = own_file(req, services, file_id)
        body = read_typed(req, services.requests, bodies.PATCH)
        values: dict[str, Any] = {}
        if body.name is not None:
            values["name"] = clean_name(body.name)
        if body.public is not None:
            values["public"] = body.public
        if not values:
            raise InvalidData('The body names nothing to change: expected "name" or "public"')
        services.writer.submit(records.change(record.id, values))
        changed = records.find_record(services.store, record.id)
        send_json(resp, shown(changed if changed is not None else record))

    def on_delete(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        services = self._services
        record = own_file(req, services, file_id)
        services.writer.submit(records.drop(record.id))
        in_thread(services.folder.remove, key_of(record.id))
        resp.status = 204


class FileLink:
    """``POST /api/files/{file_id}/sign``: a link that reads the file without a session."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        record, _ = readable_file(req, services, file_id)
        body = read_typed(req, services.requests, bodies.SIGN)
        if not owns(record, auth) and body.expires_s > limits.FILE_READER_LINK_S:
            raise LimitExceeded(
                f"A link to the file of somebody else lasts {limits.FILE_READER_LINK_S} s at the "
                "most (FILE_READER_LINK_S)",
            )
        if services.keys is None:
            raise NotSupported("This server has no secret key to sign links with")
        expires_at_s = now_s(services) + body.expires_s
        variant = "download" if body.download else "inline"
        signature = signatures.sign(services.keys, record.id, variant, expires_at_s)
        query = f"expires={expires_at_s}&signature={signature}"
        send_json(resp, {
            "url": f"{url_of(record.id)}?{query}{'&download=1' if body.download else ''}",
            "expires_at": expires_at_s,
        })
