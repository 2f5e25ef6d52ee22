"""Routing by the path as it was sent, where an id holds a slash.

WSGI hands the path over decoded, so that `/api/entities/A/a%2Fb` cannot be told from
`/api/entities/A/a/b`. Our HTTP server keeps the path as it was sent (`pylon.raw_path`), other
servers mostly do (`RAW_URI`). The gate gives a request whose path holds %2F another path, which
no route has and only `EncodedSlashes` takes. `EncodedSlashes` asks the router with a substitute
for the slash in each segment, and calls the responder with the original ids.

PATCH and DELETE of `/api/entities/A/cursor` go the same way: they address the row with the id
`cursor`, since the route of pages has neither method.

Requests without %2F, nearly all, cost one look into the environ. Called by `gate` and, as a sink,
by falcon.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote

import falcon
from falcon.routing import CompiledRouter

from pylon.api.sync import documents
from pylon.errors import NotFound

# Stands for the slash of a segment while falcon splits the path. A lone surrogate comes out of no
# decoding, so no client can send one.
_SLASH: Final = "\udc2f"
_ID: Final = "\udc1d"  # before a segment that is an id, though a route has it as a word
_PREFIX: Final = "/api/"
_PAGES: Final = re.compile(r"/api/entities/[^/]+/(?=cursor$)")
SINK: Final = re.compile(_SLASH)


def mark_slashes(req: falcon.Request) -> None:
    """Have `EncodedSlashes` take the request if a segment of its path holds a slash."""
    raw = _raw_path(req.env)
    if raw is not None and raw.startswith(_PREFIX) and "%2f" in raw.lower():
        segments = [unquote(segment).replace("/", _SLASH) for segment in raw.split("/")]
        req.context.decoded_path = req.path
        req.path = _SLASH + "/".join(segments)


def mark_page_name(req: falcon.Request) -> None:
    """Route PATCH and DELETE to the row whose id is ``cursor``."""
    if req.path.endswith("/cursor") and req.method in ("PATCH", "DELETE"):
        req.context.decoded_path = req.path
        req.path = _SLASH + _PAGES.sub(lambda found: found[0] + _ID, req.path)


class EncodedSlashes:
    """The sink of requests that the gate has marked."""

    def __init__(self, router: CompiledRouter) -> None:
        self._router = router

    def __call__(self, req: falcon.Request, resp: falcon.Response, **more: Any) -> None:
        marked = req.path[1:]
        req.path = req.context.decoded_path
        found: Any = self._router.find(marked, req)  # falcon's types have asgi's responders too
        if found is None:
            if req.path.startswith(documents.PREFIX):
                documents.bad_path(req, resp)
            raise NotFound("Not found")
        _, methods, params, req.uri_template = found
        for name, value in params.items():
            if isinstance(value, str):
                params[name] = value.replace(_SLASH, "/").removeprefix(_ID)
        methods[req.method](req, resp, **params)


def _raw_path(env: dict[str, Any]) -> str | None:
    raw: str | None = env.get("pylon.raw_path")
    if raw is not None or "pylon.head" in env:  # our own server
        return raw
    target: str | None = env.get("RAW_URI") or env.get("REQUEST_URI")
    return target.partition("?")[0] if target is not None else None
