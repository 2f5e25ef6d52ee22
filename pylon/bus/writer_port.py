"""The writer's end of the writes channel, and the supervisor's own way to write.

A worker sends each message as a frame (`pylon.bus.frames`). The port reads each worker once in a
turn. Messages beyond the bounds of a batch wait in the port for the next turn; later messages wait
in the kernel. Under load, if batches are small, the port lets other processes run before it takes
a batch, so that the workers which are ready to run add their messages to it.

`WriterPort` belongs to the writer thread. `LocalWriter` is for other threads of the supervisor, one
for each thread.

Invariants: the port hands a message over as a whole, so the writer commits its requests together.
A peer is a connection, so no reply to a dead worker reaches the worker that replaces it. Bound: the
port keeps the replies to at most `limits.WRITES_IN_FLIGHT` writes for a worker that does not read.
Metrics: pylon_bus_messages_total, pylon_bus_messages_dropped_total. Used by `supervisor.writer`.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from pylon import limits, log, metrics
from pylon.bus import messages
from pylon.bus.frames import FrameStream
from pylon.bus.runtime import Runtime
from pylon.errors import WriterUnavailable
from pylon.storage.ops import WriteOp, WriteReply, WriteRequest

_log = log.get_logger("writer_port")

Peer = FrameStream
_BACKLOG: Final = 128
# A batch of so many requests shows load, and can still gain by being larger.
_SMALL_BATCHES: Final = range(3, 16)
_MS_PER_S: Final = 1_000


class WriterPort:
    """Binds the writes endpoint. One thread only."""

    __slots__ = (
        "_arrived", "_batch_bytes", "_epoll", "_is_small_under_load", "_listener", "_peers",
        "_replies",
    )

    def __init__(self, runtime: Runtime, batch_bytes: int = limits.BATCH_BYTES) -> None:
        """Args: `batch_bytes`: of the messages of one batch, which has one message at least."""
        self._batch_bytes = batch_bytes
        runtime.writes.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(runtime.writes))
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._peers: dict[int, Peer] = {}
        self._arrived: deque[tuple[Peer, bytes]] = deque()  # frames; their peers may have closed
        self._is_small_under_load = False  # the last batch
        self._replies = metrics.BUS_MESSAGES.labels("replies")

    def receive(self, timeout_s: float) -> list[tuple[Peer, list[WriteRequest]]]:
        """Return the messages that wait, up to the bounds of a batch.

        Args:
            timeout_s: how long to wait for the first message.

        Returns:
            Messages in order of arrival, empty when none came.
        """
        out: list[tuple[Peer, list[WriteRequest]]] = []
        arrived = self._arrived
        until_s = time.monotonic() + timeout_s
        self._read(0.0 if arrived else timeout_s)
        while not arrived and (left_s := until_s - time.monotonic()) > 0:
            self._read(left_s)  # a worker has connected, or sent a part of a message
        if arrived and self._is_small_under_load:
            # PERF: at 16 connections on two cores a batch has 8.6 inserts in place of 5.6, and an
            # insert costs a tenth less CPU. The call returns at once if no process waits for the
            # core. Batches that are large already would grow until HTTP workers and writer take
            # turns: 50 of 64 connections in each.
            os.sched_yield()
            self._read(0.0)
        count = size_bytes = 0
        while arrived and count < limits.BATCH_REQUESTS and size_bytes < self._batch_bytes:
            peer, frame = arrived.popleft()
            try:
                requests = messages.write_requests.decode(frame)
            except (ValueError, msgspec.DecodeError) as ex:
                # The folder is private, so this is a defect, or a Pylon of another version.
                _log.error("writes.unreadable", error=str(ex))
                metrics.BUS_DROPPED.labels("writes").inc()
                continue
            out.append((peer, requests))
            count += len(requests)
            size_bytes += len(frame)
        if count:
            self._is_small_under_load = count in _SMALL_BATCHES
        return out

    def reply(self, peer: Peer, replies: list[WriteReply]) -> None:
        """Reply to one message. Never blocks. Drop the replies if the peer has closed."""
        if peer.is_closed:
            return
        try:
            if not peer.send(messages.encode(replies)):
                self._epoll.modify(peer.fd, select.EPOLLIN | select.EPOLLOUT)
        except EOFError:
            self._drop(peer)
        self._replies.inc()

    def close(self) -> None:
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._epoll.close()
        self._listener.close()

    def _read(self, timeout_s: float) -> None:
        """Wait until a peer has sent something, and read each such peer once."""
        for descriptor, events in self._epoll.poll(timeout_s):
            peer = self._peers.get(descriptor)
            if peer is None:
                self._accept()
                continue
            try:
                if events & select.EPOLLOUT and peer.flush():
                    self._epoll.modify(descriptor, select.EPOLLIN)
                self._take(peer)
            except EOFError:
                self._drop(peer)

    def _take(self, peer: Peer) -> None:
        """
        Raises:
            EOFError
        """
        for frame in peer.receive():
            self._arrived.append((peer, frame))

    def _accept(self) -> None:
        try:
            peer = FrameStream(self._listener.accept()[0])
        except OSError as ex:  # the peer has closed, or no descriptor is free
            _log.warning("writes.not_accepted", error=str(ex))
            return
        self._peers[peer.fd] = peer
        self._epoll.register(peer.fd, select.EPOLLIN)
        try:
            self._take(peer)  # frames that it has sent already belong to this batch
        except EOFError:
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        del self._peers[peer.fd]
        peer.close()


class LocalWriter:
    """Writes from a thread of the supervisor, through the same queue as the workers' writes."""

    __slots__ = ("_next_id", "_stream")

    def __init__(self, runtime: Runtime) -> None:
        """
        Raises:
            OSError: no writer listens.
        """
        self._next_id = 1
        self._stream = FrameStream.connect(runtime.writes)

    def submit(self, op: WriteOp, timeout_s: float = limits.WRITE_TIMEOUT_S) -> WriteReply:
        """Have the writer execute one write; return its reply. Blocks this thread.

        Raises:
            WriterUnavailable: no answer in time.
            PylonError: what the writer answered.
        """
        reply = self.submit_all((op,), timeout_s)[0]
        if reply.error is not None:
            raise reply.error.to_exception()
        return reply

    def submit_all(
        self, ops: Sequence[WriteOp], timeout_s: float = limits.WRITE_TIMEOUT_S
    ) -> list[WriteReply]:
        """Execute writes in one message, hence in one commit; errors are in the replies."""
        first_id = self._next_id
        self._next_id += len(ops)
        last_id = self._next_id - 1
        self._send(
            [WriteRequest(number, op, number != last_id) for number, op in enumerate(ops, first_id)]
        )
        replies: list[WriteReply] = []
        until_s = time.monotonic() + timeout_s
        while _is_ready(self._stream, select.POLLIN, until_s):
            try:
                frames = self._stream.receive()
            except EOFError as ex:
                raise WriterUnavailable("The writer has ended") from ex
            for frame in frames:
                some = messages.write_replies.decode(frame)
                replies += [reply for reply in some if reply.id >= first_id]  # else timed out
            if len(replies) == len(ops):
                return replies
        raise WriterUnavailable(f"The writer did not answer within {timeout_s:g} s")

    def wake(self) -> None:
        """End the writer's wait for messages: an empty message has no answer."""
        self._send([])

    def close(self) -> None:
        self._stream.close()

    def _send(self, requests: list[WriteRequest]) -> None:
        """
        Raises:
            WriterUnavailable
        """
        until_s = time.monotonic() + limits.WRITE_TIMEOUT_S
        try:
            is_sent = self._stream.send(messages.encode(requests))
            while not is_sent and _is_ready(self._stream, select.POLLOUT, until_s):
                is_sent = self._stream.flush()
        except EOFError as ex:
            raise WriterUnavailable("The writer has ended") from ex


def _is_ready(stream: FrameStream, events: int, until_s: float) -> bool:
    """Wait until one of `events` is possible; return False at `until_s`."""
    poll = select.poll()
    poll.register(stream.fd, events)
    return bool(poll.poll(max(0.0, until_s - time.monotonic()) * _MS_PER_S))
