"""The loop of an HTTP worker: one epoll set for all connections, few greenlets for the ready.

The descriptor of the epoll set is watched by one libev watcher of gevent's hub. When it fires,
the connections that something has happened to are put in a queue, and a *dispatcher* greenlet
takes them from there one after the other: one switch of greenlets for the whole batch, and none
at all for a connection that is idle. A dispatcher whose app blocks (on the writer, on the
thread pool) waits alone: control comes back here, and the next dispatcher goes on with the
queue.

Connections are watched edge-triggered, for both directions, from accept to close: there are no
further calls to epoll for them.

Bounds: limits.HTTP_CONNECTIONS connections, and limits.HTTP_ADDRESS_CONNECTIONS of one address;
above them the worker closes waiting ones (`connection_limits`). While it can close none, new
clients wait in the kernel's backlog. limits.HTTP_DISPATCHERS greenlets; when all of them wait, so
do the connections in the queue, unread. limits.HTTP_BODIES_BYTES and HTTP_OUTGOING_BYTES of
memory. Metrics: pylon_connections, pylon_http_dispatchers, pylon_http_waiting,
pylon_http_cut_total.

Invariant: a connection is in the queue, or in the hands of one dispatcher, at most once
(`Connection.queued`). Used by `server`.
"""

from __future__ import annotations

import _socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import gevent
import greenlet
from gevent import monkey
from gevent.hub import get_hub

from pylon import limits, log, metrics
from pylon.bus.passing import SocketSender
from workers.http import response
from workers.http.accepting import Accepting
from workers.http.connection import Connection
from workers.http.connection_limits import NAME_BY_KIND, choose_holder
from workers.http.response import Prefixes
from workers.net.counts import SharedCounts
from workers.net.head import RequestError

epoll: Final = monkey.get_original("select", "epoll")  # gevent takes it away from `select`
_EPOLLIN: Final = 0x001
_EPOLLOUT: Final = 0x004
_ENDED: Final = 0x2000 | 0x010 | 0x008  # EPOLLRDHUP, EPOLLHUP, EPOLLERR
_WATCHED: Final = _EPOLLIN | _EPOLLOUT | 0x2000 | 0x80000000  # EPOLLET
_EVENTS_A_TURN: Final = 256
_IDLE_DISPATCHERS: Final = 64  # kept for the next time that many wait at once
_FORGET_S: Final = 5.0  # an idle connection keeps its last header block this long
_DRAIN_STEP_S: Final = 0.05
_DRAIN_REPORT_S: Final = 2.0  # a drain that takes longer says what it waits for, this often

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_log = log.get_logger("http")


