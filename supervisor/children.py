"""Children: starts the worker processes, and a successor when one dies.

A role with an arbiter (HTTP, see `pylon.roles`) has one child: gunicorn's arbiter, which forks
PYLON_HTTP_WORKERS workers itself. Each other role has as many children as workers. All workers of a
role share its listening socket, if it has one. The template forks the children
(`supervisor.template`); the supervisor is their parent.

Each child keeps the settings that it was started with, and so do its successors. `begin_rollout`
starts other children beside those of a role, or in their place, and ends the old ones when the new
ones are ready (`supervisor.rollout`). Names are numbers; new children get numbers that no living
one has, since files and metrics of the workers bear their names.

The successor of a dead child starts after a random delay, whose bound doubles with each early
death. `supervisor.child_watch` ends silent children.

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
from pathlib import Path
from typing import Final

import msgspec

from pylon import limits, log, metrics
from pylon.bus.fork_requests import ForkRequest, pack_environ
from pylon.bus.runtime import Runtime
from pylon.clock import Clock, RandomSource
from pylon.roles import ROLE_BY_NAME
from supervisor.child_watch import ChildWatch
from supervisor.heartbeats import Beat, Heartbeats
from supervisor.notify import SYSTEMD_NAMES
from supervisor.rollout import Action, Rollout, Sight
from supervisor.slots import Slot, make_slots
from supervisor.sockets import Listeners
from supervisor.template import ForkFailed, Template, exit_text

_log = log.get_logger("children")
_EXIT_CONFIG: Final = 78  # of a worker that cannot start with its settings
_FAILURES_OF_NEW: Final = 3  # deaths in a row after which a rollout fails


class RoleView(msgspec.Struct, frozen=True):
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
        self._watch = ChildWatch(runtime, heartbeats)
        self.draining = False
        self.on_ended: Callable[[int], None] = _ignore  # called with the pid of each ended child
        self.restarts = 0
        self._slots: list[Slot] = []
        packed = _pack(environ)
        for role, count in self._wanted.items():
            self._slots += make_slots(self._slots, role, count, packed)
        self.rollout: Rollout | None = None  # the present one, or the last one
        self._next_wanted: dict[str, int] = {}  # when its new children are ready
        self._changing: list[tuple[Slot, bytes]] = []  # exclusive children, their next settings

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
            added = make_slots(self._slots, role, count, packed)
            for slot in added:
                slot.is_new = True
            self._slots += added
        self.rollout = Rollout(self._clock.monotonic_s(), limits.WORKER_BOOT_S, drain_s)

    @property
    def is_rolling(self) -> bool:
        """Return whether a rollout is under way."""
        return self.rollout is not None and not self.rollout.has_ended

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

    def _is_ready(self, slot: Slot) -> bool:
        """Return whether all workers of a slot are ready."""
        ready = set(self._heartbeats.ready_pids(slot.role))
        pids = {beat.pid for beat in self._watch.list_beats(slot) if beat.at_s >= slot.started_s}
        return slot.pid is not None and len(pids & ready) >= slot.workers

    def _drain_old(self, new: list[Slot], roles: list[str]) -> None:
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
                self._watch.check(slot, slot.pid, now_s, is_draining=self.draining)
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

    def _start(self, slot: Slot) -> None:
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

    def _delay_s(self, slot: Slot) -> float:
        longest_s = min(
            limits.RESTART_DELAY_MAX_S, limits.RESTART_DELAY_FIRST_S * 2.0 ** (slot.failures - 1)
        )
        return self._random.uniform(0.0, longest_s)

    def retire(self, pid: int) -> None:
        """End a worker as a drain does; its successor starts at once. `memory` is the reason."""
        self._retired.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    def _ended(self, slot: Slot, pid: int, code: int) -> None:
        slot.pid = None
        self.on_ended(pid)
        now_s = self._clock.monotonic_s()
        up_s = now_s - slot.started_s
        for beat in self._watch.list_beats(slot):
            self._heartbeats.forget(beat.role, beat.worker)
        if slot.is_arbiter:
            self._watch.forget_workers()
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
            was_silent = self._watch.forget_worker(beat.pid)
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

    def _kill_slots(self, slots: list[Slot]) -> int:
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
