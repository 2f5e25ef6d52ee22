"""The server itself: health, readiness, metrics, manifest, URLs (spec/http.md §3.1, §7).

`/health` and `/livez` only show that this process runs; `/readyz` runs every check. The supervisor
makes the page of `/metrics`, of all processes.
"""

from __future__ import annotations

from typing import Final

import falcon
import orjson

import pylon
from pylon.api.http.addresses import client_config, url_of
from pylon.api.http.callers import caller_of
from pylon.api.http.parameters import read_text
from pylon.api.http.responses import send_json, send_text
from pylon.api.services import AdminServices
from pylon.auth.sessions import is_admin_token
from pylon.auth.tokens import bearer_token, same_token
from pylon.control import ControlClient
from pylon.errors import BadUpgrade, NotRunning, RoleMissing, Unauthorized, Unavailable
from pylon.manifest.public import complete_document, public_manifest

_OPENMETRICS_TYPE: Final = "application/openmetrics-text"
_TEXT_TYPES: Final = ("text/plain", "openmetrics")
_CONTROL_TIMEOUT_S: Final = 5.0


class Health:
    """``GET /health``: this process runs, and for how long."""

    def __init__(self, services: AdminServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        uptime_s = int(services.app.clock.monotonic_s() - services.started_s)
        send_json(
            resp,
            {
                "status": "ok",
                "uptime_secs": uptime_s,
                "uptime_seconds": uptime_s,
                "version": pylon.__version__,
            },
        )

    on_head = on_get


class Livez:
    """``GET /livez``: this process runs."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        send_text(resp, b'{"status":"ok"}')

    on_head = on_get


class Readyz:
    """``GET /readyz``: whether a load balancer should send requests, and if not, why."""

    def __init__(self, services: AdminServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.set_header("cache-control", "no-store")
        verdict = self._services.readiness.verdict()
        if not verdict.ready:
            resp.set_header("retry-after", "1")
        status = "ready" if verdict.ready else "unavailable"
        send_json(resp, {"status": status, "checks": verdict.checks}, 200 if verdict.ready else 503)

    on_head = on_get


class Metrics:
    """``GET /metrics``: OpenMetrics or Prometheus text if the client accepts it, else JSON."""

    def __init__(self, services: AdminServices) -> None:
        self._services = services
        self._control = ControlClient(services.control_socket, _CONTROL_TIMEOUT_S)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.set_header("cache-control", "no-store")
        self._check_token(req)
        accept = req.env.get("HTTP_ACCEPT", "")
        if _OPENMETRICS_TYPE in accept:
            kind = "openmetrics"
        else:
            kind = "text" if any(name in accept for name in _TEXT_TYPES) else "json"
        try:
            answer = self._control.ask("metrics", format=kind)
        except NotRunning as ex:
            raise Unavailable("The supervisor does not answer", hint=ex.message) from ex
        resp.content_type = answer["content_type"]
        resp.data = answer["body"].encode()

    on_head = on_get

    def _check_token(self, req: falcon.Request) -> None:
        config = self._services.app.config
        if config.dev_mode:
            return
        token = bearer_token(req.env.get("HTTP_AUTHORIZATION")) or ""
        # Always compare both, so that the time does not reveal which one the token resembles.
        as_admin = is_admin_token(token, config)
        as_reader = same_token(token, config.metrics_token)
        if not (as_admin or as_reader):
            raise Unauthorized(
                "/metrics requires PYLON_ADMIN_TOKEN or PYLON_METRICS_TOKEN bearer in "
                "non-dev mode"
            )


class ManifestDocument:
    """``GET /api/manifest``: the manifest; the rules of policies for admins with ``?full=1``."""

    def __init__(self, services: AdminServices) -> None:
        self._services = services
        manifest = services.app.manifest
        # Not sorted: the document keeps the order of the manifest.
        self._public = orjson.dumps(public_manifest(manifest))
        self._full = orjson.dumps(complete_document(manifest))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        full = read_text(req, "full") in ("1", "true")
        is_admin = full and caller_of(req, self._services.requests).auth.is_admin
        send_text(resp, self._full if is_admin else self._public)

    on_head = on_get


class ClientConfig:
    """``GET /api/client-config``: the URLs and ports of all roles."""

    def __init__(self, services: AdminServices) -> None:
        self._app = services.app

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        manifest = self._app.manifest
        where = client_config(self._app.config, req)
        send_json(resp, {"name": manifest.name, "version": manifest.version, **where})

    on_head = on_get


class SyncSocket:
    """``GET /api/sync/ws`` without an upgrade, or that no ws worker accepts.

    The HTTP server passes the socket of an upgrade to a ws worker, without calling the app.
    """

    def __init__(self, services: AdminServices) -> None:
        self._config = services.app.config

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        url = url_of(self._config, "ws", req)
        if "ws" not in self._config.roles:
            where = "another node (PYLON_WS_URL says which)" if url is None else url
            raise RoleMissing(f"This node serves no WebSockets: connect to {where}")
        if url is None:
            raise BadUpgrade(
                "This server has no WebSocket port (PYLON_WS_WORKERS is 0)",
                hint="Use SSE or polling",
            )
        if req.env.get("pylon.nobody_there"):
            raise Unavailable("No WebSocket worker takes connections now; try again in a moment")
        raise BadUpgrade(
            f"This is a WebSocket: send a GET request with Upgrade: websocket, or connect to {url}"
        )

    on_head = on_get
