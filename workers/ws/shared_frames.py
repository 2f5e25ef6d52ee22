"""Shared frames: texts for many sockets, made into frames and compressed once.

The sockets of one deflate window get the same bytes. Called by `rooms`.
"""

from __future__ import annotations

from collections.abc import Callable

from pylon import metrics
from workers.hub.connection import Connection
from workers.ws import frames


class SharedFrames:
    """A few texts as frames, such as the updates of one tick of a room."""

    __slots__ = ("_by_window", "_compress", "_frames", "count")

    def __init__(self, texts: list[bytes], compress: Callable[[bytes, int], bytes]) -> None:
        self.count = len(texts)
        self._compress = compress
        self._frames = [frames.encode(frames.TEXT, text) for text in texts]
        self._by_window = {0: b"".join(self._frames)}

    def send(self, connection: Connection) -> None:
        """Send all frames in one write."""
        deflate_window = connection.deflate_window
        data = self._by_window.get(deflate_window)
        if data is None:
            compressed = [self._compress(frame, deflate_window) for frame in self._frames]
            data = self._by_window[deflate_window] = b"".join(compressed)
        if data and connection.send(data, self.count):
            metrics.MESSAGES_SENT.inc(self.count)
