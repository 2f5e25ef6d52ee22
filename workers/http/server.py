"""gunicorn's gevent worker with a drain that keeps our promises (design.md §8).

The stock worker waits for its keep-alive connections for the whole grace time and lets a
request that was in flight at SIGTERM keep its connection open. Here, after SIGTERM:
nothing new is accepted; a connection that waits for its next request is closed at once; one
that is in a request gets its answer and is closed then; the worker ends with the last one, or
when `graceful_timeout` has passed.

Invariant: `_idle` holds the open connections that are not in a request.
"""

from __future__ import annotations

import contextlib
import socket
import time
from functools import partial
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import socket as GeventSocket  # noqa: N812
from gunicorn.workers.ggevent import GeventWorker

_HEARTBEAT_S: Final = 1.0  # gunicorn's arbiter kills a worker that is silent for `timeout`
_DRAIN_STEP_S: Final = 0.05
_STOP_S: Final = 1.0


class HttpWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """One worker process of the HTTP role. Made by gunicorn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open_connections = 0
        self._idle: set[GeventSocket] = set()
        self._stopping: Event | None = None  # made after the fork

    def run(self) -> None:
        """Serve until SIGTERM, then drain."""
        self._stopping = Event()
        servers = []
        for listener in self.sockets:
            server = StreamServer(
                listener, handle=partial(self.handle, listener), spawn=Pool(self.worker_connections)
            )
            if self.cfg.workers > 1:
                server.max_accept = 1  # leave the next one to the other workers
            server.start()
            servers.append(server)
        while self.alive:
            self.notify()
            self._stopping.wait(_HEARTBEAT_S)
        for server in servers:
            server.close()
        self._drain(servers)

    def handle(self, listener: Any, client: GeventSocket, addr: Any) -> None:
        """One connection, from its first byte to its last."""
        self.open_connections += 1
        self._idle.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.discard(client)
            self.open_connections -= 1

    def handle_request(self, listener_name: Any, req: Any, sock: GeventSocket, addr: Any) -> None:
        """One request; the connection is idle before and after."""
        self._idle.discard(sock)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            # Also when the drain has begun: its answer may have promised to keep the connection,
            # and the next request may be there already. `_drain` looks.
            self._idle.add(sock)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        super().handle_exit(sig, frame)
        if self._stopping is not None:
            self._stopping.set()

    def _drain(self, servers: list[StreamServer]) -> None:
        # gunicorn's own worker code measures with this clock too; nothing is reproduced by it.
        deadline_s = time.monotonic() + self.cfg.graceful_timeout
        while self.open_connections:
            for client in list(self._idle):
                if not _has_arrived(client):
                    # On the plain socket: gevent's own method would break the read that
                    # waits, where we want it to see the end of the stream.
                    with contextlib.suppress(OSError):
                        client._sock.shutdown(socket.SHUT_RD)
            if time.monotonic() >= deadline_s:
                self.log.warning("Drain deadline: %d connections cut", self.open_connections)
                break
            self.notify()
            gevent.sleep(_DRAIN_STEP_S)
        for server in servers:
            server.stop(timeout=_STOP_S)


def _has_arrived(client: GeventSocket) -> bool:
    """Whether the next request, or a part of it, waits to be read: then it is in flight."""
    try:
        return bool(client._sock.recv(1, socket.MSG_PEEK))
    except OSError:  # nothing there (the descriptor is non-blocking), or no longer a socket
        return False
