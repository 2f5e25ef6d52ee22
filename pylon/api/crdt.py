"""Pushes to rows' documents (spec/realtime.md §6.4).

The update is merged first by a process that may die of it (`pylon.crdt.taster`): what is no
update, swells beyond the limit, takes too long or breaks Loro never reaches the writer. All else
is judged there, on the row as it is.
"""

from __future__ import annotations

import binascii
from typing import Any, NoReturn

import falcon

from pylon import limits
from pylon.api.access import entity_named
from pylon.api.answers import send
from pylon.api.body import read_json
from pylon.api.callers import caller_of
from pylon.api.entities import SEQ_HEADER
from pylon.api.services import Services
from pylon.bus.messages import PushDocument
from pylon.errors import (
    AuthRequired,
    BadPath,
    InvalidHex,
    InvalidJson,
    LimitExceeded,
    MissingUpdate,
    NotSupported,
)

PREFIX = "/api/crdt"


class DocumentPush:
    """``POST /api/crdt/{entity}/{row_id}``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def on_post(
        self, req: falcon.Request, resp: falcon.Response, entity: str, row_id: str
    ) -> None:
        services = self._services
        auth = caller_of(req, services).auth
        if auth.user_id is None and not auth.is_admin:
            raise AuthRequired("Authentication required")
        if not row_id:
            bad_path(req, resp)
        named = entity_named(services.app, entity, auth)
        if not named.crdt:
            raise NotSupported(f'{named.name} has no documents: its manifest says "crdt": false')
        update = _update(read_json(req))
        stored = services.store.point(lambda reader: reader.document(named.name, row_id))
        parts = () if stored is None else (stored.snapshot, *stored.updates)
        services.tasting.taste(parts, update)
        reply = services.writer.submit(PushDocument(named.name, row_id, update, auth))
        if reply.seq:
            resp.set_header(SEQ_HEADER, str(reply.seq))
        send(resp, {"ok": True})


def bad_path(req: falcon.Request, resp: falcon.Response, **parameters: object) -> NoReturn:
    """The sink of every other path below the prefix."""
    raise BadPath("Expected POST /api/crdt/<Entity>/<row id>")


def _update(body: Any) -> bytes:
    if not isinstance(body, dict):
        raise InvalidJson("Invalid request body", hint='Send {"update": "<hex>"}')
    text = body.get("update")
    if not isinstance(text, str):
        raise MissingUpdate("update is required", hint='Send {"update": "<hex>"}')
    if len(text) > 2 * limits.DOCUMENT_UPDATE_BYTES:
        raise LimitExceeded(
            f"An update may have {limits.DOCUMENT_UPDATE_BYTES} bytes; this one has "
            f"{len(text) // 2}", hint="Push more often, and only what is new",
        )
    try:
        return binascii.unhexlify(text)
    except ValueError:
        raise InvalidHex("update must be hex: two digits for each byte") from None
