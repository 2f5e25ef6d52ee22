"""Request bodies as they arrive: by length, or in chunks (RFC 9112 §6, §7.1).

A body gathers its bytes without a greenlet; the app sees it when it is complete. A body above
limits.BODY_BYTES is refused as soon as its size is known.

Invariants: a body takes no byte beyond its end. Chunks are read strictly, because a reading that
differs from a proxy's can smuggle requests. A body takes as much memory as it has bytes, however
small the pieces are. Bounds: limits.BODY_BYTES; limits.HTTP_CHUNKS, and `_CHUNKS_A_TURN` before
other connections run. Used by `receiving`.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from pylon import limits
from pylon.errors import PayloadTooLarge
from workers.net.head import RequestError

# The size, then extensions, which are ignored.
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e]*)?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_CHUNKS_A_TURN: Final = 512  # PERF: 0.6 ms
_CHUNK_BYTES: Final = 16  # on average, beyond the first HTTP_CHUNKS
_LINE_BYTES: Final = 1_024
_TRAILERS_BYTES: Final = 8_192


class Body:
    """A body of a known length."""

    __slots__ = ("_gathered", "_left", "held_bytes", "value")

    def __init__(self, length: int) -> None:
        self._left = length
        self._gathered: bytearray | None = None
        self.held_bytes = 0
        self.value: bytes | None = None  # once it is complete

    def feed(self, data: bytes) -> bytes:
        """Take the bytes of the body, and return the rest of `data`."""
        taken = data[:self._left]
        self._left -= len(taken)
        self.held_bytes += len(taken)
        if self._gathered is not None:
            self._gathered += taken
            if not self._left:
                self.value = bytes(self._gathered)
        elif self._left:
            self._gathered = bytearray(taken)
        else:
            self.value = taken  # mostly the whole body comes at once
        return data[len(taken):]


class Oversized:
    """The stream of a body whose declared length is above the limit."""

    __slots__ = ("_length",)

    def __init__(self, length: int) -> None:
        self._length = length

    def read(self, size: int = -1) -> NoReturn:
        """Raise PayloadTooLarge, always."""
        raise PayloadTooLarge(f"Content-Length {self._length} exceeds max of {limits.BODY_BYTES}")

    readline = readlines = read

    def __iter__(self) -> NoReturn:
        self.read()


class ChunkedBody:
    """A body in chunks. Trailers are checked and dropped."""

    __slots__ = (
        "_buffer", "_chunks", "_gathered", "_left", "_limit_bytes", "_step", "_trailers_bytes",
        "held_bytes", "value",
    )

    def __init__(self, limit_bytes: int = limits.BODY_BYTES) -> None:
        """Args: `limit_bytes`: of all chunks together."""
        self._limit_bytes = limit_bytes
        self._buffer = b""  # the beginning of a line that is not complete
        self._chunks = 0
        self.held_bytes = 0
        self._left = 0  # bytes of the current chunk
        self._gathered = bytearray()
        # A plain function, not a bound method: that would make a cycle for the collector.
        self._step = ChunkedBody._size
        self._trailers_bytes = 0
        self.value: bytes | None = None

    def feed(self, data: bytes) -> bytes:
        """Take the bytes of the body, and return the rest of `data`.

        After many chunks this returns before the body is complete, so that other connections run.

        Raises:
            RequestError: the chunks are invalid (400), or hold more than limits.BODY_BYTES (413).
        """
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        position = 0
        last = self._chunks + _CHUNKS_A_TURN
        while self.value is None and self._chunks < last:
            then = self._step(self, data, position)
            if then < 0:
                self._buffer = data[position:]
                return b""
            position = then
        return data[position:]

    def take(self) -> bytes:
        """Return the data of the chunks since the last call. `held_bytes` still counts it."""
        taken, self._gathered = bytes(self._gathered), bytearray()
        return taken

    # Each step returns the position behind what it has read, or -1 if that has not all arrived.

    def _size(self, data: bytes, position: int) -> int:
        end = _line_end(data, position, _LINE_BYTES)
        if end < 0:
            return -1
        line = _SIZE_LINE.fullmatch(data, position, end)
        if line is None:
            raise RequestError(400, "A chunk does not begin with its size")
        self._left = int(line.group(1), 16)
        self._chunks += 1
        if self._chunks > limits.HTTP_CHUNKS + self.held_bytes // _CHUNK_BYTES:
            raise RequestError(
                400, f"The body comes in chunks of less than {_CHUNK_BYTES} bytes on average, "
                f"and in more than {limits.HTTP_CHUNKS} of them: send larger ones",
            )
        if self.held_bytes + self._left > self._limit_bytes:
            raise RequestError(
                413, f"Request body exceeds maximum size of {self._limit_bytes} bytes"
            )
        self._step = ChunkedBody._data if self._left else ChunkedBody._trailer
        return end + 2

    def _data(self, data: bytes, position: int) -> int:
        part = data[position:position + self._left]
        if not part:
            return -1
        self._gathered += part
        self.held_bytes += len(part)
        self._left -= len(part)
        if not self._left:
            self._step = ChunkedBody._end_of_data
        return position + len(part)

    def _end_of_data(self, data: bytes, position: int) -> int:
        mark = data[position:position + 2]
        if not b"\r\n".startswith(mark):
            raise RequestError(400, "A chunk is longer than it said")
        if len(mark) < 2:
            return -1
        self._step = ChunkedBody._size
        return position + 2

    def _trailer(self, data: bytes, position: int) -> int:
        end = _line_end(data, position, _TRAILERS_BYTES)
        if end < 0:
            return -1
        if end == position:
            self.value = bytes(self._gathered)
            return end + 2
        if _TRAILER.fullmatch(data, position, end) is None:
            raise RequestError(400, "Invalid trailer field")
        self._trailers_bytes += end - position
        if self._trailers_bytes > _TRAILERS_BYTES:
            raise RequestError(431, f"The trailers exceed {_TRAILERS_BYTES} bytes")
        return end + 2


def _line_end(data: bytes, position: int, limit_bytes: int) -> int:
    """Return where the line's CR LF begins; -1 if it has not arrived."""
    end = data.find(b"\r\n", position, position + limit_bytes)
    if end < 0:
        if len(data) - position >= limit_bytes:
            raise RequestError(400, f"A line of a chunked body exceeds {limit_bytes} bytes")
        if data.find(b"\n", position) >= 0:
            raise RequestError(400, "A line does not end with CR LF")
    return end
