"""What the socket ports answer in plain HTTP: heads and error bodies as bytes.

Used by the acceptor and the handshakes; every such answer but a 101 and an event stream ends
its connection.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from pylon.errors import PylonError

Headers = tuple[tuple[str, str], ...]



def head(status: int, headers: Headers) -> bytes:
    """A response's status line and headers."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def refusal(error: PylonError, headers: Headers = (), status: int | None = None) -> bytes:
    """The whole answer for an error: ``{"error": {...}}``, after which the connection ends."""
    body = msgspec.json.encode(error.body())
    again = (("Retry-After", str(error.retry_after_s)),) if error.retryable else ()
    return head(
        error.status if status is None else status,
        (
            ("Content-Type", "application/json"), *headers, *again,
            ("Connection", "close"), ("Content-Length", str(len(body))),
        ),
    ) + body


def without_body(answer: bytes) -> bytes:
    """The answer to HEAD where `answer` is the answer to GET (RFC 9110 §9.3.2)."""
    return answer[: answer.index(b"\r\n\r\n") + 4]
