"""One connection: reads requests, has them answered, writes what they are answered with.

Everything here runs in a dispatcher greenlet of `loop`, which comes when the socket has
something to read or room to write, and leaves when it would have to wait. So a client that is
slow in sending its head or its body, or in taking its answer, costs memory within bounds and no
greenlet. Only the app may block.

States: *idle* (nothing of a request has come), *reading* (a part of one), *queued* (an event is
being dealt with, or waits for a greenlet), *sending* (a part of an answer could not be sent
yet), *lingering* (refused: what still comes is thrown away, so that the client gets to read
why), closed.

Invariants: one request at a time, in order; a request that has been refused ends its
connection; an answer that cannot be completed ends it too, without its proper end.
"""

from __future__ import annotations

import _socket
import contextlib
import io
from typing import TYPE_CHECKING, Any, Final

from pylon import limits, log, metrics
from pylon.auth.forwarded import client_address, network_of
from pylon.errors import PylonError
from workers.http import response
from workers.http.bodies import Body, ChunkedBody, Oversized
from workers.http.connection_limits import BODY, HEAD, IDLE, READER
from workers.http.request import Environ, Request, Template, parse, template_of
from workers.http.roles import SHARDS, role_of
from workers.http.sending import Sender
from workers.http.streamed import Streamed
from workers.net.head import CHUNKED, RequestError

if TYPE_CHECKING:
    from workers.http.loop import Loop

_log = log.get_logger("http")
_RECV_BYTES: Final = 65_536
_GATHER_BYTES: Final = 32_768  # a longer body is sent from where it is, not copied to its head
# So much of one connection at a time; then it is another one's turn.
_REQUESTS_A_TURN: Final = 16
_READS_A_TURN: Final = 16
_DISCARDS_A_TURN: Final = 16
_PROGRESS_BYTES: Final = 16_384  # of a body; a client that sends less has not moved


class _PassedOn(Exception):
    """The connection belongs to another process now."""


