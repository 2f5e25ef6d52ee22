"""PYLON_STATIC_DIR under /app/: serves the plain files of one folder, and nothing else.

Falcon's static route serves the files (types, ranges, 304). This module checks the path first. A
segment that begins with a dot (`.env`, `.git`), a symlink that leaves the folder, and a file that
is not plain (a FIFO would block the worker) are 404.
A path without a file gets `index.html`, if there is one: the page's own router knows what to do
with it. Symlinks within the folder, and a folder that is a symlink itself, are followed.

Used by `pylon.api.application`.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Final

import falcon
from falcon.routing import StaticRoute

PREFIX: Final = "/app"
_INDEX: Final = "index.html"
_METHODS: Final = ("GET", "HEAD")


class StaticFiles:
    """Serves one folder. Built once in each process."""

    __slots__ = ("_folder", "_route")

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        fallback = _INDEX if (self._folder / _INDEX).is_file() else None
        self._route = StaticRoute(PREFIX, self._folder, fallback_filename=fallback)

    def serve(self, req: falcon.Request, resp: falcon.Response, **_: Any) -> None:
        """Answer with the file, or with the index.

        Raises:
            falcon.HTTPNotFound: there is neither, or the file is not to be served.
            falcon.HTTPMethodNotAllowed: the request is neither a GET nor a HEAD.
        """
        if req.method not in _METHODS:
            raise falcon.HTTPMethodNotAllowed([*_METHODS, "OPTIONS"])
        path = req.path[len(PREFIX) :].lstrip("/")
        if not self._route.match(req.path) or any(p.startswith(".") for p in path.split("/")):
            raise falcon.HTTPNotFound
        if not self._is_servable(path):
            self._is_servable(_INDEX)
        self._route(req, resp)

    def _is_servable(self, path: str) -> bool:
        """Whether there is a plain file of this path in the folder.

        Raises:
            falcon.HTTPNotFound: it lies elsewhere, or is neither a plain file nor a folder.
        """
        try:
            real = (self._folder / path).resolve()
            if not real.is_relative_to(self._folder.resolve()):
                raise falcon.HTTPNotFound
            mode = real.stat().st_mode
        except (OSError, RuntimeError, ValueError):  # not there, a loop of symlinks, a NUL
            return False
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise falcon.HTTPNotFound
        return stat.S_ISREG(mode)
