"""Children: starts the worker processes, watches them, and starts a successor when one dies.

A role with an arbiter (HTTP, see `pylon.roles`) has one child: gunicorn's arbiter, which forks
PYLON_HTTP_WORKERS workers itself. Each other role has as many children as workers. All workers of a
role share its listening socket, if it has one. The template forks the children
(`supervisor.template`); the supervisor is their parent.

Each child keeps the settings that it was started with, and so do its successors. `begin_rollout`
starts other children beside those of a role, or in their place, and ends the old ones when the new
ones are ready (`supervisor.rollout`). Names are numbers; new children get numbers that no living
one has, since files and metrics of the workers bear their names.

A child dies or falls silent. The successor of a dead child starts after a random delay, whose bound
doubles with each early death. A silent child gets SIGABRT, and SIGKILL after
`limits.ABORT_GRACE_S`. The arbiter has a heartbeat file of its own, because its workers can
send heartbeats while the arbiter hangs.

`reap` also reaps orphans of children, because the supervisor is their subreaper. It leaves
processes alone that other threads started by `subprocess`; they have the supervisor's process
group.

Invariants: only the main thread starts and reaps children, so no pid of a slot is reused. No child
starts during a drain. Called by `supervisor.loop` and `supervisor.drain`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pylon import limits, log, metrics
from pylon.bus.file_beat import last_beat_s
from pylon.bus.fork_requests import ForkRequest, pack_environ
from pylon.bus.runtime import Runtime
from pylon.clock import Clock, RandomSource
from pylon.roles import ROLE_BY_NAME
from supervisor.heartbeats import Beat, Heartbeats
from supervisor.notify import SYSTEMD_NAMES
from supervisor.rollout import Action, Rollout, Sight
from supervisor.sockets import Listeners
from supervisor.template import ForkFailed, Template, exit_text

_log = log.get_logger("children")
_EXIT_CONFIG: Final = 78  # of a worker that cannot start with its settings
_FAILURES_OF_NEW: Final = 3  # deaths in a row after which a rollout fails


@dataclass(slots=True)
class _Slot:
    """The state of one child and its successors."""

    role: str
    worker: str  # of an arbiter: that of its first worker
    is_arbiter: bool  # the child keeps the workers of its role itself
    environ: bytes
    workers: int = 1  # that the child stands for
    is_new: bool = False  # of a rollout whose old children do not drain yet
    is_retiring: bool = False  # it drains, and its slot ends with it
    is_changing: bool = False  # it drains, and a successor with other settings starts then
    pid: int | None = None  # of the child that lives
    started_s: float = 0.0
    start_at_s: float = 0.0  # when to start the next one
    failures: int = 0  # processes in a row that ended early
    unready: int = 0  # processes in a row that never became ready
    was_ready: bool = False  # the present process was ready once
    heard_s: float = 0.0  # the last heartbeat of the present process
    aborted_at_s: float | None = None  # when it got SIGABRT because it was silent
    is_refused: bool = False  # the last process ended because it cannot start at all

    @property
    def is_draining(self) -> bool:
        return self.is_retiring or self.is_changing

    @property
    def names(self) -> list[str]:
        """Return the names of the workers."""
        return [str(int(self.worker) + index) for index in range(self.workers)]


@dataclass(frozen=True, slots=True)
class RoleView:
    """The state of a role, as `pylonctl status` shows it."""

    wanted: int
    ready: int
    pids: list[int]
    failing: bool


class Children:
    """All children. For the main thread, except `views` and `list_arbiters`."""

    def __init__(
        self, template: Template, wanted: Mapping[str, int], listeners: Listeners,
        runtime: Runtime,
        environ: Mapping[str, str], heartbeats: Heartbeats, clock: Clock, random: RandomSource,
    ) -> None:
        """Args:
            template: forks the children; it may still be starting.
            wanted: worker processes by role, those of an arbiter among them.
            environ: what every child gets, the resolved settings among it.
        """
        self._template = template
        self._wanted = dict(wanted)
        self._listeners = listeners
        self._runtime = runtime
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._heartbeats = heartbeats
        self._clock = clock
        self._random = random
        self._retired: set[int] = set()  # pids that `retire` has sent SIGTERM
        self._aborted_workers: dict[int, float] = {}  # silent gunicorn workers: when aborted
        self.draining = False
        self.on_ended: Callable[[int], None] = _ignore  # called with the pid of each ended child
        self.restarts = 0
        self._slots: list[_Slot] = []
        packed = _pack(environ)
        for role, count in self._wanted.items():
            self._slots += self._make_slots(role, count, packed)
        self.rollout: Rollout | None = None  # the present one, or the last one
        self._next_wanted: dict[str, int] = {}  # when its new children are ready
        self._changing: list[tuple[_Slot, bytes]] = []  # exclusive children, their next settings

    def list_arbiters(self) -> list[tuple[str, int]]:
        """Return role and pid of each living arbiter, which sends no metrics. Any thread may call
        it."""
        return [
            (slot.role, slot.pid)
            for slot in self._slots if slot.is_arbiter and slot.pid is not None
        ]

    def problem(self) -> str | None:
        """Return the reason why no child can ever be started; None if children can."""
        if self._template.is_broken:
            return "the template process cannot import Pylon; its own log line says why"
        return None

    # --- Rollouts --------------------------------------------------------------------------

    def begin_rollout(
        self, environ: Mapping[str, str], wanted: Mapping[str, int], drain_s: float
    ) -> None:
        """Replace the children of the roles in `wanted`. None may be under way.

        Args:
            environ: what the new children get.
            wanted: the new numbers of worker processes; those of exclusive roles do not change.
            drain_s: the longest that old children may take to end.
        """
        packed = _pack(environ)
        self._changing = []
        self._next_wanted = dict(wanted)
        for role, count in wanted.items():
            if ROLE_BY_NAME[role].is_exclusive:
                self._changing += [(slot, packed) for slot in self._slots if slot.role == role]
                continue
            added = self._make_slots(role, count, packed)
            for slot in added:
                slot.is_new = True
            self._slots += added
        self.rollout = Rollout(self._clock.monotonic_s(), limits.WORKER_BOOT_S, drain_s)

    @property
    def is_rolling(self) -> bool:
        """Return whether a rollout is under way."""
        return self.rollout is not None and not self.rollout.has_ended

    def _make_slots(self, role: str, count: int, environ: bytes) -> list[_Slot]:
        """Return slots for `count` workers, with the first names that no other slot has."""
        used = {int(n) for slot in self._slots if slot.role == role for n in slot.names}
        first = 1
        while not used.isdisjoint(range(first, first + count)):
            first += 1
        if ROLE_BY_NAME[role].is_arbiter:
            return [_Slot(role, str(first), True, environ, count)]
        return [_Slot(role, str(first + index), False, environ) for index in range(count)]

    def _advance_rollout(self, now_s: float) -> None:
        rollout = self.rollout
        if rollout is None or rollout.has_ended:
            return
        new = [slot for slot in self._slots if slot.is_new]
        changed = [slot for slot, _ in self._changing]
        failure = next((
            f"{slot.role}/{slot.worker} could not be started; its log lines say why"
            for slot in new if slot.is_refused or slot.unready >= _FAILURES_OF_NEW
        ), None)
        sight = Sight(
            now_s, all(self._is_ready(slot) for slot in new), failure,
            sum(slot.is_draining for slot in self._slots),
            all(self._is_ready(slot) for slot in changed),
        )
        self.rollout, action = rollout.advance(sight)
        if action is Action.DRAIN_OLD:
            self._drain_old(new, list(self._next_wanted))
        elif action is Action.KILL_OLD:
            self._kill_slots([slot for slot in self._slots if slot.is_draining])
        elif action is Action.KILL_NEW:
            for slot in new:
                slot.is_retiring = True
            self._kill_slots(new)
            self._slots = [slot for slot in self._slots if not slot.is_new]

    def _is_ready(self, slot: _Slot) -> bool:
        """Return whether all workers of a slot are ready."""
        ready = set(self._heartbeats.ready_pids(slot.role))
        pids = {beat.pid for beat in self._list_beats(slot) if beat.at_s >= slot.started_s}
        return slot.pid is not None and len(pids & ready) >= slot.workers

    def _drain_old(self, new: list[_Slot], roles: list[str]) -> None:
        self._wanted.update(self._next_wanted)
        exclusive = [slot for slot, _ in self._changing]
        for slot, environ in self._changing:
            slot.environ = environ
            slot.is_changing = slot.pid is not None
        for slot in self._slots:
            if slot.role in roles and slot not in new and slot not in exclusive:
                slot.is_retiring = True
        for slot in new:
            slot.is_new = False
        # One that is dead now needs no end.
        self._slots = [s for s in self._slots if not s.is_retiring or s.pid is not None]
        for slot in self._slots:
            if slot.is_draining and slot.pid is not None:
                role = ROLE_BY_NAME[slot.role]
                is_socket_role = role.port is not None and not role.is_arbiter
                os.kill(slot.pid, signal.SIGUSR2 if is_socket_role else signal.SIGTERM)

    # --- Calls of the main loop ------------------------------------------------------------

    def tick(self) -> None:
        """Reap ended children, abort silent ones, and start those that are due."""
        self.reap()
        now_s = self._clock.monotonic_s()
        if not self.draining:
            self._advance_rollout(now_s)
        for slot in self._slots:
            if slot.pid is not None:
                self._watch(slot, slot.pid, now_s)
            elif not self.draining and now_s >= slot.start_at_s and self._template.is_ready():
                self._start(slot)
        if self._template.pid is None and not self.draining and now_s >= self._template.start_at_s:
            self._template.start()

    def reap(self) -> None:
        """Reap children that have ended, the template, and orphans."""
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
                return  # the thread that started it by `subprocess` reaps it
            _, status = os.waitpid(pid, 0)
            if slot is not None:
                self._ended(slot, pid, os.waitstatus_to_exitcode(status))
            elif pid == self._template.pid:
                self._template.reaped(status)

    def next_due_s(self) -> float | None:
        """Return the monotonic time at which to start the next process; None if none waits."""
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
            slot.role, slot.worker, str(self._runtime.dir), slot.environ, str(Path.cwd()),
            self._umask,
        )
        try:
            listener = self._listeners.by_role.get(slot.role)
            slot.pid = self._template.fork(request, None if listener is None else listener.fileno())
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
        beats = [beat for beat in self._list_beats(slot) if beat.at_s >= slot.started_s]
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
        elif self.draining or slot.is_draining:
            return  # the drain has its own deadlines, and ended workers are silent
        elif silent_s >= patience_s or self._is_arbiter_silent(slot, now_s):
            _log.error("child.silent", child=f"{slot.role}/{slot.worker}",
                       pid=pid, silent_s=round(silent_s, 1))
            slot.aborted_at_s = now_s
            os.kill(pid, signal.SIGABRT)
        elif slot.is_arbiter:
            self._watch_gunicorn_workers(slot.role, pid, now_s)

    def _list_beats(self, slot: _Slot) -> list[Beat]:
        """Return the newest heartbeats of a child, or of all workers of an arbiter."""
        return [beat for beat in self._heartbeats.list_beats(slot.role)
                if beat.worker in slot.names]

    def _is_arbiter_silent(self, slot: _Slot, now_s: float) -> bool:
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

    def retire(self, pid: int) -> None:
        """End a worker as a drain does; its successor starts at once. `memory` is the reason."""
        self._retired.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    def _ended(self, slot: _Slot, pid: int, code: int) -> None:
        slot.pid = None
        self.on_ended(pid)
        now_s = self._clock.monotonic_s()
        up_s = now_s - slot.started_s
        for beat in self._list_beats(slot):
            self._heartbeats.forget(beat.role, beat.worker)
        if slot.is_arbiter:
            self._aborted_workers.clear()
        facts = {"child": f"{slot.role}/{slot.worker}", "pid": pid, "exit": exit_text(code),
                 "up_s": round(up_s, 1)}
        if self.draining or slot.is_draining:
            _log.info("child.ended", **facts)
            if slot.is_changing:
                slot.is_changing = False
                slot.start_at_s = now_s
            elif slot.is_retiring and slot in self._slots:
                self._slots.remove(slot)
            return
        if pid in self._retired:
            self._retired.discard(pid)
            metrics.WORKER_RESTARTS.labels(slot.role, "memory").inc()
            self.restarts += 1
            slot.start_at_s = now_s
            _log.info("child.retired", **facts)
            return
        slot.is_refused = code == _EXIT_CONFIG
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

    def count_dead_workers(self, dead: Sequence[Beat]) -> None:
        """Count gunicorn's workers that have ended; their arbiter starts others.

        With the arbiter they all end, which `reap` counts as one death.
        """
        retiring = {beat.pid for beat in dead if self._is_retiring(beat)}  # `reap` forgets them
        self.reap()
        living = {pid for _, pid in self.list_arbiters()}
        for beat in dead:
            was_silent = self._aborted_workers.pop(beat.pid, None) is not None
            has_arbiter = ROLE_BY_NAME[beat.role].is_arbiter
            if not has_arbiter or self.draining or not living or beat.pid in living:
                continue
            if beat.pid in retiring:
                continue
            self.restarts += 1
            if beat.pid in self._retired:
                self._retired.discard(beat.pid)
                metrics.WORKER_RESTARTS.labels(beat.role, "memory").inc()
                _log.info("child.retired", child=f"{beat.role}/{beat.worker}", pid=beat.pid)
                continue
            if not was_silent:  # else counted when it was aborted
                metrics.WORKER_RESTARTS.labels(beat.role, "died").inc()
            _log.warning("child.died", child=f"{beat.role}/{beat.worker}", pid=beat.pid,
                         reason="silent" if was_silent else "died",
                         hint="its arbiter starts another one, and its log line above says why")

    def _is_retiring(self, beat: Beat) -> bool:
        """Return whether a worker belongs to an arbiter that drains."""
        return any(
            slot.is_draining and slot.role == beat.role and beat.worker in slot.names
            for slot in self._slots
        )

    # --- The end of children ---------------------------------------------------------------

    def send(self, roles: tuple[str, ...], number: signal.Signals) -> None:
        """Send a signal to every child of the roles that lives."""
        for slot in self._slots:
            if slot.role in roles and slot.pid is not None:
                os.kill(slot.pid, number)

    def alive(self, roles: tuple[str, ...]) -> int:
        """Return how many children of the roles have not ended."""
        return sum(slot.role in roles and slot.pid is not None for slot in self._slots)

    def kill_all(self) -> int:
        """Kill every child, start no more, and return how many there were."""
        self.draining = True
        return self.kill(tuple(self._wanted))

    def kill(self, roles: tuple[str, ...]) -> int:
        """Kill the living children of the roles, wait for their end, and return their number.

        The workers of an arbiter share its process group and die with it.
        """
        return self._kill_slots([slot for slot in self._slots if slot.role in roles])

    def _kill_slots(self, slots: list[_Slot]) -> int:
        victims = [slot for slot in slots if slot.pid is not None]
        pids = [slot.pid for slot in victims if slot.pid is not None]
        for pid in pids:
            # A child that has no process group of its own yet has no children either.
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        for slot, pid in zip(victims, pids, strict=True):
            _, status = os.waitpid(pid, 0)
            self._ended(slot, pid, os.waitstatus_to_exitcode(status))
        return len(victims)

    # --- Status -----------------------------------------------------------------------------

    def views(self) -> dict[str, RoleView]:
        """Return the state of every role that is switched on."""
        view_by_role = {}
        for role, wanted in self._wanted.items():
            slots = [slot for slot in self._slots if slot.role == role and not slot.is_new]
            if any(slot.is_arbiter for slot in slots):
                pids = sorted(beat.pid for beat in self._heartbeats.list_beats(role))
            else:
                pids = sorted(slot.pid for slot in slots if slot.pid is not None)
            failing = any(slot.unready >= limits.RESTARTS_UNTIL_REPORTED for slot in slots)
            ready = 0 if failing else min(wanted, len(self._heartbeats.ready_pids(role)))
            view_by_role[role] = RoleView(wanted, ready, pids, failing)
        return view_by_role


def _pack(environ: Mapping[str, str]) -> bytes:
    return pack_environ({k: v for k, v in environ.items() if k not in SYSTEMD_NAMES})


def _ignore(pid: int) -> None:
    return


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])

