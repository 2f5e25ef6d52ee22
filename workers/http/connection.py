"""One connection of an HTTP worker: requests come in, responses go out, in order.

`receiving` makes requests of the input, `wsgi` calls the app, `sending` keeps what the client has
not read. A dispatcher greenlet (`dispatchers`) runs all of it: it takes the connection when the
socket has an event, and goes on to another one where it would have to wait for the client. So a
slow client costs memory within bounds, and no greenlet. Only the app may block.

States: *idle* (nothing of a request has come), *reading* (a part of a request has come), *queued*
(an event is handled, or waits for a greenlet), *sending* (a part of a response is left),
*lingering* (`workers.net.linger`), closed.

Invariants: one request at a time; a refused request ends its connection, and so does a response
that cannot be completed. Made by `accepting`.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

from pylon import limits, log, metrics
from pylon.auth.forwarded import client_address, network_of
from pylon.errors import PylonError
from pylon.runtime.raw_socket import RawSocket
from workers.http import response
from workers.http.connection_limits import BODY, HEAD, IDLE, READER
from workers.http.receiving import Receiver
from workers.http.request import Environ, Request
from workers.http.roles import SHARDS, role_of
from workers.http.sending import BrokenResponse, Sender
from workers.http.streamed_body import StreamedBody, is_streamed
from workers.http.wsgi import WsgiResponse
from workers.net.head import RequestError
from workers.net.linger import LingeringClose
from workers.net.poller import ENDED

if TYPE_CHECKING:
    from workers.http.loop import Loop

_log = log.get_logger("http")
_GATHER_BYTES: Final = 32_768  # a longer body is sent from where it is, not copied to its head
# After so much of one connection, other connections run.
_REQUESTS_A_TURN: Final = 16
_READS_A_TURN: Final = 16
_DISCARDS_A_TURN: Final = 16


class _PassedOn(Exception):
    """The connection belongs to another process now."""


class Connection:
    """A client of this worker."""

    __slots__ = (
        "_base", "_body", "_closing", "_deadline_s", "_forwarded", "_has_responded", "_linger",
        "_loop", "_more", "_receiver", "_sender", "_sock", "again", "closed", "fd", "network",
        "queued",
    )

    def __init__(
        self, loop: Loop, sock: RawSocket, base: Environ, network: str, now_s: float
    ) -> None:
        """
        Args:
            base: the part of the environ that every request of the connection has.
            network: the network that it comes from (`pylon.auth.forwarded.network_of`).
        """
        self._loop = loop
        self._sock = sock
        self._base = base
        self.network = network
        self.fd = sock.fileno()
        self._receiver = Receiver(base, loop.bodies)
        self._sender = Sender(sock, loop.outgoing)
        self._forwarded: str | None = None  # X-Forwarded-For of trusted proxies
        self._deadline_s = now_s + limits.HTTP_HEAD_S
        self._has_responded = False
        self._closing = False  # after this response
        self._linger: LingeringClose | None = None
        self._body: StreamedBody | None = None  # that the app is reading
        self._more = False  # other connections must run before this one continues
        self.again = False  # another event came while this one was handled
        self.closed = False
        self.queued = False

    # --- State, for the loop -------------------------------------------------------------

    @property
    def deadline_s(self) -> float:
        """When the connection expires unless the client goes on, on the loop's clock."""
        if self._sender.is_sending:
            return self._sender.moved_s + limits.HTTP_SEND_S
        return self._deadline_s

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way in either direction."""
        receiver = self._receiver
        return not (
            self.queued or receiver.input or receiver.request or self._sender.is_sending
            or self._linger
        )

    def waiting_since(self) -> tuple[int, float] | None:
        """Return the kind of the wait for the client (`connection_limits`), and its begin.

        Returns:
            None while the connection does not wait for its client.
        """
        if self.queued or self.closed:
            return None
        if self._linger is not None:
            return IDLE, self._deadline_s - limits.HTTP_LINGER_S
        if self._sender.is_sending:
            return READER, self._sender.moved_s
        if self._receiver.request is not None:
            return BODY, self._receiver.progress_s
        if self._receiver.input:
            return HEAD, self._deadline_s - limits.HTTP_HEAD_S
        patience_s = limits.HTTP_KEEPALIVE_S if self._has_responded else limits.HTTP_HEAD_S
        return IDLE, self._deadline_s - patience_s

    @property
    def client_network(self) -> str:
        """Return the network of the client that sent the request, behind trusted proxies."""
        forwarded = self._forwarded
        if forwarded is None:
            return self.network
        peer: str = self._base["REMOTE_ADDR"]
        return network_of(client_address(peer, forwarded, self._loop.hops))

    @property
    def body_bytes(self) -> int:
        """Return the memory of the body that is arriving."""
        return self._receiver.body_bytes

    @property
    def body_progress_s(self) -> float:
        """Return the time of the last progress of the body that is arriving."""
        return self._receiver.progress_s

    @property
    def outgoing_bytes(self) -> int:
        """Return the size of the response that the client has not read yet."""
        return self._sender.outgoing_bytes

    def has_arrived(self) -> bool:
        """Whether input waits in the kernel."""
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def forget(self) -> None:
        """Free the copies that only make the next request quicker."""
        self._receiver.forget()

    # --- Events --------------------------------------------------------------------------

    def on_ready(self, events: int) -> None:
        """Queue the connection for a dispatcher (`workers.net.poller.Watched`)."""
        if events & ENDED:
            self._receiver.peer_ended = True
        if self.queued:
            self.again = True
            if self._body is not None:
                self._body.wake()
        else:
            self.queued = True
            self._loop.dispatchers.add(self)

    def serve(self) -> None:
        """Handle what has happened. Returns when the connection waits for its client."""
        try:
            while not self.closed:
                self.again = False
                self._receiver.may_read = True
                self._advance()
                if self._more:
                    self._more = False
                    self._loop.dispatchers.add_again(self)
                    return
                if not self.again:
                    break
        except (OSError, BrokenResponse, _PassedOn):
            self.abort()  # the client is gone, or another process has it
        self.queued = False

    def _advance(self) -> None:
        receiver = self._receiver
        responses = reads = 0
        while not self.closed:
            if self._sender.is_sending and not self._pump():
                return
            if self._closing:
                self._end()
                return
            if self._linger is not None:
                self._more = self._linger.discard(_DISCARDS_A_TURN)
                return
            if receiver.is_starved and not (receiver.may_read and receiver.receive(self._sock)):
                return
            try:
                request = self._next_request()
            except RequestError as refused:
                self._refuse(refused)
                return
            if request is None:
                reads += 1
                if not receiver.is_starved or reads >= _READS_A_TURN:
                    self._more = True  # there is more input, here or in the kernel
                    return
                continue
            self._respond(request)
            responses += 1
            if responses >= _REQUESTS_A_TURN and receiver.input:
                self._more = True
                return

    # --- Requests ------------------------------------------------------------------------

    def _next_request(self) -> Request | None:
        """Return the next request with its body; None while it has not arrived."""
        receiver = self._receiver
        request = receiver.request
        if request is None:
            request = receiver.parse_head()
            if request is None:
                receiver.is_starved = True
                if not receiver.has_head_begun:
                    receiver.has_head_begun = True
                    self._deadline_s = self._loop.now_s + limits.HTTP_HEAD_S
                return None
            environ = request.environ
            if self._loop.hops:
                self._forwarded = environ.get("HTTP_X_FORWARDED_FOR")
            if "HTTP_UPGRADE" in environ or environ["PATH_INFO"].startswith(SHARDS):
                self._pass_on(request)
            receiver.consume_head(request)
            if request.length and is_streamed(request):
                self._stream_body(request)
                return request
            if not request.length or receiver.take_whole_body(request):
                return request
            self._begin_body(request)
        if not request.length or receiver.take_body(self._loop.now_s):
            return request
        receiver.is_starved = not receiver.input
        bodies = self._loop.bodies
        if bodies.is_exceeded and not bodies.make_room(self, self._loop.now_s):
            metrics.HTTP_ABORTED.labels("bodies").inc()
            raise _no_room_for_bodies()
        return None

    def _begin_body(self, request: Request) -> None:
        receiver = self._receiver
        if request.length > limits.BODY_BYTES:
            receiver.refuse_body(request)
            return
        now_s = self._loop.now_s
        receiver.begin_body(request, now_s)
        self._deadline_s = now_s + limits.HTTP_REQUEST_S
        if request.expects and not receiver.input:
            self._sender.send(response.CONTINUE, now_s)

    def _stream_body(self, request: Request) -> None:
        """Let the app read the body while it arrives."""
        def send_continue() -> None:
            self._sender.send(response.CONTINUE, self._loop.now_s)

        self._body = StreamedBody(request, self._receiver, self._sock, send_continue)
        request.environ["pylon.body"] = None
        request.environ["wsgi.input"] = self._body

    def _pass_on(self, request: Request) -> None:
        """Pass the connection, with all input, to a worker of another role if it serves this path.

        Raises:
            _PassedOn: the other worker has it.
        """
        role = role_of(request)
        if role is None:
            return
        if self._loop.pass_on(role, self, self._sock, self._receiver.input):
            raise _PassedOn
        request.environ["pylon.nobody_there"] = True  # the app tells the client

    # --- Responses -----------------------------------------------------------------------

    def _respond(self, request: Request) -> None:
        reply = WsgiResponse()
        try:
            reply.call(self._loop, request)
        except Exception as ex:  # noqa: BLE001  (the app's own handlers let it pass: a defect, whatever it is)
            self._fail(request.environ, ex)
            return
        finally:
            streamed, self._body = self._body, None
            if streamed is not None and not streamed.is_complete:
                self._receiver.may_read = True  # the rest of the body is on its way
        if self.closed:  # while the app was blocked
            reply.close()
            return
        now_s = self._loop.now_s
        self._has_responded = True
        self._closing = not reply.keep
        self._deadline_s = now_s + limits.HTTP_KEEPALIVE_S
        sender = self._sender
        if reply.streamed is not None:
            sender.stream(reply.streamed, now_s)
        body = reply.body
        if len(body) > _GATHER_BYTES:
            sender.send_both(reply.head, body, now_s)
        else:
            sender.send(reply.head + body, now_s)
        if sender.is_sending:
            self._limit_outgoing()

    def _pump(self) -> bool:
        """Send more of a response. Return whether all of it is out."""
        sender = self._sender
        if sender.pump(self._loop.now_s):
            self._deadline_s = self._loop.now_s + limits.HTTP_KEEPALIVE_S
            return True
        self._more, sender.has_more = sender.has_more, False
        self._limit_outgoing()
        return False

    def _limit_outgoing(self) -> None:
        outgoing = self._loop.outgoing
        if outgoing.is_exceeded and not outgoing.make_room(self, self._loop.now_s):
            self.give_up_response()

    def _fail(self, environ: Environ, ex: Exception) -> None:
        """Respond for an app that has raised."""
        if isinstance(ex, PylonError):
            refused = RequestError(ex.status, ex.message)
        else:
            _log.exception("request.defect", error=ex, method=environ["REQUEST_METHOD"])
            refused = RequestError(500, "Internal error")
        self._refuse(refused, with_body=environ["REQUEST_METHOD"] != "HEAD")

    # --- Ends ----------------------------------------------------------------------------

    def expire(self) -> None:
        """The deadline has passed. Called by the loop, never while the connection is queued."""
        receiver = self._receiver
        if self._sender.is_sending:
            metrics.HTTP_ABORTED.labels("slow reader").inc()
            self.abort()
        elif receiver.request is not None or receiver.input:
            what = "head" if receiver.request is None else "body"
            limit_s = limits.HTTP_HEAD_S if receiver.request is None else limits.HTTP_REQUEST_S
            metrics.HTTP_ABORTED.labels(f"slow {what}").inc()
            message = f"The request {what} did not arrive within {limit_s:g} s"
            self._refuse(RequestError(408, message))
        else:
            self.abort()

    def give_way(self) -> None:
        """Close the connection for another one, if it waits for its client."""
        waiting = self.waiting_since()
        if waiting is None or (waiting[0] == IDLE and self.has_arrived()):
            return  # it no longer waits
        metrics.HTTP_ABORTED.labels("gave way").inc()
        if waiting[0] in (HEAD, BODY):
            refused = RequestError(503, "Too many connections are open; try again in a moment")
            with contextlib.suppress(OSError):
                self._sock.send(self._loop.refusal(refused))
        self.abort()

    def give_up_body(self) -> None:
        """Refuse the request whose body is arriving: there is no memory for it."""
        metrics.HTTP_ABORTED.labels("bodies").inc()
        self._refuse(_no_room_for_bodies())

    def give_up_response(self) -> None:
        """Close the connection: there is no memory for a response that its client does not read."""
        metrics.HTTP_ABORTED.labels("outgoing").inc()
        self.abort()

    def abort(self) -> None:
        """Close the socket now. Later calls do nothing."""
        if self.closed:
            return
        self.closed = True
        self._sender.clear()
        self._receiver.drop_body()
        self._loop.remove(self)
        self._sock.close()

    def _refuse(self, refused: RequestError, *, with_body: bool = True) -> None:
        """Send an error response, then end the connection."""
        self._receiver.drop_input()
        self._closing = True
        try:
            self._sender.send(self._loop.refusal(refused, with_body=with_body), self._loop.now_s)
            if self._sender.is_sending:
                self._limit_outgoing()
            elif not self.closed:
                self._end()
        except OSError:
            self.abort()

    def _end(self) -> None:
        """End the connection after its last response."""
        self._closing = False
        receiver = self._receiver
        if not (receiver.input or receiver.may_read or receiver.request):
            self.abort()
            return
        receiver.input = b""
        self._deadline_s = self._loop.now_s + limits.HTTP_LINGER_S
        self._linger = LingeringClose(self._sock, limits.HTTP_LINGER_BYTES, self._deadline_s)
        self._more = self._linger.discard(_DISCARDS_A_TURN)


def _no_room_for_bodies() -> RequestError:
    return RequestError(503, "Too many request bodies are arriving; try again in a moment")
