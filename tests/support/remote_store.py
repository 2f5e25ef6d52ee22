"""A store without local reads, for tests of what must not rely on reads that never switch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent

from pylon.storage.interface import SERVER, Reader, Store

T = TypeVar("T")


class RemoteStore:
    """A store as another server's would be: each read of a few rows switches greenlets, before it
    is carried out and before its answer arrives."""

    local_reads = False

    def __init__(self, pool: Store) -> None:
        self._pool = pool
        self.meanwhile: Callable[[], None] | None = None

    def point(self, read: Callable[[Reader], T], /) -> T:
        gevent.sleep(0)
        answer = self._pool.point(read)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        gevent.sleep(0)
        return answer

    def point_inline(self, read: Callable[[Reader], T], /) -> T:
        return self._pool.point_inline(read)

    def scan(
        self, read: Callable[[Reader], T], inline: bool = True, caller: str = SERVER
    ) -> T:
        return self.point(read)

    def release_memory(self) -> None:
        self._pool.release_memory()

    def close(self) -> None:
        self._pool.close()
