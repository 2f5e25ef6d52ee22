"""Accepting: takes connections from the listening sockets, while there is room for them.

All workers accept from the same sockets. A worker with more connections than another one leaves
the next connection to it for a moment (`balance`). When a worker is full, `connection_limits`
names connections to close. While it names none, this worker accepts no more, and clients wait in
the kernel's backlog or reach a sibling.

Everything runs in gevent's hub and never blocks. Bounds: limits.HTTP_CONNECTIONS,
HTTP_ADDRESS_CONNECTIONS, DESCRIPTORS_RESERVED. Called by `loop`.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.hub import get_hub

from pylon import limits
from pylon.auth.forwarded import client_address, network_of
from pylon.runtime.fd_budget import OUT_OF_RESOURCES, FdBudget
from workers.http.accept_balancer import BACKOFF_S, AcceptBalancer
from workers.http.connection import Connection
from workers.http.connection_limits import ConnectionLimits
from workers.http.request import base_environ
from workers.net.counts import SharedCounts

if TYPE_CHECKING:
    from workers.http.loop import Loop

_ACCEPTS_HELD: Final = 16  # connections at once that no sibling has accepted
_ACCEPT_PAUSE_S: Final = 0.1  # between two searches for room


class Accepting:
    """Accepts for one `Loop`."""

    def __init__(
        self, loop: Loop, listeners: Iterable[Any], number: int, workers: int,
        counts: SharedCounts | None, any_fd: int,
    ) -> None:
        """
        Args:
            number: the number of this worker, from 1.
            workers: the number of workers, this one included.
            counts: the connections by address in all workers.
            any_fd: a descriptor that stays open.
        """
        self._loop = loop
        self._workers = workers
        self._share = AcceptBalancer(number, workers)
        self._limits = ConnectionLimits(workers, counts, has_proxies=loop.hops > 0)
        self._held = False  # the next connection is left to the other workers
        self._listeners = list(listeners)
        watch = get_hub().loop.io
        self._watchers = [watch(each.fileno(), 1) for each in self._listeners]
        self._room = FdBudget(any_fd)
        self._full = False  # no descriptor is free; checked again after `_ACCEPT_PAUSE_S`
        self._crowded_s: float | None = None  # since when the worker is full and closes none
        self._paused = True
        self.resume()

    def forget(self, connection: Connection) -> None:
        """Stop counting a closed connection, and accept again if that makes room."""
        self._limits.remove(connection.network)
        self._share.report(len(self._loop.connections))
        if self._paused and not self._loop.draining:
            self.resume()

    def resume(self) -> None:
        """Accept again, if there is room."""
        self._held = False
        has_place = len(self._loop.connections) < limits.HTTP_CONNECTIONS
        if self._paused and not self._full and has_place:
            self._paused = False
            self._crowded_s = None
            for watcher, listener in zip(self._watchers, self._listeners, strict=True):
                watcher.start(self._on_readable, listener)

    def _pause(self) -> None:
        self._paused = True
        for watcher in self._watchers:
            watcher.stop()

    def _pause_for_descriptors(self, error: str) -> None:
        self._room.log_exhausted(self._loop.now_s, error)
        self._pause()
        self._held = False
        if self._crowded_s is None:
            self._crowded_s = self._loop.now_s
        if not self._full:
            self._full = True
            gevent.spawn_later(_ACCEPT_PAUSE_S, self._look_for_descriptors)

    def _look_for_descriptors(self) -> None:
        if self._loop.draining:
            return
        self._loop.tick()
        if self._room.has_room() or self._make_room():
            self._full = False
            self.resume()
        else:
            gevent.spawn_later(_ACCEPT_PAUSE_S, self._look_for_descriptors)

    def _wait_for_room(self) -> None:
        """Stop accepting at the limit, and search for connections to close every 0.1 s."""
        self._pause()
        self._held = False
        if self._crowded_s is None:
            self._crowded_s = self._loop.now_s
            gevent.spawn_later(_ACCEPT_PAUSE_S, self._look_for_room)

    def _look_for_room(self) -> None:
        if self._crowded_s is None or self._loop.draining:
            return  # a client has left meanwhile
        self._loop.tick()
        if self._make_room():
            self.resume()
        else:
            gevent.spawn_later(_ACCEPT_PAUSE_S, self._look_for_room)

    def _make_room(self, network: str | None = None) -> bool:
        """Close connections of `network`, or of the network that has most."""
        grace_s = limits.HTTP_GRACE_S
        if self._crowded_s is not None and self._loop.now_s - self._crowded_s > grace_s:
            grace_s = 0.0  # others have waited long enough
        before = len(self._loop.connections)
        connections = self._loop.connections.values()
        for each in self._limits.choose_yielding(connections, network, self._loop.now_s, grace_s):
            each.give_way()
        return len(self._loop.connections) < before

    def _on_readable(self, listener: Any) -> None:
        """Accept, or leave the connection to a sibling. Runs in the hub."""
        if not self._share.is_most_loaded():
            self._accept(listener)
        elif not self._held:
            self._pause()
            self._held = True
            gevent.spawn_later(BACKOFF_S, self._accept_held, listener)

    def _accept_held(self, listener: Any) -> None:
        if not self._held:
            return  # something else has made us accept again, or stop for good
        for _ in range(_ACCEPTS_HELD):
            if not self._accept(listener):
                break
        if not self._loop.draining and self._held:
            self.resume()

    def _accept(self, listener: Any) -> bool:
        """Take one connection. False where there is none, or none can be taken."""
        loop = self._loop
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
        loop.add(Connection(loop, sock, base, network, loop.now_s))
        self._share.report(len(loop.connections))
        self._limits.add(network)
        if self._limits.has_too_many(network):
            self._make_room(network)
        if len(self._loop.connections) >= limits.HTTP_CONNECTIONS and not self._make_room():
            self._wait_for_room()
            return False
        if self._room.reserves(fd):
            self._pause_for_descriptors("all descriptors but the reserve are in use")
            return False
        return True

    def _lowest(self, fd: int) -> int:
        """The descriptor of a new connection, out of the reserve if others can give way."""
        if not self._room.reserves(fd) or not self._make_room():
            return fd
        lower = os.dup(fd)
        os.close(fd)
        return lower

    def close(self) -> None:
        """Stop, with what the kernel has accepted for us: it would be reset with the listener."""
        self._pause()
        self._held = False
        for listener in self._listeners:
            while len(self._loop.connections) < limits.HTTP_CONNECTIONS and self._accept(listener):
                pass
        self._pause()
        for listener in self._listeners:
            listener.close()
