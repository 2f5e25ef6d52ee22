"""An app asked as our HTTP server asks it: raw bytes in, every header line out, no sockets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.support.api import ApiStage
from workers.http.request import base_environ, parse


@dataclass(frozen=True, slots=True)
class Lines:
    """An answer, with its header lines as they stand."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name]


def ask(
    server: ApiStage, method: str, target: str, body: bytes = b"",
    headers: Iterable[tuple[str, str]] = (),
) -> Lines:
    """One request, parsed from the wire by our own parser."""
    lines = [f"{method} {target} HTTP/1.1", "Host: api.example.com"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    request = parse(
        "\r\n".join([*lines, "", ""]).encode("latin-1"),
        base_environ(("127.0.0.1", 80), ("127.0.0.1", 5000), 1),
    )
    assert request is not None
    environ = request.environ
    environ["pylon.body"] = body
    answered: list[Any] = []

    def start_response(status: str, found: list[tuple[str, str]], exc_info: Any = None) -> None:
        answered.append((int(status[:3]), found))

    parts = server.client.app(environ, start_response)
    ((status, found),) = answered
    server.clock.advance(0.001)
    for line in environ["pylon.head"].decode("latin-1").splitlines():
        name, _, value = line.partition(": ")
        found.append((name, value))
    return Lines(status, found, b"".join(parts))
