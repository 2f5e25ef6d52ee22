"""The WebSocket handshake (spec/realtime.md §2.1): the only module that imports geventwebsocket.

geventwebsocket answers the upgrade; its conversation is not used, because it blocks a greenlet
for each socket, reads frames before it looks at their size, accepts unmasked ones, and checks
UTF-8 byte by byte in Python (see `workers.ws.frames`). It is also handed only requests that
were checked here, since it answers some bad ones with a traceback.

Invariants: the chosen `bearer.` item is echoed verbatim, whether its token is good or not. No
token, or an unknown one, is an anonymous client. A request that is not an upgrade gets 426 with
`BAD_UPGRADE`. Used by the ws and the shards workers.
"""

from __future__ import annotations

import _socket
import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import unquote_to_bytes

import gevent
from gevent.pywsgi import WSGIHandler
from geventwebsocket.handler import WebSocketHandler

from pylon import limits
from pylon.errors import BadUpgrade, PylonError
from workers.hub import handover

_UPGRADE_REQUIRED: Final = 426
_VERSION: Final = "13"
_KEY_BYTES: Final = 16
# More than RFC 9110's token: the Swift client leaves `=`, `/` and `:` of a token as they are.
_ITEM: Final = re.compile(r"[!-+\--~]+")
_ESCAPES: Final = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_BEARER: Final = "bearer."


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a client asked for."""

    address: str
    token: str | None
    parameters: dict[str, str]


class Door(Protocol):
    """Where upgraded sockets go."""

    def check(self, address: str) -> None:
        """Pass, or raise the `PylonError` that is answered as plain HTTP."""

    def accept(self, raw: _socket.socket, early: bytes, handshake: Handshake) -> None:
        """Take a socket that speaks WebSocket now, and what has arrived on it."""


def handler_for(door: Door, trust_proxy_hops: int) -> Callable[[Any, Any, Any], WSGIHandler]:
    """What makes pywsgi's handlers: one for each accepted connection."""

    def make(sock: Any, address: Any, server: Any) -> WSGIHandler:
        return _Handler(sock, address, server, door, trust_proxy_hops)

    return make


def chosen_item(offered: str | None) -> str | None:
    """The subprotocol to echo: the first offered one that carries a token."""
    for item in (offered or "").split(","):
        item = item.strip()
        if item.startswith(_BEARER) and _ITEM.fullmatch(item):
            return item
    return None


def token_of(item: str | None) -> str | None:
    """The token in a `bearer.<percent-encoded>` item; None where there is none, or no sense
    in it. `+` is a space."""
    if item is None:
        return None
    encoded = item.removeprefix(_BEARER)
    if not _ESCAPES.fullmatch(encoded):
        return None
    try:
        return unquote_to_bytes(encoded.replace("+", " ")).decode() or None
    except UnicodeDecodeError:
        return None


def upgrade_fault(command: str, version: str, environ: dict[str, Any]) -> str | None:
    """Why a request is no WebSocket handshake (RFC 6455 §4.2.1), or None if it is one."""
    connection = environ.get("HTTP_CONNECTION", "").lower().split(",")
    if command != "GET" or environ.get("HTTP_UPGRADE", "").lower() != "websocket":
        return "This port speaks WebSocket: send a GET request with Upgrade: websocket"
    if "upgrade" not in [part.strip() for part in connection]:
        return "The Connection header must contain Upgrade"
    if version != "HTTP/1.1":
        return "A WebSocket handshake needs HTTP/1.1"
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION", "").strip() != _VERSION:
        return "Sec-WebSocket-Version must be 13"
    try:
        key = base64.b64decode(environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        return "Sec-WebSocket-Key must be 16 bytes in base64"
    return None


class _Offer:
    """What geventwebsocket asks for the subprotocol."""

    def __init__(self, item: str | None) -> None:
        self._item = item

    def app_protocol(self, path: str) -> str | None:
        return self._item


class _Handler(WebSocketHandler):  # type: ignore[misc]  # the library has no types
    def __init__(self, sock: Any, address: Any, server: Any, door: Door, hops: int) -> None:
        super().__init__(sock, address, server)
        self._door = door
        self._hops = hops
        self._deadline: Any = None

    def handle(self) -> None:
        """One request, whose headers must arrive in time."""
        with gevent.Timeout(limits.SOCKET_HEADER_S, False) as self._deadline:
            super().handle()

    def log_request(self) -> None:
        """Handshakes are counted, not logged."""

    def run_application(self) -> None:
        """Upgrade and hand the socket over, or refuse."""
        self._deadline.close()
        environ = self.environ
        fault = upgrade_fault(self.command, self.request_version, environ)
        address = handover.address_of(environ, self._hops)
        try:
            if fault is not None:
                raise BadUpgrade(fault)
            self._door.check(address)
        except BadUpgrade as ex:
            headers = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", _VERSION))
            handover.refuse(self, ex, headers, _UPGRADE_REQUIRED)
            return
        except PylonError as ex:
            handover.refuse(self, ex)
            return
        item = chosen_item(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL"))
        self.application = _Offer(item)
        self.upgrade_websocket()
        self.write(b"")
        # The library's object would write a close frame of its own when it is dropped.
        environ.pop("wsgi.websocket").closed = True
        del self.websocket
        raw, early = handover.take_over(self)
        token = handover.bearer_of(environ) or token_of(item)
        self._door.accept(raw, early, Handshake(address, token, handover.parameters_of(environ)))
