"""``POST /api/auth/refresh``: gives the session a new token (spec/identity.md §1.1).

The old token counts for `ROTATION_GRACE_S` more, because two tabs may refresh at once: each gets a
token of its own, of the same family. A refresh with a token that was replaced longer ago means that
two parties have it. So the whole family ends, and the audit notes `token_reuse`.

Invariants: the new session is stored in the commit that finds the old one still there, so a
revocation is never undone by a refresh. A family has at most `limits.SESSIONS_OF_FAMILY` sessions.
A caller who is known by the cookie gets the new token as a cookie too.
"""

from __future__ import annotations

import falcon

from pylon import limits
from pylon.api.http.callers import address_of, token_of
from pylon.api.http.responses import send_json
from pylon.api.identity.revocations import Revocations
from pylon.api.services import IdentityServices
from pylon.auth.audit import audit_step
from pylon.auth.devices import device_label
from pylon.auth.issue import NewSession, session_issuer
from pylon.auth.revocation import end_family
from pylon.auth.session_life import has_ended, is_over
from pylon.auth.tokens import UnprivilegedToken, is_session_token, session_id_of
from pylon.auth.transactions import Step, carry_out
from pylon.clock import NS_PER_S
from pylon.errors import AuthRequired, RecordConflict, SessionExpired, Unavailable
from pylon.storage.auth_ops import CheckRecords, Condition, EndSessions, SetRecords
from pylon.storage.records import SessionRow

_TRIES = 3
_DROPPED_AT_ONCE = 10  # sessions of a family that has too many


class Refresh:
    """The resource."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._issuer = session_issuer(services.app)
        self._revocations = Revocations(services)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        token = token_of(req, self._services.requests)
        if not token:
            raise AuthRequired("Login required")
        session = self._rotate(req, token)
        if isinstance(token, UnprivilegedToken):  # its cookie holds the token that ends
            cookie = self._services.requests.cookie
            resp.append_header("set-cookie", cookie.set(session.token))
        send_json(
            resp,
            {
                "token": session.token,
                "user_id": session.put.user_id,
                "expires_at": session.put.expires_at_s,
            },
        )

    def _rotate(self, req: falcon.Request, token: str) -> NewSession:
        """Store a new session of the token's family.

        Raises:
            SessionExpired: the session is unknown, has ended, or was replaced before the grace.
            Unavailable: other refreshes have changed the session each time.
        """
        for _ in range(_TRIES):
            old = self._find(token)
            if old is None or has_ended(old, self._now_s()):
                raise SessionExpired("The session is unknown or has expired: sign in again")
            if is_over(old, self._now_s()):
                self._end_reused(req, old)
                raise SessionExpired(
                    "This token was replaced by a later one, so its session has ended: "
                    "sign in again"
                )
            session = self._issuer.rotate(old)
            steps = [self._replace(old), session.put, *self._drop_oldest(old.family)]
            try:
                carry_out(self._services.writer.submit, steps)
            except RecordConflict:
                continue  # another refresh or a revocation was faster: look again
            return session
        raise Unavailable("The session is being refreshed by others: try again")

    def _replace(self, old: SessionRow) -> Step:
        """Return the step that marks the old session as replaced, if it is still as it was."""
        is_old = Condition("session_id", "=", old.session_id)
        if old.rotated_at_s:
            return CheckRecords("sessions", [is_old], 1)
        return SetRecords(
            "sessions", [is_old, Condition("rotated_at", "null")],
            {"rotated_at": self._now_s(), "family": old.family}, 1,
        )

    def _drop_oldest(self, family: str) -> list[Step]:
        """Return the steps that make room in a family that has too many sessions."""
        of_family = Condition("family", "=", family)
        store = self._services.store
        count = store.point(lambda reader: reader.count_records("sessions", [of_family]))
        if count < limits.SESSIONS_OF_FAMILY:
            return []
        oldest = store.point(lambda reader: reader.records(
            "sessions", [of_family, Condition("rotated_at", "not null")], ("rotated_at",),
            _DROPPED_AT_ONCE,
        ))
        return [
            EndSessions([Condition("session_id", "=", record["session_id"])]) for record in oldest
        ]

    def _end_reused(self, req: falcon.Request, old: SessionRow) -> None:
        app = self._services.app
        audit = audit_step(
            "token_reuse", app.clock, app.random, user_id=old.user_id, tenant_id=old.tenant_id,
            ip=address_of(req, self._services.requests),
            user_agent=device_label(req.env.get("HTTP_USER_AGENT")), success=False,
        )
        self._revocations.carry_out([*end_family(old.family), audit])

    def _find(self, token: str) -> SessionRow | None:
        if not is_session_token(token):
            return None
        session_id = session_id_of(token)
        return self._services.store.point(lambda reader: reader.session(session_id))

    def _now_s(self) -> int:
        return self._services.app.clock.wall_ns() // NS_PER_S
