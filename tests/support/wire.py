"""Speak HTTP/1.1 by hand: bytes out, responses read strictly.

`Wire` is one TCP connection that hides nothing: a test sends any bytes and reads up to a mark,
so many bytes, the rest, or one response. `KeepAliveClient` sends whole requests on one connection
and opens it again after the server has closed it.

Invariant: `read_response` accepts what RFC 9112 allows a server to send, and nothing else: one
field of each name, a length or chunks and never both, a Date. Used by the tests of all servers;
`tests.support.websocket_client` adds the frames of a WebSocket.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d\d\d) [ -~]*")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ([\t\x20-\x7e\x80-\xff]*)")
_RECEIVE_BYTES: Final = 1 << 20
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Response:
    """A response; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A TCP connection to a server of this machine."""

    def __init__(
        self, port: int, *, timeout_s: float = TIMEOUT_S, address: str | None = None,
        receive_buffer_bytes: int | None = None,
    ) -> None:
        """Connect.

        Args:
            address: of this end; the system chooses one otherwise.
            receive_buffer_bytes: a small one makes a client that reads slowly.
        """
        self.sock = socket.socket()
        if receive_buffer_bytes is not None:  # before it connects, for the window's sake
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(timeout_s)
        if address is not None:
            self.sock.bind((address, 0))
        self.sock.connect(("127.0.0.1", port))
        self.received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ex: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send; a server that has heard enough may have closed already."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def read_until(self, mark: bytes) -> bytes:
        """Return everything up to and including `mark`."""
        while mark not in self.received:
            self._read_more(f"waiting for {mark!r}")
        found, _, self.received = self.received.partition(mark)
        return found + mark

    def read_exactly(self, size_bytes: int) -> bytes:
        while len(self.received) < size_bytes:
            self._read_more(f"waiting for {size_bytes} bytes")
        found, self.received = self.received[:size_bytes], self.received[size_bytes:]
        return found

    def read_rest(self) -> bytes:
        """Return everything until the server ends the connection."""
        while self._receive():
            pass
        found, self.received = self.received, b""
        return found

    def read_response(self, *, is_bodiless: bool = False) -> Response:
        """Return one response.

        Args:
            is_bodiless: it answers a HEAD.
        """
        status, headers = parse_head(self.read_until(b"\r\n\r\n"))
        if status == 100:
            return Response(status, headers, b"")
        assert "date" in headers
        assert not ("content-length" in headers and "transfer-encoding" in headers)
        if is_bodiless or status in (204, 304):
            body = b""
        elif "transfer-encoding" in headers:
            assert headers["transfer-encoding"] == "chunked"
            body = b"".join(self._read_chunks())
        elif "content-length" in headers:
            body = self.read_exactly(int(headers["content-length"]))
        else:
            assert headers["connection"] == "close"
            body = self.read_rest()
        return Response(status, headers, body)

    def _read_chunks(self) -> Iterator[bytes]:
        while True:
            size_bytes = int(self.read_until(b"\r\n"), 16)
            data = self.read_exactly(size_bytes + 2)
            assert data.endswith(b"\r\n")
            if not size_bytes:
                return
            yield data[:-2]

    def _read_more(self, doing: str) -> None:
        if not self._receive():
            raise ServerClosed(f"the server closed while {doing}; got {self.received[:500]!r}")

    def _receive(self) -> bool:
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except ConnectionResetError:
            return False
        self.received += data
        return bool(data)


class ServerClosed(AssertionError):
    """The server closed the connection within what a test was reading."""


class KeepAliveClient:
    """Requests on one connection, which is opened again after the server has closed it."""

    def __init__(self, port: int, timeout_s: float = TIMEOUT_S) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._wire: Wire | None = None

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def request(
        self, method: str, target: bytes | str, body: bytes | None = None,
        headers: Iterable[tuple[bytes | str, bytes | str]] = (),
    ) -> Response:
        """Send a request and return its response. Header values are sent as they are."""
        lines = [b"%b %b HTTP/1.1" % (method.encode(), as_bytes(target)), b"Host: 127.0.0.1"]
        lines += [as_bytes(name) + b": " + as_bytes(value) for name, value in headers]
        if body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        return self.exchange(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""), method)

    def exchange(self, request: bytes, method: str = "GET") -> Response:
        """Send the bytes of a request and return its response."""
        is_reused = self._wire is not None
        try:
            return self._exchange_once(request, method)
        except ServerClosed:
            self.close()
            if not is_reused:
                raise
            return self._exchange_once(request, method)  # the server had closed it meanwhile

    def _exchange_once(self, request: bytes, method: str) -> Response:
        if self._wire is None:
            self._wire = Wire(self._port, timeout_s=self._timeout_s)
        self._wire.send(request)
        try:
            response = self._wire.read_response(is_bodiless=method == "HEAD")
        except AssertionError:
            self.close()  # the rest of the response must not be the answer to the next request
            raise
        if response.headers.get("connection") == "close":
            self.close()
        return response


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return status and headers of the head of a response; the names are in lower case.

    Several cookies are one value, with a line for each: no other header may be there twice.
    """
    status_line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    status = _STATUS.fullmatch(status_line)
    assert status is not None, head
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        assert field is not None, line
        name = field[1].decode().lower()
        value = field[2].decode("latin-1")
        if name == "set-cookie" and name in headers:
            value = f"{headers[name]}\n{value}"
        else:
            assert name not in headers, head
        headers[name] = value
    return int(status[1]), headers


def as_bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
