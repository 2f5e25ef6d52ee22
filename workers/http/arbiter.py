"""The arbiter of the HTTP workers: gunicorn's, forked from the template process.

It configures gunicorn, gives each worker a number that stays with the place and not with the
process (so that metrics do not multiply with restarts), and ends with an exit status that the
supervisor reads: 78 if a worker cannot load the app.

Invariants: this process opens no bus socket and no database, and has no gevent hub while it forks;
its workers have theirs. So its listener is no socket of gevent's. Called by `workers.template`.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config as GunicornConfig

from pylon import config as settings
from pylon import log
from pylon.bus.child import ChildEnv
from pylon.bus.file_beat import FileBeat
from pylon.bus.runtime import Runtime
from pylon.clock import SystemClock
from pylon.config import Config
from pylon.errors import StartRefused
from pylon.runtime.gevent_patch import restore_forking
from workers.boot import configure_log, preloaded_config
from workers.http import accept_balancer, quarantine
from workers.http.process import HttpProcess
from workers.http.server import HttpWorker

_EXIT_CONFIG: Final = 78
_GUNICORN_WORKER_BOOT_ERROR: Final = 3
_GUNICORN_APP_LOAD_ERROR: Final = 4
_TURN_S: Final = 2.0
_STOP_TURN_S: Final = 0.1
_QUICK_STOP_S: Final = 2.0  # for workers to end after SIGQUIT
_HUNG_S: Final = 60  # a worker whose hub stands still this long is killed
_BACKLOG: Final = 2_048
# PERF: made in the template, once. The arbiter copied 0.8 MiB of pages when it made its own.
_DEFAULTS: Final = GunicornConfig()


class BusLogger:
    """Hands gunicorn's lines to the standard library's root, which `pylon.log` has taken over.

    gunicorn's own logger is not extended: it brings sockets and queues along for its handlers.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        lines = logging.getLogger("gunicorn.error")
        self.error_log = lines
        self.debug, self.info, self.warning = lines.debug, lines.info, lines.warning
        self.error, self.critical, self.exception = lines.error, lines.critical, lines.exception
        self.log = lines.log

    def setup(self, cfg: Any) -> None:
        """SIGHUP: nothing of ours is read again."""

    def reopen_files(self) -> None:
        """SIGUSR1: there are none."""

    def close_on_exec(self) -> None:
        """There is nothing to close."""


class Listener:
    """The listening descriptor, with the methods that gunicorn calls on its sockets.

    It is closed and never shut down or unlinked, as the supervisor holds it too.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor; -1 after `close`."""
        return self._fd

    def getsockname(self) -> tuple[str, int]:
        """Return no true name: gunicorn would remove the file of a Unix socket."""
        return ("", 0)

    def close(self) -> None:
        """Close the descriptor, once."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __str__(self) -> str:
        return f"fd://{self._fd}"


class BeatingArbiter(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's arbiter, which beats in each turn of its loop (every `_TURN_S` at the least)."""

    def __init__(self, app: Any, beat: FileBeat, listener: Listener) -> None:
        self._beat = beat
        self.quarantine = quarantine.Quarantine()
        super().__init__(app)
        accept_balancer.share_counts()
        quarantine.share_requests()
        self.LISTENERS = [listener]

    def spawn_workers(self) -> None:
        """Fork the workers that are missing. gunicorn sleeps up to 0.1 s after each of them."""
        while len(self.WORKERS) < self.num_workers:
            self.spawn_worker()

    def wait_for_signals(self, timeout: float = _TURN_S) -> Any:
        """Wait for signals; gunicorn's own turns are of one second."""
        return super().wait_for_signals(max(timeout, _TURN_S))

    def stop(self, graceful: bool = True) -> None:
        """End the workers, as gunicorn does, and return when the last one has ended.

        gunicorn looks for ended workers ten times a second: up to 0.1 s of each drain and reload.
        """
        for listener in self.LISTENERS:
            listener.close()
        self.LISTENERS = []
        self.kill_workers(signal.SIGTERM if graceful else signal.SIGQUIT)
        deadline_s = time.monotonic() + self.cfg.graceful_timeout
        while self.WORKERS and time.monotonic() < deadline_s:
            # SIGCHLD is among the signals, and ends the wait.
            arrived = super().wait_for_signals(_STOP_TURN_S)
            if graceful and not {signal.SIGINT, signal.SIGQUIT}.isdisjoint(arrived):
                graceful = False
                self.kill_workers(signal.SIGQUIT)
                deadline_s = time.monotonic() + _QUICK_STOP_S
            self.reap_workers()
        self.kill_workers(signal.SIGKILL)
        self.reap_workers()

    def murder_workers(self) -> None:
        """Beat, and do what gunicorn does in each turn."""
        self._beat.beat()
        self.quarantine.expire(time.monotonic())
        super().murder_workers()