class Loop:
    """Made after the fork, in the worker, once."""

    def __init__(
        self, app: App, listeners: Iterable[Any], number: int, workers: int,
        passing: Mapping[str, SocketSender] | None = None, lines_of_all: bytes = b"",
        hops: int = 0, counts: SharedCounts | None = None,
    ) -> None:
        """
        Args:
            app: the WSGI app.
            listeners: listening sockets, shared with the other workers.
            number: of this worker, from 1.
            workers: how many of those there are, this one included.
            passing: where connections go that are for other roles.
            lines_of_all: header lines that the app gives all its answers.
            hops: number of trusted proxies in front.
            counts: of the connections by address, in all workers.
        """
        self.app = app
        self.prefixes = Prefixes()
        self.now_s = time.monotonic()  # of the machine: limits hold whatever the app's clock says
        self.draining = False
        self.hops = hops
        self.bodies_bytes = 0  # of requests that are arriving
        self.outgoing_bytes = 0  # of answers that their clients have not made room for
        self._passing = passing or {}
        self._lines_of_all = lines_of_all
        self._hub = get_hub()
        self._epoll = epoll()
        self.connections: dict[int, Connection] = {}
        self._ready: deque[Connection] = deque()
        self._idle: list[greenlet.greenlet] = []
        self._dispatchers = 0
        self._watcher = self._hub.loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._on_ready)
        self._accepting = Accepting(
            self, listeners, number, workers, counts, self._epoll.fileno()
        )
        metrics.HTTP_DISPATCHERS.set_function(lambda: self._dispatchers - len(self._idle))
        metrics.HTTP_WAITING.set_function(lambda: len(self._ready))
        metrics.CONNECTIONS.set_function(lambda: len(self.connections))

    @property
    def open_connections(self) -> int:
        return len(self.connections)

    # --- What connections ask ----------------------------------------------------------------

    def forget(self, connection: Connection) -> None:
        """It is closing its socket. (That takes it out of the epoll set as well.)"""
        if self.connections.pop(connection.fd, None) is not None:
            self._accepting.forget(connection)

    def add(self, connection: Connection) -> None:
        """Watch a connection that was accepted."""
        self.connections[connection.fd] = connection
        self._epoll.register(connection.fd, _WATCHED)

    def refusal(self, refused: RequestError, *, with_body: bool = True) -> bytes:
        """The answer to a request that the app never sees."""
        return response.refusal(self.prefixes, refused, self._lines_of_all, with_body=with_body)

    def pass_on(self, role: str, sock: _socket.socket, data: bytes) -> bool:
        """Give a socket to a worker of `role`, which goes on with `data`; the caller closes it
        then."""
        sender = self._passing.get(role)
        if sender is None or not sender.pass_on(sock, data):
            return False
        # The other process's copy would keep it in the set, beyond our close.
        self._epoll.unregister(sock.fileno())
        return True

    def free_bodies(self, asking: Connection) -> bool:
        """Make room for more of a body. False where `asking` itself must give way."""
        while self.bodies_bytes > limits.HTTP_BODIES_BYTES:
            held = (
                (each, each.body_bytes, each.progress_s)
                for each in self.connections.values() if each.body_bytes
            )
            chosen = choose_holder(held, asking, self.now_s)
            if chosen is asking:
                return False
            chosen.give_up_body()
        return True

    def free_answers(self, asking: Connection) -> bool:
        """Make room for more of an answer. False where `asking` itself must give way."""
        while self.outgoing_bytes > limits.HTTP_OUTGOING_BYTES:
            held = (
                (each, each.outgoing_bytes, each.deadline_s - limits.HTTP_SEND_S)
                for each in self.connections.values() if each.outgoing_bytes
            )
            chosen = choose_holder(held, asking, self.now_s)
            if chosen is asking:
                return False
            chosen.give_up_answer()
        return True

    def requeue(self, connection: Connection) -> None:
        """Come back to it after the others; `queued` stays set."""
        self._ready.append(connection)
        self._hub.loop.run_callback(self._dispatch)

    # --- Time --------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Deal with what has taken too long. Call it about once a second."""
        self.tick()
        now_s = self.now_s
        for connection in list(self.connections.values()):
            if connection.queued:
                continue
            if connection.deadline_s <= now_s:
                connection.expire()
            elif connection.deadline_s - now_s < limits.HTTP_KEEPALIVE_S - _FORGET_S:
                connection.forget()

    def drain(self, grace_s: float, notify: Callable[[], None]) -> None:
        """Take nothing new, answer what has arrived, and return when all connections are gone.

        Args:
            grace_s: after this the rest is cut.
            notify: called every now and then.
        """
        self.tick()
        self._accepting.close()
        self.draining = True
        deadline_s = self.now_s + grace_s
        report_s = self.now_s + _DRAIN_REPORT_S
        while self.connections:
            for connection in list(self.connections.values()):
                if connection.is_idle and not connection.has_arrived():
                    connection.close()
            if self.now_s >= deadline_s:
                _log.warning("drain.deadline", cut=len(self.connections), **self._awaited())
                break
            if self.now_s >= report_s:
                report_s = self.now_s + _DRAIN_REPORT_S
                _log.info("drain.waiting", **self._awaited())
            self.sweep()
            notify()
            gevent.sleep(_DRAIN_STEP_S)
        for connection in list(self.connections.values()):
            connection.close()
        self._watcher.stop()
        self._epoll.close()

    def _awaited(self) -> dict[str, Any]:
        """The log fields of a drain: connections by kind of wait, and the slowest one."""
        counts = {"app": 0, **dict.fromkeys(NAME_BY_KIND.values(), 0)}
        slowest: tuple[float, Connection, int] | None = None
        for connection in self.connections.values():
            waiting = connection.waiting_since()
            counts["app" if waiting is None else NAME_BY_KIND[waiting[0]]] += 1
            if waiting is not None and (slowest is None or waiting[1] < slowest[0]):
                slowest = (waiting[1], connection, waiting[0])
        found: dict[str, Any] = dict(counts)
        if slowest is not None:
            since_s, connection, kind = slowest
            found |= {
                "slowest": NAME_BY_KIND[kind], "slowest_client": connection.client_network,
                "slowest_idle_s": round(self.now_s - since_s, 1),
                "slowest_unsent_bytes": connection.outgoing_bytes,
            }
        return found

    # --- Events ------------------------------------------------------------------------------

    def _on_ready(self) -> None:
        """Runs in the hub."""
        self.tick()
        connections, ready = self.connections, self._ready
        for fd, events in self._epoll.poll(0, _EVENTS_A_TURN):
            connection = connections.get(fd)
            if connection is None:
                continue
            if events & _ENDED:
                connection.ending = True
            if connection.queued:
                connection.again = True
            else:
                connection.queued = True
                ready.append(connection)
        self._dispatch()

    def _dispatch(self) -> None:
        """Runs in the hub: wake dispatchers until the queue is empty."""
        while self._ready:
            if self._idle:
                dispatcher = self._idle.pop()
            elif self._dispatchers < limits.HTTP_DISPATCHERS:
                self._dispatchers += 1
                dispatcher = greenlet.greenlet(self._run, self._hub)
            else:
                return  # the first one that is free again goes on with the queue
            dispatcher.switch()  # returns when it waits, in the app or for more to do

    def _run(self) -> None:
        """A dispatcher."""
        me = greenlet.getcurrent()
        ready, idle, hub = self._ready, self._idle, self._hub
        while True:
            while ready:
                connection = ready.popleft()
                try:
                    connection.serve()
                except BaseException:  # noqa: BLE001  (told to the hub, which ends us if it must)
                    connection.close()
                    hub.handle_error(me, *sys.exc_info())
            if len(idle) >= _IDLE_DISPATCHERS:
                self._dispatchers -= 1
                return
            idle.append(me)
            hub.switch()

    def tick(self) -> None:
        """Look at the clock."""
        self.now_s = time.monotonic()
        self.prefixes.tick()
