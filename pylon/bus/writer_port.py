"""The writer's end of the writes channel, and the supervisor's own way to write.

`WriterPort` belongs to the writer thread alone. `LocalWriter` is for other threads of the
supervisor (seeding, pruning, the end of a drain), each with one of its own.

Invariants: a message is handed over whole, so what a worker sent together is committed
together; a reply to a peer that is gone is dropped by ZeroMQ and harms nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import zmq

from pylon import limits, log, metrics
from pylon.bus import contexts, messages
from pylon.bus.runtime import Runtime
from pylon.clock import Clock, SystemClock
from pylon.errors import WriterUnavailable
from pylon.storage.ops import WriteOp, WriteReply, WriteRequest

_log = log.get_logger("writer_port")

Peer = bytes
_MS_PER_S: Final = 1_000


class WriterPort:
    """Binds the writes endpoint. One thread only."""

    __slots__ = ("_clock", "_poller", "_socket")

    def __init__(self, runtime: Runtime, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._socket = contexts.open_socket(contexts.plain(), zmq.ROUTER, limits.BUS_WRITES_HWM)
        self._socket.bind(runtime.writes)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)

    def receive(self, timeout_s: float) -> list[tuple[Peer, list[WriteRequest]]]:
        """What waits, up to the bounds of a batch (`limits.BATCH_*`); never waits for more.

        Args:
            timeout_s: how long to wait for the first message.

        Returns:
            Messages in order of arrival, empty when none came.
        """
        out: list[tuple[Peer, list[WriteRequest]]] = []
        if not self._poller.poll(int(timeout_s * _MS_PER_S)):
            return out
        until_s = self._clock.monotonic_s() + limits.BATCH_S
        count = size_bytes = 0
        while count < limits.BATCH_REQUESTS and size_bytes < limits.BATCH_BYTES:
            try:
                peer, frame = self._socket.recv_multipart(zmq.NOBLOCK)
                requests = messages.write_requests.decode(frame)
            except zmq.Again:
                break
            except (ValueError, msgspec.DecodeError) as ex:
                # The folder is private, so this is a defect or a mixed-up version of ours.
                _log.error("writes.unreadable", error=str(ex))
                metrics.BUS_DROPPED.labels("writes").inc()
                continue
            out.append((peer, requests))
            count += len(requests)
            size_bytes += len(frame)
            if self._clock.monotonic_s() >= until_s:
                break
        return out

    def reply(self, peer: Peer, replies: list[WriteReply]) -> None:
        """Answer one message. Never blocks."""
        self._socket.send_multipart((peer, messages.encode(replies)), zmq.NOBLOCK)
        metrics.BUS_MESSAGES.labels("replies").inc()

    def close(self) -> None:
        self._socket.close()


class LocalWriter:
    """Writes from a thread of the supervisor, through the same queue as everyone."""

    __slots__ = ("_next_id", "_socket")

    def __init__(self, runtime: Runtime) -> None:
        self._next_id = 1
        self._socket = contexts.open_socket(contexts.plain(), zmq.DEALER, limits.BUS_WRITES_HWM)
        self._socket.connect(runtime.writes)

    def submit(self, op: WriteOp, timeout_s: float = limits.WRITE_TIMEOUT_S) -> WriteReply:
        """Carry out one write; blocks this thread.

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
        """Carry out writes in one message, hence in one commit; errors are in the replies."""
        first_id = self._next_id
        self._next_id += len(ops)
        last_id = self._next_id - 1
        self._socket.send(messages.encode(
            [WriteRequest(number, op, number != last_id) for number, op in enumerate(ops, first_id)]
        ))
        replies: list[WriteReply] = []
        while self._socket.poll(int(timeout_s * _MS_PER_S)):
            some = messages.write_replies.decode(self._socket.recv())
            replies += [reply for reply in some if reply.id >= first_id]  # others: timed out
            if len(replies) == len(ops):
                return replies
        raise WriterUnavailable(f"The writer did not answer within {timeout_s:g} s")

    def wake(self) -> None:
        """Let a waiting writer thread look around: an empty message has no answer."""
        self._socket.send(messages.encode([]))

    def close(self) -> None:
        self._socket.close()
