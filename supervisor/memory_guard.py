"""Memory guard: replaces a worker that has grown, before the kernel kills it during a request.

Every few seconds the guard reads how much private memory each worker has. A worker above
PYLON_WORKER_MEMORY_MIB gets SIGTERM: it finishes its requests, closes its sockets as in a drain,
and ends; its successor starts at once. The guard replaces one worker at a time, so the others of
the role serve meanwhile. A worker that has not ended after PYLON_DRAIN_SECS and
`limits.DRAIN_GRACE_S` is killed.

A worker younger than `limits.MEMORY_MIN_AGE_S` is left alone: a limit below what a fresh worker
needs would replace it without end.

Metric: pylon_worker_restarts_total with the reason `memory`. Log events: worker.too_large,
worker.not_ended. Made by `supervisor.loop`, which calls `look`.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pylon import limits, log
from pylon.clock import Clock
from supervisor.children import Children
from supervisor.heartbeats import Beat, Heartbeats

_MIB: Final = 1_048_576
_log = log.get_logger("memory")


class _Retired(NamedTuple):
    """The worker that is being replaced."""

    role: str
    pid: int
    since_s: float


class MemoryGuard:
    """The guard of all workers. For the main thread."""

    def __init__(
        self, children: Children, heartbeats: Heartbeats, clock: Clock, limit_mib: int,
        drain_s: float,
    ) -> None:
        """Args: `limit_mib`: 0 switches the guard off."""
        self._children = children
        self._heartbeats = heartbeats
        self._clock = clock
        self._limit_bytes = limit_mib * _MIB
        self._patience_s = drain_s + limits.DRAIN_GRACE_S
        self._seen_s: dict[int, float] = {}  # when a living worker was seen first
        self._retired: _Retired | None = None
        self._look_at_s = float("-inf")

    def look(self) -> None:
        """Replace the largest worker, if it is too large and no other is being replaced."""
        now_s = self._clock.monotonic_s()
        if not self._limit_bytes or now_s < self._look_at_s or self._children.draining:
            return
        self._look_at_s = now_s + limits.MEMORY_LOOK_S
        beats = [
            beat for role in self._children.views() for beat in self._heartbeats.list_beats(role)
        ]
        self._seen_s = {beat.pid: self._seen_s.get(beat.pid, now_s) for beat in beats}
        if self._retired is not None and self._is_waiting_for(self._retired, now_s):
            return
        self._retired = None
        old = [b for b in beats if now_s - self._seen_s[b.pid] >= limits.MEMORY_MIN_AGE_S]
        if not old:
            return
        size_bytes, beat = max(
            ((private_bytes(beat.pid), beat) for beat in old), key=lambda pair: pair[0]
        )
        if size_bytes > self._limit_bytes:
            self._retire(beat, size_bytes, now_s)

    def _retire(self, beat: Beat, size_bytes: int, now_s: float) -> None:
        _log.warning(
            "worker.too_large", child=f"{beat.role}/{beat.worker}", pid=beat.pid,
            size_bytes=size_bytes, limit_bytes=self._limit_bytes,
            hint="it finishes its requests and is replaced; if this repeats, look for what grows "
            "or raise PYLON_WORKER_MEMORY_MIB",
        )
        self._retired = _Retired(beat.role, beat.pid, now_s)
        self._children.retire(beat.pid)

    def _is_waiting_for(self, retired: _Retired, now_s: float) -> bool:
        """Whether the retired worker still lives, or its successor is not ready."""
        if retired.pid in self._seen_s:
            if now_s - retired.since_s > self._patience_s:
                _log.error("worker.not_ended", child=retired.role, pid=retired.pid,
                           waited_s=round(now_s - retired.since_s, 1))
                with suppress(ProcessLookupError):
                    os.kill(retired.pid, signal.SIGKILL)
            return True
        view = self._children.views().get(retired.role)
        return view is not None and view.ready < view.wanted


def private_bytes(pid: int) -> int:
    """Return the resident memory that only this process has (anonymous pages); 0 if it has ended.
    The pages of the database file do not count: the kernel can drop them."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in text.splitlines() if line.startswith("RssAnon:")), "RssAnon: 0")
    return int(line.split()[1]) * 1_024
