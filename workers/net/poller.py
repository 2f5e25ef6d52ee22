"""One epoll set for many sockets, which gevent's hub watches as a single descriptor.

A libev watcher for each socket costs memory and a Python object with a callback. In this set a
socket is one entry in the kernel and one in a dictionary, however long it idles. When the
descriptor of the set becomes readable, libev calls `_on_ready`, which calls `on_ready` of each
member that has an event.

A member chooses its events. The socket roles register level-triggered: epoll reports again what a
callback has left undone. They take a paused socket out of the set, because the kernel reports
errors of each member without end, requested or not. The HTTP role registers edge-triggered and
once for each connection.

Invariants: a callback may end any member, its own or another one of the same turn. A callback that
fails ends its own member and no other. Bound: `_EVENTS_A_TURN` events in one turn of the loop, so
that other parts of the worker run in between. Used by `workers.http.loop`,
`workers.hub.connection` and `workers.hub.acceptor`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, Generic, Protocol, TypeVar

from gevent import monkey
from gevent.hub import get_hub

from pylon import log

READ: Final = 0x001  # EPOLLIN
WRITE: Final = 0x004  # EPOLLOUT
PEER_CLOSED: Final = 0x2000  # EPOLLRDHUP
ENDED: Final = PEER_CLOSED | 0x010 | 0x008  # or EPOLLHUP, EPOLLERR
EDGE: Final = 0x80000000  # EPOLLET

_EVENTS_A_TURN: Final = 256

_epoll: Final = monkey.get_original("select", "epoll")  # gevent takes it away from `select`
_log = log.get_logger("poller")


class Watched(Protocol):
    """The owner of a socket in the set."""

    def on_ready(self, events: int) -> None:
        """Handle events that were requested, or an error of the socket. Must not block."""

    def abort(self) -> None:
        """Close the socket now."""


_W = TypeVar("_W", bound=Watched)


class Poller(Generic[_W]):
    """One epoll set, in one thread."""

    __slots__ = ("_begin_turn", "_end_turn", "_epoll", "_watcher", "member_by_fd")

    def __init__(
        self, *, begin_turn: Callable[[], None] | None = None,
        end_turn: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            begin_turn: called in the hub before the events of a turn are handled.
            end_turn: called in the hub after them.
        """
        self.member_by_fd: dict[int, _W] = {}
        self._begin_turn = begin_turn or _do_nothing
        self._end_turn = end_turn or _do_nothing
        self._epoll = _epoll()
        self._watcher = get_hub().loop.io(self._epoll.fileno(), READ)
        self._watcher.start(self._on_ready)

    def fileno(self) -> int:
        """Return the descriptor of the set, which is open until `close`."""
        return int(self._epoll.fileno())

    def add(self, fd: int, member: _W, events: int) -> None:
        """Watch a socket for `events`."""
        self.member_by_fd[fd] = member
        self._epoll.register(fd, events)

    def change(self, fd: int, member: _W, before: int, now: int) -> None:
        """Request the events `now` (READ, WRITE, both or 0) where `before` was requested."""
        if before == now:
            return
        if not before:
            self.add(fd, member, now)
        elif now:
            self._epoll.modify(fd, now)
        else:
            self.remove(fd)

    def remove(self, fd: int) -> None:
        """Take a socket out of the set.

        Closing its descriptor is not enough if another process has a copy: the kernel keeps the
        entry until the last copy is closed.
        """
        self._epoll.unregister(fd)
        self.member_by_fd.pop(fd, None)

    def forget(self, fd: int) -> bool:
        """Forget a socket that the caller closes next and that no other process has.

        PERF: the close itself removes the entry of the kernel; this saves one system call.

        Returns:
            False if the socket is not in the set.
        """
        return self.member_by_fd.pop(fd, None) is not None

    def close(self) -> None:
        """Stop watching."""
        self._watcher.stop()
        self._epoll.close()

    def _on_ready(self) -> None:
        self._begin_turn()
        member_by_fd = self.member_by_fd
        for fd, events in self._epoll.poll(0, _EVENTS_A_TURN):
            member = member_by_fd.get(fd)
            if member is None:  # a member before it in this turn has ended it
                continue
            try:
                member.on_ready(events)
            except Exception as ex:  # noqa: BLE001  one client must not end the others
                _log.exception("socket.failed", error=ex)
                member.abort()
        self._end_turn()


def poller() -> Poller[Watched]:
    """Return the set of this thread, which all connections of a socket role share."""
    return _poller_of(get_hub())


@cache  # not a threading.local: under gevent that is one for each greenlet
def _poller_of(hub: Any) -> Poller[Watched]:
    return Poller()


def _do_nothing() -> None:
    pass
