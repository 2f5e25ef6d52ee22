"""A shard for asyncio. It is made by `async_client`; a task of its own reads its socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

from pylon_client.async_live import Changes
from pylon_client.async_shell import AsyncShell, AsyncWake
from pylon_client.errors import ClosedError
from pylon_client.requests import Core
from pylon_client.shards import Refusal, ShardLink


class AsyncShard:
    """A subscription to a shard. An async context manager."""

    def __init__(self, shell: AsyncShell, core: Core, shard_id: str, sid: str | None) -> None:
        self._link = ShardLink(core, shard_id, sid, AsyncWake)
        self._changes = Changes()
        self._link.notify = self._changes.notify
        self._is_closed = False
        shell.spawn(self._link.run(), f"pylon-shard-{shard_id}")

    async def __aenter__(self) -> Self:
        """Wait for the first state. Raises: SocketRefused: the shard refuses this client."""
        try:
            await self.state()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the shard."""
        self._is_closed = True
        self._link.close()

    @property
    def tick(self) -> int:
        """The tick of the newest state; -1 before the first."""
        return self._link.tick

    async def state(self, timeout: float | None = None) -> Any:
        """Return the newest state; waits for the first one. Raises: TimeoutError."""
        await self._wait(lambda: self._link.version > 0, timeout)
        return self._link.state

    async def states(self, timeout: float | None = None) -> AsyncIterator[Any]:
        """Yield each new state, the newest one. Raises: TimeoutError: none within `timeout`."""
        seen = 0
        while True:
            try:
                await self._wait(lambda known=seen: self._link.version != known, timeout)  # type: ignore[misc]
            except ClosedError:
                if not self._is_closed:
                    raise
                return
            seen = self._link.version
            yield self._link.state

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.states()

    def input(self, value: Any) -> int:
        """Send an input, and return its number. Raises: APIConnectionError: no connection now."""
        return self._link.send_input(value)

    def refusals(self) -> list[Refusal]:
        """Return the inputs that the simulation has refused since the last call."""
        return self._link.take_refusals()

    async def _wait(self, is_ready: Callable[[], bool], timeout: float | None) -> None:
        def is_done() -> bool:
            if is_ready():
                return True
            if self._link.error is not None:
                raise self._link.error
            return False

        await self._changes.wait_for(is_done, timeout)
