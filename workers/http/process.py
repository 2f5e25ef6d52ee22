"""HTTP process: the parts of one HTTP worker, made after the fork.

The template makes the falcon app with `prepare`. `HttpProcess()` boots like every worker
(`workers.boot`), connects to the bus, and connects the services of the app. `start` spawns two
greenlets beside the requests. One takes signals from the bus, and the other sends heartbeats.

Invariant: if one of them fails, the worker ends, and the arbiter forks another one. Called by
`workers.template`, and by `workers.http.arbiter` through gunicorn's hooks, in the worker.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import falcon
import gevent

from pylon.api.admin.readiness import Readiness
from pylon.api.application import make_app
from pylon.api.http.middleware import header_lines
from pylon.api.services import Connections, Credentials, Services, make_services
from pylon.api.sync.hints import HintPublisher
from pylon.app import App
from pylon.auth.jwts import takes_jwts
from pylon.auth.origin import origins
from pylon.auth.response_headers import unread_headers
from pylon.auth.session_cache import SessionCache
from pylon.bus.identity import IdentityClient
from pylon.bus.messages import NodeState, RolesReport, SessionRevoked
from pylon.bus.passing import SocketSender
from pylon.bus.rooms_client import RoomsClient
from pylon.bus.runtime import Runtime
from pylon.bus.shards import ShardsClient
from pylon.bus.signals import SignalReceiver, SignalSender
from pylon.bus.writer_client import WriterClient
from pylon.changelog.feed import Feed
from pylon.changelog.hint_journal import HintWriter
from pylon.cluster.links import open_links
from pylon.log import get_logger
from pylon.realtime.placement import Placement
from pylon.runtime.interpreter import freeze
from workers.boot import boot, run_status
from workers.http.roles import UPGRADED_ROLES
from workers.merge_sandbox import MergeSandbox
from workers.net.counts import shared_counts

_log = get_logger("http")

_Wsgi = tuple[Services, falcon.App[falcon.Request, falcon.Response]]
_prepared: _Wsgi | None = None  # set in the template, before the fork


def prepare(app: App, runtime: Runtime) -> None:
    """Make the WSGI app in the template, for the workers that are forked with this app."""
    global _prepared
    _prepared = _make_wsgi(app, runtime)


def _make_wsgi(app: App, runtime: Runtime) -> _Wsgi:
    services = make_services(app, runtime.control_socket)
    return services, make_app(services)


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
        self._receiver = SignalReceiver(runtime, RolesReport, SessionRevoked, NodeState)
        self._has_other_nodes = app.config.database_url is not None  # until it is known
        self._writer = WriterClient(runtime, app.clock)
        self._rooms = RoomsClient(runtime, app.random, lambda: self._has_other_nodes)
        self._placement = Placement(
            booted.reader_pool, app.config.workers_of("shards"), is_shared=self._has_other_nodes
        )
        self._links = open_links(runtime.cluster_key, app.clock, app.random)
        self._shards = ShardsClient(runtime, self._placement, app.random, self._links)
        self._identity = IdentityClient(
            runtime, app.clock, app.random, is_on=app.config.workers_of("identity") > 0
        )
        self._merge_sandbox = MergeSandbox()
        self._hints = HintWriter(runtime.hints, app.clock)
        store = booted.reader_pool
        self._readiness = Readiness(
            lambda: store.point(lambda reader: reader.head_seq()), app.clock
        )
        self._session_cache: SessionCache[Credentials] = SessionCache(
            app, store, app.clock, used_sessions=booted.used_sessions,
            verify_jwt=self._identity.verify_jwt if takes_jwts(app.config) else None,
        )
        services, self.wsgi = _prepared or _make_wsgi(app, runtime)
        services.connect(
            Connections(
                store=store,
                writer=self._writer,
                session_cache=self._session_cache,
                limiter=booted.limiter,
                feed=Feed(store),
                hints=HintPublisher(self._hints.put, app.clock),
                merge_checker=self._merge_sandbox,
                rooms=self._rooms,
                shards=self._shards,
                identity=self._identity,
                send_signal=self._sender.send,
                readiness=self._readiness,
            )
        )
        self._spans = services.requests.spans
        self.status_changed = booted.status_changed
        self.counts = shared_counts(
            runtime.dir, booted.role, booted.worker, app.config.workers_of(booted.role)
        )
        self.lines_of_all = header_lines(
            unread_headers(app.config, origins(app.config, app.manifest))
        )
        self.passing = {
            role: SocketSender(runtime, role) for role in UPGRADED_ROLES
            if app.config.workers_of(role)
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

    def drain_spread_s(self) -> float:
        """Return for how long a draining worker closes no idle connection: PYLON_DRAIN_SPREAD_S
        while other workers serve, 0 while the whole server ends and its clients wait for that."""
        return 0.0 if self._readiness.is_draining else self._booted.app.config.drain_spread_s

    def close(self) -> None:
        """Close the connections to the bus and the store."""
        gevent.killall(self._greenlets)
        if self._spans is not None:
            self._spans.close()
        for sender in self.passing.values():
            sender.close()
        self._writer.close()
        self._rooms.close()
        self._shards.close()
        self._identity.close()
        if self._links is not None:
            self._links.close()
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
            elif isinstance(signal_, NodeState):
                self._has_other_nodes = signal_.has_others
                self._placement.update(signal_.node, signal_.nodes)


def _end_this_worker(greenlet: gevent.Greenlet[..., Any]) -> None:
    """End this worker after the failure of a greenlet; the arbiter forks a successor."""
    if greenlet.exception is not None:
        _log.exception("worker.greenlet_failed", error=greenlet.exception)
    os.kill(os.getpid(), signal.SIGTERM)
