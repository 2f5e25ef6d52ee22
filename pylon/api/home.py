"""``GET /``: leads to the app's page, if PYLON_STATIC_DIR has an index.

Without an index dev mode has a start page here (`pylon.api.dev.start_page`), and otherwise there is
nothing: 404. The index is looked up for each request. Called by `pylon.api.application`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import falcon

from pylon.api.http.static_files import APP_PATH, StaticFiles

PATH: Final = "/"
SendPage = Callable[[falcon.Request, falcon.Response], None]


class Home:
    """The resource."""

    def __init__(self, files: StaticFiles | None, send_start_page: SendPage | None) -> None:
        """
        Args:
            files: of PYLON_STATIC_DIR.
            send_start_page: of dev mode.
        """
        self._files = files
        self._send_start_page = send_start_page

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Redirect, or send the start page.

        Raises:
            falcon.HTTPNotFound: there is neither an index nor a start page.
        """
        resp.set_header("cache-control", "no-store")
        if self._files is not None and self._files.has_index:
            resp.status = 302
            resp.set_header("location", f"{APP_PATH}/")
        elif self._send_start_page is not None:
            self._send_start_page(req, resp)
        else:
            raise falcon.HTTPNotFound

    on_head = on_get
