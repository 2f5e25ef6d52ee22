"""A request body that the app reads while it arrives, for uploads (`pylon.files`).

The server calls the app as soon as the head has come. `read` takes bytes from the socket only as
the app asks for them, so a slow disk or a waiting app stops the client through TCP, and a request
holds no more than one read. While the client sends nothing, the greenlet of the app waits here.

The first read sends `100 Continue` to a client that waits for it. So a request that the app refuses
by its head sends no body.

Invariants: `read` takes no byte beyond the end of the body. Until the body is complete, the request
does not keep its connection. Bounds: `_RECV_BYTES` of input beside the bytes of one `read`;
limits.HTTP_UPLOAD_SLOW_S and HTTP_UPLOAD_BYTES_PER_S for slow clients, whose time counts only while
the app waits for them. Metric: pylon_http_connections_aborted_total. Made by `connection`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from gevent.event import Event

from pylon import limits, metrics
from pylon.errors import InvalidRequest, RequestTimeout
from pylon.runtime.raw_socket import RawSocket
from workers.http.bodies import ChunkedBody
from workers.http.receiving import Receiver
from workers.http.request import Request
from workers.net.head import CHUNKED, RequestError

_PATHS: Final = ("/api/files/upload", "/api/files/tus")
_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})
_ALL: Final = 1 << 62


def is_streamed(request: Request) -> bool:
    """Whether the app reads the body of this request while it arrives."""
    environ = request.environ
    return environ["PATH_INFO"].startswith(_PATHS) and environ["REQUEST_METHOD"] in _METHODS


class StreamedBody:
    """The stream `wsgi.input` of one request."""

    __slots__ = (
        "_arrived", "_chunks", "_continue", "_keep", "_left", "_ready", "_receiver", "_request",
        "_sock", "_taken_bytes", "_waited_s", "is_complete",
    )

    def __init__(
        self, request: Request, receiver: Receiver, sock: RawSocket,
        send_continue: Callable[[], None],
    ) -> None:
        """
        Args:
            receiver: has the input of the connection, behind the head.
            send_continue: called once, before the server waits for the body.
        """
        self._request = request
        self._receiver = receiver
        self._sock = sock
        self._continue: Callable[[], None] | None = send_continue if request.expects else None
        self._chunks = ChunkedBody(_ALL) if request.length == CHUNKED else None
        self._left = 0 if self._chunks is not None else request.length
        self._ready = b""  # data of chunks that nobody has read yet
        self._arrived = Event()
        self._waited_s = 0.0  # for the client
        self._taken_bytes = 0
        self._keep, request.keep = request.keep, False
        self.is_complete = False

    def wake(self) -> None:
        """Note an event of the socket. Called by the event loop."""
        self._receiver.may_read = True
        self._arrived.set()

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes; fewer only at the end of the body.

        Raises:
            InvalidRequest: the client has ended the connection, or its chunks are invalid.
            RequestTimeout: it sends too slowly.
        """
        wanted = _ALL if size < 0 else size
        parts: list[bytes] = []
        while wanted and not self.is_complete:
            part = self._take(wanted)
            wanted -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take(self, wanted: int) -> bytes:
        """Return up to `wanted` bytes, or none if only a part of a chunk's head has come."""
        receiver = self._receiver
        if not self._ready and not receiver.input:
            self._receive()
        if self._chunks is None:
            data = receiver.input
            part = data[:min(wanted, self._left)]
            receiver.input = data[len(part):]
            self._left -= len(part)
            is_last = not self._left
        else:
            if not self._ready:
                self._ready = self._next_chunks(self._chunks)
            part, self._ready = self._ready[:wanted], self._ready[wanted:]
            is_last = self._chunks.value is not None and not self._ready
        self._taken_bytes += len(part)
        if is_last:
            self.is_complete = True
            self._request.keep = self._keep
            receiver.is_starved = not receiver.input
        return part

    def _next_chunks(self, chunks: ChunkedBody) -> bytes:
        try:
            self._receiver.input = chunks.feed(self._receiver.input)
        except RequestError as refused:
            raise InvalidRequest(refused.message) from None
        return chunks.take()

    def _receive(self) -> None:
        """Wait until the client has sent something."""
        if self._continue is not None:
            send, self._continue = self._continue, None
            self._call(send)
        receiver = self._receiver
        while True:
            self._arrived.clear()
            if receiver.may_read and self._call(lambda: receiver.receive(self._sock)):
                return
            self._wait()

    def _call(self, step: Callable[[], bool | None]) -> bool:
        try:
            return bool(step())
        except OSError as gone:
            raise InvalidRequest("The client ended the connection within the body") from gone

    def _wait(self) -> None:
        allowed_s = limits.HTTP_UPLOAD_SLOW_S
        spare_s = (
            allowed_s + self._taken_bytes / limits.HTTP_UPLOAD_BYTES_PER_S - self._waited_s
        )
        began_s = time.monotonic()  # the machine's, as all limits of connections
        is_there = self._arrived.wait(max(0.0, min(allowed_s, spare_s)))
        self._waited_s += time.monotonic() - began_s
        if not is_there:
            metrics.HTTP_ABORTED.labels("slow body").inc()
            raise RequestTimeout(
                f"The body came with less than {limits.HTTP_UPLOAD_BYTES_PER_S} bytes a second, or "
                f"not at all for {allowed_s:g} s"
            )
