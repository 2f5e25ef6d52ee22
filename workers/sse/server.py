"""The sse worker: changes as server-sent events, on its own port (spec/realtime.md §3).

GET opens a stream on any path; ``?entities=`` gives it a scope. OPTIONS is answered as a preflight,
HEAD with the stream's headers, every other method with 405. Started by
`workers.template` (`pylon.roles`).
"""

from __future__ import annotations

from typing import Final, NoReturn

import msgspec

from pylon.auth.cookies import session_cookie
from pylon.auth.origin import origins
from pylon.auth.response_headers import SocketHeaders, socket_headers
from pylon.changelog.scope import parse_entities
from pylon.errors import MethodNotAllowed, PylonError
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from pylon.runtime.raw_socket import RawSocket
from pylon.storage.related import StoredRelated
from workers.boot import WorkerContext, boot
from workers.hub import refusals
from workers.hub.acceptor import Acceptor
from workers.hub.admission import SubscriberAdmission
from workers.hub.hub import Hub
from workers.hub.refusals import refusal_headers
from workers.hub.replay import Replay
from workers.hub.request import Request
from workers.hub.service import ChangeStream, Service
from workers.net.response import encode_head
from workers.sse.protocol import read_connect_request
from workers.sse.stream import EventStreamTransport, head_alone, preflight

_ALLOW: Final = (("Allow", "GET, HEAD, OPTIONS"),)


class EventStreamHandler(msgspec.Struct, frozen=True):
    """`workers.hub.acceptor.UpgradeHandler` of the SSE port."""

    admission: SubscriberAdmission
    replay: Replay
    transport: EventStreamTransport
    cookie_name: str
    headers: SocketHeaders
    trust_proxy_hops: int
    rules: RuleSet
    manifest: Manifest

    def open(
        self, request: Request, raw: RawSocket, early: bytes, *, on_main_port: bool
    ) -> bytes | None:
        """Stream changes to a client, or return the response to OPTIONS and HEAD.

        Raises:
            MethodNotAllowed, InvalidApiKey, InvalidJwt, InvalidQuery, Draining, SocketLimit: the
                acceptor still owns the socket.
        """
        headers = self.headers.of(request.origin)
        if request.method == "OPTIONS":
            return encode_head(204, (*preflight(headers), ("Connection", "close")))
        if request.method == "HEAD":
            self.admission.check()
            return head_alone(headers)
        if request.method != "GET":
            raise MethodNotAllowed(
                f"An event stream is opened with GET, not with {request.method[:20]}",
                hint="EventSource and curl send GET by default",
            )
        scope = parse_entities(self.rules, self.manifest, request.parameters.get("entities"))
        connect_request = read_connect_request(
            request, early, self.cookie_name, self.trust_proxy_hops, self.headers, scope
        )
        self.admission.stream(raw, connect_request, self.replay, self.transport)
        return None

    def refusal(self, error: PylonError, request: Request | None) -> bytes:
        """Return the response for an error, which a trusted page's script may read (CORS)."""
        allow = _ALLOW if isinstance(error, MethodNotAllowed) else ()
        return refusals.refusal(error, (*allow, *refusal_headers(self.headers, request)))


def run() -> NoReturn:
    """Be a worker of this role, from its fork to its end."""
    serve(boot())


def serve(booted: WorkerContext) -> NoReturn:
    """Serve until SIGTERM."""
    app = booted.app
    headers = socket_headers(app.config, origins(app.config, app.manifest))
    transport = EventStreamTransport()
    rules = {name: app.rules.for_entity(name) for name in app.manifest.by_name}
    hub = Hub(rules, transport, app.clock, StoredRelated(booted.reader_pool.point_inline))
    admission = SubscriberAdmission(booted, hub)
    changes = ChangeStream(booted, hub, admission)
    handler = EventStreamHandler(
        admission, changes.replay, transport, session_cookie(app.config, app.manifest).name,
        headers, app.config.trust_proxy_hops, app.rules, app.manifest,
    )
    acceptor = Acceptor(
        booted.listen_socket, handler, app.clock,
        opens_wait=not booted.reader_pool.local_reads,
    )
    Service(booted, (hub,), acceptor, admission).run(changes)
