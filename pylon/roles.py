"""The table of roles: everything that differs between the kinds of worker processes.

Settings, listening sockets, readiness, the drain, client addresses, the OpenAPI document and the
CLI derive their lists of roles from `ROLES`. A new role is one entry here, its settings in
`pylon.settings`, and a folder below `workers` whose `module` has a function `run`.

Invariant: names, port settings and port offsets are unique. Called by `pylon.config`, `pylon.api`,
`pylon.openapi`, `pylon.cli`, `supervisor` and `workers.template`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of worker process."""

    name: str  # on the wire, in log lines, metrics and names of systemd sockets
    title: str  # for people
    module: str  # imported by the template; its `run` is the life of a worker
    port_setting: str
    port_field: str  # of `pylon.config.Config`, as the next two
    workers_field: str
    url_field: str
    port_offset: int  # from PYLON_PORT, where the port setting is 0
    scheme: Literal["http", "ws"]
    url_path: str  # of the URL that clients are told
    drain_stage: int  # roles of a lower stage end first; those of one stage end together
    is_arbiter: bool = False  # one process, which keeps the workers itself (gunicorn)
    upgrade_path: str | None = None  # HTTP workers pass WebSocket upgrades of this path to it


ROLES: Final = (
    Role(
        "http", "HTTP", "workers.http.arbiter", "PYLON_PORT", "port", "http_workers",
        "public_url", 0, "http", "", drain_stage=0, is_arbiter=True,
    ),
    Role(
        "ws", "WebSocket", "workers.ws.server", "PYLON_WS_PORT", "ws_port", "ws_workers",
        "ws_url", 1, "ws", "/", drain_stage=2, upgrade_path="/api/sync/ws",
    ),
    Role(
        "sse", "SSE", "workers.sse.server", "PYLON_SSE_PORT", "sse_port", "sse_workers",
        "sse_url", 2, "http", "/events", drain_stage=2,
    ),
    Role(
        "shards", "Shards", "workers.shards.server", "PYLON_SHARD_PORT", "shard_port",
        "shard_workers", "shard_url", 3, "ws", "/", drain_stage=1,
        upgrade_path="/api/shards/ws",
    ),
)
ROLE_BY_NAME: Final = {role.name: role for role in ROLES}
ROLE_NAMES: Final = tuple(ROLE_BY_NAME)


def drain_stages() -> list[tuple[str, ...]]:
    """Return the names of the roles that end together, those that end first in front."""
    stages = sorted({role.drain_stage for role in ROLES})
    return [tuple(role.name for role in ROLES if role.drain_stage == stage) for stage in stages]


def port_hint(role: Role) -> str:
    """Return how an error text names the setting of a role's port."""
    if not role.port_offset:
        return role.port_setting
    return f"{role.port_setting} (or PYLON_PORT + {role.port_offset})"
