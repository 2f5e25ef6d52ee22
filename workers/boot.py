"""Boot: starts a worker after its fork, and reports its status to the supervisor.

The template (`workers.template`) loads the app with `preload_app`, and forks a worker with a
listening socket and a few variables (`pylon.bus.child`). `boot` makes a `WorkerContext` of them:
the app with its settings, the reader pool, the socket. `run_status` sends a `WorkerStatus` once a
second. It also measures how late its own timer fires: so long other code kept the event loop busy.
When a busy worker becomes quiet, `run_status` releases the memory that the load has left.

Invariant: a worker never outlives its parent, which is the supervisor or gunicorn's arbiter
(PR_SET_PDEATHSIG, and a check that the parent had not died before). Metric:
pylon_event_loop_stall_seconds. Called by `workers.template` and the module of each role.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

import gevent
import msgspec
from gevent.event import Event
from gevent.hub import get_hub
from msgspec import field

from pylon import config as settings
from pylon import log, metrics
from pylon.app import App, load_app
from pylon.auth.session_cache import UsedSessions
from pylon.bus.child import ChildEnv
from pylon.bus.messages import WorkerStatus
from pylon.bus.runtime import Runtime
from pylon.bus.status import StatusSender
from pylon.clock import Clock
from pylon.config import Config
from pylon.errors import PylonError, StartRefused
from pylon.limiter import RateLimiter, RateTable
from pylon.runtime import memory
from pylon.runtime.parent_death import die_with_parent
from pylon.storage.factory import import_readers, open_store
from pylon.storage.interface import Store

EXIT_CONFIG: Final = 78  # EX_CONFIG: starting again with the same settings cannot help
_HEARTBEAT_S: Final = 1.0
_STALL_CHECK_S: Final = 0.1  # the period of the timer that measures stalls of the event loop
# PERF: an idle worker with ten timers a second used 2.5 ms of CPU time a second, half of it here.
_IDLE_HEARTBEAT_S: Final = 2.0
_IDLE_SHARE: Final = 0.02  # of one core; a worker that uses less is idle
_QUIET_SHARE: Final = 0.005  # of one core; a worker that uses less is quiet
_RELEASE_CPU_S: Final = 0.005  # a quiet worker that has used more since then releases memory

_log = log.get_logger("worker")
_preloaded: App | None = None  # set in the template, before the fork


class WorkerContext(msgspec.Struct, frozen=True):
    """The app, the socket and the store of a worker after its boot."""

    app: App
    runtime: Runtime
    role: str
    worker: str  # unique within the role
    listener: socket.socket | None  # None for a role without a port
    reader_pool: Store
    clock: Clock
    limiter: RateLimiter
    used_sessions: UsedSessions = field(default_factory=UsedSessions)
    status_changed: Event = field(default_factory=Event)  # set to report a readiness at once

    @property
    def listen_socket(self) -> socket.socket:
        """Return the listening socket. Only a role with a port has one."""
        if self.listener is None:
            raise RuntimeError(f"the role {self.role} has no listening socket")
        return self.listener


def boot() -> WorkerContext:
    """Read the environment, arrange the end with the parent, load the app, open the reader pool.

    Raises:
        SystemExit: 78 if the app cannot be loaded (the reason is logged), 1 if the supervisor has
            ended already.
    """
    metrics.reset()
    try:
        child = ChildEnv.from_environ(os.environ)
    except StartRefused as ex:
        _log.error("worker.refused", code=ex.code, message=ex.message)
        raise SystemExit(EXIT_CONFIG) from ex
    die_with_parent(child.supervisor_pid)
    try:
        runtime = Runtime(child.runtime_dir)
        app = _take_preloaded_app() or load_app(
            settings.load(os.environ).config, runtime.manifest
        )
        config = app.config
        configure_log(config, child.role, child.worker)
        get_hub().print_exception = _log_greenlet
        reader_pool = open_store(config).open_readers(app.manifest, app.clock)
    except StartRefused as ex:
        log.configure("json", "info", child.role, child.worker)
        _log.error("worker.refused", code=ex.code, message=ex.message)
        raise SystemExit(EXIT_CONFIG) from ex
    return WorkerContext(
        app=app,
        runtime=runtime,
        role=child.role,
        worker=child.worker,
        listener=None if child.listen_fd is None else _inherited(child.listen_fd),
        reader_pool=reader_pool,
        clock=app.clock,
        limiter=RateLimiter(
            RateTable(runtime.rates), app.clock, is_shared=config.database_url is not None
        ),
    )


def preload_app(environ: Mapping[str, str], runtime: Runtime) -> App | None:
    """Load the app in the template, for the workers that it forks with these settings. The modules
    of the store come with it, but no connection: a worker opens its own after the fork.

    Returns:
        None if it cannot be loaded: each worker tries it again in `boot`, logs the reason and ends.

    PERF: each worker would copy 3.5 MiB of pages and take 0.02 s to load the app itself.
    """
    global _preloaded
    _preloaded = None
    try:
        app = load_app(settings.load(environ).config, runtime.manifest)
    except (PylonError, OSError):
        return None
    import_readers(app.config)
    _preloaded = app
    log.configure(app.config.log_format, app.config.log_level, "template", "")
    return app


def preloaded_config() -> Config | None:
    """Return the settings that the template has read for this process; None if it read none."""
    return None if _preloaded is None else _preloaded.config


def configure_log(config: Config, role: str, worker: str) -> None:
    """Configure the log of a worker, unless the template has done it with the app."""
    if _preloaded is None:
        log.configure(config.log_format, config.log_level, role, worker)
    else:
        log.name_process(role, worker)


def _take_preloaded_app() -> App | None:
    """Return the app that the template has loaded. Its ids begin anew in this process."""
    if _preloaded is not None:
        _preloaded.ids.begin()
    return _preloaded


def run_status(
    booted: WorkerContext, ready: Callable[[], bool], connections: Callable[[], int]
) -> NoReturn:
    """Report once a second, and when `booted.status_changed` is set, until the process ends.

    An idle worker reports every 2 s. It also measures stalls every 2 s only, because a stall delays
    nobody while the worker is idle. Run it in a greenlet of its own.

    Args:
        ready: returns whether the worker serves.
        connections: returns the number of open connections.
    """
    sender = StatusSender(booted.runtime)
    clock = booted.clock
    pid = os.getpid()
    report_s = clock.monotonic_s()
    reported_s = report_s - _HEARTBEAT_S
    cpu_s = 0.0
    stall_s = 0.0
    check_s = _STALL_CHECK_S
    unreleased_s = 0.0  # CPU time since memory was released
    while True:
        now_s = clock.monotonic_s()
        if now_s >= report_s or booted.status_changed.is_set():
            booted.status_changed.clear()
            used_s = time.process_time() - cpu_s
            elapsed_s = now_s - reported_s
            is_idle = used_s < _IDLE_SHARE * elapsed_s
            cpu_s += used_s
            reported_s = now_s
            check_s = _IDLE_HEARTBEAT_S if is_idle else _STALL_CHECK_S
            report_s = now_s + (_IDLE_HEARTBEAT_S if is_idle else _HEARTBEAT_S)
            unreleased_s += used_s
            if used_s < _QUIET_SHARE * elapsed_s and unreleased_s >= _RELEASE_CPU_S:
                unreleased_s = 0.0
                # PERF: after 100,000 inserts and reads of every kind 6 MiB of each HTTP worker, and
                # the 50 MiB of the database file that the workers had mapped.
                booted.reader_pool.release_memory()
                memory.give_back()
            metrics.EVENT_LOOP_STALL.set(stall_s)
            stall_s = 0.0
            sender.send(
                WorkerStatus(
                    role=booted.role,
                    worker=booted.worker,
                    pid=pid,
                    ready=ready(),
                    connections=connections(),
                    metrics=metrics.take_changes(),
                    used_sessions=booted.used_sessions.take_all(),
                    spent_rates=booted.limiter.take_spent(),
                )
            )
        due_s = clock.monotonic_s() + check_s
        if not booted.status_changed.wait(check_s):
            stall_s = max(stall_s, clock.monotonic_s() - due_s)


def _log_greenlet(
    context: object, kind: object, error: BaseException | None, trace: object
) -> None:
    """Log an error that no greenlet handled, in place of gevent's handler (`print_exception`).

    gevent's handler writes tracebacks between the lines of the log. gevent also calls the handler
    for a `PylonError` in a thread of its pool. The greenlet that waits for the thread handles that
    error, so this function ignores it.
    """
    if isinstance(error, PylonError) and not isinstance(context, gevent.Greenlet):
        return
    _log.exception(
        "greenlet.died", error=error or RuntimeError("an unknown error"), greenlet=str(context)
    )


def _inherited(listen_fd: int) -> socket.socket:
    listener = socket.socket(fileno=listen_fd)
    listener.setblocking(False)
    return listener
