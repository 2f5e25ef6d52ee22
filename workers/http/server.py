"""gunicorn's worker class for the HTTP role: signals, heartbeat, the order of the end.

Connections and requests belong to `loop`. After SIGTERM the worker accepts no more. It closes each
connection after the response to its next request, or when it has been idle for a while (`drain`).
The worker ends with its last connection, or after `graceful_timeout`.

Invariant: the hub of gevent is made in the worker, after the fork. Made by gunicorn in the arbiter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.socket import socket as gevent_socket
from gunicorn.workers.base import Worker

from pylon.runtime.gevent_patch import patch_worker
from workers.http.loop import Loop

_HEARTBEAT_S: Final = 1.0  # gunicorn's arbiter kills a worker that is silent for `timeout`
_IDLE_S: Final = 10.0  # the same, while there is no connection to look after


class HttpWorker(Worker):  # type: ignore[misc]  # gunicorn has no types
    """One worker process of the HTTP role. Made by gunicorn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.number = 1  # the hooks of `arbiter` give each worker its own
        self.passing: Any = None  # `pylon.bus.passing.SocketSender` by role; after the fork
        self.lines_of_all = b""  # header lines of every answer; after the fork
        self.hops = 0  # trusted proxies in front
        self.counts: Any = None  # `workers.net.counts.SharedCounts`; after the fork
        self.drain_spread_s: Callable[[], float] = lambda: 0.0
        self._loop: Loop | None = None  # after the fork
        self._stopping: Event | None = None  # made after the fork
        self.status_changed: Event | None = None  # of `WorkerContext`; after the fork

    @property
    def open_connections(self) -> int:
        return self._loop.open_connections if self._loop is not None else 0

    def init_process(self) -> None:
        """In the worker, after the fork: runs until the end."""
        patch_worker()
        listeners: list[Any] = self.sockets
        self.sockets: list[Any] = [gevent_socket(fileno=each.fileno()) for each in listeners]
        super().init_process()

    def run(self) -> None:
        """Serve until SIGTERM, then drain."""
        self._stopping = Event()
        loop = self._loop = Loop(
            self.wsgi, self.sockets, self.number, self.cfg.workers, self.passing,
            self.lines_of_all, self.hops, self.counts,
        )
        while self.alive:
            self.notify()
            gevent.wait([self._stopping, loop.occupied], _IDLE_S, count=1)
            if self.alive and loop.occupied.is_set():
                self._stopping.wait(_HEARTBEAT_S)
                loop.sweep()
        loop.running.drain()
        loop.drain(self.cfg.graceful_timeout, self.drain_spread_s, self.notify)

    def notify(self) -> None:
        """Tell the arbiter that we live, and end if it does not."""
        super().notify()
        if self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            sys.exit(0)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        super().handle_exit(sig, frame)
        if self._stopping is not None:
            self._stopping.set()
        if self.status_changed is not None:
            self.status_changed.set()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT, SIGQUIT. Not in the signal's own context, where nothing may block."""
        gevent.spawn(super().handle_quit, sig, frame)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        """SIGUSR1."""
        gevent.spawn(super().handle_usr1, sig, frame)
