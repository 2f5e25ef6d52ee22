"""A request on a socket port: its head, read once, and what the handshakes want of it.

ws, sse and shards serve one kind of request each, and one for each connection, so there is no
WSGI environ: the head is parsed by `gunicorn_h1c`, as in `workers.http.request`, into an object
that decodes what it is asked for.

Invariant: a head is taken whole or refused; bare line feeds and folded lines are refused, as on
the HTTP port. Called by `workers.hub.acceptor` and by the handshakes of ws, sse and shards.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from gunicorn_h1c import (
    IncompleteError,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseError,
    parse_request,
)

from pylon import limits
from pylon.auth.forwarded import client_address
from pylon.errors import InvalidRequest

_CURSOR_DIGITS = 18


class Request:
    """A complete head. `fields` has lower-case names; lines with one name are joined."""

    __slots__ = ("_parameters", "fields", "head", "method", "minor", "path", "peer", "query")

    def __init__(
        self, method: str, path: str, query: str, minor: int, fields: dict[bytes, bytes],
        peer: str, head: bytes,
    ) -> None:
        self.method = method
        self.path = path  # raw
        self.query = query  # raw
        self.minor = minor  # of HTTP/1.x
        self.fields = fields
        self.peer = peer  # the address that the connection comes from
        self.head = head  # the bytes that were read
        self._parameters: dict[str, str] | None = None

    def field(self, name: bytes) -> str | None:
        """The value of a field by its lower-case name; None where there is none."""
        value = self.fields.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def parameters(self) -> dict[str, str]:
        """The query's parameters, decoded; of several with one name the first counts."""
        if self._parameters is None:
            self._parameters = {}
            if self.query:  # what is not UTF-8 in it becomes U+FFFD
                for name, value in parse_qsl(self.query, keep_blank_values=True):
                    self._parameters.setdefault(name, value)
        return self._parameters

    @property
    def bearer(self) -> str | None:
        """The token of an ``Authorization: Bearer`` field."""
        scheme, _, token = (self.field(b"authorization") or "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    def address(self, hops: int) -> str:
        """The client's address, behind `hops` trusted proxies."""
        return client_address(
            self.peer, self.field(b"x-forwarded-for") if hops else None, hops
        )


def parse(data: bytes, peer: str) -> Request | None:
    """Read a head.

    Args:
        data: what has arrived on the connection so far.
        peer: the address that the connection comes from.

    Returns:
        None while the head is not complete.

    Raises:
        InvalidRequest: it is none, or too long (`limits.HTTP_HEAD_BYTES` and its like).
    """
    if b"\r\n\r\n" not in data:  # so a head that comes byte by byte is not parsed each time
        _check_beginning(data)
        return None
    try:
        parsed = parse_request(
            data,
            limit_request_line=limits.HTTP_LINE_BYTES,
            limit_request_fields=limits.HTTP_FIELDS,
            limit_request_field_size=limits.HTTP_FIELD_BYTES,
        )
    except IncompleteError:
        _check_beginning(data)
        return None
    except (LimitRequestLine, LimitRequestHeaders) as ex:
        raise InvalidRequest("The request's head is too long") from ex
    except ParseError as ex:
        raise InvalidRequest(f"This is no HTTP/1.1 request: {ex}") from ex
    consumed: int = parsed["consumed"]
    head = data[:consumed]
    if consumed > limits.HTTP_HEAD_BYTES:
        raise InvalidRequest("The request's head is too long")
    lines = head.count(b"\r\n")
    if head.count(b"\n") != lines or head.count(b"\r") != lines:
        raise InvalidRequest("A line does not end with CR LF")
    fields: dict[bytes, bytes] = {}
    for name, value in parsed["headers"]:
        if not name:
            raise InvalidRequest("Folded header lines are obsolete")
        key = name.lower()
        if key in fields:
            fields[key] += (b"; " if key == b"cookie" else b",") + value
        else:
            fields[key] = value
    path, _, query = parsed["path"].partition(b"?")
    return Request(
        parsed["method"].decode("latin-1"), path.decode("latin-1"), query.decode("latin-1"),
        parsed["minor_version"], fields, peer, head,
    )


def cursor_of(text: str | None) -> int | None:
    """A cursor as text, or None for what is no cursor."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > _CURSOR_DIGITS:
        return None
    return int(text)


def _check_beginning(data: bytes) -> None:
    """Refuse at once what cannot become a head, however long one waits."""
    if len(data) > limits.HTTP_HEAD_BYTES:
        raise InvalidRequest("The request's head is too long")
    if data.count(b"\n") != data.count(b"\r\n"):
        raise InvalidRequest("A line does not end with CR LF")
