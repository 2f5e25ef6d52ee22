"""The overlay of dev mode: the app's pages show errors of saved files, and reload after changes.

Each HTML file below /app/ gets one more element, a script of this server (`dev.js`). Twice a second
the script asks ``GET /client/dev/state``, while its page is visible. The answer has the problems of
the saved app (`pylon.dev_problems`), which the script shows over the page, and a version. If that
is another one than the page was made with, the page reloads. The version is of what the server
serves: its generation, and the names, times and sizes of the files of PYLON_STATIC_DIR.

An answer is sent at once, and not held until something changes: a reload of the server waits for
the end of each request.

Invariants: the routes exist in dev mode only, and pages get the script in dev mode only. Problems
have lines of the app's source; other sites read them only if CORS allows their origin. Bound: the
version looks at `limits.DEV_PAGE_FILES` files. Called by `pylon.api.application`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Final

import falcon
import msgspec

from pylon import limits
from pylon.api import client_files
from pylon.api.http import route_access as access
from pylon.api.http.route_access import Methods
from pylon.api.services import AdminServices
from pylon.bus.runtime import Runtime
from pylon.dev_problems import read_problems

SCRIPT: Final = f"{client_files.PREFIX}/dev.js"
STATE: Final = f"{client_files.PREFIX}/dev/state"
_FILE: Final = Path(__file__).with_name("dev.js")
_BODY_END: Final = b"</body"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_VERSION_CHARS: Final = 16


class Overlay:
    """Makes the version, and puts the script into pages. Made once for each generation."""

    __slots__ = ("_folder", "_generation")

    def __init__(self, services: AdminServices) -> None:
        config = services.app.config
        self._folder = None if config.static_dir is None else Path(config.static_dir).absolute()
        self._generation = services.app.random.token_hex(8)

    def version(self) -> str:
        """Return the version of what this server serves now."""
        digest = hashlib.sha256(self._generation.encode())
        if self._folder is not None:
            for path in islice(_files_below(self._folder), limits.DEV_PAGE_FILES):
                digest.update(_stamp(path))
        return digest.hexdigest()[:_VERSION_CHARS]

    def script_html(self) -> bytes:
        """Return the element that loads the script."""
        return b'<script src="%b" data-version="%b" defer></script>' % (
            SCRIPT.encode(), self.version().encode()
        )

    def add_script(self, page: bytes) -> bytes:
        """Return an HTML file with the script at the end of its body.

        A file in UTF-16 stays as it is.
        """
        if page.startswith(_UTF_16):
            return page
        at = page.lower().rfind(_BODY_END)
        end = len(page) if at < 0 else at
        return page[:end] + self.script_html() + page[end:]


def dev_routes(
    overlay: Overlay, services: AdminServices
) -> Iterable[tuple[str, object, Methods]]:
    """Yield the path, the resource and the access of the script, and of what it asks for."""
    yield SCRIPT, _ScriptResource(), {"GET": access.OPEN}
    yield STATE, _StateResource(overlay, services), {"GET": access.OPEN}


class _ScriptResource:
    """``GET /client/dev.js``: the script."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Send the script. A browser asks for it with each page."""
        resp.data = _read_script()
        resp.content_type = "text/javascript; charset=utf-8"
        resp.set_header("cache-control", "no-store")

    on_head = on_get


class _StateResource:
    """``GET /client/dev/state``: the version, and the problems of the saved app."""

    def __init__(self, overlay: Overlay, services: AdminServices) -> None:
        self._overlay = overlay
        self._problems = Runtime(services.control_socket.parent).dev_problems

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Send both at once."""
        state = {"version": self._overlay.version(), "problems": read_problems(self._problems)}
        resp.data = msgspec.json.encode(state)
        resp.content_type = "application/json"
        resp.set_header("cache-control", "no-store")

    on_head = on_get


def _files_below(folder: Path) -> Iterable[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in sorted(files))


def _stamp(path: Path) -> bytes:
    try:
        found = path.stat()
    except OSError:  # an editor has replaced it
        return b""
    return f"{path}\0{found.st_mtime_ns}\0{found.st_size}\n".encode(errors="surrogateescape")


@cache
def _read_script() -> bytes:
    return _FILE.read_bytes()
