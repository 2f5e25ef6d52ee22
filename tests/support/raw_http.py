"""Requests as bytes, so that nothing of what a test wants to send is mended on the way."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class RawClient:
    """One keep-alive connection that is opened anew when the server has closed it."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(
        self, method: str, target: bytes | str, body: bytes | None = None,
        headers: Iterable[tuple[bytes | str, bytes | str]] = (),
    ) -> Answer:
        """One request and its answer. Header values are sent as they are."""
        lines = [b"%b %b HTTP/1.1" % (method.encode(), as_bytes(target)), b"Host: 127.0.0.1"]
        lines += [as_bytes(name) + b": " + as_bytes(value) for name, value in headers]
        if body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        return self.exchange(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""), method)

    def exchange(self, request: bytes, method: str = "GET") -> Answer:
        """Send bytes and read one answer."""
        reused = self._socket is not None
        try:
            return self._once(request, method)
        except (ConnectionError, http.client.BadStatusLine):
            self.close()
            if not reused:
                raise
            return self._once(request, method)  # the server had closed it meanwhile

    def _once(self, request: bytes, method: str) -> Answer:
        if self._socket is None:
            self._socket = socket.create_connection(
                ("127.0.0.1", self._port), timeout=self._timeout_s
            )
        self._socket.sendall(request)
        response = http.client.HTTPResponse(self._socket, method=method)
        response.begin()
        raw = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.will_close:
            self.close()
        return Answer(response.status, headers, raw)


def as_bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
