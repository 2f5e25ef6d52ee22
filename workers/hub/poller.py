"""One epoll set for the sockets of all clients, watched by gevent's hub as a single descriptor.

A libev watcher for each socket costs memory and a Python object with a callback; here a socket
is one entry in the kernel and one in a dictionary, however long it idles.

Level-triggered: what a client leaves unread, or a callback leaves undone, is reported again.
A socket that wants nothing (paused) is taken out of the set, because the kernel reports errors
of every member, asked for or not, and would do so without end.

Invariants: a callback may close any connection, its own or another that is reported in the same
turn. A callback that fails ends its own connection and no other. Bounds: `_EVENTS_A_TURN`
events are handled before other parts of the worker have their turn. Used by
`workers.hub.connection`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, Protocol

from gevent import monkey
from gevent.hub import get_hub

from pylon import log

READ: Final = 0x001  # EPOLLIN
WRITE: Final = 0x004  # EPOLLOUT

_EVENTS_A_TURN: Final = 256

_epoll: Final = monkey.get_original("select", "epoll")  # gevent takes it away from `select`
_log = log.get_logger("poller")


class Watched(Protocol):
    """What a socket belongs to."""

    def on_ready(self, events: int) -> None:
        """Something of what was asked for is possible, or the socket is broken."""

    def abort(self) -> None:
        """End it."""


class Poller:
    """The set of one thread. See `poller`."""

    __slots__ = ("_epoll", "_members", "_watcher")

    def __init__(self) -> None:
        self._epoll = _epoll()
        self._members: dict[int, Watched] = {}
        self._watcher = get_hub().loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._on_ready)

    def change(self, descriptor: int, watched: Watched, before: int, now: int) -> None:
        """Ask for `now` (READ, WRITE, both or 0) where `before` was asked for."""
        if before == now:
            return
        if not before:
            self._members[descriptor] = watched
            self._epoll.register(descriptor, now)
        elif now:
            self._epoll.modify(descriptor, now)
        else:
            # Not left to close(): a copy of the descriptor in another process keeps the entry.
            self._epoll.unregister(descriptor)
            del self._members[descriptor]

    def _on_ready(self) -> None:
        for descriptor, events in self._epoll.poll(0, _EVENTS_A_TURN):
            watched = self._members.get(descriptor)
            if watched is None:  # closed by one before it in this turn
                continue
            try:
                watched.on_ready(events)
            except Exception as ex:  # noqa: BLE001  one client must not end the others
                _log.exception("socket.failed", error=ex)
                watched.abort()


def poller() -> Poller:
    """The set of this thread, made at the first call."""
    return _of_hub(get_hub())


@cache  # not a threading.local: that is one for each greenlet under gevent
def _of_hub(hub: Any) -> Poller:
    return Poller()
