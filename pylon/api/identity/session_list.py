"""The sessions of a user: list them, and end one, the others, or all (spec/identity.md §1.1).

A list has one entry for each family, which stands for one sign-in: its newest session. An id is the
beginning of a session id, which is a hash, so it gives no access. Users reach their own sessions
only: those of others are not found.

Bound: `limits.SESSIONS_LISTED` sessions of a user are listed, the newest first. Called by falcon.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import falcon

from pylon import limits
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.parameters import read_flag
from pylon.api.http.responses import send_json
from pylon.api.identity.revocations import Revocations
from pylon.api.services import IdentityServices
from pylon.auth.audit import audit_step
from pylon.auth.devices import device_label
from pylon.auth.revocation import end_credentials_of, end_family, end_sessions_of
from pylon.auth.transactions import Step
from pylon.auth_context import Caller
from pylon.clock import NS_PER_S
from pylon.errors import AuthRequired, NotFound
from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import Value
from pylon.storage.interface import PointRead

_ID_CHARS: Final = 16
_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_AFTER_HEX: Final = "g"  # sorts behind every hex digit


class SessionList:
    """``/api/auth/sessions``."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._revocations = Revocations(services)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        caller, user_id = _require_user(req, self._services)
        records = self._services.store.point(lambda reader: reader.records(
            "sessions", [Condition("user_id", "=", user_id), Condition("rotated_at", "null")],
            ("-created_at", "-last_seen_at"), limits.SESSIONS_LISTED,
        ))
        now_s = self._services.app.clock.wall_ns() // NS_PER_S
        send_json(resp, describe_sessions(records, now_s, caller.family))

    on_head = on_get

    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        caller, user_id = require_session(req, self._services)
        spares_current = read_flag(req, "others")
        steps: list[Step]
        if spares_current:
            steps = [*end_sessions_of(user_id, keep_family=caller.family)]
        else:
            now_s = self._services.app.clock.wall_ns() // NS_PER_S
            steps = [*end_credentials_of(user_id, now_s)]
            resp.append_header("set-cookie", self._services.requests.cookie.cleared())
        reason = "others" if spares_current else "all"
        steps.append(_audit(req, self._services, caller, reason))
        send_json(resp, {"revoked_count": len(self._revocations.carry_out(steps))})


class OneSession:
    """``DELETE /api/auth/sessions/{id}``."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._revocations = Revocations(services)

    def on_delete(self, req: falcon.Request, resp: falcon.Response, session_id: str) -> None:
        caller, user_id = require_session(req, self._services)
        of_user = Condition("user_id", "=", user_id)
        steps = end_one(self._services.store.point, session_id, [of_user])
        self._revocations.carry_out([*steps, _audit(req, self._services, caller, "one")])
        send_json(resp, {"revoked": True})


def end_one(point: PointRead, session_id: str, where: Sequence[Condition] = ()) -> list[Step]:
    """Return the steps that end the session of an id of a list.

    Args:
        where: further conditions that it must meet.

    Raises:
        NotFound: there is no such session.
    """
    records: list[dict[str, Value]] = []
    if _ID.fullmatch(session_id) is not None:
        records = point(lambda reader: reader.records("sessions", [
            Condition("session_id", ">=", session_id),
            Condition("session_id", "<", session_id + _AFTER_HEX), *where,
        ]))
    if not records:
        raise NotFound("There is no such session")
    return [step for record in records for step in end_family(_family_of(record))]


def describe_sessions(
    records: list[dict[str, Value]], now_s: int, current: str | None = None
) -> list[dict[str, Any]]:
    """Return the newest session of each family that lives, as clients see it.

    Args:
        records: of the table "sessions", the newest first.
        current: the family of the caller.
    """
    by_family: dict[str, dict[str, Value]] = {}
    for record in records:
        expires_at_s = record["expires_at"]
        is_live = not expires_at_s or (isinstance(expires_at_s, int) and expires_at_s > now_s)
        if is_live and record["rotated_at"] is None:
            by_family.setdefault(_family_of(record), record)
    return [
        {
            "id": str(record["session_id"])[:_ID_CHARS],
            "token_prefix": record["token_hint"] or "",
            "user_id": record["user_id"],
            "device": record["device"] or None,
            "created_at": record["created_at"],
            "expires_at": record["expires_at"],
            "last_seen_at": record["last_seen_at"] or record["created_at"],
            "current": family == current,
            "methods": str(record["methods"] or "").split(),
        }
        for family, record in by_family.items()
    ]


def require_session(req: falcon.Request, services: IdentityServices) -> tuple[Caller, str]:
    """Return the caller, who has a session, and their user id.

    Raises:
        AuthRequired: the caller has none.
    """
    caller, user_id = _require_user(req, services)
    if caller.session_id is None:
        raise AuthRequired("Login required")
    return caller, user_id


def _require_user(req: falcon.Request, services: IdentityServices) -> tuple[Caller, str]:
    caller = caller_of(req, services.requests)
    user_id = caller.auth.user_id
    if user_id is None or caller.auth.is_admin:
        raise AuthRequired("Login required")
    return caller, user_id


def _family_of(record: dict[str, Value]) -> str:
    return str(record["family"] or record["session_id"])


def _audit(
    req: falcon.Request, services: IdentityServices, caller: Caller, reason: str
) -> Step:
    app = services.app
    return audit_step(
        "session_revoke", app.clock, app.random, user_id=caller.auth.user_id,
        tenant_id=caller.auth.tenant_id, ip=address_of(req, services.requests),
        user_agent=device_label(req.env.get("HTTP_USER_AGENT")), reason=reason,
    )
