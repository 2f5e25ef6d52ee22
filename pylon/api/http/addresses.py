"""The URLs and ports of the roles, for clients (`GET /api/client-config`).

A PYLON_*_URL setting wins. Without one the URL is made of the host that the client itself used and
the port of the role. Behind a proxy that may be wrong: set the URLs there. A role that is switched
off has no URL.

Called by `pylon.api.admin.system`.
"""

from __future__ import annotations

from typing import Any

import falcon

from pylon.config import Config
from pylon.roles import PORT_BY_ROLE, ROLE_BY_NAME


def client_config(config: Config, req: falcon.Request) -> dict[str, Any]:
    """Return the URLs and ports by role; None for a role that is off."""
    return {
        "urls": {role: url_of(config, role, req) for role in PORT_BY_ROLE},
        "ports": {
            role: config.port_of(role) if config.workers_of(role) else None
            for role in PORT_BY_ROLE
        },
    }


def url_of(config: Config, role: str, req: falcon.Request) -> str | None:
    """Return the URL of a role of `PORT_BY_ROLE`; None: it is switched off, or other nodes run it
    and no setting says where."""
    port = PORT_BY_ROLE[role]
    configured: str | None = getattr(config, port.url_field)
    if role not in config.roles and getattr(config, ROLE_BY_NAME[role].workers_field):
        return configured
    if not config.workers_of(role):
        return None
    if configured:
        return configured
    address = req.env.get("HTTP_HOST") or f"127.0.0.1:{config.port}"
    if port.offset:
        address = f"{_host_only(address)}:{config.port_of(role)}"
    return f"{port.scheme}{'s' if _is_secure(config, req) else ''}://{address}{port.url_path}"


def _is_secure(config: Config, req: falcon.Request) -> bool:
    if config.trust_proxy_hops:
        scheme: str = req.env.get("HTTP_X_FORWARDED_PROTO", "")
        return scheme.rpartition(",")[2].strip() == "https"
    return False  # Pylon itself accepts no TLS


def _host_only(host: str) -> str:
    """Return the host without its port; an IPv6 address keeps its brackets."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
