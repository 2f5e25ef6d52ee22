"""Yielding: lets a greenlet with much work give other greenlets and sockets a turn.

``gevent.sleep(0)`` is not enough, because gevent's loop polls sockets only after 50 turns of such
sleepers. A short sleep costs a millisecond with epoll. A greenlet that waits for a descriptor which
is always readable continues as soon as the loop has polled all sockets. Used by `feed`, `replay`
and `sessions`.
"""

from __future__ import annotations

import os
from functools import cache

from gevent.hub import get_hub


def yield_to_loop() -> None:
    """Run everything else that is ready once, callbacks of sockets included."""
    hub = get_hub()
    watcher = hub.loop.io(_always(), 1)  # one for each call: several greenlets may wait
    try:
        hub.wait(watcher)
    finally:
        watcher.close()


@cache
def _always() -> int:
    return os.eventfd(1)
