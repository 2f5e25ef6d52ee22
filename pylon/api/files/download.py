"""``GET /api/files/{id}``: the bytes of a file, or one range of them; HEAD sends none of them.

A thread reads each piece when the client has taken the one before. So a slow client costs one
piece. With PYLON_FILES_ACCEL nginx sends the bytes. A browser shows only types that it cannot run
(`pylon.files.types.INLINE`); all others it downloads, without their type. The caller's right is
checked at each request, so that no copy in a cache outlives it.

Metric: pylon_file_bytes_total.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import falcon

from pylon import limits, metrics
from pylon.api.files.access import readable_file, variant_of
from pylon.api.files.receiving import in_thread, now_s
from pylon.api.services import FilesServices
from pylon.errors import FileNotFound, RangeNotSatisfiable
from pylon.files import types
from pylon.files.disk import read_piece
from pylon.files.names import disposition, key_of
from pylon.files.ranges import ByteRange, find_range, has_etag
from pylon.files.records import FileRecord

_SAFETY: Final = (
    ("content-security-policy", "default-src 'none'; sandbox"),
    ("cross-origin-resource-policy", "same-site"),
    ("accept-ranges", "bytes"),
)


class FilePieces:
    """The bytes of a file in pieces, each of which a thread reads when it is asked for."""

    __slots__ = ("_fd", "_left", "_position", "_sent")

    def __init__(self, fd: int, first: int, length: int) -> None:
        self._fd = fd
        self._position = first
        self._left = length
        self._sent = metrics.FILE_BYTES.labels("sent")

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._left:
            raise StopIteration
        size = min(self._left, limits.FILE_PIECE_BYTES)
        piece = in_thread(read_piece, self._fd, size, self._position)
        if not piece:
            raise StopIteration  # the file is shorter than its record: the server cuts off
        self._position += len(piece)
        self._left -= len(piece)
        self._sent.inc(len(piece))
        return piece

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def send_file(
    req: falcon.Request, resp: falcon.Response, services: FilesServices, record: FileRecord,
    cache: str,
) -> None:
    """Send a file, or the range that the request asks for.

    Args:
        cache: the value of Cache-Control.

    Raises:
        FileNotFound: its bytes are not on this disk.
        RangeNotSatisfiable: the range begins behind its end.
    """
    is_shown = record.type in types.INLINE
    is_inline = is_shown and variant_of(req) == "inline"
    kind = record.type if is_shown else types.OCTETS
    for name, value in (
        *_SAFETY, ("etag", record.etag), ("cache-control", cache),
        ("content-disposition", disposition(record.name, is_inline=is_inline)),
    ):
        resp.set_header(name, value)
    none_match = req.get_header("If-None-Match")
    if none_match is not None and has_etag(none_match, record.etag):
        resp.status = 304
        return
    resp.content_type = "text/plain; charset=utf-8" if kind == "text/plain" else kind
    key = key_of(record.id) or ""
    accel = services.app.config.files_accel
    if accel is not None:
        resp.set_header("x-accel-redirect", f"{accel.rstrip('/')}/{key[-2:]}/{key}")
        return
    size = record.size_bytes
    try:
        found = find_range(
            req.get_header("Range"), req.get_header("If-Range"), record.etag, size
        )
    except RangeNotSatisfiable:
        resp.set_header("content-range", f"bytes */{size}")
        raise
    if found is not None:
        resp.status = 206
        resp.set_header("content-range", f"bytes {found.first}-{found.last}/{size}")
    else:
        found = ByteRange(0, size - 1)
    length = found.last - found.first + 1
    resp.content_length = length
    if req.method == "HEAD" or not length:
        return
    try:
        fd = in_thread(services.folder.open, key)
    except FileNotFoundError:
        raise FileNotFound(
            "The bytes of this file are not on this server",
            hint="PYLON_FILES_DIR must be one folder for all nodes; pylonctl files gc --check",
        ) from None
    resp.stream = FilePieces(fd, found.first, length)


class Download:
    """See the module."""

    def __init__(self, services: FilesServices) -> None:
        self._services = services

    def send(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """Answer a GET or a HEAD."""
        services = self._services
        record, is_signed = readable_file(req, services, file_id)
        cache = "private, no-cache"
        if is_signed:
            left_s = int(req.get_param("expires") or 0) - now_s(services)
            cache = f"private, max-age={max(0, left_s)}"
        send_file(req, resp, services, record, cache)
