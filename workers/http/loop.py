"""The loop of an HTTP worker: one epoll set for all connections, and what they share.

`workers.net.poller` watches all connections edge-triggered, for both directions, from accept to
close, so there are no further calls to epoll for them. A connection with an event goes into the
queue of `dispatchers`, whose greenlets serve it. `accepting` brings connections, `drain` ends them.

Bounds: limits.HTTP_CONNECTIONS connections, and limits.HTTP_ADDRESS_CONNECTIONS of one address;
above them the worker closes connections that wait (`connection_limits`). While it can close none,
new clients wait in the kernel's backlog. limits.HTTP_BODIES_BYTES and HTTP_OUTGOING_BYTES of memory
(`byte_budget`). Metrics: pylon_connections, pylon_http_connections_aborted_total.

Used by `server`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from gevent.event import Event

from pylon import limits, metrics
from pylon.api.http.request_metrics import count_refused
from pylon.bus.passing import SocketSender
from pylon.runtime.raw_socket import RawSocket
from workers.http import response
from workers.http.accepting import Accepting
from workers.http.byte_budget import ByteBudget, Holder
from workers.http.connection import Connection
from workers.http.dispatchers import Dispatchers
from workers.http.drain import drain
from workers.http.quarantine import RunningRequests
from workers.http.response import Prefixes
from workers.net.counts import SharedCounts
from workers.net.head import RequestError
from workers.net.poller import EDGE, PEER_CLOSED, READ, WRITE, Poller
from workers.net.response import error_code

_WATCHED: Final = READ | WRITE | PEER_CLOSED | EDGE
_FORGET_S: Final = 5.0  # an idle connection keeps its last header block this long

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Loop:
    """Made in the worker after the fork, once."""

    def __init__(
        self, app: App, listeners: Iterable[socket.socket], number: int, workers: int,
        passing: Mapping[str, SocketSender] | None = None, lines_of_all: bytes = b"",
        hops: int = 0, counts: SharedCounts | None = None,
    ) -> None:
        """
        Args:
            app: the WSGI app.
            listeners: listening sockets, shared with the other workers.
            number: the number of this worker, from 1.
            workers: the number of workers, this one included.
            passing: senders of connections to workers of other roles, by role.
            lines_of_all: header lines that the app gives all its responses.
            hops: the number of trusted proxies in front.
            counts: the connections by address in all workers.
        """
        self.app = app
        self.prefixes = Prefixes()
        self.running = RunningRequests(number)
        self.now_s = time.monotonic()  # the machine's: limits hold whatever the app's clock says
        self.draining = False
        self.hops = hops
        self.bodies = ByteBudget(
            limits.HTTP_BODIES_BYTES, self._body_holders, Connection.give_up_body
        )
        self.outgoing = ByteBudget(
            limits.HTTP_OUTGOING_BYTES, self._response_holders, Connection.give_up_response
        )
        self._passing = passing or {}
        self._lines_of_all = lines_of_all
        self.dispatchers = Dispatchers()
        self._poller: Poller[Connection] = Poller(
            begin_turn=self._begin_turn, end_turn=self.dispatchers.dispatch
        )
        self.connections = self._poller.member_by_fd
        self.occupied = Event()  # set while there may be connections: the sweep waits for it
        self._accepting = Accepting(self, listeners, number, workers, counts)
        metrics.CONNECTIONS.set_function(lambda: len(self.connections))

    @property
    def open_connections(self) -> int:
        return len(self.connections)

    def add(self, connection: Connection) -> None:
        """Serve a connection that was accepted."""
        if not self.connections:
            self.occupied.set()
        self._poller.add(connection.fd, connection, _WATCHED)

    def remove(self, connection: Connection) -> None:
        """Stop serving a connection, which closes its socket next."""
        if self._poller.forget(connection.fd):
            self._accepting.remove(connection)

    def refusal(self, refused: RequestError, *, with_body: bool = True) -> bytes:
        """Return the response to a request that the app never sees, and count it."""
        count_refused(refused.status, error_code(refused))
        return response.refusal(self.prefixes, refused, self._lines_of_all, with_body=with_body)

    def pass_on(self, role: str, connection: Connection, sock: RawSocket, data: bytes) -> bool:
        """Pass a connection to a worker of `role`, which goes on with `data`.

        Returns:
            False if no worker takes it. Otherwise the caller closes the connection.
        """
        sender = self._passing.get(role)
        if sender is None or not sender.pass_on(sock, data):
            return False
        self._poller.remove(connection.fd)  # the other process has a copy of the descriptor
        self._accepting.remove(connection)
        return True

    def read_clock(self) -> float:
        """Set `now_s` to the time, and return it."""
        self.now_s = time.monotonic()
        return self.now_s

    def sweep(self) -> None:
        """End connections that have waited too long. Call it about once a second while it is
        `occupied`."""
        self._begin_turn()
        if not self.connections:
            self.occupied.clear()
        now_s = self.now_s
        for connection in list(self.connections.values()):
            if connection.queued:
                continue
            if connection.deadline_s <= now_s:
                connection.expire()
            elif connection.deadline_s - now_s < limits.HTTP_KEEPALIVE_S - _FORGET_S:
                connection.forget()

    def drain(
        self, grace_s: float, spread_s: Callable[[], float], notify: Callable[[], None]
    ) -> None:
        """Accept no more, answer requests that have arrived, and return without connections.

        Args:
            grace_s: after this time the remaining connections are closed.
            spread_s: returns for how long no idle connection is closed.
            notify: called again and again meanwhile.
        """
        self.read_clock()
        self._accepting.close()
        self.draining = True
        drain(self, grace_s, spread_s, notify)
        self._poller.close()

    def _begin_turn(self) -> None:
        self.now_s = time.monotonic()
        self.prefixes.tick()

    def _body_holders(self) -> Iterator[Holder]:
        for each in self.connections.values():
            if each.body_bytes:
                yield each, each.body_bytes, each.body_progress_s

    def _response_holders(self) -> Iterator[Holder]:
        for each in self.connections.values():
            if each.outgoing_bytes:
                yield each, each.outgoing_bytes, each.deadline_s - limits.HTTP_SEND_S
