"""Addresses: the URLs that clients are told (`GET /api/client-config`).

A PYLON_*_URL setting wins. Without one the URL is derived from the host that the client itself
used, and the port of the role; behind a proxy that is a guess, which is why there are settings.
A role that is switched off has no URL.
"""

from __future__ import annotations

from typing import Any, Final

import falcon

from pylon.config import Config

_ROLES: Final = ("http", "ws", "sse", "shards")


def client_config(config: Config, req: falcon.Request) -> dict[str, Any]:
    """URLs and ports by role; None where the role is off."""
    return {
        "urls": {role: url_of(config, role, req) for role in _ROLES},
        "ports": {
            role: config.port_of(role) if config.workers_of(role) else None for role in _ROLES
        },
    }


def url_of(config: Config, role: str, req: falcon.Request) -> str | None:
    """The URL of `http`, `ws`, `sse` or `shards`."""
    if not config.workers_of(role):
        return None
    configured = {
        "http": config.public_url, "ws": config.ws_url,
        "sse": config.sse_url, "shards": config.shard_url,
    }[role]
    if configured:
        return configured
    secure = _is_secure(config, req)
    given = req.env.get("HTTP_HOST") or f"127.0.0.1:{config.port}"
    if role == "http":
        return f"{'https' if secure else 'http'}://{given}"
    address = f"{_host_only(given)}:{config.port_of(role)}"
    if role == "sse":
        return f"{'https' if secure else 'http'}://{address}/events"
    return f"{'wss' if secure else 'ws'}://{address}/"


def _is_secure(config: Config, req: falcon.Request) -> bool:
    if config.trust_proxy_hops:
        scheme: str = req.env.get("HTTP_X_FORWARDED_PROTO", "")
        return scheme.rpartition(",")[2].strip() == "https"
    return False  # we end no TLS ourselves


def _host_only(host: str) -> str:
    """The host without its port; an IPv6 address keeps its brackets."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
