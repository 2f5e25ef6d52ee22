"""The table of roles: everything that differs between the kinds of worker processes.

Settings, listening sockets, readiness, the drain, client addresses, the OpenAPI document and the
CLI derive their lists of roles from `ROLES`. A new role is one entry here, its settings in
`pylon.settings`, and a folder below `workers` whose `module` has a function `run`.

A role has a `RolePort` if clients connect to its processes. The processes of a role without one
take calls of other workers over the bus.

Invariant: names, port settings and port offsets are unique. Called by `pylon.config`, `pylon.api`,
`pylon.openapi`, `pylon.cli`, `supervisor` and `workers.template`.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec


class RolePort(msgspec.Struct, frozen=True):
    """The listening port of a role, and the URL that clients are told."""

    setting: str
    field: str  # of `pylon.config.Config`, as the next one
    url_field: str
    offset: int  # from PYLON_PORT, where the port setting is 0
    scheme: Literal["http", "ws"]
    url_path: str
    upgrade_path: str | None = None  # HTTP workers pass WebSocket upgrades of this path to it

    @property
    def hint(self) -> str:
        """Return how an error text names the setting."""
        return f"{self.setting} (or PYLON_PORT + {self.offset})" if self.offset else self.setting


class Role(msgspec.Struct, frozen=True):
    """One kind of worker process."""

    name: str  # on the wire, in log lines, metrics and names of systemd sockets
    title: str  # for people
    module: str  # imported by the template; its `run` is the life of a worker
    workers_field: str  # of `pylon.config.Config`
    drain_stage: int  # roles of a lower stage end first; those of one stage end together
    port: RolePort | None
    is_arbiter: bool = False  # one process, which keeps the workers itself (gunicorn)
    runs_with: str | None = None  # on where that role is on; PYLON_ROLES does not name it
    is_essential: bool = True  # else a node stays ready when its processes fail later
    is_exclusive: bool = False  # a process keeps what its successor needs: it ends first


ROLES: Final = (
    Role(
        "http", "HTTP", "workers.http.arbiter", "http_workers", 0,
        RolePort("PYLON_PORT", "port", "public_url", 0, "http", ""), is_arbiter=True,
    ),
    Role(
        "ws", "WebSocket", "workers.ws.server", "ws_workers", 2,
        RolePort("PYLON_WS_PORT", "ws_port", "ws_url", 1, "ws", "/", "/api/sync/ws"),
    ),
    Role(
        "sse", "SSE", "workers.sse.server", "sse_workers", 2,
        RolePort("PYLON_SSE_PORT", "sse_port", "sse_url", 2, "http", "/events"),
    ),
    Role(
        "shards", "Shards", "workers.shards.server", "shard_workers", 1,
        RolePort("PYLON_SHARD_PORT", "shard_port", "shard_url", 3, "ws", "/", "/api/shards/ws"),
        is_exclusive=True,  # of two processes with one shard one would lose its state
    ),
    # It ends after the HTTP workers, whose requests it may be in the middle of.
    Role(
        "identity", "Identity", "workers.identity.server", "identity_workers", 1, None,
        runs_with="http", is_essential=False, is_exclusive=True,  # it binds one endpoint
    ),
)
ROLE_BY_NAME: Final = {role.name: role for role in ROLES}
ROLE_NAMES: Final = tuple(ROLE_BY_NAME)
CHOSEN_ROLES: Final = tuple(role.name for role in ROLES if role.runs_with is None)
PORT_BY_ROLE: Final = {role.name: role.port for role in ROLES if role.port is not None}


def drain_stages() -> list[tuple[str, ...]]:
    """Return the names of the roles that end together, those that end first in front."""
    stages = sorted({role.drain_stage for role in ROLES})
    return [tuple(role.name for role in ROLES if role.drain_stage == stage) for stage in stages]
