"""Roles of requests: finds requests on the HTTP port for other roles (spec/realtime.md §2.1, §4).

A WebSocket upgrade belongs to the role with its path, and an event stream of a shard to the shards
workers. For such a request `connection` passes the socket to a worker of the role
(`pylon.bus.passing`). Called by `connection`.
"""

from __future__ import annotations

from typing import Final

from pylon.roles import PORT_BY_ROLE
from workers.http.request import Request

SHARDS: Final = "/api/shards/"
_UPGRADES: Final = {
    port.upgrade_path: role for role, port in PORT_BY_ROLE.items() if port.upgrade_path
}
UPGRADED_ROLES: Final = tuple(_UPGRADES.values())
_STREAM: Final = "/connect"  # the last segment of the path of a shard's event stream


def role_of(request: Request) -> str | None:
    """Return the role that serves a request; None for the HTTP role."""
    environ = request.environ
    if environ["REQUEST_METHOD"] != "GET" or request.length:
        return None
    path: str = environ["PATH_INFO"]
    if environ.get("HTTP_UPGRADE", "").lower() == "websocket":
        return _UPGRADES.get(path)
    if not (path.startswith(SHARDS) and path.endswith(_STREAM)):
        return None
    # The slash before the last segment may belong to the id of a shard.
    return "shards" if environ.get("pylon.raw_path", path).endswith(_STREAM) else None
