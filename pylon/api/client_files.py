"""``GET /client/…``: the JavaScript client, its types, and the package that npm installs.

``/client/pylon.js`` is the newest: a browser asks each time whether its ETag still holds.
``/client/<digest>/pylon.js`` never changes and is kept for a year; another digest is 404. Every
page may load the files (CORS ``*``): they are the same for everybody. A process reads and
compresses them with the first request, and then serves them from memory.

Called by `pylon.api.application`.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from dataclasses import dataclass
from typing import Final

import falcon

from pylon.api.http.versions import has_tag
from pylon.clientjs import PACKAGE, client_digest, client_files, client_package

PREFIX: Final = "/client"
_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",  # video/mp2t is what the suffix says elsewhere
    ".json": "application/json",
    ".tgz": "application/gzip",
}
_NEWEST: Final = "no-cache"
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_TAG_CHARS: Final = 20
_LEVEL: Final = 9


@dataclass(frozen=True, slots=True)
class _Answer:
    """One file as it goes out."""

    content: bytes
    compressed: bytes | None
    tag: str
    type: str


class ClientFiles:
    """The resource of all files."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, path: str) -> None:
        """Send a file.

        Raises:
            falcon.HTTPNotFound: there is no such file.
        """
        digest, _, rest = path.partition("/")
        is_pinned = digest == client_digest()
        answer = _answers().get(rest if is_pinned else path)
        if answer is None:
            raise falcon.HTTPNotFound
        resp.set_header("access-control-allow-origin", "*")
        resp.set_header("cross-origin-resource-policy", "cross-origin")
        resp.set_header("cache-control", _FOR_EVER if is_pinned else _NEWEST)
        content, tag = answer.content, answer.tag
        if answer.compressed is not None:
            resp.append_header("vary", "Accept-Encoding")
            req.context.has_vary = True
            if "gzip" in (req.env.get("HTTP_ACCEPT_ENCODING") or ""):
                content, tag = answer.compressed, f"{tag}-gz"
                resp.set_header("content-encoding", "gzip")
        resp.set_header("etag", f'"{tag}"')
        if has_tag(req, tag):
            resp.status = 304
            return
        resp.content_type = answer.type
        resp.data = content

    on_head = on_get


@functools.cache
def _answers() -> dict[str, _Answer]:
    found = {path: _answer(path, content) for path, content in client_files().items()}
    found[PACKAGE] = _answer(PACKAGE, client_package())
    return found


def _answer(path: str, content: bytes) -> _Answer:
    is_package = path == PACKAGE
    return _Answer(
        content,
        None if is_package else gzip.compress(content, _LEVEL, mtime=0),
        hashlib.sha256(content).hexdigest()[:_TAG_CHARS],
        _TYPES[path[path.rindex("."):]],
    )
