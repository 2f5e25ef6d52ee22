"""Generations: reload, scaling and restart of a running server, one at a time.

A *generation* is the set of workers with the same settings and code. A change is prepared in the
thread of a control connection, or in one of its own after a SIGHUP: it reads and checks everything
anew, and raises while nothing has changed yet. Then the main loop carries it out:

- WORKERS: other workers take the place of the present ones (`supervisor.rollout`); the supervisor
  with the writer stays. So it does where settings of workers alone, or the app's files, changed.
- SERVER: the manifest or a setting of the supervisor changed. The server drains and begins anew
  within this process. Connections wait in the backlog of the listeners meanwhile.
- SCALE: as WORKERS, for one role with another number of workers.
- RESTART: as SERVER, but then the process executes the program on disk anew: it takes over new
  code, and every setting. A new process of that program has checked them before.

Invariants: a refused change leaves everything as it was. Between `prepare_…` and the end of a
change every other one is refused; a SIGHUP is carried out afterwards, once. `Lifetime` is what
outlives a run within this process. Metrics: pylon_generation, pylon_reloads_total. Made by
`supervisor.main`, called by `supervisor.loop` and `supervisor.control_handlers`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import msgspec
from msgspec import field

from pylon import limits, log, metrics
from pylon.config import Config, Loaded
from pylon.errors import (
    PylonError,
    ReloadBusy,
    ReloadRefused,
    StartRefused,
)
from pylon.manifest.model import Manifest
from pylon.roles import ROLE_NAMES
from pylon.startup import find_problems, load_checked, read_manifest
from supervisor.children import Children
from supervisor.events import ChangeAsked, Events, Progress
from supervisor.notify import Notifier
from supervisor.rollout import Phase
from supervisor.setting_changes import (
    change_of,
    changed_settings,
    check_scale,
    is_exclusive,
    refuse_restart_settings,
    with_workers,
)

_log = log.get_logger("generations")


class Kind(Enum):
    """How a change is carried out."""

    WORKERS = "workers"
    SERVER = "server"
    SCALE = "scale"
    RESTART = "restart"

    @property
    def ends_run(self) -> bool:
        """Return whether the run ends for it, and another one follows."""
        return self in (Kind.SERVER, Kind.RESTART)


class Change(msgspec.Struct, frozen=True):
    """A change that was checked. `changed` names the settings that differ."""

    kind: Kind
    read: Loaded
    loaded: Loaded  # `read`, with the numbers of workers that operators have chosen
    wanted: dict[str, int]
    changed: tuple[str, ...] = ()
    progress: Progress = field(default_factory=Progress)


class Lifetime(msgspec.Struct):
    """What outlives a run: the settings, and what operators have changed since the start."""

    read: Loaded  # from files and environment
    loaded: Loaded  # the same, with `scaled`
    reread: Callable[[], Loaded] | None = None  # None: this server cannot be reloaded
    check_program: Callable[[], None] | None = None  # raises ReloadRefused; None: no restart
    announce: Callable[[Loaded], None] = lambda _: None  # for a run that begins, after a reload
    generation: int = 1
    scaled: dict[str, int] = field(default_factory=dict)  # workers by role
    restarts: bool = False  # the program is to be executed anew

    def adopt(self, change: Change) -> None:
        """Note a change that was carried out, or for which the next run begins."""
        self.scaled |= change.wanted if change.kind is Kind.SCALE else {}
        self.scaled = {
            role: count for role, count in self.scaled.items()
            if change.read.config.workers_of(role) != count
            and change.loaded.config.workers_of(role) == count
        }
        self.read, self.loaded = change.read, change.loaded
        self.generation += 1


class Generations:
    """The changes of one run."""

    def __init__(
        self, lifetime: Lifetime, manifest: Manifest, children: Children, events: Events,
        notifier: Notifier, make_environ: Callable[[Loaded, int], Mapping[str, str]],
    ) -> None:
        """
        Args:
            make_environ: returns the environment of the children of a generation.
        """
        self._lifetime = lifetime
        self._manifest = manifest
        self._children = children
        self._events = events
        self._notifier = notifier
        self._make_environ = make_environ
        self._gate = threading.Lock()  # held from the preparation of a change to its end
        self._asked_again = False  # a SIGHUP came meanwhile
        self._current: Change | None = None  # the one that the main loop carries out
        self._phase: Phase | None = None
        self.server_change: Change | None = None  # for which this run must end
        metrics.GENERATION.set(lifetime.generation)

    @property
    def number(self) -> int:
        """Return the number of the present generation."""
        return self._lifetime.generation

    @property
    def scaled(self) -> dict[str, int]:
        """Return the numbers of workers that an operator has chosen since the start, by role."""
        return dict(self._lifetime.scaled)

    @property
    def phase(self) -> str | None:
        """Return the phase of the change that is under way, if any."""
        return None if self._phase is None else self._phase.value

    # --- Preparation, in any thread ---------------------------------------------------------

    def prepare_reload(self) -> Change:
        """Read and check everything anew. On return the change is under way.

        Raises:
            ReloadBusy: another change is under way.
            ReloadRefused: the new settings, manifest or app cannot be used, or need a restart.
        """
        self._begin_preparation()
        try:
            change = self._check_reload()
        except BaseException:
            self._gate.release()
            metrics.RELOADS.labels("refused").inc()
            raise
        self._events.put(ChangeAsked(change))
        return change

    def prepare_scale(self, wanted: Mapping[str, Any]) -> Change:
        """Check the new numbers of workers. On return the change is under way.

        Raises:
            ReloadBusy: another change is under way.
            InvalidData: a role cannot be scaled, or not so.
        """
        self._begin_preparation()
        try:
            checked = check_scale(self._lifetime.loaded.config, wanted)
            loaded = with_workers(self._lifetime.loaded, checked)
        except BaseException:
            self._gate.release()
            raise
        change = Change(Kind.SCALE, self._lifetime.read, loaded, checked)
        self._events.put(ChangeAsked(change))
        return change

    def prepare_restart(self) -> Change:
        """Have the program on disk check itself and its settings. On return the restart is under
        way.

        Raises:
            ReloadBusy: another change is under way.
            ReloadRefused: the program or its settings cannot be used.
        """
        self._begin_preparation()
        lifetime = self._lifetime
        try:
            if lifetime.check_program is None:
                raise ReloadRefused("This server was started by a program that cannot restart it: "
                                    "stop it and start it again")
            if lifetime.loaded.config.in_memory and not lifetime.loaded.config.dev_mode:
                raise ReloadRefused("PYLON_IN_MEMORY is on, and a restart would lose the database")
            lifetime.check_program()
        except BaseException:
            self._gate.release()
            metrics.RELOADS.labels("refused").inc()
            raise
        change = Change(Kind.RESTART, lifetime.read, lifetime.read, {})
        self._events.put(ChangeAsked(change))
        return change

    def _begin_preparation(self) -> None:
        if not self._gate.acquire(blocking=False):
            raise ReloadBusy(
                f"A reload is under way (phase: {self.phase or 'checks'})",
                hint="Try again when it has ended: pylonctl status shows it",
            )

    def _check_reload(self) -> Change:
        lifetime = self._lifetime
        if lifetime.reread is None:
            raise ReloadRefused("This server was started by a program that cannot reload it: stop "
                                "it and start it again")
        problems: list[StartRefused] = []
        try:
            read = lifetime.reread()
            refuse_restart_settings(changed_settings(lifetime.read, read), read)
            problems = list(find_problems(read, os.environ, _try_manifest(read.config)))
            manifest = load_checked(read)
        except ReloadRefused:
            raise
        except StartRefused as ex:
            problems = problems or [ex]
        if problems:
            more = f" (and {len(problems) - 1} more: pylonctl check-config lists them)"
            raise ReloadRefused(problems[0].message + (more if len(problems) > 1 else ""))
        loaded = with_workers(read, {
            role: count for role, count in lifetime.scaled.items()
            if read.config.workers_of(role) == lifetime.read.config.workers_of(role)
        })
        changed = tuple(changed_settings(lifetime.loaded, loaded))
        on = {role: loaded.config.workers_of(role) for role in ROLE_NAMES}
        was_on = {role: lifetime.loaded.config.workers_of(role) for role in ROLE_NAMES}
        needs_server = (
            manifest.text != self._manifest.text
            or any(change_of(name) == "server" for name in changed)
            or any(bool(on[role]) != bool(was_on[role]) for role in ROLE_NAMES)
            or any(on[role] != was_on[role] for role in ROLE_NAMES if is_exclusive(role))
        )
        if needs_server and loaded.config.in_memory and not loaded.config.dev_mode:
            raise ReloadRefused("PYLON_IN_MEMORY is on, and this reload would lose the database: "
                                "only workers can be reloaded, not the manifest")
        wanted = {role: count for role, count in on.items() if count}
        kind = Kind.SERVER if needs_server else Kind.WORKERS
        return Change(kind, read, loaded, wanted, changed)

    # --- In the main thread -----------------------------------------------------------------

    def hang_up(self) -> None:
        """SIGHUP: reload, or do so after the change that is under way."""
        if self._lifetime.reread is None:
            _log.warning("reload.unsupported", hint="settings are read at start: restart")
            return
        if self._gate.locked():
            self._asked_again = True
            _log.info("reload.queued", hint="it begins when the change under way has ended")
            return
        threading.Thread(target=self._reload, name="reload", daemon=True).start()

    def _reload(self) -> None:
        try:
            self.prepare_reload()
        except ReloadBusy:
            self._asked_again = True
            _log.info("reload.queued", hint="it begins when the change under way has ended")
        except PylonError as ex:
            _log.error("reload.refused", code=ex.code, message=ex.message, hint=ex.hint)

    def renew(self) -> bool:
        """Begin anew with the same settings: drain, and start again within this process.

        Returns: False if a change is under way, or the database is in memory and would be lost.
        """
        lifetime = self._lifetime
        if lifetime.loaded.config.in_memory or not self._gate.acquire(blocking=False):
            return False
        self.begin(Change(Kind.SERVER, lifetime.read, lifetime.loaded, {}))
        return True

    def begin(self, change: Change) -> None:
        """Carry out a change."""
        self._current = change
        lifetime = self._lifetime
        _log.info("reload.begun", kind=change.kind.value, generation=lifetime.generation + 1,
                  changed=list(change.changed), workers=change.wanted)
        self._notifier.reloading()
        if change.kind.ends_run:
            # The control socket closes with this run, and clients look for the next one.
            change.progress.publish(
                step="draining", kind=change.kind.value, generation=lifetime.generation + 1,
                done=True, ok=True,
            )
            self.server_change = change
            return
        environ = self._make_environ(change.loaded, lifetime.generation + 1)
        config = change.loaded.config
        self._children.begin_rollout(
            environ, change.wanted,
            config.drain_s + config.drain_spread_s + limits.DRAIN_GRACE_S,
        )
        self._phase = Phase.STARTING
        change.progress.publish(step=Phase.STARTING.value, kind=change.kind.value,
                                workers=change.wanted)

    def abandon(self) -> None:
        """Give up the change that is under way: the server stops."""
        change = self._current
        if change is not None and not change.kind.ends_run:
            change.progress.publish(**self._fail("the server stops"), done=True)

    def tick(self) -> None:
        """Report the progress of a rollout. The main loop calls it after each event."""
        change, rollout = self._current, self._children.rollout
        if change is None or rollout is None or change.kind.ends_run:
            return
        if rollout.phase is not self._phase and not rollout.has_ended:
            self._phase = rollout.phase
            change.progress.publish(step=rollout.phase.value)
        if not rollout.has_ended:
            return
        self._current = self._phase = None
        self._notifier.ready()
        if rollout.phase is Phase.FAILED:
            last = self._fail(f"{rollout.failure}; the workers from before serve on")
        else:
            last = self._finish(change, killed=rollout.killed)
        self._gate.release()  # first: whoever is told of the end may ask for the next change
        change.progress.publish(**last, done=True)
        if self._asked_again:
            self._asked_again = False
            self.hang_up()

    def _finish(self, change: Change, *, killed: bool) -> dict[str, Any]:
        lifetime = self._lifetime
        lifetime.adopt(change)
        metrics.GENERATION.set(lifetime.generation)
        metrics.RELOADS.labels("done").inc()
        _log.info("reload.done", generation=lifetime.generation, killed=killed)
        if change.kind is Kind.WORKERS:
            lifetime.announce(lifetime.loaded)
        return {"step": "done", "generation": lifetime.generation, "killed": killed, "ok": True}

    def _fail(self, why: str) -> dict[str, Any]:
        metrics.RELOADS.labels("failed").inc()
        _log.error("reload.failed", error=why)
        return {"step": "failed", "message": why, "ok": False}


def _try_manifest(config: Config) -> Manifest | StartRefused:
    try:
        return read_manifest(config)
    except StartRefused as ex:
        return ex
