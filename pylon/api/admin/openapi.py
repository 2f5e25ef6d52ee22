"""``GET /api/openapi.json``: the document of `pylon.openapi`, made at the first request.

The document names every entity and action of the app. Outside dev mode only admins get it, unless
PYLON_OPENAPI_PUBLIC makes it public (spec/http.md §3.17).
"""

from __future__ import annotations

import falcon
import orjson

from pylon.api.http.callers import caller_of
from pylon.api.http.responses import send_text
from pylon.api.services import AdminServices
from pylon.errors import NotFound


class OpenApi:
    """Serves the document of the app. One for each process."""

    def __init__(self, services: AdminServices) -> None:
        self._services = services
        config = services.app.config
        self._is_public = config.dev_mode or config.openapi_public
        self._text: bytes | None = None

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        if not self._is_public and not caller_of(req, self._services.requests).auth.is_admin:
            raise NotFound(
                "OpenAPI spec is admin-only outside dev mode",
                hint="Set PYLON_OPENAPI_PUBLIC=true to serve it to anonymous callers "
                "(it enumerates every entity and callable function).",
            )
        if self._text is None:
            # Imported here, because most processes never serve it.
            from pylon.openapi.document import openapi_document

            app = self._services.app
            self._text = orjson.dumps(openapi_document(app.manifest, app.config))
        send_text(resp, self._text)

    on_head = on_get
