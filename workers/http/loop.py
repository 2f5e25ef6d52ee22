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
above them others give way (`admission`), and while none can, clients wait in the kernel's backlog.
limits.HTTP_DISPATCHERS greenlets; when all of them wait, so do the connections in the queue,
unread. limits.HTTP_BODIES_BYTES and HTTP_OUTGOING_BYTES of memory. Metrics: pylon_connections,
pylon_http_dispatchers, pylon_http_waiting, pylon_http_cut_total.

Invariant: a connection is in the queue, or in the hands of one dispatcher, at most once
(`Connection.queued`). Used by `server`.
"""

from __future__ import annotations

import _socket
import os
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
from pylon.auth.forwarded import client_address, network_of
from pylon.bus.passing import SocketSender
from pylon.descriptors import OUT_OF_RESOURCES, Room
from workers.http import answer
from workers.http.admission import NAMES, Admission, choose_holder
from workers.http.answer import Prefixes
from workers.http.balance import HOLD_S, Share
from workers.http.connection import Connection
from workers.http.request import base_environ
from workers.net.counts import SharedCounts
from workers.net.head import Refused

epoll: Final = monkey.get_original("select", "epoll")  # gevent takes it away from `select`
_EPOLLIN: Final = 0x001
_EPOLLOUT: Final = 0x004
_ENDED: Final = 0x2000 | 0x010 | 0x008  # EPOLLRDHUP, EPOLLHUP, EPOLLERR
_WATCHED: Final = _EPOLLIN | _EPOLLOUT | 0x2000 | 0x80000000  # EPOLLET
_EVENTS_A_TURN: Final = 256
_IDLE_DISPATCHERS: Final = 64  # kept for the next time that many wait at once
_ACCEPTS_HELD: Final = 16  # at once, when the others did not come
_ACCEPT_PAUSE_S: Final = 0.1  # when the process has no descriptors left but the reserve
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
        self._workers = workers
        self._passing = passing or {}
        self._lines_of_all = lines_of_all
        self._share = Share(number, workers)
        self._admission = Admission(workers, counts, has_proxies=hops > 0)
        self._held = False  # the next connection is left to the other workers
        self._hub = get_hub()
        self._epoll = epoll()
        self._connections: dict[int, Connection] = {}
        self._ready: deque[Connection] = deque()
        self._idle: list[greenlet.greenlet] = []
        self._dispatchers = 0
        self._watcher = self._hub.loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._on_ready)
        self._listeners = list(listeners)
        self._accepting = [self._hub.loop.io(each.fileno(), 1) for each in self._listeners]
        self._room = Room(self._epoll.fileno())
        self._full = False  # of descriptors; looked at again after `_ACCEPT_PAUSE_S`
        self._crowded_s: float | None = None  # since when it is full and nobody gives way
        self._paused = True
        self._resume()
        metrics.HTTP_DISPATCHERS.set_function(lambda: self._dispatchers - len(self._idle))
        metrics.HTTP_WAITING.set_function(lambda: len(self._ready))
        metrics.CONNECTIONS.set_function(lambda: len(self._connections))

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    # --- What connections ask ----------------------------------------------------------------

    def forget(self, connection: Connection) -> None:
        """It is closing its socket. (That takes it out of the epoll set as well.)"""
        if self._connections.pop(connection.fd, None) is not None:
            self._admission.closed(connection.network)
        self._share.report(len(self._connections))
        if self._paused and not self.draining:
            self._resume()

    def refusal(self, refused: Refused, *, with_body: bool = True) -> bytes:
        """The answer to a request that the app never sees."""
        return answer.refusal(self.prefixes, refused, self._lines_of_all, with_body=with_body)

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
                for each in self._connections.values() if each.body_bytes
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
                for each in self._connections.values() if each.outgoing_bytes
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
        self._tick()
        now_s = self.now_s
        for connection in list(self._connections.values()):
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
        self._tick()
        self._accept_the_rest()
        self.draining = True
        deadline_s = self.now_s + grace_s
        report_s = self.now_s + _DRAIN_REPORT_S
        while self._connections:
            for connection in list(self._connections.values()):
                if connection.is_idle and not connection.has_arrived():
                    connection.close()
            if self.now_s >= deadline_s:
                _log.warning("drain.deadline", cut=len(self._connections), **self._awaited())
                break
            if self.now_s >= report_s:
                report_s = self.now_s + _DRAIN_REPORT_S
                _log.info("drain.waiting", **self._awaited())
            self.sweep()
            notify()
            gevent.sleep(_DRAIN_STEP_S)
        for connection in list(self._connections.values()):
            connection.close()
        self._watcher.stop()
        self._epoll.close()

    def _awaited(self) -> dict[str, Any]:
        """What the connections that are left wait for, and who keeps the drain waiting longest."""
        counts = {"app": 0, **dict.fromkeys(NAMES.values(), 0)}
        slowest: tuple[float, Connection, int] | None = None
        for connection in self._connections.values():
            waiting = connection.waiting_since()
            counts["app" if waiting is None else NAMES[waiting[0]]] += 1
            if waiting is not None and (slowest is None or waiting[1] < slowest[0]):
                slowest = (waiting[1], connection, waiting[0])
        found: dict[str, Any] = dict(counts)
        if slowest is not None:
            since_s, connection, kind = slowest
            found |= {
                "slowest": NAMES[kind], "slowest_client": connection.client_network,
                "slowest_idle_s": round(self.now_s - since_s, 1),
                "slowest_unsent_bytes": connection.outgoing_bytes,
            }
        return found

    # --- Events ------------------------------------------------------------------------------

    def _on_ready(self) -> None:
        """Runs in the hub."""
        self._tick()
        connections, ready = self._connections, self._ready
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

    def _tick(self) -> None:
        self.now_s = time.monotonic()
        self.prefixes.tick()

    # --- New connections -----------------------------------------------------------------------

    def _resume(self) -> None:
        self._held = False
        if self._paused and not self._full and len(self._connections) < limits.HTTP_CONNECTIONS:
            self._paused = False
            self._crowded_s = None
            for watcher, listener in zip(self._accepting, self._listeners, strict=True):
                watcher.start(self._knock, listener)

    def _pause(self) -> None:
        self._paused = True
        for watcher in self._accepting:
            watcher.stop()

    def _pause_for_descriptors(self, error: str) -> None:
        self._room.tell_full(self.now_s, error)
        self._pause()
        self._held = False
        if self._crowded_s is None:
            self._crowded_s = self.now_s
        if not self._full:
            self._full = True
            gevent.spawn_later(_ACCEPT_PAUSE_S, self._look_for_descriptors)

    def _look_for_descriptors(self) -> None:
        if self.draining:
            return
        self._tick()
        if self._room.is_there() or self._make_room():
            self._full = False
            self._resume()
        else:
            gevent.spawn_later(_ACCEPT_PAUSE_S, self._look_for_descriptors)

    def _wait_for_room(self) -> None:
        """All places are taken: look now and then whether somebody gives way."""
        self._pause()
        self._held = False
        if self._crowded_s is None:
            self._crowded_s = self.now_s
            gevent.spawn_later(_ACCEPT_PAUSE_S, self._look_for_room)

    def _look_for_room(self) -> None:
        if self._crowded_s is None or self.draining:
            return  # somebody has left meanwhile
        self._tick()
        if self._make_room():
            self._resume()
        else:
            gevent.spawn_later(_ACCEPT_PAUSE_S, self._look_for_room)

    def _make_room(self, network: str | None = None) -> bool:
        """Have connections give way: of `network`, or of the one that has most."""
        grace_s = limits.HTTP_GRACE_S
        if self._crowded_s is not None and self.now_s - self._crowded_s > grace_s:
            grace_s = 0.0  # others have waited long enough
        before = len(self._connections)
        connections = self._connections.values()
        for each in self._admission.yielding(connections, network, self.now_s, grace_s):
            each.give_way()
        return len(self._connections) < before

    def _knock(self, listener: Any) -> None:
        """Runs in the hub: somebody wants to connect."""
        if not self._share.has_most():
            self._accept(listener)
        elif not self._held:
            self._pause()
            self._held = True
            gevent.spawn_later(HOLD_S, self._accept_held, listener)

    def _accept_held(self, listener: Any) -> None:
        if not self._held:
            return  # something else has made us accept again, or stop for good
        for _ in range(_ACCEPTS_HELD):
            if not self._accept(listener):
                break
        if not self.draining and self._held:
            self._resume()

    def _accept(self, listener: Any) -> bool:
        """Take one connection. False where there is none, or none can be taken."""
        try:
            fd, address = listener._sock._accept()
        except OSError as ex:
            if ex.errno in OUT_OF_RESOURCES:
                self._pause_for_descriptors(str(ex))
            return False  # or another worker was quicker, or the client has left again
        fd = self._lowest(fd)
        sock = _socket.socket(listener.family, listener.type, listener.proto, fd)
        sock.setblocking(False)
        try:
            if listener.family in (_socket.AF_INET, _socket.AF_INET6):
                sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            server = sock.getsockname()
        except OSError:
            sock.close()  # reset by the client
            return True
        client = address if isinstance(address, tuple) else ("", 0)
        network = network_of(client_address(client[0], None, 0))
        base = base_environ(
            server if isinstance(server, tuple) else (server, 0), client, self._workers
        )
        connection = Connection(self, sock, base, network, self.now_s)
        self._connections[connection.fd] = connection
        self._share.report(len(self._connections))
        self._epoll.register(connection.fd, _WATCHED)
        self._admission.opened(network)
        if self._admission.has_too_many(network):
            self._make_room(network)
        if len(self._connections) >= limits.HTTP_CONNECTIONS and not self._make_room():
            self._wait_for_room()
            return False
        if self._room.ends_with(fd):
            self._pause_for_descriptors("all descriptors but the reserve are in use")
            return False
        return True

    def _lowest(self, fd: int) -> int:
        """The descriptor of a new connection, out of the reserve if others can give way."""
        if not self._room.ends_with(fd) or not self._make_room():
            return fd
        lower = os.dup(fd)
        os.close(fd)
        return lower

    def _accept_the_rest(self) -> None:
        """What the kernel has accepted for us would be reset with the listener."""
        self._pause()
        self._held = False
        for listener in self._listeners:
            while len(self._connections) < limits.HTTP_CONNECTIONS and self._accept(listener):
                pass
        self._pause()
        for listener in self._listeners:
            listener.close()
