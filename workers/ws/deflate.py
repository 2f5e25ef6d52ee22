"""permessage-deflate (RFC 7692): negotiates it with a client, and compresses and inflates payloads.

Neither side keeps its context for the next message, and the server compresses with a window of
4 KiB. So an idle connection holds no zlib state; with contexts each would hold 40 KiB or more. A
compressed frame is valid for every client with the same window, so the hub compresses a change once
for all of them. For JSON of up to 4 KiB the small window costs nothing in size, and a new
compressor for each frame is cheap.

Bounds: `limits.DEFLATE_STEP_BYTES` for each step of inflating, `limits.DEFLATE_RATIO`. The module
has no sockets. Called by `workers.ws.protocol` (`negotiate`), `workers.ws.frames`
(`Inflater`) and `workers.ws.transport` (`compress`).
"""

from __future__ import annotations

import re
import zlib
from typing import Final

import msgspec

from pylon import limits
from pylon.errors import BadUpgrade

EXTENSION: Final = "permessage-deflate"
WINDOW_BITS: Final = 12

_WINDOWS: Final = {str(bits): bits for bits in range(8, 16)}  # no leading zeros (section 7.1.2)
_MIN_WINDOW_BITS: Final = 9  # zlib makes no raw stream with a window of 256 bytes
_LEVEL: Final = 1  # 4 KiB of JSON: half the time of level 6 for 2 % more bytes
_MEMORY: Final = 5  # zlib's memLevel: 16 KiB, the same as the window
_INFLATE_BITS: Final = -15  # raw, and any window that a client may use
_TAIL: Final = b"\x00\x00\xff\xff"  # end of every flush; the sender removes it (section 7.2.1)

_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER: Final = rf'[ \t]*;[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*(?:({_TOKEN})|"({_TOKEN})"))?'
_OFFER: Final = re.compile(rf"[ \t]*(?:({_TOKEN})((?:{_PARAMETER})*)[ \t]*)?")
_PARAMETERS: Final = re.compile(_PARAMETER)


class Deflate(msgspec.Struct, frozen=True):
    """The parameters agreed with a client."""

    window_bits: int  # of the server's frames: 9 to `WINDOW_BITS`
    answer: str  # Sec-WebSocket-Extensions of the handshake's response


class CorruptError(Exception):
    """A payload is no DEFLATE stream."""


class TooLargeError(Exception):
    """An inflated payload is larger than a message may be."""


class RatioError(Exception):
    """A payload inflates to more than `limits.DEFLATE_RATIO` times its size."""


def negotiate(header: str | None) -> Deflate | None:
    """Return the parameters for the first acceptable offer, or None.

    Args:
        header: the request's Sec-WebSocket-Extensions; several are joined by commas.

    Raises:
        BadUpgrade: the header breaks the grammar of RFC 6455 §9.1.
    """
    if header is None or not header.strip():
        return None
    at = 0
    chosen: Deflate | None = None
    while True:
        offer = _OFFER.match(header, at)
        if offer is not None:  # the pattern always matches: it accepts an empty element
            if chosen is None and offer[1] == EXTENSION:
                chosen = _accept_offer(offer[2])
            at = offer.end()
        if at == len(header):
            return chosen
        if header[at] != ",":
            raise BadUpgrade("The Sec-WebSocket-Extensions header is malformed")
        at += 1


def _accept_offer(parameters: str) -> Deflate | None:
    """Return the parameters for one offer; None if a parameter is invalid or not acceptable."""
    names: set[str] = set()
    asked_bits: int | None = None
    for name, bare, quoted in _PARAMETERS.findall(parameters):
        value = bare or quoted
        if name in names:
            return None
        names.add(name)
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if value:
                return None
        elif name == "client_max_window_bits":
            if value and value not in _WINDOWS:
                return None
        elif name == "server_max_window_bits":
            asked_bits = _WINDOWS.get(value)
            if asked_bits is None or asked_bits < _MIN_WINDOW_BITS:
                return None
        else:
            return None
    answer = f"{EXTENSION}; server_no_context_takeover; client_no_context_takeover"
    if asked_bits is None:  # a client that did not send the parameter may not know it
        return Deflate(WINDOW_BITS, answer)
    bits = min(asked_bits, WINDOW_BITS)
    return Deflate(bits, f"{answer}; server_max_window_bits={bits}")


def compress(payload: bytes, window_bits: int) -> bytes:
    """Return a whole message's payload, compressed for a frame with RSV1 set."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -window_bits, _MEMORY)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


class Inflater:
    """Inflates one message from pieces of any size, in steps of about `limits.DEFLATE_STEP_BYTES`.

    While `has_more` is true, a part of the last piece is left: `feed(b"")` inflates more of it.
    """

    __slots__ = (
        "_compressed_bytes",
        "_has_tail",
        "_inflated_bytes",
        "_remaining_bytes",
        "_stream",
        "has_more",
    )

    def __init__(self, max_bytes: int) -> None:
        """Make the state for one message of at most `max_bytes`, inflated."""
        self._stream = zlib.decompressobj(_INFLATE_BITS)
        self._remaining_bytes = max_bytes
        self._compressed_bytes = 0
        self._inflated_bytes = 0
        self._has_tail = False
        self.has_more = False

    def feed(self, piece: bytes, *, final: bool) -> bytes:
        """Return the inflated bytes of the next step.

        Args:
            final: `piece` is the last piece, or empty after it.

        Raises:
            CorruptError, TooLargeError, RatioError: as soon as the step passes a limit.
        """
        self._compressed_bytes += len(piece)
        if self.has_more:
            piece = self._stream.unconsumed_tail + piece
        data = self._inflate(piece)
        if final and not self.has_more and not self._has_tail:
            self._has_tail = True
            data += self._inflate(_TAIL)
        return data

    def _inflate(self, piece: bytes) -> bytes:
        stream = self._stream
        if stream.eof:
            # After a block marked as the last, only the start of an empty block may follow
            # (section 7.2.3.4). A new stream for each block would be work without bound.
            if not _is_empty_block(piece):
                raise CorruptError
            self.has_more = False
            return b""
        step_bytes = min(self._remaining_bytes + 1, limits.DEFLATE_STEP_BYTES)
        try:
            data = stream.decompress(piece, step_bytes)
        except zlib.error:
            raise CorruptError from None
        if len(data) > self._remaining_bytes:
            raise TooLargeError
        self._remaining_bytes -= len(data)
        self._inflated_bytes += len(data)
        if self._inflated_bytes > max(
            limits.DEFLATE_FREE_BYTES, limits.DEFLATE_RATIO * self._compressed_bytes
        ):
            raise RatioError
        if not _is_empty_block(stream.unused_data):
            raise CorruptError
        # zlib may hold more output even if it has consumed the whole piece.
        self.has_more = len(data) == step_bytes and not stream.eof
        return data


def _is_empty_block(data: bytes) -> bool:
    return data.strip(b"\x00") in (b"", b"\xff\xff")