class HttpApplication(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn, set up from Pylon's settings."""

    def __init__(self, child: ChildEnv, config: Config) -> None:
        self._child = child
        self._config = config
        self._first = int(child.worker)  # the name of the first worker
        self._numbers: set[int] = set()  # in use, from 1
        self._process: HttpProcess | None = None
        super().__init__()

    def run(self) -> None:
        """Be the arbiter until a signal ends it."""
        beat = FileBeat(
            Runtime(self._child.runtime_dir).arbiter(self._child.worker), SystemClock()
        )
        if self._child.listen_fd is None:
            raise RuntimeError("the supervisor has passed no listening socket")
        BeatingArbiter(self, beat, Listener(self._child.listen_fd)).run()

    def load_default_config(self) -> None:
        """Take gunicorn's defaults; `load_config` changes some. A process has one application."""
        self.cfg = _DEFAULTS

    def load_config(self) -> None:
        config = self._config
        shared_memory = Path("/dev/shm")  # nosec B108 # gunicorn makes files without names there
        chosen: dict[str, Any] = {
            "workers": config.http_workers,
            "worker_class": HttpWorker,
            "backlog": _BACKLOG,
            "timeout": _HUNG_S,
            "graceful_timeout": max(1, math.ceil(config.drain_s)),
            "control_socket_disable": True,
            "accesslog": None,
            "logger_class": BusLogger,
            "proc_name": "pylon-http",
            "pre_fork": self._number,
            "post_fork": self._name,
            "post_worker_init": self._start,
            "worker_exit": self._end,
            "child_exit": self._release,
        }
        if shared_memory.is_dir():
            chosen["worker_tmp_dir"] = str(shared_memory)  # its heartbeat must not wait for a disk
        for name, value in chosen.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The WSGI app. gunicorn calls this in the worker, after the fork.

        Raises:
            SystemExit: with a status by which the arbiter ends too, instead of trying for ever.
                The reason is logged: gunicorn would write it to stderr, between lines of JSON.
        """
        try:
            self._process = HttpProcess()
        except SystemExit as ex:
            raise SystemExit(_GUNICORN_APP_LOAD_ERROR) from ex
        except Exception as ex:
            log.get_logger("worker").failure("worker.boot_failed", error=ex)
            raise SystemExit(_GUNICORN_WORKER_BOOT_ERROR) from ex
        return self._process.wsgi

    # --- In the arbiter ------------------------------------------------------------------

    def _number(self, arbiter: Any, worker: Any) -> None:
        number = next(n for n in range(1, len(self._numbers) + 2) if n not in self._numbers)
        self._numbers.add(number)
        worker.number = number
        arbiter.quarantine.prepare(number)

    def _release(self, arbiter: Any, worker: Any) -> None:
        if arbiter.LISTENERS:  # else the arbiter ends its workers
            arbiter.quarantine.judge(worker.number, worker.pid, time.monotonic())
        self._numbers.discard(worker.number)

    # --- In a worker ---------------------------------------------------------------------

    def _name(self, arbiter: Any, worker: Any) -> None:
        """Tell `boot` who this process is. The descriptor is a copy: gunicorn keeps its own."""
        me = ChildEnv(
            role=self._child.role,
            worker=str(self._first + worker.number - 1),
            runtime_dir=self._child.runtime_dir,
            listen_fd=os.dup(worker.sockets[0].fileno()),
            supervisor_pid=arbiter.pid,
        )
        os.environ.update(me.to_environ())

    def _start(self, worker: Any) -> None:
        if self._process is not None:
            worker.passing = self._process.passing
            worker.status_changed = self._process.status_changed
            worker.lines_of_all = self._process.lines_of_all
            worker.hops = self._config.trust_proxy_hops
            worker.counts = self._process.counts
            worker.drain_spread_s = self._process.drain_spread_s
            self._process.start(lambda: worker.alive, lambda: worker.open_connections)

    def _end(self, arbiter: Any, worker: Any) -> None:
        # gunicorn calls this in the arbiter too, where no process was ever built.
        if self._process is not None:
            self._process.close()


def run() -> None:
    """Run until SIGTERM.

    Raises:
        SystemExit: always.
    """
    try:
        child = ChildEnv.from_environ(os.environ)
        config = preloaded_config() or settings.load(os.environ).config
    except StartRefused as ex:
        log.configure("json", "info", "http", "arbiter")
        log.get_logger("worker").error("worker.refused", code=ex.code, message=ex.message)
        raise SystemExit(_EXIT_CONFIG) from ex
    configure_log(config, child.role, "arbiter")
    restore_forking()
    # The supervisor alone speaks to systemd; gunicorn would, if it found these.
    for name in ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    try:
        HttpApplication(child, config).run()
    except SystemExit as ex:
        if ex.code == _GUNICORN_APP_LOAD_ERROR:
            raise SystemExit(_EXIT_CONFIG) from ex
        raise
