"""Live windows and rooms for asyncio. They are made by `async_client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pylon_client import rooms
from pylon_client.async_shell import AsyncShell
from pylon_client.errors import ClosedError, PylonError
from pylon_client.links import Link
from pylon_client.queries import Query
from pylon_client.requests import Core
from pylon_client.rooms import Member, RoomEvent, RoomView
from pylon_client.windows import Diff, State, Window

T = TypeVar("T")


class Changes:
    """Wakes every waiting task after a change."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait_for(self, is_ready: Callable[[], bool], timeout_s: float | None) -> None:
        """Return when `is_ready` returns True. Raises: TimeoutError, and what `is_ready` raises."""
        async with asyncio.timeout(timeout_s):
            while not is_ready():
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.add(future)
                try:
                    await future
                finally:
                    self._waiting.discard(future)


class AsyncLiveWindow(Generic[T]):
    """The rows of a query, kept up to date. Iterating gives each new state, the newest one.

    An async context manager; `close` ends it. `timeout` is for one step, in seconds; a step that
    takes longer raises TimeoutError, and the window stays open.
    """

    def __init__(self, link: Link, query: Query[T], timeout: float | None) -> None:
        self._link = link
        self._timeout = timeout
        self._changes = Changes()
        self._seen = 0
        self._is_closed = False
        self._window: Window[T] = link.add_window(query, self._changes.notify)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the window. Iterators over it end."""
        self._link.remove_window(self._window)
        self._is_closed = True
        self._changes.notify()

    @property
    def rows(self) -> list[T]:
        """The rows as they are known now; empty while they are loading."""
        return self._window.rows()

    @property
    def state(self) -> State:
        """loading, live, stale (the connection was lost), offline (no server), or error."""
        return self._window.state

    @property
    def error(self) -> PylonError | None:
        """Why the window has ended, if it has."""
        return self._window.error

    async def __aiter__(self) -> AsyncIterator[list[T]]:
        while True:
            try:
                rows = await self.next()
            except ClosedError:
                if not self._is_closed:
                    raise
                return
            yield rows

    async def next(self, timeout: float | None = None) -> list[T]:
        """Wait for the next state, and return its rows.

        Raises:
            TimeoutError: nothing has changed within the time.
            SocketRefused: the server refuses the window.
        """
        await self._wait(
            lambda: self._window.is_complete and self._window.version != self._seen, timeout
        )
        self._seen = self._window.version
        return self._window.rows()

    async def diffs(self, timeout: float | None = None) -> AsyncIterator[Diff[T]]:
        """Yield each difference; the first is a reset with all rows."""
        self._window.open_diffs()
        while True:
            try:
                await self._wait(self._window.has_diffs, timeout)
            except ClosedError:
                if not self._is_closed:
                    raise
                return
            for diff in self._window.take_diffs():
                yield diff

    async def more(self, count: int, timeout: float | None = None) -> int:
        """Widen the window by up to `count` rows. Return how many there were.

        Raises:
            SocketRefused: a window has 1,000 rows at most.
            ClosedError: there is no WebSocket now.
        """
        window = self._window
        self._link.widen(window, count)
        await self._wait(
            lambda: window.more_answer is not None or window.more_error is not None, timeout
        )
        if window.more_answer is None:
            assert window.more_error is not None
            raise window.more_error
        return window.more_answer

    async def _wait(self, is_ready: Callable[[], bool], timeout: float | None) -> None:
        def is_done() -> bool:
            if is_ready():
                return True
            if self._window.error is not None:
                raise self._window.error
            if self._is_closed:
                raise ClosedError("the window is closed")
            return False

        await self._changes.wait_for(is_done, self._timeout if timeout is None else timeout)


class AsyncRoom:
    """A room that this client has joined. Iterating gives its events. An async context manager."""

    def __init__(
        self, shell: AsyncShell, core: Core, link: Link, name: str, data: Any
    ) -> None:
        self._shell = shell
        self._core = core
        self._link = link
        self._changes = Changes()
        self._is_closed = False
        self._view = RoomView(name, data, self._changes.notify)

    async def join(self) -> Self:
        """Join the room; entering the context manager does so."""
        await self._shell.run(rooms.join(self._core, self._view))
        self._link.add_room(self._view)
        return self

    async def __aenter__(self) -> Self:
        return await self.join()

    async def __aexit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the room."""
        if self._is_closed:
            return
        self._is_closed = True
        self._changes.notify()
        self._link.remove_room(self._view)
        await self._shell.run(rooms.leave(self._core, self._view.name))

    @property
    def members(self) -> dict[str, Member]:
        """The members by user id; empty until the first snapshot."""
        return dict(self._view.members)

    @property
    def is_live(self) -> bool:
        """Whether the members are up to date."""
        return self._view.is_live

    async def set_presence(self, data: Any) -> None:
        """Set what others see of this member."""
        await self._shell.run(rooms.set_presence(self._core, self._view, data))

    async def broadcast(self, topic: str, data: Any = None) -> bool:
        """Send a message to the members. Return whether this client was one."""
        return await self._shell.run(rooms.broadcast(self._core, self._view.name, topic, data))

    def __aiter__(self) -> AsyncIterator[RoomEvent]:
        return self.events()

    async def events(self, timeout: float | None = None) -> AsyncIterator[RoomEvent]:
        """Yield what happens in the room. Raises: TimeoutError: nothing within `timeout`."""
        events: list[RoomEvent] = []

        def is_ready() -> bool:
            events[:] = self._view.take_events()
            if not events and self._view.error is not None:
                raise self._view.error
            return bool(events) or self._is_closed

        while True:
            await self._changes.wait_for(is_ready, timeout)
            if not events:
                return
            for event in [*events]:
                yield event
