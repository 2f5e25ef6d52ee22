"""Serves the plain files of one folder below a path, and nothing else.

falcon's static route serves the files (types, ranges, 304). This module checks the path first. It
refuses with 404: a segment that begins with a dot (`.env`, `.git`), a symlink that leaves the
folder, and a file that is not plain (a FIFO would block the worker). Symlinks within the folder
are followed, and so is a folder that is a symlink itself.

A path without a file gets `index.html`, if the folder has one now, so that the router of a page in
the browser can handle the path. In dev the files of the app are read anew for each request, and
pages get a script (`pylon.api.dev.overlay`). Called by falcon, as a sink: the files of
PYLON_STATIC_DIR below /app/, and in dev the site of the documentation below /docs/.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import falcon
from falcon.routing import StaticRoute

from pylon import limits

APP_PATH: Final = "/app"
DOCS_PATH: Final = "/docs"
_INDEX: Final = "index.html"
_METHODS: Final = ("GET", "HEAD")
_PAGE_TYPE: Final = "text/html"
_CONDITIONS: Final = ("HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE")


class StaticFiles:
    """Serves one folder. Built once in each process."""

    __slots__ = ("_change_page", "_folder", "_prefix", "_route", "_route_with_index")

    def __init__(
        self, prefix: str, folder: Path, change_page: Callable[[bytes], bytes] | None = None
    ) -> None:
        """
        Args:
            change_page: of dev: returns an HTML file as it is sent. Browsers keep no file then.
        """
        self._prefix = prefix
        self._folder = folder.absolute()
        self._change_page = change_page
        self._route = StaticRoute(prefix, self._folder)
        self._route_with_index: StaticRoute | None = None  # falcon makes it of an index only

    @property
    def has_index(self) -> bool:
        """Whether the folder has an index now."""
        return (self._folder / _INDEX).is_file()

    def serve(self, req: falcon.Request, resp: falcon.Response, **_: Any) -> None:
        """Send the file, or the index.

        Raises:
            falcon.HTTPNotFound: there is neither, or the file may not be served.
            falcon.HTTPMethodNotAllowed: the request is neither a GET nor a HEAD.
        """
        if req.method not in _METHODS:
            raise falcon.HTTPMethodNotAllowed([*_METHODS, "OPTIONS"])
        path = req.path[len(self._prefix) :].lstrip("/")
        route = self._route_now()
        if not route.match(req.path) or any(p.startswith(".") for p in path.split("/")):
            raise falcon.HTTPNotFound
        if not self._is_servable(path):
            self._is_servable(_INDEX)
        if self._change_page is None:
            route(req, resp)
        else:
            self._serve_anew(route, self._change_page, req, resp)

    def _serve_anew(
        self, route: StaticRoute, change_page: Callable[[bytes], bytes], req: falcon.Request,
        resp: falcon.Response,
    ) -> None:
        """Send the file that is there now. The ETag of falcon has whole seconds, so a second save
        within one would be missed."""
        for name in _CONDITIONS:
            req.env.pop(name, None)
        route(req, resp)
        for name in ("etag", "last-modified"):
            resp.delete_header(name)
        resp.set_header("cache-control", "no-store")
        is_page = (resp.content_type or "").startswith(_PAGE_TYPE)
        size_bytes = int(resp.get_header("content-length") or 0)
        if not is_page or size_bytes > limits.DEV_PAGE_BYTES:
            return
        if isinstance(resp.stream, BufferedReader):  # not a range
            with resp.stream as stream:
                resp.data = change_page(stream.read())
            resp.stream = None
            resp.delete_header("content-length")  # falcon sets that of the changed page
            resp.delete_header("accept-ranges")

    def _route_now(self) -> StaticRoute:
        if not self.has_index:
            return self._route
        if self._route_with_index is None:
            self._route_with_index = StaticRoute(
                self._prefix, self._folder, fallback_filename=_INDEX
            )
        return self._route_with_index

    def _is_servable(self, path: str) -> bool:
        """Return whether the folder has a plain file of this path.

        Raises:
            falcon.HTTPNotFound: the path leaves the folder, or is neither a plain file nor a
                folder.
        """
        try:
            real = (self._folder / path).resolve()
            if not real.is_relative_to(self._folder.resolve()):
                raise falcon.HTTPNotFound
            mode = real.stat().st_mode
        except (OSError, RuntimeError, ValueError):  # absent, a loop of symlinks, a NUL
            return False
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise falcon.HTTPNotFound
        return stat.S_ISREG(mode)
