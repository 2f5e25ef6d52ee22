"""Reads and decodes request bodies, within bounds of size and time (spec/http.md §3.0, §6).

A declared length above limits.BODY_BYTES is refused before a byte is read; the bytes of a chunked
body are counted while they arrive. A body that takes longer than limits.HTTP_REQUEST_S is refused.

A body of more than limits.JSON_INLINE_BYTES is scanned and decoded in the thread pool, one body at
a time, callers in turn (`RequestServices.decoding`). PERF: the scan lets other greenlets run; the
decoder holds the interpreter for 10 to 30 ms, which limits.JSON_NODES bounds.

Called by every resource that has a body.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Final, TypeVar

import falcon
import gevent
import msgspec

from pylon import limits
from pylon.api.http.callers import subject_of
from pylon.api.services import RequestServices
from pylon.body_types import BodyType
from pylon.errors import InvalidJson, PayloadTooLarge, RequestTimeout, Unavailable
from pylon.values import decode_body

T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)

_CHUNK_BYTES: Final = 65_536


def read_json(req: falcon.Request, services: RequestServices) -> Any:
    """Return the decoded body. Call `caller_of` first: a large body counts for its caller.

    Raises:
        InvalidJson: it is empty, cut short, not JSON or nested too deeply.
        LimitExceeded: it has too many values.
        PayloadTooLarge, RequestTimeout: it is too large, or too slow.
        Unavailable: too many large bodies wait to be decoded.
    """
    return decode_json(req, services, read_body(req))


def read_typed(req: falcon.Request, services: RequestServices, body_type: BodyType[B]) -> B:
    """Return the typed body.

    Raises:
        PylonError: as `read_json`; or the body is not of the type.
    """
    return body_type.convert(read_json(req, services))


def decode_json(req: falcon.Request, services: RequestServices, raw: bytes) -> Any:
    """Return the decoded JSON of a body that is read already."""
    if len(raw) <= limits.JSON_INLINE_BYTES:
        return decode_body(raw)
    return decode_raw(req, services, raw, decode_body)


def decode_raw(
    req: falcon.Request, services: RequestServices, raw: bytes, decode: Callable[[bytes], T]
) -> T:
    """Return `decode(raw)`, called in the thread pool if the body is large.

    Raises:
        Unavailable: too many large bodies wait to be decoded.
    """
    if len(raw) <= limits.JSON_INLINE_BYTES:
        return decode(raw)
    caller = subject_of(req, services)
    if not services.decoding.enter(caller, limits.READ_TIMEOUT_S):
        raise Unavailable("The body waited too long to be decoded", hint="Try again in a moment")
    # The end of the thread job leaves the admission: see `pylon.storage.sqlite.pool`.
    job = gevent.get_hub().threadpool.spawn(_decode_uncollected, decode, raw)
    job.rawlink(lambda _: services.decoding.leave(caller))
    result: T = job.get()
    return result


def _decode_uncollected(decode: Callable[[bytes], T], raw: bytes) -> T:
    """Decode with the garbage collector off: a decoder makes no garbage.
    PERF: 141 ms instead of 835 ms for 3.5 million lists."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return decode(raw)
    finally:
        if was_enabled:
            gc.enable()


def read_body(req: falcon.Request) -> bytes:
    """Return the bytes of the body; empty if there is none.

    Raises:
        InvalidJson: the body is cut short.
        PayloadTooLarge, RequestTimeout: it is too large, or too slow.
    """
    body: bytes | None = req.env.get("pylon.body")
    if body is not None:
        return body  # our HTTP server calls the app when it has the whole body
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
    # Our HTTP server refuses a length that is not a plain number, so this cannot fail.
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
