"""Accepting: takes connections from the listening sockets, while the worker has room for them.

All workers accept from the same sockets. A worker with more connections than another one leaves
the next connection to it for a moment (`accept_balancer`). When a worker is full,
`connection_limits` names connections to close. While it names none, this worker accepts no more,
and clients wait in the kernel's backlog or reach a sibling. `workers.net.listener` pauses while
the process is out of descriptors.

Everything runs in gevent's hub and never blocks. Bounds: limits.HTTP_CONNECTIONS,
HTTP_ADDRESS_CONNECTIONS, DESCRIPTORS_RESERVED. Called by `loop`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import gevent

from pylon import limits
from pylon.auth.forwarded import client_address, network_of
from pylon.runtime.raw_socket import RawSocket, move_lower
from workers.http.accept_balancer import BACKOFF_S, AcceptBalancer
from workers.http.connection import Connection
from workers.http.connection_limits import ConnectionLimits
from workers.http.request import base_environ
from workers.net.counts import SharedCounts
from workers.net.listener import Listeners

if TYPE_CHECKING:
    from workers.http.loop import Loop

_ACCEPTS_HELD: Final = 16  # connections at once that no sibling has accepted
_SEARCH_S: Final = 0.1  # between two searches for a connection to close


class Accepting:
    """Accepts for one `Loop`."""

    def __init__(
        self, loop: Loop, sockets: Iterable[socket.socket], number: int, workers: int,
        counts: SharedCounts | None,
    ) -> None:
        """
        Args:
            sockets: listening sockets, which sibling workers share.
            number: the number of this worker, from 1.
            workers: the number of workers, this one included.
            counts: the connections by address in all workers.
        """
        self._loop = loop
        self._workers = workers
        self._share = AcceptBalancer(number, workers)
        self._limits = ConnectionLimits(workers, counts, has_proxies=loop.hops > 0)
        self._held = False  # the next connection is left to the other workers
        self._full_since_s: float | None = None  # since when the worker is full and closes none
        self._listeners = Listeners(
            sockets, self._on_readable, loop.read_clock, find_room=self._find_room,
            on_room=self.resume,
        )
        self.resume()

    def remove(self, connection: Connection) -> None:
        """Stop counting a closed connection, and accept again if that makes room."""
        self._limits.remove(connection.network)
        self._share.report(len(self._loop.connections))
        if self._listeners.is_paused:
            self.resume()

    def resume(self) -> None:
        """Accept again, if there is room."""
        self._held = False
        if len(self._loop.connections) < limits.HTTP_CONNECTIONS:
            self._listeners.resume()
            if not self._listeners.is_paused:
                self._full_since_s = None

    def close(self) -> None:
        """Stop accepting.

        The kernel resets connections in the backlog when the last listener closes. So the worker
        first accepts those for which it has room.
        """
        self._pause()
        loop = self._loop
        for listener in self._listeners.sockets:
            while len(loop.connections) < limits.HTTP_CONNECTIONS and self._accept(listener):
                pass
        self._listeners.close()

    def _pause(self) -> None:
        self._listeners.pause()
        self._held = False

    def _on_readable(self, listener: RawSocket) -> None:
        """Accept, or leave the connection to a sibling. Runs in the hub."""
        if not self._share.has_less_loaded_sibling():
            self._accept(listener)
        elif not self._held:
            self._pause()
            self._held = True
            gevent.spawn_later(BACKOFF_S, self._accept_held, listener)

    def _accept_held(self, listener: RawSocket) -> None:
        if not self._held:
            return  # the worker accepts again already, or never again
        for _ in range(_ACCEPTS_HELD):
            if not self._accept(listener):
                break
        if self._held:
            self.resume()

    def _accept(self, listener: RawSocket) -> bool:
        """Take one connection. False where there is none, or none can be taken."""
        accepted = self._listeners.accept(listener)
        if accepted is None:
            self._note_exhausted()
            return False
        sock, address = accepted
        if self._listeners.budget.reserves(sock.fileno()) and self._make_room():
            sock = move_lower(sock)  # out of the reserve
        if self._add(sock, address):
            return not self._pause_if_full(sock.fileno())
        return True

    def _add(self, sock: RawSocket, address: object) -> bool:
        """Serve a connection. False if its client has reset it already."""
        try:
            server = sock.getsockname()
        except OSError:
            sock.close()
            return False
        loop = self._loop
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
        return True

    def _pause_if_full(self, fd: int) -> bool:
        """Pause if the worker has no room for another connection after the one of `fd`."""
        if len(self._loop.connections) >= limits.HTTP_CONNECTIONS and not self._make_room():
            self._wait_for_room()
            return True
        if self._listeners.pause_at_reserve(fd):
            self._note_exhausted()
            return True
        return False

    # --- Full ------------------------------------------------------------------------------

    def _note_exhausted(self) -> None:
        if self._listeners.is_exhausted:
            self._held = False
            if self._full_since_s is None:
                self._full_since_s = self._loop.now_s

    def _wait_for_room(self) -> None:
        """Stop accepting at the limit, and search for connections to close every 0.1 s."""
        self._pause()
        if self._full_since_s is None:
            self._full_since_s = self._loop.now_s
            gevent.spawn_later(_SEARCH_S, self._search)

    def _search(self) -> None:
        if self._full_since_s is None or self._listeners.is_closed:
            return  # a client has left meanwhile
        if self._find_room():
            self.resume()
        else:
            gevent.spawn_later(_SEARCH_S, self._search)

    def _find_room(self) -> bool:
        self._loop.read_clock()
        return self._make_room()

    def _make_room(self, network: str | None = None) -> bool:
        """Close connections of `network`, or of the network with the most connections."""
        loop = self._loop
        grace_s = limits.HTTP_GRACE_S
        if self._full_since_s is not None and loop.now_s - self._full_since_s > grace_s:
            grace_s = 0.0  # other clients have waited long enough
        before = len(loop.connections)
        connections = loop.connections.values()
        for each in self._limits.choose_yielding(connections, network, loop.now_s, grace_s):
            each.give_way()
        return len(loop.connections) < before
