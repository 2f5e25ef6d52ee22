"""WebSocket frames as bytes: what a server sends, and a parser for what a client sends.

Pure functions of bytes (RFC 6455 §5): no sockets, no greenlets. The encoder makes unmasked,
unfragmented frames. The parser is fed whatever has arrived and gives back whole messages; it
refuses, before it buffers the payload, what breaks the protocol or passes the size limit.

Invariants: after a `Close` or a `Violation` the parser gives nothing more; it never holds more
than one message of `max_message_bytes` plus one chunk as read from the socket. Called by
`workers.ws.transport`; the cases in tests/corpora/ws/ are its contract.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
NOT_UTF8: Final = 1007
TOO_BIG: Final = 1009

_CONTROL_MAX_BYTES: Final = 125
_FIN: Final = 0x80
_RESERVED_BITS: Final = 0x70
_MASKED: Final = 0x80


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Binary:
    data: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer says good-bye; `code` is None when it gave none."""

    code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Violation:
    """The peer broke the protocol; answer with a close frame of this code and reason."""

    code: int
    reason: str


Received = Text | Binary | Ping | Pong | Close | Violation


def encode(opcode: int, payload: bytes) -> bytes:
    """One whole server frame (RFC 6455 §5.2): lengths of 7, 16 or 64 bits, no mask."""
    size_bytes = len(payload)
    if size_bytes < 126:
        return bytes((_FIN | opcode, size_bytes)) + payload
    if size_bytes < 1 << 16:
        return bytes((_FIN | opcode, 126)) + size_bytes.to_bytes(2, "big") + payload
    return bytes((_FIN | opcode, 127)) + size_bytes.to_bytes(8, "big") + payload


def encode_close(code: int, reason: str = "") -> bytes:
    """A close frame. A reason that would not fit is cut at a character's boundary."""
    text = reason.encode()[: _CONTROL_MAX_BYTES - 2].decode(errors="ignore")
    return encode(CLOSE, code.to_bytes(2, "big") + text.encode())


def is_close_code(code: int) -> bool:
    """Whether a peer may send this code (RFC 6455 §7.4, IANA's registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class _RefusedError(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.violation = Violation(code, reason)


class Parser:
    """Turns a client's bytes into messages. One for each connection."""

    __slots__ = ("_buffer", "_decoder", "_ended", "_max_bytes", "_message", "_opcode", "_text")

    def __init__(self, max_message_bytes: int) -> None:
        self._max_bytes = max_message_bytes
        self._buffer = bytearray()
        self._opcode = 0  # of the fragmented message under way; 0: none
        self._message = bytearray()
        self._text: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ended = False

    def feed(self, data: bytes) -> list[Received]:
        """Everything that `data` completes, in order."""
        if self._ended:
            return []
        self._buffer += data
        received: list[Received] = []
        try:
            for item in self._frames():
                if item is not None:
                    received.append(item)
                if isinstance(item, Close):
                    self._end()
                    break
        except _RefusedError as ex:
            received.append(ex.violation)
            self._end()
        return received

    def _end(self) -> None:
        self._ended = True
        self._buffer.clear()
        self._message.clear()
        self._text.clear()

    def _frames(self) -> Iterator[Received | None]:
        buffer = self._buffer
        while len(buffer) >= 2:
            first, second = buffer[0], buffer[1]
            fin, opcode, size_bytes = bool(first & _FIN), first & 0x0F, second & 0x7F
            self._check_head(first, second, fin, opcode, size_bytes)
            at = 2
            if size_bytes >= 126:
                width = 2 if size_bytes == 126 else 8
                if len(buffer) < 2 + width:
                    return
                size_bytes = int.from_bytes(buffer[2 : 2 + width], "big")
                if size_bytes < (126 if width == 2 else 1 << 16):
                    raise _RefusedError(PROTOCOL_ERROR, "length not in its shortest form")
                at += width
            if len(self._message) + size_bytes > self._max_bytes and opcode < CLOSE:
                raise _RefusedError(TOO_BIG, f"message is larger than {self._max_bytes} bytes")
            end = at + 4 + size_bytes
            if len(buffer) < end:
                return
            payload = _unmask(buffer[at + 4 : end], buffer[at : at + 4])
            del buffer[:end]
            yield self._control(opcode, payload) if opcode >= CLOSE else self._data(
                opcode, fin, payload
            )

    def _check_head(
        self, first: int, second: int, fin: bool, opcode: int, size_bytes: int
    ) -> None:
        if first & _RESERVED_BITS:
            raise _RefusedError(PROTOCOL_ERROR, "reserved bits are set")
        if not second & _MASKED:
            raise _RefusedError(PROTOCOL_ERROR, "client frames must be masked")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise _RefusedError(PROTOCOL_ERROR, f"unknown opcode {opcode}")
            if not fin:
                raise _RefusedError(PROTOCOL_ERROR, "control frames must not be fragmented")
            if size_bytes > _CONTROL_MAX_BYTES:
                raise _RefusedError(PROTOCOL_ERROR, "control frame of more than 125 bytes")
        elif opcode > BINARY:
            raise _RefusedError(PROTOCOL_ERROR, f"unknown opcode {opcode}")
        elif opcode == CONTINUATION and not self._opcode:
            raise _RefusedError(PROTOCOL_ERROR, "continuation of nothing")
        elif opcode != CONTINUATION and self._opcode:
            raise _RefusedError(PROTOCOL_ERROR, "new message before the end of the last")

    def _data(self, opcode: int, fin: bool, payload: bytes) -> Received | None:
        kind = opcode or self._opcode
        self._opcode = 0 if fin else kind
        self._message += payload
        if kind == TEXT:
            try:
                piece = self._decoder.decode(payload, final=fin)
            except UnicodeDecodeError:
                raise _RefusedError(NOT_UTF8, "text is not UTF-8") from None
            if piece:  # empty fragments must not add up
                self._text.append(piece)
        if not fin:
            return None
        data = bytes(self._message)
        self._message.clear()
        if kind == BINARY:
            return Binary(data)
        text = "".join(self._text)
        self._text.clear()
        return Text(text)

    def _control(self, opcode: int, payload: bytes) -> Received:
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
            raise _RefusedError(NOT_UTF8, "close reason is not UTF-8") from None


def _unmask(payload: bytearray, key: bytearray) -> bytes:
    """XOR with the four-byte key, as one big integer: no Python loop over the bytes."""
    size_bytes = len(payload)
    mask = bytes(key) * (size_bytes // 4 + 1)
    mixed = int.from_bytes(payload, "little") ^ int.from_bytes(mask[:size_bytes], "little")
    return mixed.to_bytes(size_bytes, "little")
