"""Access to routes: what an API key must have to reach each route, checked before its resource.

`pylon.api.application` declares a `MethodAccess` for each method of each route; the app cannot be
made while one is missing. So a new route refuses keys correctly, or there is no server. The
middleware calls `RouteAccess.check` for each request, and `routing` does so for the paths that it
routes itself.

A route whose body names the entities (a batch, a push, a graph) needs no scope itself:
`pylon.api.data.access.entity_named` and `pylon.api.data.changes` check each entity. The resources
of administrators refuse keys themselves, since no key is an administrator's.

Invariant: a caller without a session reaches no route that takes sessions only. PERF: a request
with a session's token in the usual spelling costs one comparison of texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import falcon
import msgspec

from pylon.api.http.callers import caller_of
from pylon.api.services import RequestServices
from pylon.auth.tokens import bearer_token, is_session_token
from pylon.auth_context import Caller
from pylon.errors import ApiKeyAuthForbidden
from pylon.key_scopes import ROOMS, SHARDS, SYNC, readonly_error, require_scope

Methods = Mapping[str, "MethodAccess"]  # by method; HEAD is as GET

_SESSION: Final = "Bearer pylon_"  # how the field begins that has the token of a session
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class MethodAccess(msgspec.Struct, frozen=True):
    """The rights that a caller with restricted rights needs for a method of a route.

    Args:
        scope: the scope of an API key, in which `{name}` stands for a parameter of the path; None:
            no scope.
        changes: whether the method changes something, so that read-only callers are refused.
        takes_keys: whether it takes other credentials than a session.
    """

    scope: str | None
    changes: bool
    takes_keys: bool = True


OPEN: Final = MethodAccess(None, changes=False)  # the same for all, or the caller's own context
ADMIN_READ: Final = MethodAccess(None, changes=False)
ADMIN_WRITE: Final = MethodAccess(None, changes=True)
SESSION_READ: Final = MethodAccess(None, changes=False, takes_keys=False)
SESSION_WRITE: Final = MethodAccess(None, changes=True, takes_keys=False)
ROWS_READ: Final = MethodAccess("entity:{entity}:read", changes=False)
ROWS_WRITE: Final = MethodAccess("entity:{entity}:write", changes=True)
ROWS_DELETE: Final = MethodAccess("entity:{entity}:delete", changes=True)
BODY_READ: Final = MethodAccess(None, changes=False)  # the body names the entities
BODY_WRITE: Final = MethodAccess(None, changes=True)
ACTION: Final = MethodAccess("fn:{name}", changes=True)
SYNC_READ: Final = MethodAccess(SYNC, changes=False)
SYNC_WRITE: Final = MethodAccess(SYNC, changes=True)
ROOMS_READ: Final = MethodAccess(ROOMS, changes=False)
ROOMS_WRITE: Final = MethodAccess(ROOMS, changes=True)
FILES_READ: Final = MethodAccess("files:read", changes=False)
FILES_WRITE: Final = MethodAccess("files:write", changes=True)
SHARDS_READ: Final = MethodAccess(SHARDS, changes=False)
SHARDS_WRITE: Final = MethodAccess(SHARDS, changes=True)


class RouteAccess:
    """The access to all routes of an app."""

    __slots__ = ("_by_template", "_services")

    def __init__(self, services: RequestServices) -> None:
        self._services = services
        self._by_template: dict[str, Methods] = {}

    @property
    def by_template(self) -> Mapping[str, Methods]:
        """The access to the methods, by the route in falcon's notation."""
        return self._by_template

    def declare(self, template: str, resource: object, methods: Methods) -> None:
        """Note the access to a route.

        Raises:
            TypeError: a method of the resource has none, or one that the resource lacks has one.
        """
        served = {method for method in _METHODS if hasattr(resource, f"on_{method.lower()}")}
        if served != methods.keys():
            raise TypeError(
                f"{template} serves {sorted(served)}, and its declaration has {sorted(methods)}: "
                "declare the access to each method in pylon.api.application"
            )
        self._by_template[template] = methods

    def check(self, req: falcon.Request, params: Mapping[str, Any]) -> None:
        """Check that the caller's key reaches the route; pass callers without a key.

        Raises:
            ApiKeyAuthForbidden: the route takes sessions only.
            ScopeDenied: the key lacks the scope, or the caller may only read.
            PylonError: as `caller_of`.
        """
        env = req.env
        caller: Caller | None = env.get("pylon.caller")
        if caller is None:
            authorization = env.get("HTTP_AUTHORIZATION")
            if (
                authorization is None or authorization.startswith(_SESSION)
                or not _may_be_limited(authorization)
            ):
                return
        method = "GET" if req.method == "HEAD" else req.method
        access = self._by_template.get(req.uri_template or "", {}).get(method)
        if access is None or access is OPEN:
            return  # the router answers a method that the route lacks
        check_access(access, caller or caller_of(req, self._services), params)


def check_access(access: MethodAccess, caller: Caller, params: Mapping[str, Any]) -> None:
    """Check that a caller may call a method of a route, as far as that is the route's matter.

    Args:
        params: the parameters of the path.

    Raises:
        ApiKeyAuthForbidden, ScopeDenied: it does not.
    """
    auth = caller.auth
    if not access.takes_keys:
        if caller.session_id is None and auth.user_id is not None and not auth.is_admin:
            raise ApiKeyAuthForbidden(
                "This route takes a session, and no API key or JWT",
                hint="Sign in, and send the session's token or cookie",
            )
        if access.changes and auth.readonly:
            raise readonly_error("*")
    elif access.scope is not None:
        require_scope(auth, access.scope.format_map(params), changes=access.changes)
    elif access.changes and auth.readonly:
        raise readonly_error("*")


def _may_be_limited(authorization: str) -> bool:
    """Whether the field may carry an API key or a JWT; a session has all rights of its user."""
    token = bearer_token(authorization)
    return bool(token) and not is_session_token(token or "")
