"""Node news: how nodes tell each other who is in their rooms, and what is said there.

A member of a room has a *part* on each node where it is active: where it joined, polls, or has a
subscribed socket. Each node tells its own parts, and keeps copies of the others'. A room is the
union of all parts. `NodeChanges` gathers what one node is to tell in a tick.

Stamps order the data of one member: the later one wins, whichever node tells it first. A stamp is
the wall clock in microseconds, or one more than the newest stamp that the node knows.

Invariants: the members that join or change come before the messages of a tick, those that leave
after them. Nothing is gathered while there are no other nodes. Bound: `NEWS_BYTES` of one message,
about. Called by `pylon.rooms.members`, `service`, and the rooms thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

NEWS_BYTES: Final = 262_144

Raw = msgspec.Raw


class MemberPart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A part of a member on the node that tells it. `data`: JSON. `is_attached`: a socket of that
    node is subscribed."""

    room: str
    user_id: str
    data: Raw
    joined_at_s: int
    stamp: int
    is_attached: bool


class PartEnd(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A part that has ended. `everywhere`: the member has left, so all parts with an earlier stamp
    end."""

    room: str
    user_id: str
    stamp: int
    everywhere: bool


class RoomNews(msgspec.Struct, array_like=True):
    """One message of a node.

    `begins` and `ends` enclose a node's whole state, in one message or in several: parts of it that
    are not among them have ended. Other news may come between them.
    """

    members: list[MemberPart] = []
    texts: list[tuple[str | None, Raw]] = []  # for the subscribers of a room; None: for all clients
    ended: list[PartEnd] = []
    published: list[tuple[str, Raw]] = []  # messages of channels
    begins: bool = False
    ends: bool = False
    history: list[tuple[str, list[Raw]]] = []  # messages that channels keep, from any node


decode_news: Final = msgspec.json.Decoder(RoomNews).decode
encode_news: Final = msgspec.json.Encoder().encode


class NodeChanges:
    """The news that this node has to tell. `is_on`: there are other nodes."""

    __slots__ = ("_changed", "_ended", "_published", "_size_bytes", "_texts", "is_on")

    def __init__(self) -> None:
        self.is_on = False
        self._changed: dict[tuple[str, str], None] = {}
        self._ended: dict[tuple[str, str], tuple[int, bool]] = {}
        self._texts: list[tuple[str | None, Raw]] = []
        self._published: list[tuple[str, Raw]] = []
        self._size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._changed or self._ended or self._texts or self._published)

    def changed(self, room: str, user_id: str) -> None:
        """Tell the part of this member, as it is at the end of the tick."""
        if self.is_on:
            self._changed[room, user_id] = None
            self._ended.pop((room, user_id), None)

    def ended(self, room: str, user_id: str, stamp: int, *, everywhere: bool) -> None:
        """Tell that the part of this member has ended."""
        if self.is_on:
            self._changed.pop((room, user_id), None)
            self._ended[room, user_id] = stamp, everywhere

    def said(self, room: str | None, text: bytes) -> None:
        """Pass on a message for the subscribers of a room, or for all clients."""
        if self.is_on:
            self._texts.append((room, Raw(text)))

    def published(self, channel: str, text: bytes) -> None:
        """Pass on a message of a channel."""
        if self.is_on:
            self._published.append((channel, Raw(text)))

    def take(self, part_of: Callable[[str, str], MemberPart | None]) -> Iterator[RoomNews]:
        """End the tick; yield its messages.

        Args:
            part_of: returns the part of a member on this node; None: it has none.
        """
        changed, self._changed = self._changed, {}
        ended, self._ended = self._ended, {}
        texts, self._texts = self._texts, []
        published, self._published = self._published, []
        parts = (part for key in changed if (part := part_of(*key)) is not None)
        yield from (RoomNews(members=members) for members in portions(parts))
        news, size_bytes = RoomNews([], [], [], []), 0
        for room, text in texts:
            news.texts.append((room, text))
            size_bytes += len(bytes(text))
            if size_bytes > NEWS_BYTES:
                yield news
                news, size_bytes = RoomNews([], [], [], []), 0
        news.ended = [PartEnd(*key, *value) for key, value in ended.items()]
        news.published = published
        if news.texts or news.ended or news.published:
            yield news


def portions(parts: Iterator[MemberPart]) -> Iterator[list[MemberPart]]:
    """Yield the parts in lists of about `NEWS_BYTES`."""
    portion: list[MemberPart] = []
    size_bytes = 0
    for part in parts:
        portion.append(part)
        size_bytes += len(bytes(part.data)) + len(part.room) + len(part.user_id) + 64
        if size_bytes > NEWS_BYTES:
            yield portion
            portion, size_bytes = [], 0
    if portion:
        yield portion
