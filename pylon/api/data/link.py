"""Sets and clears relations between rows (spec/http.md §3.8).

A to-one relation is a field of the row itself. A to-many relation is a field of the rows that it
leads to, which holds this row's id. Either way one row is updated: under the update policy of its
entity, and with a change event like any other update.
"""

from __future__ import annotations

import falcon
import orjson

from pylon.api.data import changes
from pylon.api.data.access import entity_named
from pylon.api.data.bodies import LINK, UNLINK
from pylon.api.data.conflicts import submit
from pylon.api.http.body import decode_json, read_body
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.idempotency import key_of, mark_replayed
from pylon.api.http.responses import send_json
from pylon.api.http.versions import SEQ_HEADER
from pylon.api.services import DataServices
from pylon.auth_context import AuthContext
from pylon.errors import NotFound, ReferenceNotFound
from pylon.key_scopes import require_entity
from pylon.manifest.model import Entity, Relation
from pylon.query.graph import relation_of
from pylon.storage.ops import OpKey, UpdateRow


class Link:
    """``POST /api/link``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        _execute(self._services, req, resp, linked=True)


class Unlink:
    """``POST /api/unlink``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        _execute(self._services, req, resp, linked=False)


def _execute(
    services: DataServices, req: falcon.Request, resp: falcon.Response, linked: bool
) -> None:
    auth = caller_of(req, services.requests).auth
    raw = read_body(req)
    decoded = decode_json(req, services.requests, raw)
    body = LINK.convert(decoded) if linked else UNLINK.convert(decoded)
    key = key_of(req, services.requests, auth, raw)
    entity = entity_named(services.app, body.entity, auth, None)
    row_id = body.id
    relation = relation_of(entity, body.relation)
    if _is_own_field(services, entity, relation):
        target_id = body.target_id if linked else None
        op = changes.make_update(
            services.app, entity, auth, row_id, {relation.field: target_id}, key
        )
    else:
        target_id = LINK.convert(decoded).target_id
        op = _update_target(services, auth, entity, row_id, relation, target_id, linked, key)
    try:
        reply = submit(services, auth, lambda: address_of(req, services.requests), op)
    except ReferenceNotFound as error:
        raise NotFound("Target entity not found") from error
    except NotFound as error:
        missing = "Source" if op.entity == entity.name and op.row_id == row_id else "Target"
        raise NotFound(f"{missing} entity not found") from error
    resp.set_header(SEQ_HEADER, str(reply.seq))
    if reply.replayed:
        mark_replayed(resp)
    send_json(resp, {"linked" if linked else "unlinked": True})


def _is_own_field(services: DataServices, entity: Entity, relation: Relation) -> bool:
    """Return whether the relation is a field of the row itself. A to-many relation is one too, if
    its target has no such field, as in graph queries."""
    target = services.app.manifest.by_name[relation.target]
    return not (relation.many and relation.field in target.by_name)


def _update_target(
    services: DataServices, auth: AuthContext, entity: Entity, row_id: str, relation: Relation,
    target_id: str, linked: bool, key: OpKey | None,
) -> UpdateRow:
    """Return the op that updates the row at the other end of a to-many relation.

    Raises:
        NotFound: the caller may not read one of the rows, or they are not linked.
        ScopeDenied: the caller's API key does not reach one of the entities.
    """
    target = services.app.manifest.by_name[relation.target]
    require_entity(auth, entity.name, "read")
    require_entity(auth, target.name, "write")
    if not linked:
        require_entity(auth, target.name, "read")  # the response tells its field
    allowed = services.app.rules.for_entity(entity.name).readable_by(auth)
    source = services.store.point(
        lambda reader: reader.get_version(entity.name, row_id, allowed)
    )
    if source is None:
        raise NotFound("Source entity not found")
    if linked:
        patch = {relation.field: row_id}
        return changes.make_update(services.app, target, auth, target_id, patch, key)
    visible = services.app.rules.for_entity(target.name).readable_by(auth)
    found = services.store.point(
        lambda reader: reader.get_version(target.name, target_id, visible)
    )
    if found is None:
        raise NotFound("Target entity not found")
    row, seq = found
    if key is None and orjson.loads(row)[relation.field] != row_id:
        raise NotFound(
            "Target entity not found", hint=f"{target.name}/{target_id} is not linked to this row"
        )
    # Only if the row is unchanged: another request may be linking it to another row.
    return changes.make_update(
        services.app, target, auth, target_id, {relation.field: None}, key,
        seq if key is None else None,
    )

