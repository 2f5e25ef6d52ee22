"""Test reset: deletes all rows, for test suites that share a server (spec/http.md §3.18).

Bounds: only in dev mode, with an in-memory database, and for a request from this machine. A
request that a proxy has forwarded is not from this machine.
"""

from __future__ import annotations

import falcon

from pylon.api.http.responses import send_json
from pylon.api.services import AdminServices
from pylon.auth.forwarded import is_loopback
from pylon.errors import ResetRefused
from pylon.storage.ops import ResetRows


class TestReset:
    """``POST /api/__test__/reset``."""

    __test__ = False  # for pytest: this is a resource, not a test

    def __init__(self, services: AdminServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        config = self._services.app.config
        if not config.dev_mode:
            raise ResetRefused("Reset is refused: the server is not in dev mode")
        if not config.in_memory:
            raise ResetRefused(
                "Reset is refused: the database is a file",
                hint="Start with PYLON_IN_MEMORY=true to use the reset",
            )
        forwarded = "HTTP_X_FORWARDED_FOR" in req.env or "HTTP_FORWARDED" in req.env
        if forwarded or not is_loopback(req.env.get("REMOTE_ADDR", "")):
            raise ResetRefused("Reset is refused: the request is not from this machine")
        self._services.writer.submit(ResetRows())
        send_json(resp, {"reset": True})
