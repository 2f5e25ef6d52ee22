"""Child watch: ends children that send no heartbeats any more.

A silent child gets SIGABRT, and SIGKILL after `limits.ABORT_GRACE_S`. The arbiter of the HTTP
workers has a heartbeat file of its own, because its workers can send heartbeats while the arbiter
hangs. Silent workers of an arbiter are aborted here; the arbiter replaces them.

Invariant: a child that drains is left alone; the drain has deadlines of its own. Metric:
pylon_worker_restarts_total, for an arbiter's workers. Owned by `supervisor.children`, for the main
thread.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pylon import limits, log, metrics
from pylon.bus.file_beat import last_beat_s
from pylon.bus.runtime import Runtime
from supervisor.heartbeats import Beat, Heartbeats
from supervisor.slots import Slot

_log = log.get_logger("children")


class ChildWatch:
    """The silence of all children."""

    def __init__(self, runtime: Runtime, heartbeats: Heartbeats) -> None:
        self._runtime = runtime
        self._heartbeats = heartbeats
        self._aborted_workers: dict[int, float] = {}  # an arbiter's silent workers: when aborted

    def check(self, slot: Slot, pid: int, now_s: float, *, is_draining: bool) -> None:
        """Note the heartbeats of a living child, and end it if it is silent.

        Args:
            pid: of the child.
            is_draining: the whole server drains.
        """
        beats = [beat for beat in self.list_beats(slot) if beat.at_s >= slot.started_s]
        if any(beat.ready for beat in beats):
            slot.was_ready = True
            slot.unready = 0
        if now_s - slot.started_s >= limits.RESTART_RESET_S:
            slot.failures = 0
        slot.heard_s = max([slot.heard_s, slot.started_s, *(beat.at_s for beat in beats)])
        silent_s = now_s - slot.heard_s
        # Without a heartbeat it boots, or is an arbiter all of whose workers have died.
        patience_s = limits.HEARTBEAT_LOST_S if beats else limits.WORKER_BOOT_S
        if slot.aborted_at_s is not None:
            if now_s - slot.aborted_at_s >= limits.ABORT_GRACE_S:
                os.kill(pid, signal.SIGKILL)
        elif is_draining or slot.is_draining:
            return  # the drain has its own deadlines, and ended workers are silent
        elif silent_s >= patience_s or self._is_arbiter_silent(slot, now_s):
            _log.error("child.silent", child=f"{slot.role}/{slot.worker}",
                       pid=pid, silent_s=round(silent_s, 1))
            slot.aborted_at_s = now_s
            os.kill(pid, signal.SIGABRT)
        elif slot.is_arbiter:
            self._watch_gunicorn_workers(slot.role, pid, now_s)

    def list_beats(self, slot: Slot) -> list[Beat]:
        """Return the newest heartbeats of a child, or of all workers of an arbiter."""
        return [beat for beat in self._heartbeats.list_beats(slot.role)
                if beat.worker in slot.names]

    def _is_arbiter_silent(self, slot: Slot, now_s: float) -> bool:
        """Return whether the child is an arbiter that hangs.

        Its workers continue to serve then, but nobody replaces one that dies.
        """
        if not slot.is_arbiter:
            return False
        beat_s = last_beat_s(self._runtime.arbiter(slot.worker))
        if beat_s is None or beat_s < slot.started_s:
            return False  # it boots
        return now_s - beat_s >= limits.HEARTBEAT_LOST_S

    def _watch_gunicorn_workers(self, role: str, arbiter_pid: int, now_s: float) -> None:
        """Abort silent workers of the arbiter, which then replaces them."""
        for beat in self._heartbeats.list_beats(role):
            silent = now_s - beat.at_s >= limits.HEARTBEAT_LOST_S
            if not silent or _parent_of(beat.pid) != arbiter_pid:
                continue
            aborted_s = self._aborted_workers.get(beat.pid)
            if aborted_s is None:
                _log.error("child.silent", child=f"{role}/{beat.worker}", pid=beat.pid)
                metrics.WORKER_RESTARTS.labels(role, "silent").inc()
                self._aborted_workers[beat.pid] = now_s
                os.kill(beat.pid, signal.SIGABRT)
            elif now_s - aborted_s >= limits.ABORT_GRACE_S:
                os.kill(beat.pid, signal.SIGKILL)

    def forget_workers(self) -> None:
        """Forget the workers that were aborted: their arbiter has ended, and they with it."""
        self._aborted_workers.clear()

    def forget_worker(self, pid: int) -> bool:
        """Forget a worker of an arbiter that has ended. Return whether it was aborted."""
        return self._aborted_workers.pop(pid, None) is not None


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])
