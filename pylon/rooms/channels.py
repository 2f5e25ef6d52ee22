"""Channels: pub/sub for admins over HTTP (spec/realtime.md §5.3, spec/http.md §3.14).

Nothing subscribes to a channel: the wire has no way to. What is published is remembered and
can be read back. Only admins publish, so channels are bounded in all and not for each client.
Invariants: at most `limits.CHANNELS` channels, `limits.CHANNEL_MESSAGES` of each and
`limits.CHANNELS_BYTES` in all. Above a bound the channel whose last message is oldest is dropped;
so is every channel after `limits.CHANNEL_IDLE_S` without a message. Used by `pylon.rooms.service`.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Final

from pylon import limits
from pylon.clock import Clock
from pylon.rooms.updates import json_text

_NS_PER_MS: Final = 1_000_000
_MS_PER_S: Final = 1_000


class Channels:
    """All channels."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The one that was published to the longest ago first; messages as JSON texts.
        self._kept: dict[str, deque[bytes]] = {}
        self._published_s: dict[str, float] = {}  # monotonic; in the same order
        self._size_bytes = 0

    def publish(self, channel: str, message: str) -> bytes:
        """Remember a message; the answer of ``POST /api/pubsub/publish``."""
        kept = self._kept.pop(channel, None) or deque()
        self._kept[channel] = kept
        self._published_s.pop(channel, None)
        self._published_s[channel] = self._clock.monotonic_s()
        text = b'{"channel":%b,"message":%b,"timestamp":"%b"}' % (
            json_text(channel), json_text(message), self._timestamp().encode()
        )
        kept.append(text)
        self._size_bytes += len(text)
        if len(kept) > limits.CHANNEL_MESSAGES:
            self._size_bytes -= len(kept.popleft())
        while len(self._kept) > limits.CHANNELS or self._size_bytes > limits.CHANNELS_BYTES:
            self._forget(next(iter(self._kept)))
        return b'{"ok":true,"subscribers":0}'

    def expire(self) -> None:
        """Forget the channels that nobody has published to for `limits.CHANNEL_IDLE_S`."""
        since_s = self._clock.monotonic_s() - limits.CHANNEL_IDLE_S
        while self._published_s:
            channel = next(iter(self._published_s))
            if self._published_s[channel] > since_s:
                return
            self._forget(channel)

    def listed(self) -> bytes:
        """The answer of ``GET /api/pubsub/channels``."""
        lines = [b'{"channel":%b,"subscribers":0}' % json_text(name) for name in self._kept]
        return b'{"ok":true,"result":[%b]}' % b",".join(lines)

    def history(self, channel: str, limit: int) -> bytes:
        """The answer of ``GET /api/pubsub/history/<channel>``: the newest, oldest first."""
        kept = list(self._kept.get(channel, ()))
        newest = kept[-limit:] if limit > 0 else []
        return b'{"ok":true,"result":[%b]}' % b",".join(newest)

    def _forget(self, channel: str) -> None:
        self._size_bytes -= sum(len(text) for text in self._kept.pop(channel))
        del self._published_s[channel]

    def _timestamp(self) -> str:
        now_ms = self._clock.wall_ns() // _NS_PER_MS
        at = datetime.fromtimestamp(now_ms / _MS_PER_S, UTC)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
