"""Receives the bytes of uploads, for all three forms.

The body comes in pieces of limits.FILE_PIECE_BYTES. A thread writes and hashes each piece before
the next one is read, so an upload holds one piece, and a slow disk slows the client.

Bounds: limits.UPLOADS_AT_ONCE in a worker and UPLOADS_OF_CALLER of them for one caller; further
ones wait, unread, for limits.UPLOAD_WAIT_S. `pylon.rates.UPLOADS`; limits.FILES_FREE_BYTES of the
disk. Metrics: pylon_file_bytes_total, pylon_file_uploads_total,
pylon_file_uploads_collected_total. Called by `upload`, `staged` and `tus`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

import falcon
import gevent

from pylon import limits, metrics, rates
from pylon.api.http.callers import caller_of, require_caller, subject_of
from pylon.api.services import FilesServices
from pylon.auth_context import Caller
from pylon.clock import NS_PER_S
from pylon.errors import (
    AuthRequired,
    PayloadTooLarge,
    StorageFull,
    Unavailable,
    UnsupportedMediaType,
)
from pylon.files import types
from pylon.files.disk import FileFolder, Incoming
from pylon.files.records import FileRecord

T = TypeVar("T")

_COLLECT_S: Final = 3_600.0  # between two collections of one worker
_DEAD_S: Final = limits.UPLOAD_KEPT_S + 3_600  # no request of an upload lives longer


class ReadableBody(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, and none at the end."""


def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Return what a blocking function returns, called in the thread pool."""
    result: T = gevent.get_hub().threadpool.apply(function, args)
    return result


def uploader_of(req: falcon.Request, services: FilesServices) -> Caller:
    """Return the caller of an upload.

    Raises:
        AuthRequired: the request has no user.
        PylonError: as `caller_of`.
    """
    caller = caller_of(req, services.requests)
    if caller.auth.user_id is None:
        raise AuthRequired("Sign in to upload files")
    return caller


@contextmanager
def admitted(req: falcon.Request, services: FilesServices) -> Iterator[ReadableBody]:
    """Yield the body of an upload that may begin, as a stream.

    Raises:
        RateLimited: the caller began too many uploads.
        UnsupportedMediaType: the body is compressed.
        StorageFull: the disk has too little room.
        Unavailable: the worker has too many uploads.
    """
    coding = req.env.get("HTTP_CONTENT_ENCODING", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"The body has the Content-Encoding {coding[:40]}", hint="Send the bytes as they are"
        )
    caller = subject_of(req, services.requests)
    if not caller_of(req, services.requests).auth.is_admin:
        services.requests.limiter.require(rates.UPLOADS, caller)
    require_room(services, req.content_length or 0)
    if not services.uploads.enter(caller, limits.UPLOAD_WAIT_S):
        raise Unavailable("Too many uploads are running", hint="Try again in a moment")
    try:
        collect_soon(services)
        # Our HTTP server ends the stream itself; another one needs the length.
        yield req.stream if "pylon.head" in req.env else req.bounded_stream
    finally:
        services.uploads.leave(caller)


def require_room(services: FilesServices, size_bytes: int) -> None:
    """Check that the disk has room for so many bytes.

    Raises:
        StorageFull: it has not.
    """
    if in_thread(services.folder.free_bytes) - size_bytes < limits.FILES_FREE_BYTES:
        raise StorageFull("The disk of the files has too little free space; nothing was stored")


def receive(stream: ReadableBody, incoming: Incoming, limit_bytes: int) -> int:
    """Append the stream to an incoming file. Return the number of bytes.

    Args:
        limit_bytes: the largest size of the file, with the bytes that it has already.

    Raises:
        PayloadTooLarge: the stream has more.
        StorageFull, InvalidRequest, RequestTimeout: the disk is full; the client has gone, or is
            too slow.
    """
    received = metrics.FILE_BYTES.labels("received")
    began_bytes = incoming.size_bytes
    while piece := stream.read(limits.FILE_PIECE_BYTES):
        if incoming.size_bytes + len(piece) > limit_bytes:
            raise too_large(limit_bytes)
        in_thread(incoming.write, piece)
        received.inc(len(piece))
    return incoming.size_bytes - began_bytes


def too_large(limit_bytes: int) -> PayloadTooLarge:
    """Return the error for a file above a limit."""
    return PayloadTooLarge(
        f"The file exceeds the maximum of {limit_bytes} bytes",
        hint="Send less; PYLON_FILE_MAX_BYTES and PYLON_FILE_RESUMABLE_MAX_BYTES set the maximum",
    )


def store_bytes(
    services: FilesServices, incoming: Incoming, key: str, declared: str | None
) -> str:
    """Move a complete file to its final path. Return its type."""

    def publish() -> str:
        head = incoming.read_head(types.SNIFFED_BYTES)
        services.folder.publish(incoming, key)
        return types.stored_type(declared, head)

    return in_thread(publish)


def require_same_caller(req: falcon.Request, services: FilesServices) -> None:
    """Check that the session that began an upload still counts.

    Raises:
        SessionExpired: it was revoked while the bytes came.
    """
    caller = caller_of(req, services.requests)
    if not caller.auth.is_admin:
        require_caller(req, services.requests, caller)


def now_s(services: FilesServices) -> int:
    """Return the Unix time."""
    return services.app.clock.wall_ns() // NS_PER_S


def stored(record: FileRecord) -> dict[str, Any]:
    """Return the answer to a complete upload."""
    return {
        "id": record.id, "url": url_of(record.id), "size": record.size_bytes,
        "type": record.type, "sha256": record.sha256, "name": record.name,
    }


def url_of(file_id: str) -> str:
    """Return the path of a file."""
    return f"/api/files/{file_id}"


def collect_soon(services: FilesServices) -> None:
    """Delete the bytes of dead uploads, at most once an hour. Their records expire alone."""
    clock = services.app.clock
    if clock.monotonic_s() < services.collect_at_s:
        return
    services.collect_at_s = clock.monotonic_s() + _COLLECT_S
    before_s = clock.wall_ns() / NS_PER_S - _DEAD_S
    metrics.FILES_COLLECTED.inc(in_thread(drop_dead, services.folder, before_s))


def drop_dead(folder: FileFolder, before_s: float) -> int:
    """Delete incoming files that nobody has written since a Unix time. Return their number."""
    names = [name for name, written_s in folder.incoming_names() if written_s < before_s]
    for name in names:
        folder.drop_incoming(name)
    return len(names)
