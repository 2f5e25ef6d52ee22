"""WebSocket frames as bytes: what a server sends, and a parser for what a client sends.

Pure functions of bytes (RFC 6455 §5): no sockets, no greenlets. The encoder makes unmasked,
unfragmented frames. The parser is fed whatever has arrived and gives back whole messages; it
refuses what breaks the protocol or passes the size limit as soon as that can be known: a frame
by its head, text that is not UTF-8 in the middle of a frame.

Invariants: after a `Close` or a `Violation` the parser gives nothing more; it never holds more
than one message of `max_message_bytes`, and between messages it holds next to nothing. One step
looks at `limits.SOCKET_STEP_FRAMES` frames at most, and unpacks about `limits.DEFLATE_STEP_BYTES`;
the rest of what it was fed stays with it (`has_rest`) until the next step. Called by
`workers.ws.transport`; the cases in tests/corpora/ws/ are its contract.
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
_PACKED: Final = 0x40  # RSV1 (RFC 7692 §6)
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
    """The peer says good-bye; `code` is None when it gave none."""

    code: int | None
    reason: str


class Violation(msgspec.Struct, frozen=True, gc=False):
    """The peer broke the protocol; answer with a close frame of this code and reason."""

    code: int
    reason: str


Received = Text | Binary | Ping | Pong | Close | Violation


def encode(opcode: int, payload: bytes, *, packed: bool = False) -> bytes:
    """One whole server frame (RFC 6455 §5.2): lengths of 7, 16 or 64 bits, no mask.

    Args:
        packed: the payload is one of `workers.ws.deflate.pack`.
    """
    first = _FIN | _PACKED | opcode if packed else _FIN | opcode
    size_bytes = len(payload)
    if size_bytes < 126:
        return bytes((first, size_bytes)) + payload
    if size_bytes < 1 << 16:
        return bytes((first, 126)) + size_bytes.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size_bytes.to_bytes(8, "big") + payload


def payload_of(frame: bytes) -> bytes:
    """What `encode` was given."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]


def encode_close(code: int, reason: str = "") -> bytes:
    """A close frame. A reason that would not fit is cut at a character's boundary."""
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
    """A message that is arriving in pieces."""

    __slots__ = ("_check", "_data", "_inflater", "wire_bytes")

    def __init__(self, opcode: int, packed: bool, max_bytes: int) -> None:
        self.wire_bytes = 0
        self._data = bytearray()  # of text too: a list of its pieces could be 30 times as large
        self._check = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT else None
        self._inflater = Inflater(max_bytes) if packed else None

    def take(self, payload: bytes, final: bool) -> Received | None:
        """The next piece, unmasked. The whole message if it is the `final` one, and unpacked."""
        if self._inflater is not None:
            payload = _unpacked(self._inflater, payload, final)
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
        """The unpacked part so far."""
        return len(self._data)

    @property
    def has_more(self) -> bool:
        """Whether there is more to unpack of what it was given."""
        return self._inflater is not None and self._inflater.has_more


