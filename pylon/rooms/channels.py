"""Channels: pub/sub for admins over HTTP (spec/realtime.md §5.3, spec/http.md §3.14).

The wire has no subscription to a channel. A channel keeps its last messages, and an administrator
can read them. Only administrators publish, so the bounds count all channels and not those of one
client.

Bounds: `limits.CHANNELS` channels, `limits.CHANNEL_MESSAGES` in each, `limits.CHANNELS_BYTES` in
all. Above a bound the channel with the oldest last message goes. So does every channel without a
message for `limits.CHANNEL_IDLE_S`. Called by `pylon.rooms.service`.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Final

from pylon import limits
from pylon.clock import Clock
from pylon.rooms.updates import json_text

PUBLISHED: Final = b'{"ok":true,"subscribers":0}'  # the body of ``POST /api/pubsub/publish``
_NS_PER_MS: Final = 1_000_000
_MS_PER_S: Final = 1_000


class Channels:
    """All channels."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The channel with the oldest last message is first; messages are JSON texts.
        self._kept: dict[str, deque[bytes]] = {}
        self._published_s: dict[str, float] = {}  # monotonic; in the same order
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def publish(self, channel: str, message: str) -> bytes:
        """Keep a message; return its text."""
        text = b'{"channel":%b,"message":%b,"timestamp":"%b"}' % (
            json_text(channel), json_text(message), self._timestamp().encode()
        )
        self.keep(channel, text)
        return text

    def keep(self, channel: str, text: bytes) -> None:
        """Keep the text of a message, as `publish` made it here or on another node."""
        kept = self._kept.pop(channel, None) or deque()
        self._kept[channel] = kept
        self._published_s.pop(channel, None)
        self._published_s[channel] = self._clock.monotonic_s()
        kept.append(text)
        self._size_bytes += len(text)
        if len(kept) > limits.CHANNEL_MESSAGES:
            self._size_bytes -= len(kept.popleft())
        while len(self._kept) > limits.CHANNELS or self._size_bytes > limits.CHANNELS_BYTES:
            self._forget(next(iter(self._kept)))

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
