"""How every worker process comes up, and how it says that it is alive.

The template (`workers.template`) forks a worker with a listening socket and a few variables
(`pylon.bus.child`). `boot` turns that into a `WorkerContext`: the app, the settings, the reader
pool, the socket. `run_status` then reports once a second, and measures how late its own timer
fires, which is how long something kept the hub from running.

Invariant: a worker never outlives its parent, the supervisor or gunicorn's arbiter
(PR_SET_PDEATHSIG, and a check that the parent had not died before that was set). Called by the
module of each role.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NoReturn

import gevent
from gevent.event import Event
from gevent.hub import get_hub

from pylon import config as settings
from pylon import log, metrics
from pylon.app import App, load_app
from pylon.auth.session_cache import UsedGuests
from pylon.bus.child import ChildEnv
from pylon.bus.messages import WorkerStatus
from pylon.bus.runtime import Runtime
from pylon.bus.status import StatusSender
from pylon.clock import Clock
from pylon.config import Config
from pylon.errors import PylonError, StartRefused
from pylon.ids import RowIds
from pylon.limiter import RateLimiter, RateTable
from pylon.runtime.interpreter import freeze_template
from pylon.runtime.parent_death import die_with_parent
from pylon.storage.factory import open_store
from pylon.storage.interface import Store

EXIT_CONFIG: Final = 78  # EX_CONFIG: starting again with the same settings cannot help
_HEARTBEAT_S: Final = 1.0
_TICK_S: Final = 0.1  # how finely a stall of the hub is measured
# PERF: an idle worker with ten ticks a second used 2.5 ms of CPU time a second, half of it here.
_IDLE_HEARTBEAT_S: Final = 2.0
_IDLE_SHARE: Final = 0.02  # of one core; a worker that uses less is idle

_log = log.get_logger("worker")
_prepared: tuple[tuple[dict[str, str], Path], App] | None = None  # before the fork


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker has when it begins."""

    app: App
    runtime: Runtime
    role: str
    worker: str  # unique within the role
    listen_socket: socket.socket
    reader_pool: Store
    clock: Clock
    limiter: RateLimiter
    used_guests: UsedGuests = field(default_factory=UsedGuests)
    status_changed: Event = field(default_factory=Event)  # readiness: report it at once


def boot() -> WorkerContext:
    """Read the environment, tie this process to its supervisor, load the app.

    Raises:
        SystemExit: 78 when the app cannot be loaded (the reason is logged), 1 when the
            supervisor is already gone.
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
        app = _prepared_app() or load_app(settings.load(os.environ).config, runtime.manifest)
        config = app.config
        log.configure(config.log_format, config.log_level, child.role, child.worker)
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
        listen_socket=_inherited(child.listen_fd),
        reader_pool=reader_pool,
        clock=app.clock,
        limiter=RateLimiter(RateTable(runtime.rates), app.clock),
    )


def prepare(environ: Mapping[str, str], runtime_dir: Path) -> None:
    """Load the app in the template, for the workers that it forks with these settings.

    PERF: each worker would copy 3.5 MiB of pages and take 0.02 s to do the same.
    An app that cannot be loaded is left to the worker, which says why and ends.
    """
    global _prepared
    key = (dict(environ), runtime_dir)
    if _prepared is not None and _prepared[0] == key:
        return
    try:
        app = load_app(settings.load(environ).config, Runtime(runtime_dir).manifest)
    except (PylonError, OSError):
        _prepared = None
        return
    _prepared = (key, app)
    freeze_template()


def prepared_config() -> Config | None:
    """Return the settings of this process, if the template has read them."""
    return None if _prepared is None else _prepared[1].config


def _prepared_app() -> App | None:
    """Return the app that the template has loaded, with ids of this process."""
    if _prepared is None:
        return None
    app = _prepared[1]
    return replace(app, ids=RowIds(app.clock, app.random))


def run_status(
    booted: WorkerContext, ready: Callable[[], bool], connections: Callable[[], int]
) -> NoReturn:
    """Report once a second, and when readiness changes, until the process ends.

    `booted.status_changed` is set when readiness changes. An idle worker reports every 2 s, and
    measures stalls of its hub no more often: a stall would delay nothing.
    Run it in a greenlet of its own.
    """
    sender = StatusSender(booted.runtime)
    clock = booted.clock
    pid = os.getpid()
    report_s = clock.monotonic_s()
    reported_s = report_s - _HEARTBEAT_S
    cpu_s = 0.0
    stall_s = 0.0
    tick_s = _TICK_S
    while True:
        now_s = clock.monotonic_s()
        if now_s >= report_s or booted.status_changed.is_set():
            booted.status_changed.clear()
            used_s = time.process_time() - cpu_s
            is_idle = used_s < _IDLE_SHARE * (now_s - reported_s)
            cpu_s += used_s
            reported_s = now_s
            tick_s = _IDLE_HEARTBEAT_S if is_idle else _TICK_S
            report_s = now_s + (_IDLE_HEARTBEAT_S if is_idle else _HEARTBEAT_S)
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
                    used_guests=booted.used_guests.take_all(),
                )
            )
        due_s = clock.monotonic_s() + tick_s
        if not booted.status_changed.wait(tick_s):
            stall_s = max(stall_s, clock.monotonic_s() - due_s)


def _log_greenlet(
    context: object, kind: object, error: BaseException | None, trace: object
) -> None:
    """In place of gevent's own, which writes tracebacks between the lines of the log.

    An error that is meant for a client may be raised in a thread of the pool. Its greenlet gets
    it, and answers with it, so there is nothing to be said here.
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
