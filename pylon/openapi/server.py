"""Operations of the server itself: probes, metrics, manifest, this document, test reset."""

from __future__ import annotations

from typing import Any, Final

from pylon import errors
from pylon.openapi.parts import (
    ADMIN_ONLY,
    ANYBODY,
    JSON,
    NOBODY,
    STORE_ERRORS,
    WRITE_ERRORS,
    Paths,
    Schema,
    header,
    nullable,
    obj,
    operation,
    path,
    query,
    response,
)
from pylon.roles import PORT_BY_ROLE

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_TAG: Final = "server"


def server_paths() -> Paths:
    """Return the paths of the probes, /metrics, and the descriptions of the app."""
    check = obj({"ok": {"type": "boolean"}, "problem": _TEXT}, ("ok",))
    readiness = obj({
        "status": {"enum": ["ready", "unavailable"]},
        "checks": {"type": "object", "additionalProperties": check},
    })
    return {
        "/health": operation(
            "get", "health", _TAG, "This process runs",
            {200: response("It runs", obj({
                "status": {"const": "ok"}, "uptime_secs": _COUNT, "uptime_seconds": _COUNT,
                "version": _TEXT,
            }))},
            security=NOBODY,
        ),
        "/livez": operation(
            "get", "livez", _TAG, "This process runs",
            {200: response("It runs", obj({"status": {"const": "ok"}}))}, security=NOBODY,
        ),
        "/readyz": operation(
            "get", "readyz", _TAG, "Whether a load balancer should send requests",
            {200: response("Ready", readiness), 503: response("Not ready, and why", readiness)},
            security=NOBODY,
        ),
        "/metrics": _metrics(),
        "/api/manifest": operation(
            "get", "manifest", _TAG, "The manifest without the rules of its policies",
            {200: response("The manifest", {"type": "object"})},
            raises=STORE_ERRORS,
            parameters=[query("full", _TEXT, "1 or true: for admins, the rules too")],
        ),
        "/api/openapi.json": operation(
            "get", "openapi", _TAG, "This document",
            {200: response("OpenAPI 3.1", {"type": "object"})},
            raises=(errors.NotFound, *STORE_ERRORS),
        ),
        "/api/client-config": operation(
            "get", "clientConfig", _TAG, "The URLs and ports of all roles",
            {200: response("Addresses", obj({
                "name": _TEXT, "version": _TEXT,
                "urls": obj({role: nullable(_TEXT) for role in PORT_BY_ROLE}),
                "ports": obj({role: nullable({"type": "integer"}) for role in PORT_BY_ROLE}),
            }))},
            security=NOBODY,
        ),
        "/client/{path}": _client_files(),
        "/api/__test__/reset": operation(
            "post", "testReset", _TAG, "Delete every row: in dev mode and in memory only",
            {200: response("Done", obj({"reset": {"const": True}}))},
            raises=(*WRITE_ERRORS, errors.ResetRefused), security=ANYBODY,
        ),
    }


def _client_files() -> dict[str, Any]:
    described = response("A file; immutable below its digest", _TEXT)
    described["content"] = {
        kind: {"schema": _TEXT} for kind in ("text/javascript", "text/plain", JSON)
    }
    described["content"]["application/gzip"] = {"schema": {"type": "string", "format": "binary"}}
    return operation(
        "get", "clientFile", _TAG, "The JavaScript client: pylon.js, its types, pylon-client.tgz",
        {200: described, 304: response("The file of If-None-Match")},
        raises=(errors.NotFound,), security=NOBODY,
        parameters=[path("path", "The path of the file; the digest may come before it")],
    )


def _metrics() -> dict[str, Any]:
    described = response("Prometheus text, or JSON", {"type": "object"})
    described["content"] = {
        JSON: {"schema": {"type": "object"}},
        "text/plain": {"schema": _TEXT},
    }
    return operation(
        "get", "metrics", _TAG, "The metrics of all processes",
        {200: described},
        raises=(errors.Unauthorized, errors.Unavailable),
        parameters=[header("Accept", _TEXT, "text/plain or openmetrics: Prometheus text")],
        security=[{}, *ADMIN_ONLY],
    )
