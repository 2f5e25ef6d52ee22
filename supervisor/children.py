"""The worker processes: forked from the template, watched, started again when they die.

The HTTP role is one child (a gunicorn arbiter, which keeps PYLON_HTTP_WORKERS workers of its
own); each other role has as many children as it has workers. All share the role's listening
socket. `supervisor.template` forks them, and they are children of this process.

Invariants: only the main thread starts and reaps children, so a pid of a slot is never reused; a
child that dies comes back with full-jitter back-off; a child that falls silent is aborted, then
killed; while draining nothing is started. The HTTP arbiter beats in a file of its own, because its
workers may be well while it stands still. Orphans of children are reaped too: this process is
their subreaper. Processes that others start here by `subprocess` keep our process group, by which
`reap` knows them and leaves them alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pylon import limits, log, metrics
from pylon.bus.file_beat import last_beat_s
from pylon.bus.fork_requests import ForkRequest, pack_environ
from pylon.bus.runtime import Runtime
from pylon.clock import Clock, RandomSource
from supervisor.heartbeats import Beat, Heartbeats
from supervisor.notify import SYSTEMD_NAMES
from supervisor.sockets import Listeners
from supervisor.template import ForkFailed, Template, exit_text

_log = log.get_logger("children")
_HTTP: Final = "http"


@dataclass(slots=True)
class _Slot:
    """A place for one child, over all of its lives."""

    role: str
    worker: str
    pid: int | None = None  # of the child that lives
    started_s: float = 0.0
    start_at_s: float = 0.0  # when to start the next one
    failures: int = 0  # lives in a row that ended early
    unready: int = 0  # lives in a row that never became ready
    was_ready: bool = False
    heard_s: float = 0.0  # last heartbeat of this life
    aborted_at_s: float | None = None  # it fell silent and was sent SIGABRT


@dataclass(frozen=True, slots=True)
class RoleView:
    """What `pylonctl status` shows of a role."""

    wanted: int
    ready: int
    pids: list[int]
    failing: bool


class Children:
    """All children. For the main thread, except `views` and `arbiter_pids`."""

    def __init__(
        self, template: Template, wanted: Mapping[str, int], listeners: Listeners,
        runtime: Runtime,
        environ: Mapping[str, str], heartbeats: Heartbeats, clock: Clock, random: RandomSource,
    ) -> None:
        """Args:
            template: forks the children; it may still be starting.
            wanted: worker processes by role (for http: of the arbiter).
            environ: what every child gets, the resolved settings among it.
        """
        self._template = template
        self._wanted = dict(wanted)
        self._listeners = listeners
        self._runtime = runtime
        self._environ = pack_environ(
            {k: v for k, v in environ.items() if k not in SYSTEMD_NAMES}
        )
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._heartbeats = heartbeats
        self._clock = clock
        self._random = random
        self._aborted_workers: dict[int, float] = {}  # silent gunicorn workers: when aborted
        self.draining = False
        self.on_ended: Callable[[int], None] = _nobody  # told each child that ends, by its pid
        self.restarts = 0
        self._slots = [
            _Slot(role, str(number))
            for role, count in self._wanted.items()
            for number in range(1, (1 if role == _HTTP else count) + 1)
        ]

    def arbiter_pids(self) -> list[int]:
        """gunicorn's own process, which sends no metrics. Any thread may ask."""
        return [slot.pid for slot in self._slots if slot.role == _HTTP and slot.pid is not None]

    def problem(self) -> str | None:
        """Why no child can ever be started, if that is so."""
        if self._template.is_broken:
            return "the template process cannot import Pylon; its own log line says why"
        return None

    # --- What the main loop does, over and over ------------------------------------------

    def tick(self) -> None:
        """Reap, abort the silent, start what is due."""
        self.reap()
        now_s = self._clock.monotonic_s()
        for slot in self._slots:
            if slot.pid is not None:
                self._watch(slot, slot.pid, now_s)
            elif not self.draining and now_s >= slot.start_at_s and self._template.is_ready():
                self._start(slot)
        if self._template.pid is None and not self.draining and now_s >= self._template.start_at_s:
            self._template.start()

    def reap(self) -> None:
        """Take note of children that have ended, and reap orphans."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, flags)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            slot = next((slot for slot in self._slots if slot.pid == pid), None)
            if slot is None and pid != self._template.pid and os.getpgid(pid) == os.getpgrp():
                return  # whoever has started it reaps it
            _, status = os.waitpid(pid, 0)
            if slot is not None:
                self._ended(slot, pid, os.waitstatus_to_exitcode(status))
            elif pid == self._template.pid:
                self._template.reaped(status)

    def next_due_s(self) -> float | None:
        """When (monotonic) the next process is to be started, if one waits."""
        if self.draining:
            return None
        if self._template.pid is None:
            return self._template.start_at_s
        # While the template imports, it wakes us with SIGCHLD when it is ready.
        due = [slot.start_at_s for slot in self._slots if slot.pid is None]
        return min(due) if due and self._template.is_ready() else None

    def _start(self, slot: _Slot) -> None:
        child = f"{slot.role}/{slot.worker}"
        slot.started_s = self._clock.monotonic_s()
        slot.was_ready = False
        slot.aborted_at_s = None
        request = ForkRequest(
            slot.role, slot.worker, str(self._runtime.dir), self._environ, str(Path.cwd()),
            self._umask,
        )
        try:
            slot.pid = self._template.fork(
                request, self._listeners.by_role[slot.role].fileno()
            )
        except ForkFailed as ex:
            slot.failures += 1
            slot.start_at_s = slot.started_s + self._delay_s(slot)
            _log.error("child.not_started", child=child, error=str(ex),
                       restart_in_s=round(slot.start_at_s - slot.started_s, 2))
            return
        _log.info("child.started", child=child, pid=slot.pid)

    def _delay_s(self, slot: _Slot) -> float:
        longest_s = min(
            limits.RESTART_DELAY_MAX_S, limits.RESTART_DELAY_FIRST_S * 2.0 ** (slot.failures - 1)
        )
        return self._random.uniform(0.0, longest_s)

    def _watch(self, slot: _Slot, pid: int, now_s: float) -> None:
        beats = [beat for beat in self._heartbeats.of(slot.role)
                 if slot.role == _HTTP or beat.worker == slot.worker]
        beats = [beat for beat in beats if beat.at_s >= slot.started_s]
        if any(beat.ready for beat in beats):
            slot.was_ready = True
            slot.unready = 0
        if now_s - slot.started_s >= limits.RESTART_RESET_S:
            slot.failures = 0
        slot.heard_s = max([slot.heard_s, slot.started_s, *(beat.at_s for beat in beats)])
        silent_s = now_s - slot.heard_s
        # Without a beat to go by it is booting, or an arbiter all of whose workers have died.
        patience_s = limits.HEARTBEAT_LOST_S if beats else limits.WORKER_BOOT_S
        if slot.aborted_at_s is not None:
            if now_s - slot.aborted_at_s >= limits.ABORT_GRACE_S:
                os.kill(pid, signal.SIGKILL)
        elif self.draining:
            return  # the drain has its own deadlines, and who has ended is silent
        elif silent_s >= patience_s or self._is_arbiter_silent(slot, now_s):
            _log.error("child.silent", child=f"{slot.role}/{slot.worker}",
                       pid=pid, silent_s=round(silent_s, 1))
            slot.aborted_at_s = now_s
            os.kill(pid, signal.SIGABRT)
        elif slot.role == _HTTP:
            self._watch_gunicorn_workers(pid, now_s)

    def _is_arbiter_silent(self, slot: _Slot, now_s: float) -> bool:
        """Whether the HTTP arbiter stands still. Its workers go on serving, but nobody replaces
        them when they die."""
        if slot.role != _HTTP:
            return False
        beat_s = last_beat_s(self._runtime.arbiter)
        if beat_s is None or beat_s < slot.started_s:
            return False  # it boots
        return now_s - beat_s >= limits.HEARTBEAT_LOST_S

    def _watch_gunicorn_workers(self, arbiter_pid: int, now_s: float) -> None:
        """A silent worker of the arbiter is aborted here; the arbiter replaces it."""
        for beat in self._heartbeats.of(_HTTP):
            silent = now_s - beat.at_s >= limits.HEARTBEAT_LOST_S
            if not silent or _parent_of(beat.pid) != arbiter_pid:
                continue
            aborted_s = self._aborted_workers.get(beat.pid)
            if aborted_s is None:
                _log.error("child.silent", child=f"http/{beat.worker}", pid=beat.pid)
                metrics.WORKER_RESTARTS.labels(_HTTP, "silent").inc()
                self._aborted_workers[beat.pid] = now_s
                os.kill(beat.pid, signal.SIGABRT)
            elif now_s - aborted_s >= limits.ABORT_GRACE_S:
                os.kill(beat.pid, signal.SIGKILL)

    def _ended(self, slot: _Slot, pid: int, code: int) -> None:
        slot.pid = None
        self.on_ended(pid)
        now_s = self._clock.monotonic_s()
        up_s = now_s - slot.started_s
        for beat in self._heartbeats.of(slot.role):
            if slot.role == _HTTP or beat.worker == slot.worker:
                self._heartbeats.forget(beat.role, beat.worker)
        if slot.role == _HTTP:
            self._aborted_workers.clear()
        facts = {"child": f"{slot.role}/{slot.worker}", "pid": pid, "exit": exit_text(code),
                 "up_s": round(up_s, 1)}
        if self.draining:
            _log.info("child.ended", **facts)
            return
        reason = "silent" if slot.aborted_at_s is not None else "signal" if code < 0 else "exit"
        metrics.WORKER_RESTARTS.labels(slot.role, reason).inc()
        self.restarts += 1
        slot.failures = 1 if up_s >= limits.RESTART_RESET_S else slot.failures + 1
        slot.unready = 0 if slot.was_ready else slot.unready + 1
        delay_s = self._delay_s(slot)
        slot.start_at_s = now_s + delay_s
        _log.warning("child.died", **facts, reason=reason, restart_in_s=round(delay_s, 2))
        if slot.unready and slot.unready % limits.RESTARTS_UNTIL_REPORTED == 0:
            _log.error("role.failing", child=facts["child"], deaths_in_a_row=slot.unready,
                       hint="its log lines above say why; the role is not ready until it stays up")

    def count_dead_workers(self, dead: Iterable[Beat]) -> None:
        """Count gunicorn's workers that have ended; their arbiter starts others.

        With the arbiter they all end, which `reap` counts as one death.
        """
        self.reap()
        living = set(self.arbiter_pids())
        for beat in dead:
            was_silent = self._aborted_workers.pop(beat.pid, None) is not None
            if beat.role != _HTTP or self.draining or not living or beat.pid in living:
                continue
            self.restarts += 1
            if not was_silent:  # else counted when it was aborted
                metrics.WORKER_RESTARTS.labels(_HTTP, "died").inc()
            _log.warning("child.died", child=f"{_HTTP}/{beat.worker}", pid=beat.pid,
                         reason="silent" if was_silent else "died",
                         hint="its arbiter starts another one, and its log line above says why")

    # --- Ending them -----------------------------------------------------------------------

    def send(self, roles: tuple[str, ...], number: signal.Signals) -> None:
        """Send a signal to every child of the roles that lives."""
        for slot in self._slots:
            if slot.role in roles and slot.pid is not None:
                os.kill(slot.pid, number)

    def alive(self, roles: tuple[str, ...]) -> int:
        """How many children of the roles have not ended."""
        return sum(slot.role in roles and slot.pid is not None for slot in self._slots)

    def kill_all(self) -> int:
        """SIGKILL to every child; nothing is started any more."""
        self.draining = True
        return self.kill(tuple(self._wanted))

    def kill(self, roles: tuple[str, ...]) -> int:
        """SIGKILL to the children of the roles that live, and wait; how many there were.

        The HTTP arbiter's workers share its process group and die with it.
        """
        victims = [s for s in self._slots if s.role in roles and s.pid is not None]
        pids = [s.pid for s in victims if s.pid is not None]
        for pid in pids:
            # Before it has its process group it is killed alone, and has no children.
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        for slot, pid in zip(victims, pids, strict=True):
            _, status = os.waitpid(pid, 0)
            self._ended(slot, pid, os.waitstatus_to_exitcode(status))
        return len(victims)

    # --- How they are -----------------------------------------------------------------------

    def views(self) -> dict[str, RoleView]:
        """Every role that is switched on."""
        out = {}
        for role, wanted in self._wanted.items():
            slots = [slot for slot in self._slots if slot.role == role]
            if role == _HTTP:
                pids = sorted(beat.pid for beat in self._heartbeats.of(role))
            else:
                pids = sorted(slot.pid for slot in slots if slot.pid is not None)
            failing = any(slot.unready >= limits.RESTARTS_UNTIL_REPORTED for slot in slots)
            ready = 0 if failing else min(wanted, len(self._heartbeats.ready_pids(role)))
            out[role] = RoleView(wanted, ready, pids, failing)
        return out


def _nobody(pid: int) -> None:
    return


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])

