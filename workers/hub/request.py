"""A request on a socket port: its head, and the values that handshakes need.

ws, sse and shards serve one kind of request each, and one for each connection, so there is no WSGI
environ. `workers.net.head` parses and checks the head, as on the HTTP port, but needs no Host.

Invariant: a head is taken whole or refused. Called by `workers.hub.acceptor` and the handshakes of
ws, sse and shards.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from pylon.auth.cookies import cookie_value
from pylon.auth.forwarded import client_address
from pylon.auth.origin import Origins
from pylon.auth.tokens import UnprivilegedToken, bearer_token, is_jwt
from pylon.errors import InvalidRequest
from workers.net.head import Head, RequestError, parse_head, wsgi_name

_CURSOR_DIGITS = 18


class Request:
    """A complete head."""

    __slots__ = (
        "_fields", "_parameters", "head", "method", "minor", "path", "peer", "query",
    )

    def __init__(self, parsed: Head, peer: str, head: bytes) -> None:
        self._fields = parsed.fields
        self.method = parsed.method
        self.path = parsed.path  # raw
        self.query = parsed.query  # raw
        self.minor = parsed.minor  # of HTTP/1.x
        self.peer = peer  # the address that the connection comes from
        self.head = head  # its bytes
        self._parameters: dict[str, str] | None = None

    def field(self, name: bytes) -> str | None:
        """Return the value of a field, joined if several lines have its name; None without it."""
        key = wsgi_name(str(name, "latin-1"))
        return None if key is None else self._fields.get(key)

    @property
    def parameters(self) -> dict[str, str]:
        """The decoded parameters of the query; of several with one name the first counts."""
        if self._parameters is None:
            self._parameters = {}
            if self.query:  # invalid UTF-8 becomes U+FFFD
                for name, value in parse_qsl(self.query, keep_blank_values=True):
                    self._parameters.setdefault(name, value)
        return self._parameters

    @property
    def bearer(self) -> str | None:
        """The token of an ``Authorization: Bearer`` field; empty if the field has none."""
        return bearer_token(self.field(b"authorization"))

    @property
    def has_jwt(self) -> bool:
        """Whether the field has a JWT, which the identity process checks."""
        return is_jwt(self.bearer or "")

    @property
    def origin(self) -> str | None:
        """The Origin field: the page that sent the request."""
        return self.field(b"origin")

    def cookie_token(self, name: str, origins: Origins) -> UnprivilegedToken | None:
        """Return the session cookie, if the page that sent the request is trusted.

        A foreign page must not open a socket or a stream as the browser's user.
        """
        if not origins.allows_cookie(self.origin, self.field(b"sec-fetch-site")):
            return None
        return cookie_value(self.field(b"cookie"), name)

    def url_token(self) -> UnprivilegedToken | None:
        """Return the token of the parameter ``token``, which an EventSource needs."""
        token = self.parameters.get("token")
        return UnprivilegedToken(token) if token else None

    def address(self, hops: int) -> str:
        """Return the client's address, behind `hops` trusted proxies."""
        return client_address(
            self.peer, self.field(b"x-forwarded-for") if hops else None, hops
        )


def parse(data: bytes, peer: str) -> Request | None:
    """Read a head.

    Args:
        data: the input of the connection so far.
        peer: the address that the connection comes from.

    Returns:
        None while the head is not complete.

    Raises:
        InvalidRequest: the head is invalid or too long.
    """
    try:
        head = parse_head(data, {}, requires_host=False)
    except RequestError as refused:
        raise InvalidRequest(refused.message) from refused
    return None if head is None else Request(head, peer, data[:head.consumed])


def cursor_of(text: str | None) -> int | None:
    """Return the cursor that a text means; None if it means none."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > _CURSOR_DIGITS:
        return None
    return int(text)
