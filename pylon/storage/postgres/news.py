"""News: messages between nodes as payloads of NOTIFY.

All messages of a tick are one *parcel*: a JSON array of ``[topic, body]``. A payload holds at most
7,999 bytes, so a parcel is cut into pieces. A payload begins with ``1 INCARNATION NODE NUMBER PART
PARTS``, the version first, and then has its piece of the parcel's text. Numbers of parcels ascend
by one for each incarnation of a node, so a receiver sees what it has missed. The numbers also make
all payloads differ, since PostgreSQL merges equal ones.

Invariants: a receiver gives the messages of one sender in order, each parcel once, and whole. After
a missing piece it tells that news were lost, and goes on with the next parcel. A payload of another
version is ignored. Bounds: `PARCEL_BYTES` of a parcel, `_SENDERS_MAX` senders.

Called by `node_link`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from pylon.storage.nodes import NewsMessage

PAYLOAD_BYTES: Final = 7_900  # NOTIFY takes less than 8,000
PARCEL_BYTES: Final = 1_048_576
_VERSION: Final = b"1"
_HEADER_BYTES: Final = 160
_TEXT_BYTES: Final = PAYLOAD_BYTES - _HEADER_BYTES
_PARTS_MAX: Final = 2 * PARCEL_BYTES // _TEXT_BYTES
_SENDERS_MAX: Final = 1_000

_decode_items = msgspec.json.Decoder(list[tuple[str, msgspec.Raw]]).decode
_encode = msgspec.json.Encoder().encode


class NewsWriter:
    """Numbers and cuts the news of one incarnation of a node."""

    def __init__(self, incarnation: str, node: str) -> None:
        self._incarnation = incarnation
        self._node = node
        self._number = 0

    def pack(self, messages: Sequence[tuple[str, bytes]]) -> list[bytes]:
        """Return the payloads of messages (topic, JSON), in order: of one parcel, or of several if
        they are large."""
        payloads: list[bytes] = []
        portion: list[tuple[str, msgspec.Raw]] = []
        size_bytes = 0
        for topic, body in messages:
            if portion and size_bytes + len(body) > PARCEL_BYTES:
                payloads += self._cut(_encode(portion))
                portion, size_bytes = [], 0
            portion.append((topic, msgspec.Raw(body)))
            size_bytes += len(body)
        if portion:
            payloads += self._cut(_encode(portion))
        return payloads

    def skip(self) -> None:
        """Note that news were dropped: receivers see that a parcel is missing."""
        self._number += 1

    def _cut(self, text: bytes) -> list[bytes]:
        self._number += 1
        pieces: list[bytes] = []
        start = 0
        while start < len(text):
            end = min(start + _TEXT_BYTES, len(text))
            while end < len(text) and text[end] & 0xC0 == 0x80:  # within a character
                end -= 1
            pieces.append(text[start:end])
            start = end
        return [
            b"%b %b %b %d %d %d %b" % (
                _VERSION, self._incarnation.encode(), self._node.encode(), self._number, part,
                len(pieces), piece,
            )
            for part, piece in enumerate(pieces)
        ]


class NewsParcel(NamedTuple):
    """The parcel that a payload has completed."""

    incarnation: str
    node: str
    is_lost: bool  # news before these were missed
    items: list[NewsMessage]


class _Sender:
    __slots__ = ("heard_s", "node", "number", "pieces")

    def __init__(self, node: str, number: int) -> None:
        self.node = node
        self.number = number  # of the parcel that is complete, or in the works
        self.pieces: list[bytes] = []
        self.heard_s = 0.0


class NewsReader:
    """Puts the news of all other nodes together."""

    def __init__(self, own_incarnation: str) -> None:
        self._own = own_incarnation.encode()
        self._senders: dict[str, _Sender] = {}

    def take(self, payload: bytes, now_s: float) -> NewsParcel | None:
        """Take a payload; return what it completes or shows to be lost; None: nothing yet."""
        parts = payload.split(b" ", 6)
        if len(parts) != 7 or parts[0] != _VERSION or parts[1] == self._own:
            return None
        try:
            number, part, count = int(parts[3]), int(parts[4]), int(parts[5])
        except ValueError:
            return None
        incarnation, node = parts[1].decode(), parts[2].decode()
        sender = self._senders.get(incarnation)
        is_lost = False
        if sender is None:
            if len(self._senders) >= _SENDERS_MAX:
                return None
            # Its first parcel has the number 1: a node that receives it has missed nothing.
            sender = self._senders[incarnation] = _Sender(node, 0)
        sender.heard_s = now_s
        if part == 0:
            is_lost = number != sender.number + 1 or bool(sender.pieces)
            sender.number = number
            sender.pieces = []
        elif number != sender.number or part != len(sender.pieces) or count > _PARTS_MAX:
            # The beginning is missing. Count the parcel as lost; the next one begins anew.
            sender.number = max(sender.number, number)
            sender.pieces = []
            return NewsParcel(incarnation, node, True, [])
        sender.pieces.append(parts[6])
        if len(sender.pieces) < count:
            return NewsParcel(incarnation, node, True, []) if is_lost else None
        text = b"".join(sender.pieces)
        sender.pieces = []
        try:
            items = [
                NewsMessage(incarnation, topic, bytes(body)) for topic, body in _decode_items(text)
            ]
        except msgspec.MsgspecError:
            return NewsParcel(incarnation, node, True, [])
        return NewsParcel(incarnation, node, is_lost, items)

    def silent_since(self, before_s: float) -> list[str]:
        """Forget the senders that were not heard since `before_s`, and return them."""
        silent = [name for name, sender in self._senders.items() if sender.heard_s < before_s]
        for incarnation in silent:
            del self._senders[incarnation]
        return silent

    def forget(self, incarnation: str) -> None:
        """Forget a sender that has said that it ends."""
        self._senders.pop(incarnation, None)

    def predecessors(self, incarnation: str, node: str) -> list[str]:
        """Forget earlier incarnations of a node, and return them."""
        earlier = [
            name for name, sender in self._senders.items()
            if sender.node == node and name != incarnation
        ]
        for name in earlier:
            del self._senders[name]
        return earlier
