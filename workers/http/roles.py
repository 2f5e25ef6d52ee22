"""Requests on the HTTP port for workers of other roles (spec/realtime.md §2.1, §4).

Upgrades go to the role that has their path; event streams of shards go to the shards workers.
`connection` passes the connection on.
"""

from __future__ import annotations

from typing import Final

from pylon.roles import ROLES
from workers.http.request import Request

SHARDS: Final = "/api/shards/"
_UPGRADES: Final = {role.upgrade_path: role.name for role in ROLES if role.upgrade_path}
UPGRADED_ROLES: Final = tuple(_UPGRADES.values())
_STREAM: Final = "/connect"  # of a shard's snapshots


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
