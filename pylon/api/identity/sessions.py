"""Identity and sessions: guest, me, session, logout (spec/http.md §3.11.1).

Invariants: a token is sent only after its session is committed. The cookie is set only for a
request with a trusted Origin header, and for a caller who came with it; never by
`POST /api/auth/session`. When a session ends, a signal tells the socket workers, which close its
sockets.
"""

from __future__ import annotations

from typing import Any

import falcon
import orjson

from pylon.api.http.body import read_typed
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.responses import send_json
from pylon.api.identity.bodies import MINT_SESSION
from pylon.api.identity.revocations import Revocations
from pylon.api.services import IdentityServices
from pylon.auth.audit import audit_step
from pylon.auth.cookies import TRUSTED_DEVICE, identity_cookies
from pylon.auth.devices import device_label
from pylon.auth.issue import NewSession, session_issuer
from pylon.auth.keys import hash_token
from pylon.auth.revocation import end_family
from pylon.auth.transactions import carry_out
from pylon.auth_context import AuthContext
from pylon.clock import NS_PER_S
from pylon.errors import AccountLocked, Forbidden, RecordConflict
from pylon.rates import address_subject, guests
from pylon.storage.auth_ops import CheckRecords, Condition

_GUEST_BYTES = 16
_AVATAR = "avatarUrl"  # the field of a user's row


class _Guests:
    """Makes guests, for the two resources below."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._issuer = session_issuer(services.app)
        self._guest_rate = guests(services.app.config)

    def store_guest(self, req: falcon.Request, resp: falcon.Response) -> NewSession:
        """Store the session of a new guest; set the cookie if the request is a browser's.

        Raises:
            RateLimited: the address has made too many guests.
        """
        requests = self._services.requests
        requests.limiter.require(self._guest_rate, address_subject(address_of(req, requests)))
        session = self._issuer.issue(
            f"guest_{self._services.app.random.token_hex(_GUEST_BYTES)}",
            device=device_label(req.env.get("HTTP_USER_AGENT")), is_guest=True,
        )
        self._services.writer.submit(session.put)
        if requests.origins.allows(req.env.get("HTTP_ORIGIN")):
            resp.append_header("set-cookie", requests.cookie.set(session.token))
        return session


class Guest:
    """``POST /api/auth/guest``."""

    def __init__(self, services: IdentityServices) -> None:
        self._guests = _Guests(services)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        session = self._guests.store_guest(req, resp)
        body = {"guest": True, "token": session.token, "user_id": session.put.user_id}
        send_json(resp, body, 201)


class Anonymous:
    """``POST /api/auth/anonymous``: the same, with another response."""

    def __init__(self, services: IdentityServices) -> None:
        self._guests = _Guests(services)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        session = self._guests.store_guest(req, resp)
        send_json(
            resp,
            {
                "token": session.token,
                "user_id": session.put.user_id,
                "is_guest": True,
                "expires_at": session.put.expires_at_s,
            },
        )


class Me:
    """``GET /api/auth/me``: the auth context, also of an anonymous caller."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._users = _UserRows(services)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        auth = caller_of(req, self._services.requests).auth
        context = auth.to_json()
        if self._users.has_avatar:
            context["avatar_url"] = _avatar_url(self._users.read(auth))
        if _is_trusted_device(req, self._services, auth):
            context["is_trusted_device"] = True
        send_json(resp, context)

    on_head = on_get


class Session:
    """``/api/auth/session``: read the caller's, mint one, end the caller's."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._issuer = session_issuer(services.app)
        self._revocations = Revocations(services)
        self._users = _UserRows(services)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        auth = caller_of(req, self._services.requests).auth
        context = auth.to_json()
        context.pop("avatar_url")
        if _is_trusted_device(req, self._services, auth):
            context["is_trusted_device"] = True
        row = self._users.read(auth)
        send_json(resp, {
            "avatar_url": _avatar_url(row), "session": context, "user": self._users.shown(row),
        })

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        is_admin = caller_of(req, services.requests).auth.is_admin
        if not services.app.config.dev_mode and not is_admin:
            raise Forbidden("/api/auth/session requires admin auth in non-dev mode")
        user_id = read_typed(req, services.requests, MINT_SESSION).user_id
        session = self._issuer.issue(
            user_id, device=device_label(req.env.get("HTTP_USER_AGENT")), methods=("mint",)
        )
        is_locked = [Condition("user_id", "=", user_id), Condition("locked_at", "not null")]
        try:
            carry_out(services.writer.submit, [CheckRecords("users", is_locked, 0), session.put])
        except RecordConflict:
            raise AccountLocked("This account is locked", hint="pylonctl user unlock") from None
        send_json(resp, {"token": session.token, "user_id": user_id}, 201)

    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        caller = caller_of(req, services.requests)
        if caller.family is not None:
            app = services.app
            audit = audit_step(
                "sign_out", app.clock, app.random, user_id=caller.auth.user_id,
                tenant_id=caller.auth.tenant_id, ip=address_of(req, services.requests),
                user_agent=device_label(req.env.get("HTTP_USER_AGENT")),
            )
            steps = end_family(caller.family)
            self._revocations.carry_out(steps if caller.auth.is_guest else [*steps, audit])
        resp.append_header("set-cookie", services.requests.cookie.cleared())
        send_json(resp, {"revoked": True})


class _UserRows:
    """Reads the row of a caller, and hides fields of it."""

    def __init__(self, services: IdentityServices) -> None:
        manifest = services.app.manifest
        self._services = services
        self._rules = manifest.auth
        self._entity = manifest.by_name.get(self._rules.user_entity)
        self.has_avatar = self._entity is not None and any(
            field.name == _AVATAR for field in self._entity.fields
        )

    def read(self, auth: AuthContext) -> dict[str, Any] | None:
        """Return the caller's row of the user entity; None for guests and others without a row."""
        user_id, entity = auth.user_id, self._entity
        if user_id is None or entity is None or auth.is_guest:
            return None
        raw = self._services.store.point(lambda reader: reader.get(entity.name, user_id))
        if raw is None:
            return None
        row: dict[str, Any] = orjson.loads(raw)
        return row

    def shown(self, row: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the row without the hidden fields."""
        if row is None:
            return None
        hidden = {"passwordHash", *self._rules.hide}
        expose = self._rules.expose
        return {
            key: value
            for key, value in row.items()
            if key == "id"
            or (
                key not in hidden
                and not key.startswith("_")
                and (not expose or key in expose)
            )
        }


def _is_trusted_device(
    req: falcon.Request, services: IdentityServices, auth: AuthContext
) -> bool:
    """Whether the user has had this browser remembered, so that it is asked for no code."""
    cookies = identity_cookies(req.env.get("HTTP_COOKIE"), services.requests.cookie.name)
    token = cookies.get(TRUSTED_DEVICE)
    if token is None or auth.user_id is None:
        return False
    now_s = services.app.clock.wall_ns() // NS_PER_S
    where = [
        Condition("hash", "=", hash_token(token)), Condition("user_id", "=", auth.user_id),
        Condition("expires_at", ">", now_s),
    ]
    return services.store.point(lambda reader: reader.count_records("trusted_devices", where)) > 0


def _avatar_url(row: dict[str, Any] | None) -> str | None:
    found = None if row is None else row.get(_AVATAR)
    return found if isinstance(found, str) else None
