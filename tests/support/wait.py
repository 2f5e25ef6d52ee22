"""Wait for conditions; no test waits for a time to pass.

`wait_until` polls from a thread, `run_greenlets_until` lets the greenlets of this thread run
between two looks. Both fail with the name of what they waited for after `WAIT_S`, which is far
longer than a busy machine needs: it ends a test that has failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

import gevent

WAIT_S: Final = 60.0
_POLL_S: Final = 0.01
_GREENLET_POLL_S: Final = 0.001

T = TypeVar("T")


def wait_until(what: str, condition: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """Poll `condition` until it is true, and return its value.

    Raises: AssertionError that names `what` after `timeout_s`.
    """
    return _poll(what, condition, timeout_s, lambda: time.sleep(_POLL_S))


def run_greenlets_until(what: str, condition: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """Let greenlets run until `condition` is true, and return its value.

    Raises: AssertionError that names `what` after `timeout_s`.
    """
    return _poll(what, condition, timeout_s, lambda: gevent.sleep(_GREENLET_POLL_S))


def _poll(
    what: str, condition: Callable[[], T], timeout_s: float, pause: Callable[[], None]
) -> T:
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        pause()
    return value
