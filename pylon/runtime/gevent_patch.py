"""The standard library made cooperative: the first thing in every worker.

As `gevent.monkey.patch_all`, but for `ssl` and `subprocess`, which are patched when they are
loaded, if ever (`pylon.imports`), and for gevent's plug-ins: looking for those reads the metadata
of every installed distribution, a dozen times.
"""

from __future__ import annotations

from gevent import events, monkey

from pylon.imports import defer


def patch() -> None:
    """Call it once, before anything else is imported."""
    defer()
    events.notify_and_call_entry_points = events.notify
    monkey.patch_all(ssl=False, subprocess=False)
