"""Access: finds the entity that a request names, and what of it the caller may read.

Invariants: a row that the caller may not read is treated exactly like one that does not exist. A
refusal that depends on no row (no read policy, wrong role) is an open 403. A caller who is not
admin gets the same 403 for an entity that does not exist, and so learns nothing from guessing.

Scopes of API keys are checked here first, for each entity that a path, a body or a message names
(`pylon.key_scopes`). Called by the resources and by `workers.ws`.
"""

from __future__ import annotations

from typing import Final

import gevent

from pylon import limits
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.errors import SHOWN_CHARS, EntityNotFound, PolicyDenied
from pylon.key_scopes import EntityAction, require_entity
from pylon.manifest.model import Entity
from pylon.policy.routing import ByAuth, Everyone, Nobody
from pylon.query.conditions import and_, equal
from pylon.query.predicate import FALSE, TRUE, Predicate
from pylon.storage.interface import PointRead

_HINT: Final = "Check your auth token or the policy rules in your schema"


def entity_named(app: App, name: object, auth: AuthContext, action: EntityAction | None) -> Entity:
    """Return the entity that a request names.

    Args:
        action: what the request does with its rows; None: the caller of this function checks that.

    Raises:
        ScopeDenied: the caller's API key does not reach the entity for that.
        EntityNotFound: there is none, and the caller is admin.
        PolicyDenied: there is none, and the caller is not admin.
    """
    if action is not None and isinstance(name, str):
        require_entity(auth, name, action)
    entity = app.manifest.by_name.get(name) if isinstance(name, str) else None
    if entity is not None:
        return entity
    if auth.is_admin:
        known = ", ".join(sorted(app.manifest.by_name)) or "none"
        shown = name[:SHOWN_CHARS] if isinstance(name, str) else "(not text)"
        raise EntityNotFound(f'Unknown entity "{shown}" -- known entities: {known}')
    raise PolicyDenied("Access denied by policy", hint=_HINT)


def readable(app: App, entity: Entity, auth: AuthContext) -> Predicate:
    """Return the condition of the rows that the caller may read.

    Raises:
        PolicyDenied: the caller may read none, whatever they hold.
    """
    if auth.is_admin:
        return TRUE
    rules = app.rules.for_entity(entity.name)
    allowed = rules.readable_by(auth)
    if allowed is FALSE and isinstance(rules.routing, Nobody | ByAuth):
        raise rules.denied("read", auth, {})
    return allowed


def may_see_row(
    app: App, point: PointRead, entity: Entity, auth: AuthContext, row_id: str
) -> bool:
    """Return whether the row exists and the caller may read it.

    The store evaluates the policy, so that no row is decoded; `wait_before_absence` hides the
    rest of the time that a caller could measure.
    """
    where = visible_row(app, entity, auth, row_id)
    return point(lambda reader: reader.count(entity.name, where)) > 0


def wait_before_absence(app: App, entity: Entity, auth: AuthContext, started_s: float) -> None:
    """Wait before a 404 for a row, so that a hidden row takes as long as a missing one.

    The time in which the store skips a hidden row grows with the size of the row.

    Args:
        started_s: when the request began, on the app's monotonic clock.
    """
    if auth.is_admin or isinstance(app.rules.for_entity(entity.name).routing, Everyone | ByAuth):
        return  # no row can be hidden
    left_s = started_s + limits.ABSENCE_S - app.clock.monotonic_s()
    if left_s > 0:
        gevent.sleep(left_s)


def visible_row(app: App, entity: Entity, auth: AuthContext, row_id: str) -> Predicate:
    """Return the condition of one row, if the caller may read it."""
    return and_(equal("id", row_id), app.rules.for_entity(entity.name).readable_by(auth))
