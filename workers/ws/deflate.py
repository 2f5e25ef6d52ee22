"""permessage-deflate (RFC 7692): what is agreed with a client, and payloads packed and unpacked.

Neither side takes its context over to the next message, and the server compresses with a window
of 4 KiB. So an idle connection holds no zlib state at all (with contexts it would be 40 KiB and
more for each), and a packed frame means the same to every client: the hub packs a change at most
once, for all who agreed to the same window. For JSON of up to 4 KiB the small window costs
nothing in size, and it makes a compressor cheap enough to be made anew for each frame.

Pure functions of bytes. Called by `workers.ws.protocol` (`negotiate`), `workers.ws.frames`
(`Inflater`) and `workers.ws.transport` (`pack`).
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Final

from pylon import limits
from pylon.errors import BadUpgrade

EXTENSION: Final = "permessage-deflate"
WINDOW_BITS: Final = 12

_WINDOWS: Final = {str(bits): bits for bits in range(8, 16)}  # no leading zeros (section 7.1.2)
_LEAST_BITS: Final = 9  # zlib makes no raw stream with a window of 256 bytes
_LEVEL: Final = 1  # 4 KiB of JSON: half the time of level 6 for 2 % more bytes
_MEMORY: Final = 5  # zlib's memLevel: 16 KiB, as much as the window takes
_INFLATE_BITS: Final = -15  # raw, and any window that a client may use
_TAIL: Final = b"\x00\x00\xff\xff"  # ends every flush, and is not sent (section 7.2.1)

_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER: Final = rf'[ \t]*;[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*(?:({_TOKEN})|"({_TOKEN})"))?'
_OFFER: Final = re.compile(rf"[ \t]*(?:({_TOKEN})((?:{_PARAMETER})*)[ \t]*)?")
_PARAMETERS: Final = re.compile(_PARAMETER)


@dataclass(frozen=True, slots=True)
class Deflate:
    """What was agreed with a client."""

    window_bits: int  # of what the server sends: 9 to `WINDOW_BITS`
    answer: str  # the handshake's Sec-WebSocket-Extensions


class CorruptError(Exception):
    """A payload is no DEFLATE stream."""


class TooLargeError(Exception):
    """A payload is larger unpacked than the message may be."""


class RatioError(Exception):
    """A payload unpacks to more than `limits.DEFLATE_RATIO` times its size."""


def negotiate(header: str | None) -> Deflate | None:
    """The first offer of permessage-deflate that can be served; None if there is none.

    Args:
        header: the request's Sec-WebSocket-Extensions; several are joined by commas.

    Raises:
        BadUpgrade: it breaks the grammar of RFC 6455 §9.1.
    """
    if header is None or not header.strip():
        return None
    at = 0
    chosen: Deflate | None = None
    while True:
        offer = _OFFER.match(header, at)
        if offer is not None:  # it always matches, if only an empty element of the list
            if chosen is None and offer[1] == EXTENSION:
                chosen = _agreed(offer[2])
            at = offer.end()
        if at == len(header):
            return chosen
        if header[at] != ",":
            raise BadUpgrade("The Sec-WebSocket-Extensions header is malformed")
        at += 1


def _agreed(parameters: str) -> Deflate | None:
    """The answer to one offer, or None where a parameter must or can only be declined."""
    seen: set[str] = set()
    asked_bits: int | None = None
    for name, bare, quoted in _PARAMETERS.findall(parameters):
        value = bare or quoted
        if name in seen:
            return None
        seen.add(name)
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if value:
                return None
        elif name == "client_max_window_bits":
            if value and value not in _WINDOWS:
                return None
        elif name == "server_max_window_bits":
            asked_bits = _WINDOWS.get(value)
            if asked_bits is None or asked_bits < _LEAST_BITS:
                return None
        else:
            return None
    answer = f"{EXTENSION}; server_no_context_takeover; client_no_context_takeover"
    if asked_bits is None:  # a client that did not name it may not know it
        return Deflate(WINDOW_BITS, answer)
    bits = min(asked_bits, WINDOW_BITS)
    return Deflate(bits, f"{answer}; server_max_window_bits={bits}")


def pack(payload: bytes, window_bits: int) -> bytes:
    """A whole message's payload as it goes into frames with RSV1 set."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -window_bits, _MEMORY)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


class Inflater:
    """Unpacks one message, given in any pieces, in steps of about `limits.DEFLATE_STEP_BYTES`.

    While `has_more` is true the last piece is not unpacked wholly: `feed` with nothing goes on.
    """

    __slots__ = (
        "_has_tail", "_left_bytes", "_packed_bytes", "_stream", "_unpacked_bytes", "has_more",
    )

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: how much the message may be, unpacked."""
        self._stream = zlib.decompressobj(_INFLATE_BITS)
        self._left_bytes = max_bytes
        self._packed_bytes = 0
        self._unpacked_bytes = 0
        self._has_tail = False
        self.has_more = False

    def feed(self, piece: bytes, *, final: bool) -> bytes:
        """The unpacked bytes of the next step; `final` with the last piece.

        Raises:
            CorruptError, TooLargeError, RatioError: at once, before more than a limit is unpacked.
        """
        self._packed_bytes += len(piece)
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
            # After a block that says it is the last, only the start of an empty one makes
            # sense (section 7.2.3.4); a stream anew for each would be work without bound.
            if not _is_empty_block(piece):
                raise CorruptError
            self.has_more = False
            return b""
        step_bytes = min(self._left_bytes + 1, limits.DEFLATE_STEP_BYTES)
        try:
            data = stream.decompress(piece, step_bytes)
        except zlib.error:
            raise CorruptError from None
        if len(data) > self._left_bytes:
            raise TooLargeError
        self._left_bytes -= len(data)
        self._unpacked_bytes += len(data)
        if self._unpacked_bytes > max(
            limits.DEFLATE_FREE_BYTES, limits.DEFLATE_RATIO * self._packed_bytes
        ):
            raise RatioError
        if not _is_empty_block(stream.unused_data):
            raise CorruptError
        # zlib may hold more even where it has consumed the whole piece.
        self.has_more = len(data) == step_bytes and not stream.eof
        return data


def _is_empty_block(data: bytes) -> bool:
    return data.strip(b"\x00") in (b"", b"\xff\xff")
