"""Passing: moves a client's connection from the process that accepted it to another process.

The descriptor and the bytes read so far go over a Unix socket in the runtime folder (SCM_RIGHTS).
Each receiving worker listens at its own path. `SocketSender.pass_on` gives connections to all
workers of a role in turn, `pass_to` gives one to a certain worker. The sender finds the workers by
the files in the folder, because a reload replaces them by others with other names.

The kernel's buffer of that socket is the queue. It is bounded in bytes: the longest message has
`limits.PASSED_BYTES`, and a few dozen usual messages fit. When it is full the next worker gets the
connection. When all are full, or no worker listens, `pass_on` returns False and the sender refuses
its client. Metric: pylon_sockets_passed_total.

Invariants: neither side blocks. A receiver gets a whole message with its descriptor, or nothing. A
receiver that dies loses only the connections in its queue; their clients see the close and connect
again. Called by `workers.http.loop`, `workers.hub.service` and `workers.shards.server`.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gevent.hub import get_hub

from pylon import limits, log, metrics
from pylon.bus.runtime import Runtime
from pylon.runtime.raw_socket import RawSocket

_READ: Final = 1  # libev's event mask
_BACKLOG: Final = 64
_MESSAGES_A_TURN: Final = 16
_ROOM: Final = socket.CMSG_SPACE(array.array("i").itemsize)

_log = log.get_logger("passing")
_RESULTS: Final = {
    result: metrics.SOCKETS_PASSED.labels(result) for result in ("passed", "full", "absent")
}


def _path_of(runtime: Runtime, role: str, worker: str) -> Path:
    return runtime.dir / f"passing-{role}-{worker}"


def _list_workers(runtime: Runtime, role: str) -> list[str]:
    """Return the names of the workers of a role that listen, or were killed while they did."""
    prefix = f"passing-{role}-"
    with os.scandir(runtime.dir) as entries:
        names = [entry.name.removeprefix(prefix) for entry in entries
                 if entry.name.startswith(prefix)]
    return sorted(name for name in names if name.isdigit())


class SocketSender:
    """Passes connections to the workers of one role. One for each sending process."""

    def __init__(self, runtime: Runtime, role: str) -> None:
        self._runtime = runtime
        self._role = role
        self._links: dict[str, RawSocket] = {}  # connected sockets, by worker
        self._turn = 0

    def pass_on(self, sock: RawSocket, data: bytes) -> bool:
        """Pass a connection to any worker; return False if none takes it. See `pass_to`."""
        names = _list_workers(self._runtime, self._role)
        if not names:
            _RESULTS["absent"].inc()
            return False
        self._turn += 1
        return any(
            self.pass_to(names[(self._turn + offset) % len(names)], sock, data)
            for offset in range(len(names))
        )

    def pass_to(self, worker: str, sock: RawSocket, data: bytes) -> bool:
        """Pass a connection to `worker`, with the bytes that were read from it.

        Returns:
            Whether the worker gets it. Then the caller must close its own descriptor, without a
            shutdown. If not, the connection is unchanged.
        """
        if len(data) > limits.PASSED_BYTES:
            _RESULTS["full"].inc()
            return False
        for _ in range(2):  # the first send on the link of a worker that has died fails
            link = self._link(worker)
            if link is None:
                _RESULTS["absent"].inc()
                return False
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
            try:
                link.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                _RESULTS["full"].inc()
                return False
            except OSError:
                self._links.pop(worker).close()
                continue
            _RESULTS["passed"].inc()
            return True
        _RESULTS["absent"].inc()
        return False

    def close(self) -> None:
        """Close all links."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _link(self, worker: str) -> RawSocket | None:
        link = self._links.get(worker)
        if link is None:
            link = RawSocket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            link.setblocking(False)
            try:
                link.connect(str(_path_of(self._runtime, self._role, worker)))
            except OSError:  # no worker listens, or its backlog is full
                link.close()
                return None
            self._links[worker] = link
        return link


class SocketReceiver:
    """Receives the connections for one worker, in its hub."""

    def __init__(
        self, runtime: Runtime, role: str, worker: str,
        take: Callable[[RawSocket, bytes], None],
    ) -> None:
        """Args: `take` gets each connection and the bytes read from it. It must not block."""
        self._path = _path_of(runtime, role, worker)
        self._take = take
        self._listener: RawSocket | None = None
        self._watched: dict[RawSocket, Any] = {}  # watchers of the listener and the links

    def start(self) -> None:
        """Remove a previous worker's socket at the path, and listen."""
        self._path.unlink(missing_ok=True)
        listener = RawSocket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        listener.setblocking(False)
        listener.bind(str(self._path))
        listener.listen(_BACKLOG)
        self._listener = listener
        self._watch(listener, self._on_link)

    def close(self) -> None:
        """Stop listening, and take the connections that senders have passed already."""
        if self._listener is None:
            return
        self._path.unlink(missing_ok=True)
        while self._on_link(self._listener):  # accept the links that have connected
            continue
        self._forget(self._listener)
        self._listener = None
        for link in list(self._watched):
            while self._on_message(link):
                continue
            if link in self._watched:
                self._forget(link)

    def _watch(self, sock: RawSocket, callback: Callable[[RawSocket], object]) -> None:
        watcher = get_hub().loop.io(sock.fileno(), _READ)
        self._watched[sock] = watcher
        watcher.start(callback, sock)

    def _forget(self, sock: RawSocket) -> None:
        watcher = self._watched.pop(sock)
        watcher.stop()
        watcher.close()
        sock.close()

    def _on_link(self, listener: RawSocket) -> bool:
        """Accept a link; return False if none waits."""
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]  # what socket.accept calls
        except OSError:
            return False
        link = RawSocket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
        link.setblocking(False)
        self._watch(link, self._on_message)
        return True

    def _on_message(self, link: RawSocket) -> bool:
        """Take the messages of a link; return False if none is left."""
        for _ in range(_MESSAGES_A_TURN):
            try:
                data, ancillary, flags, _ = link.recvmsg(
                    limits.PASSED_BYTES, _ROOM, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return False
            except OSError:
                data, ancillary, flags = b"", [], 0
            passed = [_adopted(content) for _, kind, content in ancillary
                      if kind == socket.SCM_RIGHTS]
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                # MSG_CTRUNC also means that this process has no free descriptor.
                _log.error("passing.truncated", size_bytes=len(data))
                for sock in passed:
                    sock.close()
                continue
            if not passed:
                self._forget(link)  # the sender has closed the link
                return False
            self._take(passed[0], data)
        return True


def _adopted(content: bytes) -> RawSocket:
    numbers = array.array("i")
    numbers.frombytes(content)
    return RawSocket(fileno=numbers[0])
