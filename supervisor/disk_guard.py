"""Disk guard: refuses writes while the disk of the database has little free space.

SQLite needs free space to commit, to write its WAL back and to answer some reads. So the guard
refuses writes before the disk is full: below PYLON_DISK_FLOOR_BYTES the writer answers `DISK_FULL`,
and `/readyz` says so. Reads go on. Writes are accepted again when the free space is
`limits.DISK_RECOVERY_FACTOR` times the floor, so that a disk at the floor does not make the state
alternate. A change of the state is logged once.

The guard measures the free space at most every `limits.DISK_LOOK_S`; a look costs one `statvfs`.

Invariant: one lock guards the state; any thread may call. Metric: pylon_disk_low. Log events:
disk.low, disk.recovered. Made by `supervisor.main`; called by the writer before each batch and by
the main loop.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pylon import limits, log, metrics
from pylon.clock import Clock
from pylon.errors import DiskFull, PylonError

_log = log.get_logger("disk")


class DiskGuard:
    """The guard of one folder."""

    def __init__(self, folder: Path, floor_bytes: int, clock: Clock) -> None:
        """Args: `floor_bytes`: 0 switches the guard off."""
        self._folder = folder
        self._floor_bytes = floor_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_s = float("-inf")
        self._is_low = False
        self._free_bytes = 0

    def find_refusal(self) -> PylonError | None:
        """Return the error for a write; None: the disk has space."""
        if not self._look():
            return None
        return DiskFull(
            f"The disk of the database has {self._free_bytes} bytes free; below "
            f"{self._floor_bytes} the server refuses writes",
            hint="Try again later: the operator must free space; reads are answered meanwhile",
            free_bytes=self._free_bytes, floor_bytes=self._floor_bytes,
        )

    def find_problem(self) -> str | None:
        """Return the problem for readiness, without the path, since /readyz shows it to everybody;
        None: the disk has space."""
        if not self._look():
            return None
        return (f"writes are refused: the disk of the database has {self._free_bytes} bytes free "
                f"(PYLON_DISK_FLOOR_BYTES is {self._floor_bytes}); the server's log has its path")

    def _look(self) -> bool:
        """Measure, if it is time, and return whether the disk is low."""
        if self._floor_bytes <= 0:
            return False
        with self._lock:
            now_s = self._clock.monotonic_s()
            if now_s - self._looked_s < limits.DISK_LOOK_S:
                return self._is_low
            self._looked_s = now_s
            try:
                disk = os.statvfs(self._folder)
            except OSError:
                return self._is_low  # `Maintenance.find_problem` reports a missing folder
            self._free_bytes = disk.f_bavail * disk.f_frsize
            self._note()
            return self._is_low

    def _note(self) -> None:
        needed_bytes = self._floor_bytes
        if self._is_low:
            needed_bytes = int(needed_bytes * limits.DISK_RECOVERY_FACTOR)
        is_low = self._free_bytes < needed_bytes
        if is_low == self._is_low:
            return
        self._is_low = is_low
        metrics.DISK_LOW.set(is_low)
        facts = {"path": str(self._folder), "free_bytes": self._free_bytes,
                 "floor_bytes": self._floor_bytes}
        if is_low:
            _log.error("disk.low", **facts, hint="writes are refused with DISK_FULL until "
                       f"{int(self._floor_bytes * limits.DISK_RECOVERY_FACTOR)} bytes are free: "
                       "free space on this disk, enlarge it, or lower PYLON_DISK_FLOOR_BYTES")
        else:
            _log.info("disk.recovered", **facts)
