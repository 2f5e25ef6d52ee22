"""WebSocket frames: encodes the server's frames, and parses the client's.

Pure functions of bytes (RFC 6455 §5): no sockets, no greenlets. The encoder makes unmasked,
unfragmented frames. The parser accepts pieces of any size and returns whole messages. It refuses
input at the first byte that breaks the protocol or the size limit: a frame by its head, a text that
is not UTF-8 in the middle of a frame.

Invariants: after a `Close` or a `Violation` the parser returns nothing more. Bounds: it holds at
most one message of `max_message_bytes`, and almost nothing between messages. One step parses at
most `limits.SOCKET_STEP_FRAMES` frames, and inflates about `limits.DEFLATE_STEP_BYTES`. The parser
keeps the rest of its input (`has_rest`) for the next step.
Called by `workers.ws.transport`; the cases in tests/corpora/ws/ are its contract.
"""

from __future__ import annotations

import codecs
from typing import Final

import msgspec

from pylon import limits
from workers.ws.deflate import CorruptError, Inflater, RatioError, TooLargeError

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

PROTOCOL_ERROR: Final = 1002
INVALID_DATA: Final = 1007
TOO_BIG: Final = 1009

_CONTROL_MAX_BYTES: Final = 125
_FIN: Final = 0x80
_COMPRESSED: Final = 0x40  # RSV1 (RFC 7692 §6)
_RESERVED_BITS: Final = 0x70
_MASKED: Final = 0x80
_WHOLE_TEXT: Final = _FIN | TEXT


class Text(msgspec.Struct, frozen=True, gc=False):
    text: str


class Binary(msgspec.Struct, frozen=True, gc=False):
    data: bytes


class Ping(msgspec.Struct, frozen=True, gc=False):
    data: bytes


class Pong(msgspec.Struct, frozen=True, gc=False):
    data: bytes


class Close(msgspec.Struct, frozen=True, gc=False):
    """The peer closes the connection; `code` is None if the frame has none."""

    code: int | None
    reason: str


class Violation(msgspec.Struct, frozen=True, gc=False):
    """The peer broke the protocol. The answer is a close frame with this code and reason."""

    code: int
    reason: str


Received = Text | Binary | Ping | Pong | Close | Violation


def encode(opcode: int, payload: bytes, *, compressed: bool = False) -> bytes:
    """Return one whole server frame (RFC 6455 §5.2): a length of 7, 16 or 64 bits, no mask.

    Args:
        compressed: `workers.ws.deflate.compress` has compressed the payload.
    """
    first = _FIN | _COMPRESSED | opcode if compressed else _FIN | opcode
    size_bytes = len(payload)
    if size_bytes < 126:
        return bytes((first, size_bytes)) + payload
    if size_bytes < 1 << 16:
        return bytes((first, 126)) + size_bytes.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size_bytes.to_bytes(8, "big") + payload


