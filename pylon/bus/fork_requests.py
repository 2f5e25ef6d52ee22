"""Fork requests: the supervisor's requests to the template process for new workers.

Both ends hold one socket of a pair. A request carries the listening descriptor (SCM_RIGHTS), if the
role has a port, and everything that a child process would get by exec: environment, working
directory, umask and arguments. The first reply tells that the template is ready. Each later one has
the pid of the worker that a request has started. A message is four bytes of length (big-endian),
then MessagePack.

Invariant: the supervisor reads the reply to a request before it sends the next one, so each end
reads whole messages. This module imports no ZeroMQ, and uses `_socket.socket`, which gevent does
not patch. Called by `supervisor.template` and `workers.template`.
"""

from __future__ import annotations

import _socket
import array
import os
import socket
from typing import Final

import msgspec

_LENGTH_BYTES: Final = 4
_FD_BYTES: Final = array.array("i").itemsize
_FDS_MAX: Final = 4


class ForkRequest(msgspec.Struct, frozen=True):
    """One worker to fork. `environ` has entries ``NAME=value``, each with a NUL after it."""

    role: str
    worker: str
    runtime_dir: str
    environ: bytes
    cwd: str
    umask: int


class ForkReply(msgspec.Struct, frozen=True):
    """The pid of a worker. It is 0 if the fork failed, for the reason in `error`."""

    pid: int
    error: str = ""


_requests: Final = msgspec.msgpack.Decoder(ForkRequest)
_replies: Final = msgspec.msgpack.Decoder(ForkReply)


def pack_environ(environ: dict[str, str]) -> bytes:
    """Return an environment as a request carries it. Values need not be valid UTF-8."""
    return b"".join(
        os.fsencode(name) + b"=" + os.fsencode(value) + b"\0" for name, value in environ.items()
    )


def unpack_environ(packed: bytes) -> dict[str, str]:
    """Return the environment that `pack_environ` has packed."""
    pairs = (line.partition(b"=") for line in packed.split(b"\0") if line)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def send_request(sock: _socket.socket, request: ForkRequest, fds: list[int]) -> None:
    """Send a request with copies of the descriptors `fds`.

    Raises:
        OSError: the other end is closed, or the time limit of `sock` has passed.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    _send(sock, request, rights if fds else [])


def receive_request(sock: _socket.socket) -> tuple[ForkRequest, list[int]] | None:
    """Wait for the next request and its descriptors; None if the supervisor has ended."""
    head, ancillary, _, _ = sock.recvmsg(
        _LENGTH_BYTES, socket.CMSG_SPACE(_FDS_MAX * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
    )
    if not head:
        return None
    fds = array.array("i")
    for _level, _kind, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    head += _receive(sock, _LENGTH_BYTES - len(head))
    return _requests.decode(_receive(sock, int.from_bytes(head, "big"))), list(fds)


def send_reply(sock: _socket.socket, reply: ForkReply) -> None:
    """Send a reply.

    Raises:
        OSError: the supervisor has ended.
    """
    _send(sock, reply, [])


def receive_reply(sock: _socket.socket) -> ForkReply:
    """Wait for the next reply.

    Raises:
        EOFError: the template has ended.
        OSError: the same, or the time limit of `sock` has passed.
    """
    size_bytes = int.from_bytes(_receive(sock, _LENGTH_BYTES), "big")
    return _replies.decode(_receive(sock, size_bytes))


def _send(
    sock: _socket.socket, message: ForkRequest | ForkReply,
    rights: list[tuple[int, int, array.array[int]]],
) -> None:
    body = msgspec.msgpack.encode(message)
    data = len(body).to_bytes(_LENGTH_BYTES, "big") + body
    # The descriptors go with the first byte, which the receiver reads with `recvmsg`.
    sent = sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
    if sent < len(data):
        sock.sendall(data[sent:], socket.MSG_NOSIGNAL)


def _receive(sock: _socket.socket, size_bytes: int) -> bytes:
    parts = []
    while size_bytes:
        part = sock.recv(size_bytes)
        if not part:
            raise EOFError("the other end is closed")
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)
