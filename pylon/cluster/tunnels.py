"""Tunnel: the bytes of one client's connection, on their way between two nodes.

A tunnel has an *entry*, at the node that accepted the client, and an *exit*, at the node of the
shard. Both ends are a `Tunnel`; its `TunnelUser` is the connection there.

The entry may have limits.CLUSTER_WINDOW_BYTES under way that the exit has not read (`grant`), so a
client that sends faster than its shard reads is throttled, as it is on one node. The exit has no
window: the entry reads at once, and closes a client that reads too slowly.

Invariants: bytes arrive in order, and each `received` has the bytes of one `send`. `ended` comes
once, and nothing after it. Called by `links`, `port`, and the shards worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pylon import limits
from pylon.cluster import envelopes
from pylon.cluster.envelopes import END, TAKEN
from pylon.cluster.outgoing import OutgoingQueue
from pylon.errors import PylonError


class TunnelUser(Protocol):
    """The connection at one end. Its methods run in the event loop, and never block."""

    def received(self, data: bytes) -> None:
        """Take bytes of the other end."""

    def writable(self) -> None:
        """Send again: the tunnel was full, and is no longer."""

    def ended(self, error: PylonError | None, *, is_lost: bool) -> None:
        """Take the end of the tunnel.

        Args:
            error: why the other node refused the connection; None if it did not.
            is_lost: the other node is gone, or cannot be reached.
        """


class Tunnel:
    """One end of a tunnel."""

    __slots__ = (
        "_forget", "_is_closed", "_queue", "_taken_bytes", "_unread_bytes", "_window_bytes",
        "number", "user",
    )

    def __init__(
        self, number: int, queue: OutgoingQueue, forget: Callable[[Tunnel], None], *,
        window_bytes: int = 0,
    ) -> None:
        """
        Args:
            forget: called when this end closes the tunnel.
            window_bytes: how many bytes may be under way; 0: any number.
        """
        self.number = number
        self.user: TunnelUser | None = None
        self._queue = queue
        self._forget = forget
        self._window_bytes = window_bytes
        self._unread_bytes = 0  # sent, and not read by the other end
        self._taken_bytes = 0  # read here, and not told to the other end
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether the caller is to send nothing until `TunnelUser.writable`."""
        if self._window_bytes and self._unread_bytes >= self._window_bytes:
            return True
        return self._queue.is_full

    def send(self, data: bytes) -> bool:
        """Send bytes; return False if the tunnel takes none now, or has ended. Never blocks."""
        if self._is_closed or not self._queue.put_data(self.number, data):
            return False
        if self._window_bytes:
            self._unread_bytes += len(data)
        return True

    def take(self, size_bytes: int) -> None:
        """Note that the connection at this end has read so many bytes."""
        self._taken_bytes += size_bytes
        if 2 * self._taken_bytes >= limits.CLUSTER_WINDOW_BYTES and not self._is_closed:
            self._queue.put(TAKEN, self.number, envelopes.encode(self._taken_bytes))
            self._taken_bytes = 0

    def grant(self, size_bytes: int) -> None:
        """Note that the other end has read so many bytes."""
        was_full = self.is_full
        self._unread_bytes = max(0, self._unread_bytes - size_bytes)
        if was_full and not self.is_full and self.user is not None:
            self.user.writable()

    def close(self, error: PylonError | None = None) -> None:
        """End the tunnel behind all that was sent. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self.user = None
        self._queue.put(END, self.number, envelopes.encode_error(error))
        self._forget(self)

    def end(self, error: PylonError | None = None, *, is_lost: bool = False) -> None:
        """Tell the connection here that the other end, or its node, is gone."""
        if self._is_closed:
            return
        self._is_closed = True
        user, self.user = self.user, None
        if user is not None:
            user.ended(error, is_lost=is_lost)
