"""Bus watch: notices when sockets of the bus have vanished from the runtime folder.

A program that tidies temporary folders may remove them. Connections that are open go on, but a
worker that starts then reaches nobody: its role would be away until the next restart. So the server
begins anew within its process (`Generations.renew`), which makes the folder and the sockets again.
The listeners stay open meanwhile.

Invariant: only sockets of the supervisor count; those of a worker end with it. Made by
`supervisor.loop`, which calls `look`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from pylon import log
from pylon.bus.runtime import Runtime
from pylon.clock import Clock

_PERIOD_S: Final = 2.0

_log = log.get_logger("bus_watch")


class BusWatch:
    """The watch of one run. For the main thread."""

    def __init__(self, runtime: Runtime, clock: Clock, renew: Callable[[], bool]) -> None:
        """Args: `renew` begins the server anew; it returns False if that must wait."""
        self._runtime = runtime
        self._clock = clock
        self._renew = renew
        self._look_at_s = clock.monotonic_s() + _PERIOD_S
        self._expected: list[Path] | None = None  # those that were there at the first look
        self._said = False

    def look(self) -> None:
        """Begin the server anew, if sockets are missing."""
        now_s = self._clock.monotonic_s()
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + _PERIOD_S
        if self._expected is None:
            self._expected = [path for path in self._runtime.server_sockets if path.is_socket()]
        missing = [path.name for path in self._expected if not path.is_socket()]
        if not missing:
            self._said = False
            return
        if not self._said:
            self._said = True
            _log.error(
                "bus.sockets_gone", folder=str(self._runtime.dir), missing=missing,
                hint="another program removes files from the runtime folder: set "
                     "PYLON_RUNTIME_DIR to a folder that nobody tidies, such as one below /run",
            )
        self._renew()
