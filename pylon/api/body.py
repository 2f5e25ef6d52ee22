"""Request bodies: bounded in size and in time, then JSON (spec/http.md §3.0, §6).

A declared length over limits.BODY_BYTES is refused before a byte is read; a chunked body is
counted while it is read. A client that is slower than limits.HTTP_REQUEST_S is given up.
"""

from __future__ import annotations

from typing import Any, Final

import falcon
import gevent

from pylon import limits
from pylon.errors import InvalidJson, PayloadTooLarge, RequestTimeout
from pylon.values import decode_body

_CHUNK_BYTES: Final = 65_536


def read_json(req: falcon.Request) -> Any:
    """The decoded body.

    Raises:
        InvalidJson: it is empty, cut short or not JSON.
        PayloadTooLarge, RequestTimeout: as the module says.
    """
    return decode_body(read_body(req))


def read_body(req: falcon.Request) -> bytes:
    """The body's bytes; empty where there is none."""
    body: bytes | None = req.env.get("pylon.body")
    if body is not None:
        return body  # our HTTP server calls the app when the body is there
    try:
        with gevent.Timeout(limits.HTTP_REQUEST_S):
            return _read(req)
    except gevent.Timeout:
        raise RequestTimeout(
            f"The request body did not arrive within {limits.HTTP_REQUEST_S:g} s"
        ) from None


def _read(req: falcon.Request) -> bytes:
    if "chunked" in req.env.get("HTTP_TRANSFER_ENCODING", "").lower():
        return _read_counted(req)
    declared = req.env.get("CONTENT_LENGTH")
    if not declared:
        return b""
    # Our HTTP server has refused what is not a plain number, so this cannot fail.
    size_bytes = int(declared)
    if size_bytes > limits.BODY_BYTES:
        raise PayloadTooLarge(
            f"Content-Length {size_bytes} exceeds max of {limits.BODY_BYTES}"
        )
    body: bytes = req.bounded_stream.read(size_bytes)
    if len(body) < size_bytes:
        raise InvalidJson("Invalid request body", hint="The body ended before its Content-Length")
    return body


def _read_counted(req: falcon.Request) -> bytes:
    parts: list[bytes] = []
    left_bytes = limits.BODY_BYTES
    while part := req.stream.read(_CHUNK_BYTES):
        left_bytes -= len(part)
        if left_bytes < 0:
            raise PayloadTooLarge(
                f"Request body exceeds maximum size of {limits.BODY_BYTES} bytes"
            )
        parts.append(part)
    return b"".join(parts)
