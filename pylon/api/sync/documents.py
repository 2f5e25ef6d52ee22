"""Pushes of updates to the documents of rows (spec/realtime.md §6.4).

The route judges the caller's rights before it decodes or merges anything. Then the merge sandbox
(`pylon.crdt.sandbox`) merges the update on trial: bytes that are no update, that swell beyond the
limit, take too long or crash Loro never reach the writer. The writer judges the rights again, on
the row as it is at the commit.

Bounds: limits.DOCUMENT_UPDATE_BYTES, and the rates `document-pushes-…`.
"""

from __future__ import annotations

import binascii
from typing import NoReturn

import falcon
import orjson

from pylon import limits
from pylon.api.data.access import entity_named, may_see_row, wait_before_absence
from pylon.api.data.conflicts import submit
from pylon.api.http.body import read_typed
from pylon.api.http.callers import address_of, caller_of, subject_of
from pylon.api.http.responses import send_json
from pylon.api.http.versions import SEQ_HEADER
from pylon.api.services import DataServices, SyncServices
from pylon.api.sync.bodies import DOCUMENT_UPDATE, DocumentUpdateBody
from pylon.auth_context import AuthContext
from pylon.errors import (
    AuthRequired,
    BadPath,
    InvalidHex,
    LimitExceeded,
    NotFound,
    NotSupported,
)
from pylon.manifest.model import Entity
from pylon.rates import (
    DOCUMENT_PUSHES_BY_ADDRESS,
    DOCUMENT_PUSHES_BY_USER,
    address_subject,
    user_subject,
)
from pylon.storage.ops import PushDocument
from pylon.storage.related import StoredRelated

PREFIX = "/api/crdt"


class DocumentPush:
    """``POST /api/crdt/{entity}/{row_id}``."""

    def __init__(self, services: DataServices, sync: SyncServices) -> None:
        self._services = services
        self._sync = sync

    def on_post(
        self, req: falcon.Request, resp: falcon.Response, entity: str, row_id: str
    ) -> None:
        services = self._services
        started_s = services.app.clock.monotonic_s()
        auth = caller_of(req, services.requests).auth
        if auth.user_id is None and not auth.is_admin:
            raise AuthRequired("Authentication required")
        if not row_id:
            bad_path(req, resp)
        named = entity_named(services.app, entity, auth, "write")
        if not named.crdt:
            why = "some of its fields are hidden" if named.hidden else (
                'its manifest says "crdt": false'
            )
            raise NotSupported(f"{named.name} has no documents: {why}")
        subject = subject_of(req, services.requests)
        if not auth.is_admin:
            _spend_push(services, auth, address_of(req, services.requests))
        self._check_rights(named, row_id, auth, started_s)
        update = _decode_update(read_typed(req, services.requests, DOCUMENT_UPDATE))
        stored = services.store.point(lambda reader: reader.document(named.name, row_id))
        parts = () if stored is None else stored.parts
        update = self._sync.merge_checker.check_merge(parts, update, subject)
        push = PushDocument(named.name, row_id, update, auth)
        reply = submit(services, auth, lambda: address_of(req, services.requests), push)
        if reply.seq:
            resp.set_header(SEQ_HEADER, str(reply.seq))
        send_json(resp, {"ok": True})

    def _check_rights(
        self, entity: Entity, row_id: str, auth: AuthContext, started_s: float
    ) -> None:
        """Refuse a push that the writer would refuse for any update.

        Raises:
            NotFound: there is no such row that the caller may read.
            PolicyDenied: the caller may not change it.
        """
        services = self._services
        row_json = None
        if may_see_row(services.app, services.store.point, entity, auth, row_id):
            row_json = services.store.point(lambda reader: reader.get(entity.name, row_id))
        if row_json is None:
            wait_before_absence(services.app, entity, auth, started_s)
            raise NotFound("Row not found")
        rules = services.app.rules.for_entity(entity.name)
        related = StoredRelated(services.store.point)
        row = orjson.loads(row_json)
        if not rules.may_begin_update(auth, row, related):
            raise rules.denied("update", auth, row, row, related)


def _spend_push(services: DataServices, auth: AuthContext, address: str) -> None:
    """Charge the identity; for a guest also the address, because anybody can make guests.

    Raises:
        RateLimited: the identity or the address has pushed too often.
    """
    services.requests.limiter.require(DOCUMENT_PUSHES_BY_USER, user_subject(auth.user_id or ""))
    if auth.is_guest:
        services.requests.limiter.require(DOCUMENT_PUSHES_BY_ADDRESS, address_subject(address))


def bad_path(req: falcon.Request, resp: falcon.Response, **parameters: object) -> NoReturn:
    """Refuse every other path below the prefix: a sink."""
    raise BadPath("Expected POST /api/crdt/<Entity>/<row id>")


def _decode_update(body: DocumentUpdateBody) -> bytes:
    text = body.update
    if len(text) > 2 * limits.DOCUMENT_UPDATE_BYTES:
        raise LimitExceeded(
            f"An update may have {limits.DOCUMENT_UPDATE_BYTES} bytes; this one has "
            f"{len(text) // 2}", hint="Push more often, and only what is new",
        )
    try:
        return binascii.unhexlify(text)
    except ValueError:
        raise InvalidHex("update must be hex: two digits for each byte") from None
