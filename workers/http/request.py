"""Requests: from the bytes of a connection to a WSGI environ (RFC 9112, PEP 3333).

`workers.net.head` parses and checks the head; this module makes an environ of it.

Most clients repeat their header lines byte for byte on a connection. `HeadTemplate` keeps the
environ of the last request that was parsed. While the header lines stay the same, `parse_repeat`
parses the request line only; it parses nothing if that is the same too, as when a client inserts
rows.

Invariant: an environ belongs to one request; `parse_repeat` copies it. Called by `receiving`.
"""

from __future__ import annotations

import io
import sys
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from pylon import limits
from workers.net.head import ORIGIN_LINE, parse_head

_EMPTY: Final = io.BytesIO()

Environ = dict[str, Any]


class Request:
    """A complete head. `length` is that of the body in bytes, or CHUNKED."""

    __slots__ = ("consumed", "environ", "expects", "keep", "length", "minor")

    def __init__(
        self, environ: Environ, consumed: int, length: int, minor: int, keep: bool, expects: bool
    ) -> None:
        self.environ = environ
        self.consumed = consumed  # bytes of the input that were the head
        self.length = length
        self.minor = minor  # of HTTP/1.x
        self.keep = keep  # the connection may be used again
        self.expects = expects  # 100-continue


class HeadTemplate:
    """The head of a request, and its environ."""

    __slots__ = ("_block", "_environ", "_expects", "_head", "_keep", "_length")

    def __init__(self, head: bytes, request: Request) -> None:
        self._head = head
        self._block = head[head.find(b"\r\n"):]  # from the end of the request line
        self._environ = request.environ.copy()
        self._length = request.length
        self._keep = request.keep
        self._expects = request.expects

    def parse_repeat(self, data: bytes) -> Request | None:
        """Return the request that `data` begins with, if its header block is the same."""
        if data.startswith(self._head):
            return Request(
                self._environ.copy(), len(self._head), self._length, 1, self._keep, self._expects
            )
        end = data.find(b"\r\n")
        if not data.startswith(self._block, end) or end > limits.HTTP_LINE_BYTES:
            return None
        line = ORIGIN_LINE.fullmatch(str(data[:end], "latin-1"))
        if line is None:
            return None
        environ = self._environ.copy()
        environ.pop("pylon.raw_path", None)
        environ["REQUEST_METHOD"], path, environ["QUERY_STRING"] = line.groups("")
        if "%" in path:
            _add_path(environ, path)
        else:
            environ["PATH_INFO"] = path
        return Request(
            environ, end + len(self._block), self._length, 1, self._keep, self._expects
        )


def parse(data: bytes, base: Environ) -> Request | None:
    """Read a head.

    Args:
        data: the input of the connection, from the beginning of a request.
        base: the part of the environ that every request of the connection has.

    Returns:
        None while the head is not complete.

    Raises:
        RequestError: the head is invalid or too long.
    """
    head = parse_head(data, base)
    if head is None:
        return None
    environ = head.fields
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if head.minor else "HTTP/1.0"
    environ["REQUEST_METHOD"] = head.method
    environ["QUERY_STRING"] = head.query
    _add_path(environ, head.path)
    return Request(environ, head.consumed, head.length, head.minor, head.keep, head.expects)


def make_head_template(data: bytes, request: Request) -> HeadTemplate | None:
    """Return a template of the request that `data` begins with.

    Returns:
        None if the request line can change the header fields, so that no request may reuse them.
    """
    end = data.find(b"\r\n")
    # Another form of line may change the fields (an absolute target, HTTP/1.0).
    if ORIGIN_LINE.fullmatch(str(data[:end], "latin-1")) is None:
        return None
    return HeadTemplate(data[:request.consumed], request)


def base_environ(server: tuple[str, int], client: tuple[str, int], workers: int) -> Environ:
    """Return the part of the environ that all requests of a connection share.

    Args:
        workers: the number of processes that serve.
    """
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.input": _EMPTY,
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": workers > 1,
        "wsgi.run_once": False,
        "SCRIPT_NAME": "",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "pylon.head": b"",  # header lines of the answer that the app has ready as bytes
        "pylon.body": b"",  # the request's body, which has arrived as a whole
    }


def _add_path(environ: Environ, path: str) -> None:
    if "%" in path:
        # A decoded path cannot tell the slash of an id from one between two segments.
        environ["pylon.raw_path"] = path
        path = unquote_to_bytes(path).decode("latin-1")
    environ["PATH_INFO"] = path
