"""Connections of a shards worker: from a request to a subscriber (spec/realtime.md §4.1, §4.4).

A WebSocket client names a shard with ``?shard=`` and itself with ``&sid=``. On the HTTP port an
event stream names the shard in its path. The handler passes a connection to a shard of another
process on to that process, with its head; to another node it goes through a tunnel
(`tunnel_entries`). A client that came through a tunnel is served here: the other node has found the
home of its shard, and the registry judges whether the shard may run here. Options of our own:
``ack=1``, ``delta=1``, ``format=msgpack``, the subprotocol ``seat.<token>`` (`reconnect_tokens`)
and, for streams, `Last-Event-ID`.

The published server drops a refused connection. This one closes it with a code: 4400 without
`shard`, 4404 for an unknown shard, 1008 for a refusal, 1013 for a shard that admits nobody now,
4409 for a place that its owner's next connection has taken over. Event streams get an HTTP status.

Invariants: a socket that is passed on is not counted here. A connection that is closing sends
nothing to its shard; one that closes while the store is read joins none. Called by
`workers.hub.acceptor` and the transports.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

import msgspec

from pylon import limits
from pylon.auth.response_headers import SocketHeaders
from pylon.auth_context import Caller
from pylon.bus.passing import SocketSender
from pylon.clock import RandomSource
from pylon.errors import (
    AuthRequired,
    MethodNotAllowed,
    PylonError,
    ShardNotFound,
    SubscribeFailed,
    SubscribeRefused,
    Unavailable,
)
from pylon.rates import address_subject, user_subject
from pylon.realtime.placement import Placement, elsewhere_error
from pylon.realtime.snapshots import Format
from pylon.runtime.raw_socket import RawSocket
from workers.hub import refusals
from workers.hub.admission import ConnectRequest, SubscriberAdmission
from workers.hub.close_codes import NORMAL, POLICY, TRY_AGAIN_LATER
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.hub.refusals import refusal_headers
from workers.hub.request import Request, cursor_of
from workers.net.response import Headers
from workers.shards.reconnect_tokens import ReconnectClaim, ReconnectTokens
from workers.shards.registry import ShardRegistry
from workers.shards.subscriber import STREAM, WEBSOCKET, Subscriber
from workers.shards.tunnel_entries import TunnelEntries
from workers.shards.tunnel_exits import TunnelSocket
from workers.sse.protocol import stream_token
from workers.sse.stream import EventStreamTransport
from workers.ws import protocol

NO_SHARD_NAMED: Final = 4400
NO_SUCH_SHARD: Final = 4404
TAKEN_OVER: Final = 4409

# The first byte of a connection that is passed on: the port on which it was accepted. Cookies count
# on the main port only.
MAIN_PORT: Final = b"m"
OWN_PORT: Final = b"o"

_JOINING: Final = 4  # a reason for a pause
_REQUEST_ID_BYTES: Final = 8
_ANONYMOUS_SID: Final = "anon"
_SEAT_IN_URL: Final = (
    "a seat token in the URL ends up in logs: send it as the subprotocol seat.<token>"
)
_PATH: Final = "/api/shards/"
_CONNECT: Final = "/connect"


class Streams(msgspec.Struct, frozen=True):
    """The parts that only event streams need."""

    hub: Hub
    transport: EventStreamTransport
    cookie_name: str
    headers: SocketHeaders


class ShardConnectionHandler:
    """`workers.hub.acceptor.UpgradeHandler` of the shards worker."""

    def __init__(
        self, *, worker: str, hops: int, placement: Placement, registry: ShardRegistry,
        reconnect_tokens: ReconnectTokens, siblings: SocketSender, handshakes: protocol.Handshakes,
        admission: SubscriberAdmission, streams: Streams, random: RandomSource,
        entries: TunnelEntries | None = None,
    ) -> None:
        """Args: `entries` serve clients of shards on other nodes; None: this node cannot."""
        self._entries = entries
        self._worker = worker
        self._hops = hops
        self._placement = placement
        self._registry = registry
        self._reconnect_tokens = reconnect_tokens
        self._siblings = siblings
        self._handshakes = handshakes
        self._admission = admission
        self._streams = streams
        self._random = random
        self._subscribers: dict[Connection, Subscriber] = {}

    # --- Calls of the acceptor -----------------------------------------------------------

    def open(
        self, request: Request, raw: RawSocket | TunnelSocket, early: bytes, *, on_main_port: bool
    ) -> bytes | None:
        """Connect a client to a shard (`workers.hub.acceptor.UpgradeHandler.open`)."""
        if request.path.startswith(_PATH) and request.path.endswith(_CONNECT):
            return self._open_stream(request, raw, early)
        handshake = self._handshakes.read(request, on_main_port=on_main_port)
        shard_id = handshake.parameters.get("shard", "")
        refusal: SubscribeFailed | None = None
        try:
            if self._passed_on(
                shard_id, request, raw, early, on_main_port=on_main_port, answer=handshake.answer
            ):
                return None
        except SubscribeFailed as ex:  # a close code is all that browsers can read
            refusal = ex
        connect_request = ConnectRequest(
            handshake.address, handshake.token, None, answer=handshake.answer
        )
        connection, error = self._admission.enter(raw, connect_request)
        # The join may wait for the store. Inputs wait for the join: none may be lost.
        connection.pause(_JOINING)
        try:
            if error is not None:
                raise error
            if refusal is not None:
                raise refusal
            self._join_shard(connection, shard_id, handshake)
        except ShardNotFound as ex:
            connection.close(NO_SUCH_SHARD if shard_id else NO_SHARD_NAMED, ex.message)
        except SubscribeRefused as ex:
            connection.close(POLICY, f"unauthorized: {ex.message}")
        except SubscribeFailed as ex:
            connection.close(TRY_AGAIN_LATER, ex.message)
        except PylonError as ex:
            connection.close(TRY_AGAIN_LATER, ex.code)
        finally:
            connection.resume(_JOINING, early)
        return None

    def refusal(self, error: PylonError, request: Request | None) -> bytes:
        """Return the response for an error, with CORS: pages read event streams here."""
        return protocol.refusal(error, refusal_headers(self._streams.headers, request))

    # --- Calls of the transports ---------------------------------------------------------

    def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Submit a client's message to its shard. Never blocks."""
        subscriber = self._subscribers.get(connection)
        if subscriber is not None and connection.is_open:
            subscriber.on_message(data, self._registry.now_s())
            self._registry.reschedule(subscriber.shard)

    def drop_connection(self, connection: Connection) -> None:
        """Unsubscribe a connection that has closed."""
        subscriber = self._subscribers.pop(connection, None)
        if subscriber is None:
            return
        shard, now_s = subscriber.shard, self._registry.now_s()
        if subscriber.reconnect_token is not None:
            keep_s = shard.kind.config.allow_reconnection_s
            self._reconnect_tokens.start_expiry(subscriber.reconnect_token, now_s + keep_s)
        shard.unsubscribe(subscriber, now_s)
        self._registry.reschedule(shard)

    # --- Internals -----------------------------------------------------------------------

    def _passed_on(
        self, shard_id: str, request: Request, raw: RawSocket | TunnelSocket, early: bytes, *,
        on_main_port: bool, answer: bytes | None = None,
    ) -> bool:
        """Have another process serve a client, if the shard is not here. One hop: a client that
        came through a tunnel stays."""
        if isinstance(raw, TunnelSocket):
            return False
        home = self._placement.find(shard_id)
        if not home.is_here:
            if self._entries is None or not home.cluster_url:
                raise elsewhere_error(shard_id, home)
            self._entries.enter(
                home, request, raw, early, on_main_port=on_main_port, answer=answer
            )
            return True
        if home.worker == self._worker:
            return False
        port = MAIN_PORT if on_main_port else OWN_PORT
        if not self._siblings.pass_to(home.worker, raw, port + request.head + early):
            raise Unavailable(
                f"The process of this shard (worker {home.worker}) is not up", hint="Try again"
            )
        raw.close()
        return True

    def _join_shard(
        self, connection: Connection, shard_id: str, handshake: protocol.Handshake
    ) -> None:
        if not shard_id:
            raise ShardNotFound("the parameter shard is missing")
        parameters = handshake.parameters
        if "seat" in parameters:
            raise SubscribeRefused(_SEAT_IN_URL)
        subjects = _subjects(connection.caller, connection.address)
        shard = self._registry.find_or_make(shard_id, subjects)
        if not connection.is_open:  # it has closed during the read
            self._registry.settle_join(shard, is_in=False)
            return
        claim = None
        if handshake.seat is not None:
            claim = self._reconnect_tokens.claim(
                handshake.seat, shard_id, connection.caller, self._registry.now_s()
            )
        sid = claim.sid if claim else parameters.get("sid") or _ANONYMOUS_SID
        if len(sid) > limits.SHARD_SID_CHARS:
            self._registry.settle_join(shard, is_in=False)
            raise SubscribeRefused(f"sid is longer than {limits.SHARD_SID_CHARS} characters")
        form = Format.MSGPACK if parameters.get("format") == "msgpack" else Format.JSON
        subscriber = Subscriber(
            connection, shard, sid, WEBSOCKET[form],
            delta=parameters.get("delta") == "1", acks=parameters.get("ack") == "1",
        )
        self._subscribe(subscriber, has_place=claim is not None)
        if claim is not None:
            self._take_over(claim)
        keep_s = shard.kind.config.allow_reconnection_s
        if keep_s and connection.is_open:
            token = self._reconnect_tokens.issue(
                ReconnectClaim(shard_id, sid, connection.caller, connection)
            )
            subscriber.reconnect_token = token
            subscriber.send_message(
                {"type": "seat", "token": token, "sid": sid, "expires_in_s": keep_s}
            )

    def _take_over(self, claim: ReconnectClaim) -> None:
        """End the earlier connection of a client that has reconnected, if it is open."""
        before = self._subscribers.pop(claim.connection, None)
        if before is not None:
            before.shard.unsubscribe(before, self._registry.now_s())
            claim.connection.close(TAKEN_OVER, "taken over by a later connection")

    def _subscribe(self, subscriber: Subscriber, *, has_place: bool = False) -> None:
        shard = subscriber.shard
        # First: `drop_connection` must find a connection that ends while it gets its first frame.
        self._subscribers[subscriber.connection] = subscriber
        try:
            shard.subscribe(subscriber, self._registry.now_s(), has_place=has_place)
        except PylonError:
            self._subscribers.pop(subscriber.connection, None)
            self._registry.settle_join(shard, is_in=False)
            raise
        self._registry.settle_join(shard, is_in=True)

    def _open_stream(
        self, request: Request, raw: RawSocket | TunnelSocket, early: bytes
    ) -> bytes | None:
        """Serve ``GET /api/shards/<id>/connect?sid=``: snapshots as an event stream."""
        streams = self._streams
        try:
            if request.method != "GET":
                raise MethodNotAllowed(
                    f"A shard's event stream is opened with GET, not with {request.method[:20]}"
                )
            shard_id = unquote(request.path[len(_PATH) : -len(_CONNECT)])
            if self._passed_on(
                shard_id, request, raw, early, on_main_port=True
            ):
                return None
            token = stream_token(request, streams.cookie_name, streams.headers.origins)
            caller, error = self._admission.caller_of(token)
            if error is not None:
                raise error
            user_id = caller.auth.user_id
            if user_id is None:
                raise AuthRequired("Authentication required")
            sid = request.parameters.get("sid") or user_id
            if len(sid) > limits.SHARD_SID_CHARS:
                raise SubscribeRefused(f"sid is longer than {limits.SHARD_SID_CHARS} characters")
            address = request.address(self._hops)
            shard = self._registry.find_or_make(shard_id, _subjects(caller, address))
            connect_request = ConnectRequest(address, token, None)
            try:
                connection, error = self._admission.enter(raw, connect_request, streams.hub)
            except PylonError:
                self._registry.settle_join(shard, is_in=False)
                raise
        except MethodNotAllowed as ex:
            return refusals.refusal(ex, (("Allow", "GET"), *self._stream_headers(request)))
        except PylonError as ex:
            return refusals.refusal(ex, self._stream_headers(request))
        seen = cursor_of(request.field(b"last-event-id")) or 0
        # A tick that this shard has not reached belongs to an earlier shard of the same id.
        skip_to = seen if seen <= shard.tick else 0
        subscriber = Subscriber(connection, shard, sid, STREAM, skip_to=skip_to, holds=True)
        try:
            self._subscribe(subscriber)
        except PylonError as ex:
            connection.send(refusals.refusal(ex, self._stream_headers(request)))
            connection.close(NORMAL, awaits_peer=False)
        else:
            subscriber.begin(
                streams.transport.stream_head(streams.headers.of(request.origin))
            )
        return None

    def _stream_headers(self, request: Request) -> Headers:
        """Return the headers of a refusal, which an HTTP worker's response has too."""
        request_id = self._random.token_hex(_REQUEST_ID_BYTES)
        return (*self._streams.headers.of(request.origin), ("X-Request-Id", request_id))


def _subjects(caller: Caller, address: str) -> tuple[str, ...]:
    """Return the identity, if there is one, and the address that a new shard counts for.

    A shard of an admin counts for nobody.
    """
    if caller.auth.is_admin:
        return ()
    user_id = caller.auth.user_id
    user = () if user_id is None else (user_subject(user_id),)
    return (*user, address_subject(address))
