"""The WebSocket handshake (spec/realtime.md §2.1): the only module that imports geventwebsocket.

geventwebsocket gives the constants of the handshake. Its server side is not used. Its handler
needs pywsgi: a greenlet, a WSGI environ and a dozen Python objects for each connection before
the first check, in all five times the CPU that `workers.hub.acceptor` takes for a connection;
and answers some bad requests with a traceback. Its conversation
blocks a greenlet for each socket, reads frames before it looks at their size, accepts unmasked
ones, and checks UTF-8 byte by byte in Python (see `workers.ws.frames`).

Invariants: the chosen `bearer.` item is echoed verbatim, whether its token is good or not; without
one, a `seat.` item is (a browser gives up where none of its offers is echoed). No
token, or an unknown one, is an anonymous client. A request that is not an upgrade gets 426 with
`BAD_UPGRADE`. The session cookie counts on the main port only, and there only if the page's
Origin may send writes: a socket opened by a page of somebody else must not speak for the
browser's user. Used by the ws and the shards workers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from geventwebsocket.handler import WebSocketHandler

from pylon.auth.cookies import cookie_value
from pylon.auth.origin import Origins
from pylon.errors import BadUpgrade, PylonError
from workers.hub import refusals
from workers.hub.request import Request
from workers.net.response import Headers
from workers.ws.deflate import Deflate, negotiate

_UPGRADE_REQUIRED: Final = 426
_VERSION: Final = "13"
_GUID: Final[bytes] = WebSocketHandler.GUID.encode()
_KEY_BYTES: Final = 16
# More than RFC 9110's token: the Swift client leaves `=`, `/` and `:` of a token as they are.
_ITEM: Final = re.compile(r"[!-+\--~]+")
_ESCAPES: Final = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_BEARER: Final = "bearer."
_SEAT: Final = "seat."


@dataclass(slots=True)
class Handshake:
    """What a client asked for."""

    address: str
    token: str | None
    seat: str | None  # the token of a place in a shard (`workers.shards.reconnect_tokens`)
    parameters: dict[str, str]
    deflate_window: int  # the window of the permessage-deflate that `answer` agrees to; 0: none
    answer: bytes  # the 101, whole


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Reads handshakes. One for each worker."""

    trust_proxy_hops: int
    origins: Origins
    cookie_name: str
    deflates: bool  # permessage-deflate is agreed to

    def read(self, request: Request, *, on_main_port: bool) -> Handshake:
        """What `request` asks for, and its answer.

        Args:
            on_main_port: it was sent to ``/api/sync/ws`` of the HTTP port.

        Raises:
            BadUpgrade: it is no WebSocket handshake.
        """
        fault = upgrade_fault(request)
        if fault is not None:
            raise BadUpgrade(fault)
        offered = request.field(b"sec-websocket-protocol")
        seat_item = chosen_item(offered, _SEAT)
        item = chosen_item(offered)
        token = request.bearer or token_of(item)
        if token is None and on_main_port:
            token = self._cookie_of(request)
        deflate = None
        if self.deflates:
            deflate = negotiate(request.field(b"sec-websocket-extensions"))
        return Handshake(
            request.address(self.trust_proxy_hops), token,
            None if seat_item is None else seat_item.removeprefix(_SEAT), request.parameters,
            0 if deflate is None else deflate.window_bits,
            _answer(request, item or seat_item, deflate),
        )

    def _cookie_of(self, request: Request) -> str | None:
        if not self.origins.allows(request.field(b"origin")):
            return None
        return cookie_value(request.field(b"cookie"), self.cookie_name)


def refusal(error: PylonError, more: Headers = ()) -> bytes:
    """The answer to a request that is not let in; `more`: headers that it has besides."""
    if isinstance(error, BadUpgrade):
        headers = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", _VERSION))
        return refusals.refusal(error, (*headers, *more), _UPGRADE_REQUIRED)
    return refusals.refusal(error, more)


def chosen_item(offered: str | None, prefix: str = _BEARER) -> str | None:
    """The first offered subprotocol that carries a token of the kind that `prefix` names."""
    if not offered:
        return None
    for item in offered.split(","):
        item = item.strip()
        if item.startswith(prefix) and _ITEM.fullmatch(item):
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


def upgrade_fault(request: Request) -> str | None:
    """Why a request is no WebSocket handshake (RFC 6455 §4.2.1), or None if it is one."""
    if request.method != "GET" or (request.field(b"upgrade") or "").lower() != "websocket":
        return "This port speaks WebSocket: send a GET request with Upgrade: websocket"
    connection = (request.field(b"connection") or "").lower().split(",")
    if "upgrade" not in [part.strip() for part in connection]:
        return "The Connection header must contain Upgrade"
    if request.minor != 1:
        return "A WebSocket handshake needs HTTP/1.1"
    if request.field(b"sec-websocket-version") != _VERSION:
        return "Sec-WebSocket-Version must be 13"
    try:
        key = base64.b64decode(request.field(b"sec-websocket-key") or "", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        return "Sec-WebSocket-Key must be 16 bytes in base64"
    return None


def _answer(request: Request, item: str | None, deflate: Deflate | None) -> bytes:
    key = (request.field(b"sec-websocket-key") or "").encode()
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    accept = binascii.b2a_base64(digest, newline=False)
    chosen = b"" if item is None else f"Sec-WebSocket-Protocol: {item}\r\n".encode("latin-1")
    if deflate is not None:
        chosen += f"Sec-WebSocket-Extensions: {deflate.answer}\r\n".encode("latin-1")
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, chosen)
    )
