"""Serves the plain files of one folder below a path, and nothing else.

falcon's static route serves the files (types, ranges, 304). This module checks the path first. It
refuses with 404: a segment that begins with a dot (`.env`, `.git`), a symlink that leaves the
folder, and a file that is not plain (a FIFO would block the worker). Symlinks within the folder
are followed, and so is a folder that is a symlink itself.

A path without a file gets `index.html`, if the folder has one, so that the router of a page in
the browser can handle the path. Called by falcon, as a sink: the files of PYLON_STATIC_DIR below
/app/, and in dev the site of the documentation below /docs/.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Final

import falcon
from falcon.routing import StaticRoute

APP_PATH: Final = "/app"
DOCS_PATH: Final = "/docs"
_INDEX: Final = "index.html"
_METHODS: Final = ("GET", "HEAD")


class StaticFiles:
    """Serves one folder. Built once in each process."""

    __slots__ = ("_folder", "_prefix", "_route")

    def __init__(self, prefix: str, folder: Path) -> None:
        self._prefix = prefix
        self._folder = folder.absolute()
        fallback = _INDEX if (self._folder / _INDEX).is_file() else None
        self._route = StaticRoute(prefix, self._folder, fallback_filename=fallback)

    def serve(self, req: falcon.Request, resp: falcon.Response, **_: Any) -> None:
        """Send the file, or the index.

        Raises:
            falcon.HTTPNotFound: there is neither, or the file may not be served.
            falcon.HTTPMethodNotAllowed: the request is neither a GET nor a HEAD.
        """
        if req.method not in _METHODS:
            raise falcon.HTTPMethodNotAllowed([*_METHODS, "OPTIONS"])
        path = req.path[len(self._prefix) :].lstrip("/")
        if not self._route.match(req.path) or any(p.startswith(".") for p in path.split("/")):
            raise falcon.HTTPNotFound
        if not self._is_servable(path):
            self._is_servable(_INDEX)
        self._route(req, resp)

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
