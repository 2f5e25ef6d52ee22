"""Live windows and rooms for blocking code. Each may be used in any thread.

They are made by `sync_client`; the shared connection has a thread of its own (`links`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pylon_client import rooms
from pylon_client.errors import ClosedError, PylonError
from pylon_client.links import Link
from pylon_client.queries import Query
from pylon_client.requests import Core
from pylon_client.rooms import Member, RoomEvent, RoomView
from pylon_client.sync_shell import SyncShell
from pylon_client.windows import Diff, State, Window

T = TypeVar("T")


class LiveWindow(Generic[T]):
    """The rows of a query, kept up to date. Iterating gives each new state, the newest one.

    A context manager; `close` ends it. `timeout` is for one step, in seconds; a step that takes
    longer raises TimeoutError, and the window stays open.
    """

    def __init__(self, link: Link, query: Query[T], timeout: float | None) -> None:
        self._link = link
        self._timeout = timeout
        self._changed = threading.Condition(link.lock)
        self._seen = 0
        self._has_diffs = False
        self._is_closed = False
        self._window: Window[T] = link.add_window(query, self._changed.notify_all)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the window. Iterators over it end."""
        self._link.remove_window(self._window)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def rows(self) -> list[T]:
        """The rows as they are known now; empty while they are loading."""
        with self._changed:
            return self._window.rows()

    @property
    def state(self) -> State:
        """loading, live, stale (the connection was lost), offline (no server), or error."""
        return self._window.state

    @property
    def error(self) -> PylonError | None:
        """Why the window has ended, if it has."""
        return self._window.error

    def __iter__(self) -> Iterator[list[T]]:
        while True:
            try:
                yield self.next()
            except ClosedError:
                if not self._is_closed:
                    raise
                return

    def next(self, timeout: float | None = None) -> list[T]:
        """Wait for the next state, and return its rows.

        Raises:
            TimeoutError: nothing has changed within the time.
            SocketRefused: the server refuses the window.
        """

        def is_ready() -> bool:
            return self._window.is_complete and self._window.version != self._seen

        with self._changed:
            self._wait(is_ready, timeout)
            self._seen = self._window.version
            return self._window.rows()

    def diffs(self, timeout: float | None = None) -> Iterator[Diff[T]]:
        """Yield each difference; the first is a reset with all rows."""
        with self._changed:
            self._window.open_diffs()
        while True:
            with self._changed:
                try:
                    self._wait(self._window.has_diffs, timeout)
                except ClosedError:
                    if not self._is_closed:
                        raise
                    return
                taken = self._window.take_diffs()
            yield from taken

    def more(self, count: int, timeout: float | None = None) -> int:
        """Widen the window by up to `count` rows. Return how many there were.

        Raises:
            SocketRefused: a window has 1,000 rows at most.
            ClosedError: there is no WebSocket now.
        """
        with self._changed:
            self._link.widen(self._window, count)
            self._wait(
                lambda: self._window.more_answer is not None
                or self._window.more_error is not None, timeout,
            )
            if self._window.more_answer is None:
                assert self._window.more_error is not None
                raise self._window.more_error
            return self._window.more_answer

    def _wait(self, is_ready: Callable[[], bool], timeout: float | None) -> None:
        limit_s = self._timeout if timeout is None else timeout
        ends_at_s = None if limit_s is None else time.monotonic() + limit_s
        while not is_ready():
            if self._window.error is not None:
                raise self._window.error
            if self._is_closed:
                raise ClosedError("the window is closed")
            left_s = None if ends_at_s is None else ends_at_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError(f"the window has not changed within {limit_s:g} s")
            self._changed.wait(left_s)


class Room:
    """A room that this client has joined. Iterating gives its events. A context manager."""

    def __init__(
        self, shell: SyncShell, core: Core, link: Link, name: str, data: Any
    ) -> None:
        self._shell = shell
        self._core = core
        self._link = link
        self._changed = threading.Condition(link.lock)
        self._is_closed = False
        self._view = RoomView(name, data, self._changed.notify_all)
        shell.run(rooms.join(core, self._view))
        link.add_room(self._view)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the room."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
        self._link.remove_room(self._view)
        self._shell.run(rooms.leave(self._core, self._view.name))

    @property
    def members(self) -> dict[str, Member]:
        """The members by user id; empty until the first snapshot."""
        with self._changed:
            return dict(self._view.members)

    @property
    def is_live(self) -> bool:
        """Whether the members are up to date."""
        return self._view.is_live

    def set_presence(self, data: Any) -> None:
        """Set what others see of this member."""
        self._shell.run(rooms.set_presence(self._core, self._view, data))

    def broadcast(self, topic: str, data: Any = None) -> bool:
        """Send a message to the members. Return whether this client was one."""
        return self._shell.run(rooms.broadcast(self._core, self._view.name, topic, data))

    def __iter__(self) -> Iterator[RoomEvent]:
        return self.events()

    def events(self, timeout: float | None = None) -> Iterator[RoomEvent]:
        """Yield what happens in the room. Raises: TimeoutError: nothing within `timeout`."""
        while True:
            with self._changed:
                ends_at_s = None if timeout is None else time.monotonic() + timeout
                while not (taken := self._view.take_events()):
                    if self._view.error is not None:
                        raise self._view.error
                    if self._is_closed:
                        return
                    left_s = None if ends_at_s is None else ends_at_s - time.monotonic()
                    if left_s is not None and left_s <= 0:
                        raise TimeoutError(f"nothing happened in the room within {timeout:g} s")
                    self._changed.wait(left_s)
            yield from taken
