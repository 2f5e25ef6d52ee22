"""Closers: the steps that end a run, each of which runs although others fail.

A run pushes a step for each part that it has started. The steps run in the reverse order, at the
end of the run and when its start fails half-way.

Invariant: a step that the disk or a store refuses is logged and stops no other one. Log event:
stop.incomplete. Used by `supervisor.main`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from pylon import log
from pylon.disk_errors import describe_os_error
from pylon.errors import PylonError
from supervisor.sockets import Listeners

_log = log.get_logger("supervisor")


class Closers(ExitStack):
    """Closes what a run has opened, in the reverse order. A step that the disk refuses is logged,
    and stops no other: `has_failed`."""

    def __init__(self) -> None:
        super().__init__()
        self.has_failed = False
        self.keeps_ports = False  # the listeners are for the next run

    def close_ports(self, listeners: Listeners) -> None:
        """Close the listeners, unless the next run has them."""
        if not self.keeps_ports:
            listeners.close()

    def callback(self, callback: Callable[..., Any], /, *args: Any, **kwds: Any) -> Any:
        """See `ExitStack`."""
        return super().callback(self._attempt, callback, *args, **kwds)

    def _attempt(self, callback: Callable[..., Any], *args: Any, **kwds: Any) -> None:
        try:
            callback(*args, **kwds)
        except (OSError, PylonError) as ex:
            self.has_failed = True
            text = describe_os_error(ex) if isinstance(ex, OSError) else ex.message
            _log.error("stop.incomplete", step=callback.__qualname__, error=text,
                       hint="what was acknowledged is in the database and its WAL; the next start "
                       "goes on from there")
