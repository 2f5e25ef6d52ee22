"""Turns: how a greenlet with much to do lets others have theirs, sockets included.

``gevent.sleep(0)`` is not enough: gevent's loop looks at sockets only after 50 turns of those who
sleep for no time. A short sleep is a wait, of a millisecond with epoll. Who waits for a
descriptor that is always readable comes back as soon as the sockets have been looked at.
"""

from __future__ import annotations

import os
from functools import cache

from gevent.hub import get_hub


def yield_to_loop() -> None:
    """Give way to all that are ready, callbacks of sockets included, once."""
    hub = get_hub()
    watcher = hub.loop.io(_always(), 1)  # one each: several may be waiting
    try:
        hub.wait(watcher)
    finally:
        watcher.close()


@cache
def _always() -> int:
    return os.eventfd(1)
