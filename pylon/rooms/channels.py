"""Channels: pub/sub for admins over HTTP (spec/realtime.md §5.3, spec/http.md §3.14).

The wire has no subscription to a channel. A channel keeps its last messages in the order of their
timestamps, and an administrator can read them. Only administrators publish, so the bounds count all
channels and not those of one client.

Nodes that share a database pass each message on, and tell a node that starts all messages
(`history_parts`, `merge`). The text of a message identifies it, with its timestamp, so a message is
kept once, from whichever nodes and in whichever order it comes. If a node publishes one message
twice in a millisecond, the second one gets the next millisecond. If two nodes do, it is one.

Bounds: `limits.CHANNELS` channels, `limits.CHANNEL_MESSAGES` in each, `limits.CHANNELS_BYTES` in
all. Above a bound the channel with the oldest last message goes. So does every channel without a
message for `limits.CHANNEL_IDLE_S`. Called by `pylon.rooms.service`.
"""

from __future__ import annotations

from bisect import insort_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from pylon import limits
from pylon.clock import NS_PER_S, Clock
from pylon.rooms.updates import json_text

PUBLISHED: Final = b'{"ok":true,"subscribers":0}'  # the body of ``POST /api/pubsub/publish``
_NS_PER_MS: Final = 1_000_000
_MS_PER_S: Final = 1_000
_TIMESTAMP: Final = slice(-26, -2)  # of a message: ``2026-11-28T04:53:34.027Z``


class Channels:
    """All channels."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The channel with the oldest last message is first; messages are JSON texts.
        self._kept: dict[str, list[bytes]] = {}
        self._published_s: dict[str, float] = {}  # monotonic; in the same order
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def publish(self, channel: str, message: str) -> bytes:
        """Keep a message; return its text."""
        head = b'{"channel":%b,"message":%b' % (json_text(channel), json_text(message))
        now_ms = self._clock.wall_ns() // _NS_PER_MS
        text = _message_text(head, now_ms)
        while text in self._kept.get(channel, ()):
            now_ms += 1
            text = _message_text(head, now_ms)
        self.keep(channel, text)
        return text

    def keep(self, channel: str, text: bytes) -> None:
        """Keep the text of a message, as `publish` made it here or on another node."""
        kept = self._kept.pop(channel, None) or []
        self._kept[channel] = kept
        self._published_s.pop(channel, None)
        self._published_s[channel] = self._clock.monotonic_s()
        self._insert(kept, text)
        self._forget_surplus()

    def history_parts(self, part_bytes: int) -> Iterator[list[tuple[str, list[bytes]]]]:
        """Yield the messages of all channels, in parts of about this size, for another node.
        Messages that come meanwhile may be left out."""
        part: list[tuple[str, list[bytes]]] = []
        size_bytes = 0
        for channel in list(self._kept):
            texts: list[bytes] = []
            for text in list(self._kept.get(channel, ())):
                texts.append(text)
                size_bytes += len(text)
                if size_bytes > part_bytes:
                    yield [*part, (channel, texts)]
                    part, texts, size_bytes = [], [], 0
            if texts:
                part.append((channel, texts))
        if part:
            yield part

    def merge(self, part: Sequence[tuple[str, Sequence[bytes]]]) -> None:
        """Keep those messages of another node's channels that are not here yet."""
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_ns() / NS_PER_S
        for channel, texts in part:
            age_s = max(0.0, wall_s - max(map(_published_at_s, texts), default=0.0))
            if age_s >= limits.CHANNEL_IDLE_S:
                continue
            kept = self._kept.setdefault(channel, [])
            for text in texts:
                self._insert(kept, text)
            self._published_s[channel] = max(
                now_s - age_s, self._published_s.get(channel, float("-inf"))
            )
        by_time = sorted(self._published_s.items(), key=lambda item: item[1])
        self._published_s = dict(by_time)
        self._kept = {channel: self._kept[channel] for channel, _ in by_time}
        self._forget_surplus()

    def expire(self) -> None:
        """Remove the channels without a message for `limits.CHANNEL_IDLE_S`."""
        since_s = self._clock.monotonic_s() - limits.CHANNEL_IDLE_S
        while self._published_s:
            channel = next(iter(self._published_s))
            if self._published_s[channel] > since_s:
                return
            self._forget(channel)

    def list_json(self) -> bytes:
        """Return the body of ``GET /api/pubsub/channels``."""
        lines = [b'{"channel":%b,"subscribers":0}' % json_text(name) for name in self._kept]
        return b'{"ok":true,"result":[%b]}' % b",".join(lines)

    def history(self, channel: str, limit: int) -> bytes:
        """Return the body of ``GET /api/pubsub/history/<channel>``: the newest, oldest first."""
        newest = self._kept.get(channel, [])[-limit:] if limit > 0 else []
        return b'{"ok":true,"result":[%b]}' % b",".join(newest)

    def _insert(self, kept: list[bytes], text: bytes) -> None:
        if text in kept:
            return
        insort_right(kept, text, key=_timestamp_of)
        self._size_bytes += len(text)
        if len(kept) > limits.CHANNEL_MESSAGES:
            self._size_bytes -= len(kept.pop(0))

    def _forget_surplus(self) -> None:
        while len(self._kept) > limits.CHANNELS or self._size_bytes > limits.CHANNELS_BYTES:
            self._forget(next(iter(self._kept)))

    def _forget(self, channel: str) -> None:
        self._size_bytes -= sum(len(text) for text in self._kept.pop(channel))
        del self._published_s[channel]


def _message_text(head: bytes, at_ms: int) -> bytes:
    at = datetime.fromtimestamp(at_ms / _MS_PER_S, UTC)
    stamp = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return b'%b,"timestamp":"%b"}' % (head, stamp.encode())


def _timestamp_of(text: bytes) -> bytes:
    return text[_TIMESTAMP]


def _published_at_s(text: bytes) -> float:
    return datetime.fromisoformat(text[_TIMESTAMP].decode()).timestamp()
