"""Sessions for administrators: list those of a user, and end many (spec/identity.md §1.1, §1.10).

Invariants: no answer has a token. A purge ends sessions in steps, so that no write is long; one
that fails in the middle has ended the sessions of its first steps, and may be repeated.

Called by falcon; `pylonctl session` and `pylonctl user` call the routes.
"""

from __future__ import annotations

from typing import Final

import falcon

from pylon import limits
from pylon.api.http.body import read_typed
from pylon.api.http.callers import caller_of
from pylon.api.http.parameters import read_text
from pylon.api.http.responses import send_json
from pylon.api.identity.bodies import PURGE_SESSIONS
from pylon.api.identity.revocations import Revocations
from pylon.api.identity.session_list import describe_sessions, end_one
from pylon.api.services import IdentityServices
from pylon.auth.audit import audit_step
from pylon.auth.revocation import void_jwts
from pylon.auth.transactions import Step
from pylon.auth_context import ADMIN_USER_ID
from pylon.clock import NS_PER_S
from pylon.errors import Forbidden
from pylon.storage.auth_ops import Condition, EndSessions

_STEP: Final = limits.SESSION_STEP


def require_admin(req: falcon.Request, services: IdentityServices) -> None:
    """
    Raises:
        Forbidden: the caller is no administrator.
    """
    if not caller_of(req, services.requests).auth.is_admin:
        raise Forbidden("this endpoint requires admin auth (PYLON_ADMIN_TOKEN)")


class AdminSessions:
    """``GET /api/admin/auth/sessions``: the sessions of a user, or the newest of all."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        require_admin(req, self._services)
        where = [Condition("rotated_at", "null")]
        user_id = read_text(req, "user_id")
        if user_id is not None:
            where.append(Condition("user_id", "=", user_id))
        records = self._services.store.point(lambda reader: reader.records(
            "sessions", where, ("-created_at", "-last_seen_at"), limits.SESSIONS_LISTED
        ))
        now_s = self._services.app.clock.wall_ns() // NS_PER_S
        found = describe_sessions(records, now_s)
        for described in found:
            del described["current"]
        send_json(resp, found)

    on_head = on_get


class OneAdminSession:
    """``DELETE /api/admin/auth/sessions/{session_id}``: end the session of any user."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._revocations = Revocations(services)

    def on_delete(self, req: falcon.Request, resp: falcon.Response, session_id: str) -> None:
        require_admin(req, self._services)
        app = self._services.app
        audit = audit_step(
            "session_revoke", app.clock, app.random, user_id=None, actor_id=ADMIN_USER_ID,
            reason="one", metadata={"session": session_id},
        )
        steps = end_one(self._services.store.point, session_id)
        self._revocations.carry_out([*steps, audit])
        send_json(resp, {"revoked": True})


class SessionPurge:
    """``POST /api/admin/sessions/purge``: end the sessions of a user, old ones, or all."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._revocations = Revocations(services)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        require_admin(req, services)
        body = read_typed(req, services.requests, PURGE_SESSIONS)
        app = services.app
        where = []
        steps: list[Step] = [audit_step(
            "session_revoke", app.clock, app.random, user_id=body.user_id,
            actor_id=ADMIN_USER_ID, reason="purge",
            metadata=None if body.before is None else {"before": body.before},
        )]
        if body.user_id is not None:
            where.append(Condition("user_id", "=", body.user_id))
            steps.append(void_jwts(body.user_id, app.clock.wall_ns() // NS_PER_S))
        if body.before is not None:
            where.append(Condition("created_at", "<", body.before))
        revoked = len(self._revocations.carry_out(steps))
        while True:
            ended = self._revocations.carry_out([EndSessions(where, limit=_STEP)])
            if not ended:
                break
            revoked += len(ended)
        send_json(resp, {"revoked": revoked})
