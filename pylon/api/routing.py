"""Routing by the path as it was sent, where an id holds a slash.

WSGI hands the path over decoded, so that `/api/entities/A/a%2Fb` cannot be told from
`/api/entities/A/a/b`. Our HTTP server keeps the path as it was sent (`pylon.raw_path`), other
servers mostly do (`RAW_URI`). The router splits that one, and decodes each segment by itself.

Called by falcon for each request; only a path with %2F costs more than one look.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

import falcon
from falcon.inspect import inspect_compiled_router, register_router
from falcon.routing import CompiledRouter

# Stands for the slash of a segment while falcon splits the path. A lone surrogate comes out of no
# decoding, so no client can send one.
_SLASH: Final = "\udc2f"


class RawPathRouter(CompiledRouter):
    """falcon's router, over segments that may hold a slash."""

    def find(self, uri: str, req: falcon.Request | None = None) -> Any:
        """See `falcon.routing.CompiledRouter.find`."""
        raw = None if req is None else _raw_path(req.env)
        if raw is None or "%2f" not in raw.lower():
            return super().find(uri, req)
        segments = [unquote(segment).replace("/", _SLASH) for segment in raw.split("/")]
        found = super().find("/".join(segments), req)
        if found is None:
            return None
        resource, methods, params, template = found
        params = {
            name: value.replace(_SLASH, "/") if isinstance(value, str) else value
            for name, value in params.items()
        }
        return resource, methods, params, template


# falcon's inspection knows routers by their very class.
register_router(RawPathRouter)(inspect_compiled_router)


def _raw_path(env: dict[str, Any]) -> str | None:
    if "pylon.head" in env:  # our own server
        raw: str | None = env.get("pylon.raw_path")
        return raw
    target: str | None = env.get("RAW_URI") or env.get("REQUEST_URI")
    if target is None or not target.startswith("/"):
        return None
    return target.partition("?")[0]
