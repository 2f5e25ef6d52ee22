"""File beat: the heartbeat of a process that must not open the bus (gunicorn's arbiter).

The process sets the modification time of a file in the runtime folder to the time of
CLOCK_MONOTONIC, every two seconds, and the supervisor reads it. That takes no space and no lock,
and a full disk does not stop it. Called by `workers.http.arbiter` and `supervisor.children`.
"""

from __future__ import annotations

import os
from pathlib import Path

from pylon.clock import NS_PER_S, Clock


class FileBeat:
    """Writes the beats of one process."""

    __slots__ = ("_clock", "_fd")

    def __init__(self, path: Path, clock: Clock) -> None:
        """Beat for the first time.

        Raises:
            OSError: the file cannot be created.
        """
        self._clock = clock
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.beat()

    def beat(self) -> None:
        """Record that this process runs."""
        now_ns = int(self._clock.monotonic_s() * NS_PER_S)
        os.utime(self._fd, ns=(now_ns, now_ns))


def last_beat_s(path: Path) -> float | None:
    """Return the time (monotonic) of the last beat; None if there is none."""
    try:
        return path.stat().st_mtime_ns / NS_PER_S
    except OSError:
        return None
