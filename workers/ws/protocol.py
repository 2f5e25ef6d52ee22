"""WebSocket handshake: checks the request, reads its token, and encodes the 101 response.

It is the only module that imports geventwebsocket, and uses only its constant of the handshake
(spec/realtime.md §2.1). geventwebsocket's server has three faults. Its handler needs pywsgi: a
greenlet, a WSGI environ and a dozen objects for each connection, which is five times the CPU of
`workers.hub.acceptor`. It answers some bad requests with a traceback. Its socket blocks a greenlet,
reads a frame before it checks the size, accepts unmasked frames, and checks UTF-8 byte by byte in
Python (see `workers.ws.frames`).

Invariants: the response echoes the chosen `bearer.` item verbatim, whether its token is valid or
not. Without one it echoes a `seat.` item, because a browser fails if the server echoes none of its
offers. A client without a token, or with an unknown one, is anonymous; a bad API key or JWT is a
401, in the Authorization field only. A request that is no upgrade gets 426 with `BAD_UPGRADE`. The
session cookie counts on the main port only, and only if the page's Origin is trusted: a foreign
page must not open a socket as the browser's user.
Called by the ws and the shards workers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec
from geventwebsocket.handler import WebSocketHandler

from pylon.auth.api_keys import is_api_key
from pylon.auth.origin import Origins
from pylon.auth.tokens import UnprivilegedToken, is_jwt
from pylon.errors import BadUpgrade, PylonError
from workers.hub import refusals
from workers.hub.request import Request
from workers.net.response import Headers
from workers.ws.deflate import Deflate, negotiate

_UPGRADE_REQUIRED: Final = 426
_VERSION: Final = "13"
_GUID: Final[bytes] = WebSocketHandler.GUID.encode()
_KEY_BYTES: Final = 16
# More than RFC 9110's token: the Swift client does not escape `=`, `/` and `:` of a token.
_ITEM: Final = re.compile(r"[!-+\--~]+")
_ESCAPES: Final = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_BEARER: Final = "bearer."
_SEAT: Final = "seat."


class Handshake(msgspec.Struct):
    """A checked request, and its response."""

    address: str
    token: str | None
    seat: str | None  # the reconnect token of a shard (`workers.shards.reconnect_tokens`)
    parameters: dict[str, str]
    deflate_window: int  # the window of the permessage-deflate that `answer` agrees to; 0: none
    answer: bytes  # the whole 101 response


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Reads handshakes. One for each worker."""

    trust_proxy_hops: int
    origins: Origins
    cookie_name: str
    deflates: bool  # whether the server agrees to permessage-deflate

    def read(self, request: Request, *, on_main_port: bool) -> Handshake:
        """Return the handshake of `request`.

        Args:
            on_main_port: the client sent it to ``/api/sync/ws`` of the HTTP port.

        Raises:
            BadUpgrade: the request is no WebSocket handshake.
            InvalidApiKey, InvalidJwt: the Authorization field has such a credential.
        """
        fault = upgrade_fault(request)
        if fault is not None:
            raise BadUpgrade(fault)
        offered = request.field(b"sec-websocket-protocol")
        seat_item = chosen_item(offered, _SEAT)
        item = chosen_item(offered)
        token = request.bearer
        if token is None:
            token = token_of(item)
            if token is not None and (is_api_key(token) or is_jwt(token)):
                token = UnprivilegedToken(token)  # these count in the Authorization field only
        if token is None and on_main_port:
            token = request.cookie_token(self.cookie_name, self.origins)
        deflate = None
        if self.deflates:
            deflate = negotiate(request.field(b"sec-websocket-extensions"))
        return Handshake(
            request.address(self.trust_proxy_hops), token,
            None if seat_item is None else seat_item.removeprefix(_SEAT), request.parameters,
            0 if deflate is None else deflate.window_bits,
            _encode_response(request, item or seat_item, deflate),
        )


def refusal(error: PylonError, extra: Headers = ()) -> bytes:
    """Return the response to a refused request; `extra` are additional headers."""
    if isinstance(error, BadUpgrade):
        headers = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", _VERSION))
        return refusals.refusal(error, (*headers, *extra), _UPGRADE_REQUIRED)
    return refusals.refusal(error, extra)


def chosen_item(offered: str | None, prefix: str = _BEARER) -> str | None:
    """Return the first offered subprotocol with `prefix`, or None."""
    if not offered:
        return None
    for item in offered.split(","):
        item = item.strip()
        if item.startswith(prefix) and _ITEM.fullmatch(item):
            return item
    return None


def token_of(item: str | None) -> str | None:
    """Return the token in a `bearer.<percent-encoded>` item, where `+` is a space.

    None if the item is None, or its token is empty or malformed.
    """
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
    """Return why a request is no WebSocket handshake (RFC 6455 §4.2.1); None if it is one."""
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


def _encode_response(request: Request, item: str | None, deflate: Deflate | None) -> bytes:
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
