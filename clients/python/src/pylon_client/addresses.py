"""Addresses of the server's sockets: ``urls`` of ``GET /api/client-config``, read once.

Called by `links`, `changes` and `shards`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from pylon_client.effects import Steps
from pylon_client.requests import Core, decode_object, send_json

_MAIN_PORT_PATH: Final = "/api/sync/ws"


def read_addresses(core: Core) -> Steps[Mapping[str, str]]:
    """Return the addresses by name: ``ws``, ``sse`` and ``shards``. Raises: APIError."""
    if core.addresses is None:
        answer = yield from send_json(core, "GET", "/api/client-config")
        urls: Any = decode_object(answer).get("urls")
        core.addresses = dict(urls) if isinstance(urls, dict) else {}
    return core.addresses


def websocket_url(core: Core, urls: Mapping[str, str], failures: int) -> str:
    """Return where to open a WebSocket: on the HTTP port after the first failure, or where the
    server names no other address."""
    named = urls.get("ws")
    if named and failures % 2 == 0:
        return named
    return core.options.url.replace("http", "ws", 1) + _MAIN_PORT_PATH


def with_parameters(url: str, parameters: Mapping[str, object]) -> str:
    """Return the address with these parameters; those that are None are left out."""
    query = urlencode({k: v for k, v in parameters.items() if v is not None})
    if not query:
        return url
    return f"{url}{'&' if '?' in url else '?'}{query}"
