"""One call of the WSGI app, and its response as bytes (PEP 3333).

Invariants: this module alone writes the framing of a response (Content-Length, Transfer-Encoding,
Connection); the app's fields of that name do not reach the client. A response to HEAD, or with
status 204 or 304, has no body. Called by `connection`, in a dispatcher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.http import response
from workers.http.request import Request
from workers.http.streamed import Streamed

if TYPE_CHECKING:
    from workers.http.loop import Loop

_BODILESS = ("204", "304")


class WsgiResponse:
    """The app's response to one request. `call` sets the public attributes."""

    __slots__ = ("_headers", "_status", "_written", "body", "head", "keep", "streamed")

    def __init__(self) -> None:
        self._status = ""
        self._headers: response.Headers = []
        self._written: list[bytes] = []  # by the callable that start_response returns (PEP 3333)
        self.head = b""
        self.body = b""  # all of it, or its first part
        self.keep = True  # the connection may be used again
        self.streamed: Streamed | None = None  # the further parts

    def call(self, loop: Loop, request: Request) -> None:
        """Call the app, in a dispatcher: the app may block.

        Raises:
            Exception: any exception of the app; ValueError for an invalid header.
        """
        environ = request.environ
        slot = loop.running.begin(environ)
        try:
            result = loop.app(environ, self._start)
        except Exception:
            loop.running.end(slot)
            raise
        loop.running.end(slot)  # not after a SystemExit: then this request ends the worker
        prefix = loop.prefixes.encode_for(self._status)
        lines = response.lines(self._headers)
        if type(result) is list and not self._written:
            framing = self._frame(environ["REQUEST_METHOD"], result)
        else:
            framing = self._begin_parts(request, result)
        if not (self.keep and request.keep) or loop.draining:
            self.keep = False
            framing += response.CLOSE
        elif not request.minor:
            framing += response.KEEP
        self.head = b"".join((prefix, lines, environ["pylon.head"], framing, b"\r\n"))

    def close(self) -> None:
        """End a streamed response early: the app need not make its further parts."""
        if self.streamed is not None:
            self.streamed.close()

    def _start(self, status: str, headers: response.Headers, exc_info: Any = None) -> Any:
        self._status = status
        self._headers = headers
        return self._written.append

    def _frame(self, method: str, result: list[bytes]) -> bytes:
        """Set `body`, and return the header line that tells the end of the body."""
        body = result[0] if len(result) == 1 else b"".join(result)
        if self._status[:3] in _BODILESS:
            return b""
        if method == "HEAD":
            length = response.declared(self._headers, "content-length")
            return response.length(int(length or len(body)))
        self.body = body
        return b"content-length: %d\r\n" % len(body)

    def _begin_parts(self, request: Request, result: Any) -> bytes:
        """Prepare to send parts that the app will yield: see `Streamed.begin`."""
        streamed = self.streamed = Streamed(result)
        declared = response.declared(self._headers, "content-length")
        length_bytes = None if declared is None else int(declared)
        is_bodiless = self._status[:3] in _BODILESS
        if is_bodiless or request.environ["REQUEST_METHOD"] == "HEAD":
            self.streamed = None
            streamed.close()
            return b"" if is_bodiless or length_bytes is None else response.length(length_bytes)
        try:
            self.body, framing = streamed.begin(
                self._written, length_bytes, chunks=bool(request.minor)
            )
        except BaseException:
            self.close()
            raise
        # Without a length and without chunks, the end of the connection is the end of the body.
        self.keep = streamed.has_end
        return framing