def payload_of(frame: bytes) -> bytes:
    """Return the payload of a frame of `encode`."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]


def encode_close(code: int, reason: str = "") -> bytes:
    """Return a close frame. A reason that is too long is cut between two characters."""
    text = reason.encode()[: _CONTROL_MAX_BYTES - 2].decode(errors="ignore")
    return encode(CLOSE, code.to_bytes(2, "big") + text.encode())


def is_pong(data: bytes) -> bool:
    """Whether `data` is one whole pong of a client, and nothing else."""
    return (
        len(data) >= 6 and data[0] == _FIN | PONG and data[1] & _MASKED != 0
        and data[1] & 0x7F == len(data) - 6 <= _CONTROL_MAX_BYTES
    )


def is_close_code(code: int) -> bool:
    """Whether a peer may send this code (RFC 6455 §7.4, IANA's registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class _RefusedError(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.violation = Violation(code, reason)


class _Message:
    """A message of which some pieces have arrived."""

    __slots__ = ("_check", "_data", "_inflater", "wire_bytes")

    def __init__(self, opcode: int, compressed: bool, max_bytes: int) -> None:
        self.wire_bytes = 0
        self._data = bytearray()  # a list of str pieces could take 30 times the memory
        self._check = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT else None
        self._inflater = Inflater(max_bytes) if compressed else None

    def append(self, payload: bytes, final: bool) -> Received | None:
        """Add the next piece, unmasked.

        Returns:
            The whole message if the piece is `final` and wholly inflated, else None.
        """
        if self._inflater is not None:
            payload = _inflate_piece(self._inflater, payload, final)
            final = final and not self._inflater.has_more
        self._data += payload
        if self._check is None:
            return Binary(bytes(self._data)) if final else None
        try:
            self._check.decode(payload, final)
        except UnicodeDecodeError:
            raise _RefusedError(INVALID_DATA, "text is not UTF-8") from None
        return Text(self._data.decode()) if final else None

    @property
    def size_bytes(self) -> int:
        """Return the size of the message so far, inflated."""
        return len(self._data)

    @property
    def has_more(self) -> bool:
        """Whether a part of the last piece is not inflated yet."""
        return self._inflater is not None and self._inflater.has_more


class Parser:
    """Turns a client's bytes into messages. One for each connection."""

    __slots__ = (
        "_ended", "_has_rest", "_is_deflate_agreed", "_is_last_frame", "_key", "_max_bytes",
        "_message", "_missing_bytes", "_partial", "frames", "size_bytes",
    )

    def __init__(self, max_message_bytes: int, *, unpacks: bool = False) -> None:
        """Make a parser.

        Args:
            unpacks: permessage-deflate is agreed; messages may be compressed.
        """
        self._max_bytes = max_message_bytes
        self._is_deflate_agreed = unpacks
        self._partial = b""  # the start of a head or of a control frame
        self._message: _Message | None = None
        self._missing_bytes = 0  # missing bytes of the current data frame; 0: no current frame
        self._key = b""  # mask of the current frame, rotated to the next byte
        self._is_last_frame = False  # whether the current frame is the last of its message
        self._ended = False
        self._has_rest = False
        self.frames = 0
        self.size_bytes = 0  # of data frames, inflated

    @property
    def has_rest(self) -> bool:
        """Whether the last step left input unparsed. `step(b"")` parses more of it."""
        return self._has_rest

    def feed(self, data: bytes) -> list[Received]:
        """Return all messages that `data` completes, in order, in as many steps as needed."""
        received = self.step(data)
        while self._has_rest:
            received += self.step(b"")
        return received

    def step(self, data: bytes) -> list[Received]:
        """Parse the rest of the last step, then `data`, within the bounds of one step.

        Add its frames and inflated bytes to `frames` and `size_bytes`.

        Returns:
            The messages that the step completes, in order.
        """
        if self._ended:
            return []
        received: list[Received] = []
        self._has_rest = False
        try:
            self._parse(data, received)
        except _RefusedError as ex:
            received.append(ex.violation)
            self.end()
        return received

    def end(self) -> None:
        """Ignore all later input."""
        self._ended = True
        self._has_rest = False
        self._partial = b""
        self._message = None

    def _parse(self, data: bytes, received: list[Received]) -> None:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        if self._must_inflate():
            self._append_payload(b"", received)
        at, end = 0, len(data)
        if self._missing_bytes and not self._must_inflate():
            at = self._continue_frame(data, 0, received)
        last_frame = self.frames + limits.SOCKET_STEP_FRAMES
        while end - at >= 2:
            if self.frames >= last_frame or self._must_inflate():
                self._has_rest = True
                break
            first, second = data[at], data[at + 1]
            size_bytes = second & 0x7F
            # PERF: the usual frame, a whole masked text, needs no check of its head.
            if first != _WHOLE_TEXT or second < _MASKED or self._message is not None:
                self._check_head(first, second, size_bytes)
            start = at + 6
            if size_bytes >= 126:
                start += 2 if size_bytes == 126 else 8
                if end < start - 4:
                    break
                size_bytes = _long_size(data[at + 2 : start - 4])
            opcode = first & 0x0F
            if opcode < CLOSE:
                self._check_size(size_bytes)
            if end < start:
                break
            stop = start + size_bytes
            if stop > end:
                if opcode >= CLOSE:
                    break
                self.frames += 1
                self._begin_frame(first, size_bytes, data[start - 4 : start])
                at = self._continue_frame(data, start, received)
                break
            payload = _unmask(data[start:stop], data[start - 4 : start])
            at = stop
            self.frames += 1
            if first == _WHOLE_TEXT:
                self.size_bytes += size_bytes
                received.append(_whole_text(payload))
            elif opcode < CLOSE:
                self._begin_frame(first, 0, b"")
                self._append_payload(payload, received)
            else:
                item = _control(opcode, payload)
                received.append(item)
                if isinstance(item, Close):
                    self.end()
                    return
        if self._must_inflate():
            self._has_rest = True
        if at < end:
            self._partial = data[at:]

    def _must_inflate(self) -> bool:
        """Whether the current message must be inflated further before the next byte is parsed."""
        return self._message is not None and self._message.has_more

    def _check_head(self, first: int, second: int, size_bytes: int) -> None:
        opcode = first & 0x0F
        reserved = first & _RESERVED_BITS
        if reserved and not (
            reserved == _COMPRESSED and self._is_deflate_agreed and opcode in (TEXT, BINARY)
        ):
            raise _RefusedError(PROTOCOL_ERROR, "reserved bits are set")
        if not second & _MASKED:
            raise _RefusedError(PROTOCOL_ERROR, "client frames must be masked")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise _RefusedError(PROTOCOL_ERROR, f"unknown opcode {opcode}")
            if not first & _FIN:
                raise _RefusedError(PROTOCOL_ERROR, "control frames must not be fragmented")
            if size_bytes > _CONTROL_MAX_BYTES:
                raise _RefusedError(PROTOCOL_ERROR, "control frame of more than 125 bytes")
        elif opcode > BINARY:
            raise _RefusedError(PROTOCOL_ERROR, f"unknown opcode {opcode}")
        elif opcode == CONTINUATION and self._message is None:
            raise _RefusedError(PROTOCOL_ERROR, "continuation of nothing")
        elif opcode != CONTINUATION and self._message is not None:
            raise _RefusedError(PROTOCOL_ERROR, "new message before the end of the last")

    def _check_size(self, size_bytes: int) -> None:
        if self._message is not None:
            size_bytes += self._message.wire_bytes
        if size_bytes > self._max_bytes:
            raise _too_big(self._max_bytes)

    def _begin_frame(self, first: int, size_bytes: int, key: bytes) -> None:
        """Begin a data frame."""
        if self._message is None:
            compressed = bool(first & _COMPRESSED)
            self._message = _Message(first & 0x0F, compressed, self._max_bytes)
        self._is_last_frame = bool(first & _FIN)
        self._missing_bytes = size_bytes
        self._key = key

    def _continue_frame(self, data: bytes, at: int, received: list[Received]) -> int:
        """Parse the part of the current data frame in `data`, and return the index behind it."""
        chunk = data[at : at + self._missing_bytes]
        payload = _unmask(chunk, self._key)
        shift = len(chunk) & 3
        self._key = self._key[shift:] + self._key[:shift]
        self._missing_bytes -= len(chunk)
        self._append_payload(payload, received)
        return at + len(chunk)

    def _append_payload(self, payload: bytes, received: list[Received]) -> None:
        message = self._message
        assert message is not None  # `_begin_frame` made it
        message.wire_bytes += len(payload)
        previous_bytes = message.size_bytes
        item = message.append(payload, self._is_last_frame and not self._missing_bytes)
        self.size_bytes += message.size_bytes - previous_bytes
        if item is not None:
            received.append(item)
            self._message = None


def _long_size(field: bytes) -> int:
    size_bytes = int.from_bytes(field, "big")
    if size_bytes < (126 if len(field) == 2 else 1 << 16):
        raise _RefusedError(PROTOCOL_ERROR, "length not in its shortest form")
    return size_bytes


def _too_big(max_bytes: int) -> _RefusedError:
    return _RefusedError(TOO_BIG, f"message is larger than {max_bytes} bytes")


def _whole_text(payload: bytes) -> Text:
    try:
        return Text(payload.decode())
    except UnicodeDecodeError:
        raise _RefusedError(INVALID_DATA, "text is not UTF-8") from None


def _inflate_piece(inflater: Inflater, payload: bytes, final: bool) -> bytes:
    try:
        return inflater.feed(payload, final=final)
    except CorruptError:
        raise _RefusedError(INVALID_DATA, "packed message is no DEFLATE stream") from None
    except TooLargeError:
        raise _RefusedError(TOO_BIG, "message is too large unpacked") from None
    except RatioError:
        raise _RefusedError(
            TOO_BIG, f"message unpacks to more than {limits.DEFLATE_RATIO} times its size"
        ) from None


def _control(opcode: int, payload: bytes) -> Ping | Pong | Close:
    if opcode == PING:
        return Ping(payload)
    if opcode == PONG:
        return Pong(payload)
    if not payload:
        return Close(None, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not is_close_code(code):
        raise _RefusedError(PROTOCOL_ERROR, "invalid close code")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError:
        raise _RefusedError(INVALID_DATA, "close reason is not UTF-8") from None


def _unmask(payload: bytes, key: bytes) -> bytes:
    """XOR the payload with the four-byte key, as one big integer: no loop over the bytes."""
    size_bytes = len(payload)
    mask = (key * (size_bytes // 4 + 1))[:size_bytes]
    unmasked = int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")
    return unmasked.to_bytes(size_bytes, "little")
