"""A shard for blocking code. It is made by `sync_client`; a thread of its own reads its socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from pylon_client.errors import ClosedError
from pylon_client.requests import Core
from pylon_client.shards import Refusal, ShardLink
from pylon_client.sync_shell import SyncShell, SyncWake


class Shard:
    """A subscription to a shard. A context manager; any thread may use it."""

    def __init__(self, shell: SyncShell, core: Core, shard_id: str, sid: str | None) -> None:
        self._link = ShardLink(core, shard_id, sid, SyncWake)
        self._changed = threading.Condition(self._link.lock)
        self._link.notify = self._changed.notify_all
        self._is_closed = False
        shell.spawn(self._link.run(), f"pylon-shard-{shard_id}")

    def __enter__(self) -> Self:
        """Wait for the first state. Raises: SocketRefused: the shard refuses this client."""
        try:
            self.state()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
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

    def state(self, timeout: float | None = None) -> Any:
        """Return the newest state; waits for the first one. Raises: TimeoutError."""
        with self._changed:
            self._wait(lambda: self._link.version > 0, timeout)
            return self._link.state

    def states(self, timeout: float | None = None) -> Iterator[Any]:
        """Yield each new state, the newest one. Raises: TimeoutError: none within `timeout`."""
        seen = 0
        while True:
            with self._changed:
                try:
                    self._wait(lambda known=seen: self._link.version != known, timeout)  # type: ignore[misc]
                except ClosedError:
                    if not self._is_closed:
                        raise
                    return
                seen, state = self._link.version, self._link.state
            yield state

    def __iter__(self) -> Iterator[Any]:
        return self.states()

    def input(self, value: Any) -> int:
        """Send an input, and return its number. Raises: APIConnectionError: no connection now."""
        return self._link.send_input(value)

    def refusals(self) -> list[Refusal]:
        """Return the inputs that the simulation has refused since the last call."""
        return self._link.take_refusals()

    def _wait(self, is_ready: Callable[[], bool], timeout: float | None) -> None:
        ends_at_s = None if timeout is None else time.monotonic() + timeout
        while not is_ready():
            if self._link.error is not None:
                raise self._link.error
            left_s = None if ends_at_s is None else ends_at_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError(f"the shard sent no state within {timeout:g} s")
            self._changed.wait(left_s)