class Parser:
    """Turns a client's bytes into messages. One for each connection."""

    __slots__ = (
        "_ended", "_held", "_key", "_last", "_left_bytes", "_max_bytes", "_message", "_stopped",
        "_unpacks", "frames", "size_bytes",
    )

    def __init__(self, max_message_bytes: int, *, unpacks: bool = False) -> None:
        """`unpacks`: permessage-deflate was agreed; messages may be packed."""
        self._max_bytes = max_message_bytes
        self._unpacks = unpacks
        self._held = b""  # the start of a head or of a control frame
        self._message: _Message | None = None
        self._left_bytes = 0  # still to come of the data frame under way; 0: none is
        self._key = b""  # its mask, turned to where it stands
        self._last = False  # whether it is its message's last
        self._ended = False
        self._stopped = False
        self.frames = 0
        self.size_bytes = 0  # of data frames, unpacked

    @property
    def has_rest(self) -> bool:
        """Whether it stopped before the end of what it was given. A step with nothing goes on."""
        return self._stopped

    def feed(self, data: bytes) -> list[Received]:
        """Everything that `data` completes, in order, in as many steps as that takes."""
        received = self.step(data)
        while self._stopped:
            received += self.step(b"")
        return received

    def step(self, data: bytes) -> list[Received]:
        """The messages that one step completes, in order, of the rest before and `data`. The frames
        and the unpacked bytes of the step are added to `frames` and `size_bytes`."""
        if self._ended:
            return []
        received: list[Received] = []
        self._stopped = False
        try:
            self._parse(data, received)
        except _RefusedError as ex:
            received.append(ex.violation)
            self.end()
        return received

    def end(self) -> None:
        """Give nothing more, whatever comes."""
        self._ended = True
        self._stopped = False
        self._held = b""
        self._message = None

    def _parse(self, data: bytes, received: list[Received]) -> None:
        if self._held:
            data = self._held + data
            self._held = b""
        if self._is_behind():
            self._take(b"", received)
        at, end = 0, len(data)
        if self._left_bytes and not self._is_behind():
            at = self._go_on(data, 0, received)
        last_frame = self.frames + limits.SOCKET_STEP_FRAMES
        while end - at >= 2:
            if self.frames >= last_frame or self._is_behind():
                self._stopped = True
                break
            first, second = data[at], data[at + 1]
            size_bytes = second & 0x7F
            # What most clients send need not be looked at closely.
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
                self._begin(first, size_bytes, data[start - 4 : start])
                at = self._go_on(data, start, received)
                break
            payload = _unmask(data[start:stop], data[start - 4 : start])
            at = stop
            self.frames += 1
            if first == _WHOLE_TEXT:
                self.size_bytes += size_bytes
                received.append(_whole_text(payload))
            elif opcode < CLOSE:
                self._begin(first, 0, b"")
                self._take(payload, received)
            else:
                item = _control(opcode, payload)
                received.append(item)
                if isinstance(item, Close):
                    self.end()
                    return
        if self._is_behind():
            self._stopped = True
        if at < end:
            self._held = data[at:]

    def _is_behind(self) -> bool:
        """Whether a message under way has more to unpack before anything else is looked at."""
        return self._message is not None and self._message.has_more

    def _check_head(self, first: int, second: int, size_bytes: int) -> None:
        opcode = first & 0x0F
        reserved = first & _RESERVED_BITS
        if reserved and not (
            reserved == _PACKED and self._unpacks and opcode in (TEXT, BINARY)
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

    def _begin(self, first: int, size_bytes: int, key: bytes) -> None:
        """A data frame begins."""
        if self._message is None:
            packed = bool(first & _PACKED)
            self._message = _Message(first & 0x0F, packed, self._max_bytes)
        self._last = bool(first & _FIN)
        self._left_bytes = size_bytes
        self._key = key

    def _go_on(self, data: bytes, at: int, received: list[Received]) -> int:
        """Take what is there of the data frame under way; where it ends in `data`."""
        chunk = data[at : at + self._left_bytes]
        payload = _unmask(chunk, self._key)
        turn = len(chunk) & 3
        self._key = self._key[turn:] + self._key[:turn]
        self._left_bytes -= len(chunk)
        self._take(payload, received)
        return at + len(chunk)

    def _take(self, payload: bytes, received: list[Received]) -> None:
        message = self._message
        assert message is not None  # `_begin` made it
        message.wire_bytes += len(payload)
        before_bytes = message.size_bytes
        item = message.take(payload, self._last and not self._left_bytes)
        self.size_bytes += message.size_bytes - before_bytes
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


def _unpacked(inflater: Inflater, payload: bytes, final: bool) -> bytes:
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
    """XOR with the four-byte key, as one big integer: no Python loop over the bytes."""
    size_bytes = len(payload)
    mask = (key * (size_bytes // 4 + 1))[:size_bytes]
    mixed = int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")
    return mixed.to_bytes(size_bytes, "little")