class Connection(Sender):
    """Made by `loop` for each socket that it accepts."""

    __slots__ = (
        "_base", "_body", "_closing", "_discarded_bytes", "_forwarded", "_headers", "_input",
        "_lingering", "_may_read", "_progress_bytes", "_request", "_starved", "_status",
        "_template", "_written", "again", "closed", "ending", "fd", "network", "progress_s",
        "queued",
    )

    def __init__(
        self, loop: Loop, sock: _socket.socket, base: Environ, network: str, now_s: float
    ) -> None:
        """`network`: of the address that it comes from (`pylon.auth.forwarded.network_of`)."""
        super().__init__(loop, sock, now_s + limits.HTTP_HEAD_S)
        self._base = base
        self.network = network
        self._forwarded: str | None = None  # X-Forwarded-For of trusted proxies
        self.fd = sock.fileno()
        self.again = False  # another event came while this one was dealt with
        self.closed = False
        self.ending = False  # the client has ended its side: read up to that end
        self.queued = False
        self._input = b""  # received and not used
        self._starved = True  # what has been received is not enough to go on
        self._may_read = False
        self._request: Request | None = None  # whose body is to come
        self._body: Body | ChunkedBody | None = None
        self._progress_bytes = 0  # with so many of the body it has moved on
        self.progress_s = now_s  # when it last had
        self._template: Template | None = None
        self._closing = False  # after this answer
        self._lingering = False
        self._discarded_bytes = 0
        self._status = ""
        self._headers: response.Headers = []
        self._written: list[bytes] = []

    # --- What the loop asks --------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way in either direction."""
        return not (
            self.queued or self._input or self._request or self._outgoing or self._streamed
            or self._lingering
        )

    def waiting_since(self) -> tuple[int, float] | None:
        """The kind of its wait for the client (`connection_limits`) and its begin, or None."""
        if self.queued or self.closed:
            return None
        if self._lingering:
            return IDLE, self.deadline_s - limits.HTTP_LINGER_S
        if self._outgoing or self._streamed is not None:
            return READER, self.deadline_s - limits.HTTP_SEND_S
        if self._request is not None:
            return BODY, self.progress_s
        if self._input:
            return HEAD, self.deadline_s - limits.HTTP_HEAD_S
        patience_s = limits.HTTP_KEEPALIVE_S if self._status else limits.HTTP_HEAD_S
        return IDLE, self.deadline_s - patience_s

    @property
    def client_network(self) -> str:
        """The network of the client whose request it is, behind trusted proxies."""
        forwarded = self._forwarded
        if forwarded is None:
            return self.network
        peer: str = self._base["REMOTE_ADDR"]
        return network_of(client_address(peer, forwarded, self._loop.hops))

    @property
    def body_bytes(self) -> int:
        """The bytes of a body that is arriving."""
        return 0 if self._body is None else self._body.held_bytes

    def has_arrived(self) -> bool:
        """Whether something waits to be read."""
        try:
            return bool(self._sock.recv(1, _socket.MSG_PEEK))
        except OSError:
            return False

    def forget(self) -> None:
        """Let go of what only makes the next request quicker."""
        self._template = None

    def expire(self) -> None:
        """The deadline has passed. Called by the loop, never while the connection is queued."""
        if self._outgoing or self._streamed is not None:
            metrics.HTTP_CUT.labels("slow reader").inc()
            self.close()
        elif self._request is not None or self._input:
            what = "head" if self._request is None else "body"
            limit_s = limits.HTTP_HEAD_S if self._request is None else limits.HTTP_REQUEST_S
            metrics.HTTP_CUT.labels(f"slow {what}").inc()
            message = f"The request {what} did not arrive within {limit_s:g} s"
            self._refuse(RequestError(408, message))
        else:
            self.close()

    def give_way(self) -> None:
        """Close the connection for another one, if it waits for its client."""
        waiting = self.waiting_since()
        if waiting is None or (waiting[0] == IDLE and self.has_arrived()):
            return  # it does not, any more
        metrics.HTTP_CUT.labels("gave way").inc()
        if waiting[0] in (HEAD, BODY):
            refused = RequestError(503, "Too many connections are open; try again in a moment")
            with contextlib.suppress(OSError):
                self._sock.send(self._loop.refusal(refused))
        self.close()

    def give_up_body(self) -> None:
        """Refuse the request whose body is arriving: there is no memory for it."""
        metrics.HTTP_CUT.labels("bodies").inc()
        self._refuse(_no_room_for_bodies())

    def make_room(self) -> bool:
        """See `Sender`."""
        return self._loop.free_answers(self)

    def close(self) -> None:
        """End it now."""
        if self.closed:
            return
        self.closed = True
        self._end_streamed()
        if self._body is not None:
            self._loop.bodies_bytes -= self._body.held_bytes
            self._body = None
        self._loop.outgoing_bytes -= len(self._outgoing)
        self._outgoing = b""
        self._loop.forget(self)
        self._sock.close()

    # --- The way of a request ------------------------------------------------------------

    def serve(self) -> None:
        """Deal with what has happened. Returns when there is nothing more to do."""
        try:
            while not self.closed:
                self.again = False
                self._may_read = True
                self._advance()
                if self._later:
                    self._later = False
                    self._loop.requeue(self)
                    return
                if not self.again:
                    break
        except (OSError, _PassedOn):
            self.close()  # the client is gone, or another process has it
        self.queued = False

    def _advance(self) -> None:
        answered = read = 0
        while True:
            if (self._outgoing or self._streamed is not None) and not self._pump():
                return
            if self._closing:
                self._end()
                return
            if self._lingering:
                self._discard()
                return
            if self._starved:
                if not self._may_read:
                    return
                try:
                    got = self._sock.recv(_RECV_BYTES)
                except BlockingIOError:
                    self._may_read = False
                    return
                if not got:
                    self.close()
                    return
                # A short read means that the socket is empty, up to the next event.
                self._may_read = self.ending or len(got) == _RECV_BYTES
                if self._input:
                    self._input += got
                else:
                    self._input = got
                    if self._request is None:
                        self.deadline_s = self._loop.now_s + limits.HTTP_HEAD_S
            try:
                request = self._request or self._take_head()
                if request is None or (request.length and not self._take_body(request)):
                    read += 1
                    self._starved = not self._input or request is None
                    if not self._starved or read >= _READS_A_TURN:
                        self._later = True  # there is more, here or in the kernel
                        return
                    continue
            except RequestError as refused:
                self._refuse(refused)
                return
            self._answer(request)
            answered += 1
            if self.closed:
                return
            if answered >= _REQUESTS_A_TURN and self._input:
                self._later = True
                return

    def _take_head(self) -> Request | None:
        data = self._input
        template = self._template
        request = template.again(data) if template is not None else None
        if request is None:
            request = parse(data, self._base)
            if request is None:
                return None
            self._template = template_of(data, request)
        environ = request.environ
        if self._loop.hops:
            self._forwarded = environ.get("HTTP_X_FORWARDED_FOR")
        if "HTTP_UPGRADE" in environ or environ["PATH_INFO"].startswith(SHARDS):
            role = role_of(request)
            if role is not None and self._pass_on(role, environ, data):
                raise _PassedOn
        # Most often the request was all that came.
        rest = self._input = data[request.consumed:] if len(data) > request.consumed else b""
        self._starved = not rest
        if request.length:
            self._begin_body(request)
        return request

    def _pass_on(self, role: str, environ: Environ, data: bytes) -> bool:
        """Give the connection to a socket worker, with all that was read; False if it stays."""
        if not self._loop.pass_on(role, self._sock, data):
            environ["pylon.nobody_there"] = True  # the app says so
            return False
        return True

    def _begin_body(self, request: Request) -> None:
        if request.length > limits.BODY_BYTES:
            # The app refuses this itself, by the length alone, with headers as it likes them.
            request.environ["pylon.body"] = None
            request.environ["wsgi.input"] = Oversized(request.length)
            request.length = 0
            request.keep = False
            self._may_read = True  # its bytes are on their way
            return
        self._request = request
        self._body = ChunkedBody() if request.length == CHUNKED else Body(request.length)
        self.progress_s = self._loop.now_s
        self._progress_bytes = _PROGRESS_BYTES
        self.deadline_s = self._loop.now_s + limits.HTTP_REQUEST_S
        if request.expects and not self._input:
            self._send(response.CONTINUE)

    def _take_body(self, request: Request) -> bool:
        body = self._body
        assert body is not None  # begun with the head
        before_bytes = body.held_bytes
        self._input = body.feed(self._input)
        loop = self._loop
        loop.bodies_bytes += body.held_bytes - before_bytes
        if body.value is None:
            if body.held_bytes >= self._progress_bytes:
                self._progress_bytes = body.held_bytes + _PROGRESS_BYTES
                self.progress_s = loop.now_s
            if loop.bodies_bytes > limits.HTTP_BODIES_BYTES and not loop.free_bodies(self):
                metrics.HTTP_CUT.labels("bodies").inc()
                raise _no_room_for_bodies()
            return False
        loop.bodies_bytes -= body.held_bytes
        self._request = self._body = None
        self._starved = not self._input
        environ = request.environ
        environ["pylon.body"] = body.value
        environ["wsgi.input"] = io.BytesIO(body.value)
        return True

    def _answer(self, request: Request) -> None:
        environ = request.environ
        loop = self._loop
        try:
            result = loop.app(environ, self._start_response)
            prefix = loop.prefixes.of(self._status)
            lines = response.lines(self._headers)
            keep = request.keep and not loop.draining
            if type(result) is list and not self._written:
                body = result[0] if len(result) == 1 else b"".join(result)
                if self._status[:3] in ("204", "304"):
                    body = framing = b""
                elif environ["REQUEST_METHOD"] == "HEAD":
                    length = response.declared(self._headers, "content-length")
                    framing = response.length(int(length or len(body)))
                    body = b""
                else:
                    framing = b"content-length: %d\r\n" % len(body)
            else:
                body, framing = self._begin_parts(request, result)
                # Without either, the end of the connection is the end of the body.
                keep = keep and (self._streamed is None or self._streamed.has_end)
        except Exception as ex:  # noqa: BLE001  (the app's own handlers let it pass: a defect, whatever it is)
            self._fail(environ, ex)
            return
        if not keep:
            framing += response.CLOSE
            self._closing = True
        elif not request.minor:
            framing += response.KEEP
        head = b"%b%b%b%b\r\n" % (prefix, lines, environ["pylon.head"], framing)
        self.deadline_s = loop.now_s + limits.HTTP_KEEPALIVE_S
        if len(body) > _GATHER_BYTES:
            self._send_both(head, body)
        else:
            self._send(head + body)

    def _start_response(
        self, status: str, headers: response.Headers, exc_info: Any = None
    ) -> Any:
        self._status = status
        self._headers = headers
        return self._written.append

    def _begin_parts(self, request: Request, result: Any) -> tuple[bytes, bytes]:
        """Prepare to send what the app will yield: see `Streamed.begin`."""
        streamed = self._streamed = Streamed(result)
        written, self._written = self._written, []
        declared = response.declared(self._headers, "content-length")
        length_bytes = None if declared is None else int(declared)
        if self._status[:3] in ("204", "304"):
            self._end_streamed()
            return b"", b""
        if request.environ["REQUEST_METHOD"] == "HEAD":
            self._end_streamed()
            return b"", b"" if length_bytes is None else response.length(length_bytes)
        return streamed.begin(written, length_bytes, chunks=bool(request.minor))

    # --- Ends ----------------------------------------------------------------------------

    def _fail(self, environ: Environ, ex: Exception) -> None:
        """The app raised instead of answering."""
        self._end_streamed()
        self._written = []
        if isinstance(ex, PylonError):
            refused = RequestError(ex.status, ex.message)
        else:
            _log.exception(
                "request.defect", error=ex, method=environ["REQUEST_METHOD"],
                path=environ["PATH_INFO"],
            )
            refused = RequestError(500, "Internal error")
        self._refuse(refused, with_body=environ["REQUEST_METHOD"] != "HEAD")

    def _refuse(self, refused: RequestError, *, with_body: bool = True) -> None:
        """Say why, then end."""
        if self._body is not None:
            self._loop.bodies_bytes -= self._body.held_bytes
        self._request = self._body = None
        self._input = b""
        self._closing = True
        self._may_read = self._starved = True
        try:
            self._send(self._loop.refusal(refused, with_body=with_body))
            if not self._outgoing and not self.closed:
                self._end()
        except OSError:
            self.close()

    def _end(self) -> None:
        """The last answer is out. Closing over unread bytes would reset the connection, and the
        client might lose the answer by it; so end our side only and wait for the client's."""
        self._closing = False
        if not (self._input or self._may_read or self._request):
            self.close()
            return
        self._input = b""
        self._lingering = True
        self.deadline_s = self._loop.now_s + limits.HTTP_LINGER_S
        self._sock.shutdown(_socket.SHUT_WR)
        self._discard()

    def _discard(self) -> None:
        for _ in range(_DISCARDS_A_TURN):
            try:
                got = self._sock.recv(_RECV_BYTES)
            except BlockingIOError:
                return
            self._discarded_bytes += len(got)
            if not got or self._discarded_bytes > limits.HTTP_LINGER_BYTES:
                self.close()
                return
        self._later = True


def _no_room_for_bodies() -> RequestError:
    return RequestError(503, "Too many request bodies are arriving; try again in a moment")
