"""HTTP process: the parts of one HTTP worker, made after the fork.

`HttpProcess()` boots like every worker (`workers.boot`), builds the falcon app and connects to the
bus. `start` spawns two greenlets beside the requests. One takes signals from the bus, and the other
sends heartbeats.

Invariant: if one of them fails, the worker ends, and the arbiter forks another one. Called by
`workers.http.arbiter` through gunicorn's hooks, in the worker.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import gevent

from pylon.api.admin.readiness import Readiness
from pylon.api.application import make_app
from pylon.api.http.middleware import api_headers, header_lines
from pylon.api.services import (
    AdminServices,
    DataServices,
    IdentityServices,
    RealtimeServices,
    RequestServices,
    Services,
    SyncServices,
)
from pylon.api.sync.hints import HintPublisher
from pylon.auth.cookies import session_cookie
from pylon.auth.origin import origins
from pylon.auth.session_cache import SessionCache
from pylon.bus.messages import RolesReport, SessionRevoked
from pylon.bus.passing import SocketSender
from pylon.bus.rooms_client import RoomsClient
from pylon.bus.shards import ShardsClient
from pylon.bus.signals import SignalReceiver, SignalSender
from pylon.bus.writer_client import WriterClient
from pylon.changelog.feed import Feed
from pylon.changelog.hint_journal import HintWriter
from pylon.log import get_logger
from pylon.runtime.interpreter import freeze
from workers.boot import boot, run_status
from workers.http.roles import UPGRADED_ROLES
from workers.merge_sandbox import MergeSandbox
from workers.net.counts import shared_counts

_log = get_logger("http")


class HttpProcess:
    """The parts of one worker process. `wsgi` is the app that gunicorn calls."""

    def __init__(self) -> None:
        booted = boot()
        # A duplicate of gunicorn's listener. If it stayed open, the kernel would accept connections
        # during a drain.
        booted.listen_socket.close()
        self._booted = booted
        app, runtime = booted.app, booted.runtime
        self._sender = SignalSender(runtime)
        self._receiver = SignalReceiver(runtime, RolesReport, SessionRevoked)
        self._writer = WriterClient(runtime, app.clock)
        self._rooms = RoomsClient(runtime, app.random)
        self._shards = ShardsClient(
            runtime, app.config.workers_of("shards"), booted.reader_pool, app.random
        )
        self._merge_sandbox = MergeSandbox()
        self._hints = HintWriter(runtime.hints, app.config.workers_of("http"), app.clock)
        store = booted.reader_pool
        self._readiness = Readiness(
            lambda: store.point(lambda reader: reader.head_seq()), app.clock
        )
        requests = RequestServices(
            app=app,
            session_cache=SessionCache(
                app.config, store, app.clock, used_guests=booted.used_guests
            ),
            cookie=session_cookie(app.config, app.manifest),
            origins=origins(app.config, app.manifest),
            limiter=booted.limiter,
        )
        self._session_cache = requests.session_cache
        services = Services(
            requests=requests,
            data=DataServices(requests, app, store, self._writer),
            sync=SyncServices(
                feed=Feed(store),
                hints=HintPublisher(self._hints.put, app.clock),
                merge_checker=self._merge_sandbox,
            ),
            realtime=RealtimeServices(
                requests, app, store, rooms=self._rooms, shards=self._shards
            ),
            identity=IdentityServices(requests, app, store, self._writer, self._sender.send),
            admin=AdminServices(
                requests, app, self._writer,
                readiness=self._readiness,
                control_socket=runtime.control_socket,
                started_s=app.clock.monotonic_s(),
            ),
        )
        self.status_changed = booted.status_changed
        self.wsgi = make_app(services)
        self.counts = shared_counts(
            runtime.dir, booted.role, booted.worker, app.config.workers_of(booted.role)
        )
        self.lines_of_all = header_lines(api_headers(app.config))
        self.passing = {
            role: SocketSender(runtime, role, app.config.workers_of(role))
            for role in UPGRADED_ROLES
        }
        self._greenlets: list[gevent.Greenlet[..., Any]] = []

    def start(self, alive: Callable[[], bool], connections: Callable[[], int]) -> None:
        """Spawn the greenlets for signals and heartbeats.

        Args:
            alive: returns whether the worker takes requests; it does not while it drains.
            connections: returns the number of open client connections.
        """

        def ready() -> bool:
            return alive() and self._readiness.store_problem() is None

        self._greenlets = [
            gevent.spawn(self._take_signals),
            gevent.spawn(run_status, self._booted, ready, connections),
        ]
        for greenlet in self._greenlets:
            greenlet.link_exception(_end_this_worker)
        freeze()

    def close(self) -> None:
        """Close the connections to the bus and the store."""
        gevent.killall(self._greenlets)
        for sender in self.passing.values():
            sender.close()
        self._writer.close()
        self._rooms.close()
        self._shards.close()
        self._merge_sandbox.close()
        self._receiver.close()
        self._sender.close()
        self._hints.close()
        self._booted.reader_pool.close()

    def _take_signals(self) -> None:
        while True:
            signal_ = self._receiver.receive()
            if isinstance(signal_, RolesReport):
                self._readiness.report(signal_)
            elif isinstance(signal_, SessionRevoked):
                self._session_cache.forget()


def _end_this_worker(greenlet: gevent.Greenlet[..., Any]) -> None:
    """End this worker after the failure of a greenlet; the arbiter forks a successor."""
    if greenlet.exception is not None:
        _log.exception("worker.greenlet_failed", error=greenlet.exception)
    os.kill(os.getpid(), signal.SIGTERM)
