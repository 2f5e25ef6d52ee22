"""Routes a path as the client sent it, so that an id may hold a slash.

WSGI hands over a decoded path: `/api/entities/A/a%2Fb` looks like `/api/entities/A/a/b`. Our HTTP
server keeps the path as sent (`pylon.raw_path`); other servers mostly do (`RAW_URI`). For a path
that holds %2F, `mark_slashes` replaces `req.path` with one that no route has, so that falcon calls
the sink `EncodedSlashes`. The sink looks the path up in the router, with a substitute for the
slash in each segment, and calls the responder with the original ids.

PATCH and DELETE of `/api/entities/A/cursor` take the same way. They address the row with the id
`cursor`, because the route of pages has neither method.

PERF: a request without %2F costs one lookup in the environ. Called by `middleware`, and by falcon
as a sink.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote

import falcon
from falcon.routing import CompiledRouter

from pylon.api.http.route_access import RouteAccess
from pylon.api.sync import documents
from pylon.errors import NotFound

# Stands for the slash of a segment while falcon splits the path. No decoding yields a lone
# surrogate, so no client can send one.
_SLASH: Final = "\udc2f"
_ID: Final = "\udc1d"  # before a segment that is an id, although a route has it as a word
_PREFIX: Final = "/api/"
_PAGES: Final = re.compile(r"/api/entities/[^/]+/(?=cursor$)")
SINK: Final = re.compile(_SLASH)


def mark_slashes(req: falcon.Request) -> None:
    """Route the request to `EncodedSlashes` if a segment of its path holds a slash."""
    raw = _raw_path(req.env)
    if raw is not None and raw.startswith(_PREFIX) and "%2f" in raw.lower():
        segments = [unquote(segment).replace("/", _SLASH) for segment in raw.split("/")]
        req.context.decoded_path = req.path
        req.path = _SLASH + "/".join(segments)


def mark_page_name(req: falcon.Request) -> None:
    """Route PATCH and DELETE of ``cursor`` to the row with that id."""
    if req.path.endswith("/cursor") and req.method in ("PATCH", "DELETE"):
        req.context.decoded_path = req.path
        req.path = _SLASH + _PAGES.sub(lambda found: found[0] + _ID, req.path)


class EncodedSlashes:
    """The sink of the requests that this module has marked."""

    def __init__(self, router: CompiledRouter, access: RouteAccess) -> None:
        self._router = router
        self._access = access

    def __call__(self, req: falcon.Request, resp: falcon.Response, **_: Any) -> None:
        marked = req.path[1:]
        req.path = req.context.decoded_path
        found: Any = self._router.find(marked, req)  # falcon types it for ASGI responders too
        if found is None:
            if req.path.startswith(documents.PREFIX):
                documents.bad_path(req, resp)
            raise NotFound("Not found")
        _, methods, params, req.uri_template = found
        for name, value in params.items():
            if isinstance(value, str):
                params[name] = value.replace(_SLASH, "/").removeprefix(_ID)
        self._access.check(req, params)
        methods[req.method](req, resp, **params)


def _raw_path(env: dict[str, Any]) -> str | None:
    raw: str | None = env.get("pylon.raw_path")
    if raw is not None or "pylon.head" in env:  # our own server
        return raw
    target: str | None = env.get("RAW_URI") or env.get("REQUEST_URI")
    return target.partition("?")[0] if target is not None else None
