"""Identity and sessions: guest, me, session, refresh, logout (spec/http.md §3.11.1).

Invariants: a token is sent only after its session is committed. The cookie is set only for a
request with a trusted Origin header, and by `refresh` for a caller who came with it; never by
`POST /api/auth/session`. When a session ends, a signal tells the socket workers, which close its
sockets.
"""

from __future__ import annotations

from typing import Any

import falcon
import orjson

from pylon.api.http.body import read_typed
from pylon.api.http.callers import address_of, caller_of, token_of
from pylon.api.http.responses import send_json
from pylon.api.identity.bodies import MINT_SESSION
from pylon.api.services import IdentityServices
from pylon.auth.devices import device_label
from pylon.auth.sessions import NewSession, new_session
from pylon.auth.tokens import UnprivilegedToken
from pylon.auth_context import AuthContext
from pylon.bus.messages import SessionRevoked
from pylon.errors import AuthRequired, Forbidden, SessionExpired
from pylon.rates import address_subject, guests
from pylon.storage.ops import DropSession

_GUEST_BYTES = 16


class Sessions:
    """Makes and ends sessions, for the resources below."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._guest_rate = guests(services.app.config)

    def make(
        self,
        req: falcon.Request,
        user_id: str,
        *,
        is_guest: bool = False,
        tenant_id: str | None = None,
    ) -> NewSession:
        """Return a session for `user_id`, which is not stored yet."""
        app = self._services.app
        return new_session(
            user_id,
            is_guest=is_guest,
            device=device_label(req.env.get("HTTP_USER_AGENT")),
            tenant_id=tenant_id,
            expires_in_s=app.manifest.auth.session_expires_in_s,
            clock=app.clock,
            random=app.random,
        )

    def store_guest(self, req: falcon.Request, resp: falcon.Response) -> NewSession:
        """Store the session of a new guest; set the cookie if the request is a browser's.

        Raises:
            RateLimited: the address has made too many guests.
        """
        address = address_of(req, self._services.requests)
        self._services.requests.limiter.require(self._guest_rate, address_subject(address))
        user_id = f"guest_{self._services.app.random.token_hex(_GUEST_BYTES)}"
        session = self.make(req, user_id, is_guest=True)
        self._services.writer.submit(session.put)
        if self._services.requests.origins.allows(req.env.get("HTTP_ORIGIN")):
            resp.append_header("set-cookie", self._services.requests.cookie.set(session.token))
        return session

    def announce_end(self, session_id: str) -> None:
        """Signal to the other processes that a session has ended."""
        self._services.requests.session_cache.forget()
        self._services.send_signal(SessionRevoked(session_id))


class Guest:
    """``POST /api/auth/guest``."""

    def __init__(self, services: IdentityServices) -> None:
        self._sessions = Sessions(services)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        session = self._sessions.store_guest(req, resp)
        body = {"guest": True, "token": session.token, "user_id": session.put.user_id}
        send_json(resp, body, 201)


class Anonymous:
    """``POST /api/auth/anonymous``: the same, with another response."""

    def __init__(self, services: IdentityServices) -> None:
        self._sessions = Sessions(services)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        session = self._sessions.store_guest(req, resp)
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

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        send_json(resp, caller_of(req, self._services.requests).auth.to_json())

    on_head = on_get


class Session:
    """``/api/auth/session``: read the caller's, mint one, end the caller's."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._sessions = Sessions(services)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        auth = caller_of(req, self._services.requests).auth
        context = auth.to_json()
        avatar_url = context.pop("avatar_url")
        user = self._read_user_row(auth)
        send_json(resp, {"avatar_url": avatar_url, "session": context, "user": user})

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        is_admin = caller_of(req, services.requests).auth.is_admin
        if not services.app.config.dev_mode and not is_admin:
            raise Forbidden("/api/auth/session requires admin auth in non-dev mode")
        user_id = read_typed(req, services.requests, MINT_SESSION).user_id
        session = self._sessions.make(req, user_id)
        services.writer.submit(session.put)
        send_json(resp, {"token": session.token, "user_id": user_id}, 201)

    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        session_id = caller_of(req, services.requests).session_id
        if session_id is not None:
            services.writer.submit(DropSession(session_id))
            self._sessions.announce_end(session_id)
        resp.append_header("set-cookie", services.requests.cookie.cleared())
        send_json(resp, {"revoked": True})

    def _read_user_row(self, auth: AuthContext) -> dict[str, Any] | None:
        """Return the caller's row of the user entity, without the hidden fields."""
        rules = self._services.app.manifest.auth
        user_id = auth.user_id
        entity = self._services.app.manifest.by_name.get(rules.user_entity)
        if user_id is None or entity is None:
            return None
        raw = self._services.store.point(lambda reader: reader.get(entity.name, user_id))
        if raw is None:
            return None
        row: dict[str, Any] = orjson.loads(raw)
        hidden = {"passwordHash", *rules.hide}
        return {
            key: value
            for key, value in row.items()
            if key == "id"
            or (
                key not in hidden
                and not key.startswith("_")
                and (not rules.expose or key in rules.expose)
            )
        }


class Refresh:
    """``POST /api/auth/refresh``: replace the token; the old one ends.

    A caller who is known by the cookie gets the new token as a cookie too (spec/identity.md §1.1).
    """

    def __init__(self, services: IdentityServices) -> None:
        self._services = services
        self._sessions = Sessions(services)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        token = token_of(req, services.requests)
        if not token:
            raise AuthRequired("Login required")
        caller = caller_of(req, services.requests)
        auth, old_id = caller.auth, caller.session_id
        if old_id is None or auth.user_id is None:
            raise SessionExpired("The session is unknown or has expired: sign in again")
        session = self._sessions.make(
            req, auth.user_id, is_guest=auth.is_guest, tenant_id=auth.tenant_id
        )
        stored, dropped = services.writer.submit_all([session.put, DropSession(old_id)])
        for reply in (stored, dropped):
            if reply.error is not None:
                raise reply.error.to_exception()
        if dropped.count == 0:
            # A logout or another refresh has ended the old session meanwhile: that one counts.
            services.writer.submit(DropSession(session.put.session_id))
            raise SessionExpired("The session has ended: sign in again")
        self._sessions.announce_end(old_id)
        if isinstance(token, UnprivilegedToken):  # its cookie holds the token that has ended
            resp.append_header("set-cookie", services.requests.cookie.set(session.token))
        send_json(
            resp,
            {
                "token": session.token,
                "user_id": auth.user_id,
                "expires_at": session.put.expires_at_s,
            },
        )


class Providers:
    """``GET /api/auth/providers``: the sign-in providers; this server has none."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        send_json(resp, [])

    on_head = on_get
