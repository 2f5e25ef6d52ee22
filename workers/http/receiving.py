"""Receiving: makes requests from the bytes that a client sends.

The `Receiver` keeps input until a head is complete (`request`), and then until the body is complete
(`bodies`). It needs no greenlet and never waits: `connection` calls it when the socket is readable.

Invariants: a connection has one request at a time, in order. `ByteBudget.held_bytes` counts the
bytes of an unfinished body. A failed `recv` raises OSError. Bounds: `workers.net.head` for heads,
limits.BODY_BYTES for a body. Called by `connection`.
"""

from __future__ import annotations

import io
from typing import Final

from pylon import limits
from pylon.runtime.raw_socket import RawSocket
from workers.http.bodies import Body, ChunkedBody, Oversized
from workers.http.byte_budget import ByteBudget
from workers.http.request import Environ, HeadTemplate, Request, make_head_template, parse
from workers.net.head import CHUNKED

_RECV_BYTES: Final = 65_536
_PROGRESS_BYTES: Final = 16_384  # a client makes progress when it has sent so much of a body


class Receiver:
    """The receiving half of a connection."""

    __slots__ = (
        "_base", "_body", "_budget", "_progress_bytes", "_template", "has_head_begun", "input",
        "is_starved", "may_read", "peer_ended", "progress_s", "request",
    )

    def __init__(self, base: Environ, budget: ByteBudget) -> None:
        """`base`: the part of the environ that every request of the connection has."""
        self._base = base
        self._budget = budget
        self._template: HeadTemplate | None = None
        self.input = b""  # received, and not parsed yet
        self.has_head_begun = False  # a part of a head has arrived, and its deadline runs
        self.is_starved = True  # nothing can be parsed without further input
        self.may_read = False  # the socket may have bytes
        self.peer_ended = False  # the client has shut its side down: read up to that end
        self.request: Request | None = None  # the request whose body is arriving
        self._body: Body | ChunkedBody | None = None
        self._progress_bytes = 0  # the size of the body that counts as the next progress
        self.progress_s = 0.0  # the time of the body's last progress

    @property
    def body_bytes(self) -> int:
        """Return the memory of the body that is arriving."""
        return 0 if self._body is None else self._body.held_bytes

    def receive(self, sock: RawSocket) -> bool:
        """Read once from the socket. Return whether bytes came.

        Raises:
            OSError: the client has ended the connection.
        """
        try:
            got = sock.recv(_RECV_BYTES)
        except BlockingIOError:
            self.may_read = False
            return False
        if not got:
            raise ConnectionAbortedError("the client has ended the connection")
        # A short read means that the socket is empty, up to the next event.
        self.may_read = self.peer_ended or len(got) == _RECV_BYTES
        self.input = self.input + got if self.input else got
        return True

    def parse_head(self) -> Request | None:
        """Return the request at the start of the input; None while its head is not complete.

        Raises:
            RequestError: the head is invalid.
        """
        data = self.input
        template = self._template
        request = template.parse_repeat(data) if template is not None else None
        if request is None:
            request = parse(data, self._base)
            if request is not None:
                self._template = make_head_template(data, request)
        return request

    def consume_head(self, request: Request) -> None:
        """Take the head of `request` from the input."""
        data = self.input
        self.has_head_begun = False
        # PERF: mostly the input holds nothing else; then no bytes are copied.
        rest = self.input = data[request.consumed:] if len(data) > request.consumed else b""
        self.is_starved = not rest

    def take_whole_body(self, request: Request) -> bool:
        """Take the body of `request`, whose head was consumed, if all of it has arrived.

        PERF: mostly it has; this costs a third of `begin_body` and `take_body`.
        """
        data, length = self.input, request.length
        if not 0 < length <= len(data) or length > limits.BODY_BYTES:
            return False
        body, self.input = data[:length], data[length:]
        request.environ["pylon.body"] = body
        request.environ["wsgi.input"] = io.BytesIO(body)
        self.is_starved = not self.input
        return True

    def begin_body(self, request: Request, now_s: float) -> None:
        """Gather the body of `request`, whose head `consume_head` has removed from the input."""
        self.request = request
        self._body = ChunkedBody() if request.length == CHUNKED else Body(request.length)
        self.progress_s = now_s
        self._progress_bytes = _PROGRESS_BYTES

    def refuse_body(self, request: Request) -> None:
        """Gather nothing of a body above limits.BODY_BYTES.

        The app refuses the request by its length alone, with its own headers.
        """
        request.environ["pylon.body"] = None
        request.environ["wsgi.input"] = Oversized(request.length)
        request.length = 0
        request.keep = False
        self.may_read = True  # the bytes of the body are on their way

    def take_body(self, now_s: float) -> bool:
        """Take bytes of the body from the input. Return whether the body is complete.

        Raises:
            RequestError: the chunks are invalid, or hold more than limits.BODY_BYTES.
        """
        body, request = self._body, self.request
        assert body is not None and request is not None  # see `begin_body`
        before_bytes = body.held_bytes
        self.input = body.feed(self.input)
        self._budget.held_bytes += body.held_bytes - before_bytes
        if body.value is None:
            if body.held_bytes >= self._progress_bytes:
                self._progress_bytes = body.held_bytes + _PROGRESS_BYTES
                self.progress_s = now_s
            return False
        request.environ["pylon.body"] = body.value
        request.environ["wsgi.input"] = io.BytesIO(body.value)
        self.drop_body()
        self.is_starved = not self.input
        return True

    def drop_body(self) -> None:
        """Free the memory of the body that is arriving."""
        if self._body is not None:
            self._budget.held_bytes -= self._body.held_bytes
        self.request = self._body = None

    def drop_input(self) -> None:
        """Take no further request from this connection."""
        self.drop_body()
        self.input = b""
        self.may_read = self.is_starved = True

    def forget(self) -> None:
        """Free what only makes the next request quicker."""
        self._template = None
