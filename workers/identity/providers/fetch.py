"""Requests to sign-in providers, safe against what a hostile provider answers (SSRF, floods).

`Fetcher.fetch` resolves the host once, checks every address, and connects to an address that it
checked: a name that resolves differently a moment later (DNS rebinding) changes nothing. TLS still
verifies the certificate for the host's name. Each request has a connection of its own.

Invariants: outside dev mode only https, and only public addresses (`addresses.is_public`). No
redirect is followed, no proxy of the environment is used, no compressed body is taken. A request
ends within `limits.PROVIDER_REQUEST_S`, resolution and a trickled answer included; a body is cut at
`limits.PROVIDER_BODY_BYTES`. The sockets are gevent's, so a slow provider blocks one greenlet.

No error shows a response or the query of a URL: both may hold codes and tokens. Called by the
modules of this package.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit

import gevent
import gevent.socket
import gevent.ssl
import msgspec
import urllib3.connection
import urllib3.exceptions
import urllib3.response

from pylon import limits
from pylon.trace_context import HEADER, outgoing
from workers.identity.providers.addresses import is_public

Resolve = Callable[[str, int], list[str]]

_PORTS: Final = {"http": 80, "https": 443}
_READ_BYTES: Final = 16_384
_AGENT: Final = "pylon"


class FetchFailed(Exception):
    """A request has no usable answer. The text is for the log: it names the host and the reason."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response with its whole body."""

    status: int
    body: bytes = field(repr=False)

    def json_object(self) -> dict[str, Any]:
        """Return the body as a JSON object.

        Raises:
            FetchFailed: it is none.
        """
        found = self.json()
        if not isinstance(found, dict):
            raise FetchFailed(f"the answer (status {self.status}) is no JSON object")
        return found

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            FetchFailed: it is none.
        """
        try:
            return msgspec.json.decode(self.body)
        except (ValueError, RecursionError):  # ValueError: no JSON, or no UTF-8
            raise FetchFailed(f"the answer (status {self.status}) is no JSON") from None


def resolve_host(host: str, port: int) -> list[str]:
    """Return the addresses of a host, in the order of preference. Blocks this greenlet only.

    Raises:
        OSError: the name does not resolve.
    """
    found = gevent.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def make_tls_context() -> ssl.SSLContext:
    """Return a context that verifies certificates by the system's authorities, from TLS 1.2 on."""
    context: ssl.SSLContext = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    return context


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Sends requests. `allows_private`: also by http, and to addresses of the own network (dev
    mode)."""

    allows_private: bool
    tls: ssl.SSLContext = field(default_factory=make_tls_context)
    resolve: Resolve = resolve_host
    timeout_s: float = limits.PROVIDER_REQUEST_S

    def fetch(
        self, url: str, *, headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> Response:
        """Send one request, and return its response, whatever its status below 300 or from 400 on.

        Args:
            headers: beside Host, User-Agent and Accept.
            form: the fields of a POST; None: a GET.

        Raises:
            FetchFailed: the URL is not allowed, the host cannot be reached, or the answer is too
                slow, too large or a redirect.
        """
        parts = self._check_url(url)
        limit = gevent.Timeout(self.timeout_s)
        try:
            with limit:
                return self._exchange(parts, headers or {}, form)
        except gevent.Timeout as ex:
            if ex is not limit:
                raise
            raise FetchFailed(f"{parts.hostname} took longer than {self.timeout_s:g} s") from None
        except (
            urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError
        ) as ex:
            raise FetchFailed(f"{parts.hostname}: {_reason(ex)}") from None

    def check_url(self, url: str) -> None:
        """Check a URL that a browser will be sent to: as `fetch` does, but for its addresses.

        Raises:
            FetchFailed: it is not https, or no URL.
        """
        self._check_url(url)

    def _check_url(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise FetchFailed("the provider's URL is none") from None
        if parts.scheme not in (("https", "http") if self.allows_private else ("https",)):
            raise FetchFailed(f"the provider's URL of {parts.hostname} is not https")
        if (
            not parts.hostname or port == 0 or not url.isascii() or not url.isprintable()
            or " " in url or "\\" in url or parts.username is not None or parts.fragment
        ):
            raise FetchFailed("the provider's URL is malformed")
        return parts

    def _exchange(
        self, parts: SplitResult, headers: Mapping[str, str], form: Mapping[str, str] | None
    ) -> Response:
        connection = self._connect(parts)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            sent = {
                "user-agent": _AGENT, "accept": "application/json", "accept-encoding": "identity",
                "connection": "close", **headers,
            }
            traceparent = outgoing.get()
            if traceparent is not None:
                sent[HEADER] = traceparent
            body = None
            if form is not None:
                sent["content-type"] = "application/x-www-form-urlencoded"
                body = urlencode(form).encode()
            connection.request(
                "GET" if form is None else "POST", target, body, sent, preload_content=False,
                decode_content=False,
            )
            response = connection.getresponse()
            if 300 <= response.status < 400:
                raise FetchFailed(f"{parts.hostname} answered with a redirect ({response.status})")
            return Response(response.status, _read_body(parts, response))
        finally:
            connection.close()

    def _connect(self, parts: SplitResult) -> urllib3.connection.HTTPConnection:
        """Open a connection to a checked address of the host."""
        host = parts.hostname or ""
        port = parts.port or _PORTS[parts.scheme]
        addresses = self.resolve(host, port)
        if not addresses:
            raise FetchFailed(f"{host} has no address")
        if not self.allows_private and not all(map(is_public, addresses)):
            raise FetchFailed(f"{host} has an address that is not public")
        sock = _open_socket(addresses, port, self.timeout_s)
        connection: urllib3.connection.HTTPConnection
        if parts.scheme == "https":
            connection = _PinnedTls(host, port, ssl_context=self.tls, timeout=self.timeout_s)
        else:
            connection = _Pinned(host, port, timeout=self.timeout_s)
        connection.opened = sock
        try:
            connection.connect()
        except BaseException:
            sock.close()
            raise
        return connection


class _Pinned(urllib3.connection.HTTPConnection):
    """A connection over a socket that is open already, so that no name is resolved again."""

    opened: socket.socket

    def _new_conn(self) -> socket.socket:
        return self.opened


class _PinnedTls(urllib3.connection.HTTPSConnection):
    opened: socket.socket

    def _new_conn(self) -> socket.socket:
        return self.opened


def _open_socket(addresses: list[str], port: int, timeout_s: float) -> socket.socket:
    """Connect to the first address that accepts; each gets its share of the time."""
    share_s = timeout_s / (len(addresses) + 1)
    for address in addresses[:-1]:
        try:
            return _connected(address, port, share_s)
        except OSError:
            continue  # the next address
    return _connected(addresses[-1], port, timeout_s)


def _connected(address: str, port: int, timeout_s: float) -> socket.socket:
    made: socket.socket = gevent.socket.create_connection((address, port), timeout_s)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _read_body(parts: SplitResult, response: urllib3.response.BaseHTTPResponse) -> bytes:
    pieces, size = [], 0
    while piece := response.read(_READ_BYTES, decode_content=False):
        size += len(piece)
        if size > limits.PROVIDER_BODY_BYTES:
            raise FetchFailed(
                f"{parts.hostname} answered with more than {limits.PROVIDER_BODY_BYTES} bytes"
            )
        pieces.append(piece)
    return b"".join(pieces)


def _reason(error: Exception) -> str:
    """Return a short reason, without the parts of a URL or response that an error may quote."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
