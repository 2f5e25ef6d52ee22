"""Passing: a client's connection goes from the process that accepted it to the one it belongs to.

The descriptor and the bytes read so far travel over a Unix socket in the runtime directory
(SCM_RIGHTS). Each receiving worker listens at a path of its own: `SocketSender.pass_on` gives
connections to all workers of a role in turn, `pass_to` to a certain one.

The kernel's buffer of that socket is the queue: bounded in bytes (`limits.PASSED_BYTES` is the
longest message, and a few dozen of the usual ones fit). When it is full the next worker gets
the connection, and when all are full, or none is there, the sender keeps it and says so to its
client. Metric: pylon_sockets_passed_total.

Invariants: nothing blocks on either side; a message is taken whole, with its descriptor, or not
at all; a receiver that dies takes along only what was in its queue, whose clients see their
connection closed and come again. Used by `workers.http` (senders) and the socket workers.
"""

from __future__ import annotations

import array
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


class SocketSender:
    """Passes connections on to the workers of one role. For one process."""

    def __init__(self, runtime: Runtime, role: str, workers: int) -> None:
        """`workers`: how many there are, named "1", "2" and so on."""
        self._paths = {
            str(number): _path_of(runtime, role, str(number)) for number in range(1, workers + 1)
        }
        self._links: dict[str, RawSocket] = {}  # those that are connected
        self._turn = 0

    def pass_on(self, sock: RawSocket, data: bytes) -> bool:
        """Pass a connection to any worker; False if none takes it. See `pass_to`."""
        names = list(self._paths)
        self._turn += 1
        return any(
            self.pass_to(names[(self._turn + offset) % len(names)], sock, data)
            for offset in range(len(names))
        )

    def pass_to(self, worker: str, sock: RawSocket, data: bytes) -> bool:
        """Pass a connection to `worker`, with what has been read of it.

        Returns:
            Whether it was passed. Then the caller closes its own descriptor, without a shutdown;
            otherwise nothing has happened to the connection.
        """
        if len(data) > limits.PASSED_BYTES:
            _RESULTS["full"].inc()
            return False
        for _ in range(2):  # a link to a worker that has died is found out by using it
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
                link.connect(str(self._paths[worker]))
            except OSError:  # not there, or with a full backlog
                link.close()
                return None
            self._links[worker] = link
        return link


class SocketReceiver:
    """Takes the connections that are passed to one worker. For its hub."""

    def __init__(
        self, runtime: Runtime, role: str, worker: str,
        take: Callable[[RawSocket, bytes], None],
    ) -> None:
        """`take` gets each connection, with what was read of it. It must not block."""
        self._path = _path_of(runtime, role, worker)
        self._take = take
        self._listener: RawSocket | None = None
        self._watched: dict[RawSocket, Any] = {}  # it, and the links

    def start(self) -> None:
        """Begin to listen. What a predecessor left at the path is removed."""
        self._path.unlink(missing_ok=True)
        listener = RawSocket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        listener.setblocking(False)
        listener.bind(str(self._path))
        listener.listen(_BACKLOG)
        self._listener = listener
        self._watch(listener, self._on_link)

    def close(self) -> None:
        """Take no more; senders find nobody here."""
        if self._listener is None:
            return
        self._path.unlink(missing_ok=True)
        while self._on_link(self._listener):  # what is on its way arrives
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
        """Accept a link; False if there is none."""
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]  # what socket.accept calls
        except OSError:
            return False
        link = RawSocket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
        link.setblocking(False)
        self._watch(link, self._on_message)
        return True

    def _on_message(self, link: RawSocket) -> bool:
        """Take what has come over a link; False if that was all."""
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
                # The latter also where this process has no descriptor left for it.
                _log.error("passing.truncated", size_bytes=len(data))
                for sock in passed:
                    sock.close()
                continue
            if not passed:
                self._forget(link)  # the sender has ended
                return False
            self._take(passed[0], data)
        return True


def _adopted(content: bytes) -> RawSocket:
    numbers = array.array("i")
    numbers.frombytes(content)
    return RawSocket(fileno=numbers[0])
