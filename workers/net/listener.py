"""Listening sockets of one process: accepting, and pausing while descriptors are exhausted.

The event loop (libev) calls `on_readable` with a listener that has a connection. The owner accepts
a few with `accept` and returns. The last `limits.DESCRIPTORS_RESERVED` file descriptors of the
process are a reserve for files and databases. If `accept` finds no free descriptor, or gets one of
the reserve, the listeners pause: clients wait in the kernel's backlog or reach a sibling process.
Every `_PAUSE_S` seconds the listeners look for a free descriptor, and resume when there is one.

Invariants: nothing here blocks; closed listeners never resume. Bound: the reserve stays free. Log
event: accept.paused, once a minute. Metric: pylon_accept_pauses_total. Called by
`workers.http.accepting` and `workers.hub.acceptor`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

import gevent
from gevent.hub import get_hub

from pylon import metrics
from pylon.runtime import raw_socket
from pylon.runtime.fd_budget import OUT_OF_RESOURCES, FdBudget
from pylon.runtime.raw_socket import RawSocket
from workers.net.poller import READ

_PAUSE_S: Final = 0.1  # between two searches for a free descriptor
_INET: Final = (socket.AF_INET, socket.AF_INET6)
_RESERVE_REACHED: Final = "all descriptors but the reserve are in use"


class Listeners:
    """The listening sockets of one process."""

    __slots__ = (
        "_find_room", "_now_s", "_on_readable", "_resume", "_watchers", "budget", "is_closed",
        "is_exhausted", "is_paused", "sockets",
    )

    def __init__(
        self, sockets: Iterable[socket.socket], on_readable: Callable[[RawSocket], None],
        now_s: Callable[[], float], *, find_room: Callable[[], bool] | None = None,
        on_room: Callable[[], None] | None = None,
    ) -> None:
        """Take over listening sockets, which sibling processes may share.

        Args:
            on_readable: called in the event loop with a listener that has a connection, from
                `resume` on.
            now_s: returns the monotonic time in seconds, for the rate limit of the log.
            find_room: closes a connection that is not needed, so that a descriptor is free; False
                if there is none to close.
            on_room: called instead of `resume` when a descriptor is free again.
        """
        self.sockets = [raw_socket.take_over(each) for each in sockets]
        for each in self.sockets:
            if each.family in _INET:  # Linux hands the option on to accepted connections
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._on_readable = on_readable
        self._now_s = now_s
        self._find_room = find_room or _find_none
        self._resume = on_room or self.resume
        self.budget = FdBudget(self.sockets[0].fileno())
        self._watchers = [get_hub().loop.io(each.fileno(), READ) for each in self.sockets]
        self.is_paused = True
        self.is_exhausted = False  # no descriptor is free
        self.is_closed = False

    def resume(self) -> None:
        """Accept, unless the process waits for a descriptor."""
        if self.is_paused and not self.is_exhausted and not self.is_closed:
            self.is_paused = False
            for watcher, listener in zip(self._watchers, self.sockets, strict=True):
                watcher.start(self._on_readable, listener)

    def pause(self) -> None:
        """Leave connections in the kernel's backlog until `resume`."""
        self.is_paused = True
        for watcher in self._watchers:
            watcher.stop()

    def close(self) -> None:
        """Close the listening sockets. The kernel resets connections in their backlog if no
        sibling shares them."""
        if not self.is_closed:
            self.pause()
            self.is_closed = True
            for watcher, listener in zip(self._watchers, self.sockets, strict=True):
                watcher.close()
                listener.close()

    def accept(self, listener: RawSocket) -> tuple[RawSocket, Any] | None:
        """Accept one connection; pause if the process is out of descriptors or memory.

        Returns:
            The non-blocking socket and the client's address; None if no connection waits (a
            sibling was quicker, or the client has left) or the process has no room for it.
        """
        try:
            return raw_socket.accept(listener)
        except OSError as ex:
            if ex.errno in OUT_OF_RESOURCES:
                self._wait_for_descriptors(str(ex))
            return None

    def pause_at_reserve(self, fd: int) -> bool:
        """Pause if the new descriptor `fd` is one of the reserve. Return whether it is."""
        if not self.budget.reserves(fd):
            return False
        self._wait_for_descriptors(_RESERVE_REACHED)
        return True

    def _wait_for_descriptors(self, error: str) -> None:
        self.budget.log_exhausted(self._now_s(), error)
        self.pause()
        if not self.is_exhausted:
            self.is_exhausted = True
            metrics.ACCEPT_PAUSES.inc()
            gevent.spawn_later(_PAUSE_S, self._look_for_descriptor)

    def _look_for_descriptor(self) -> None:
        if self.is_closed:
            return
        if self.budget.has_room() or self._find_room():
            self.is_exhausted = False
            self._resume()
        else:
            gevent.spawn_later(_PAUSE_S, self._look_for_descriptor)


def _find_none() -> bool:
    return False
