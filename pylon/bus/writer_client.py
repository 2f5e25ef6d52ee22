"""The worker's way to the writer: greenlets submit, one socket carries, replies wake them.

All writes that greenlets submit during one turn of the event loop leave in one message:
that is worth more than anything else in the write path (one message for each write costs
twice the CPU). Used by the API of HTTP workers, and by any worker that writes.

Invariants: at most `limits.WRITES_IN_FLIGHT` writes are unanswered; every submitted write
ends in its reply, or in WriterUnavailable when `limits.WRITE_TIMEOUT_S` has passed or the
supervisor went away (then it may or may not have happened: op_ids make a repeat safe).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import gevent
import zmq
from gevent.hub import Waiter, get_hub

from pylon import limits, log, metrics
from pylon.bus import contexts, messages
from pylon.bus.runtime import Runtime
from pylon.clock import Clock, RandomSource, SystemClock, SystemRandom
from pylon.errors import WriteQueueFull, WriterUnavailable
from pylon.storage.ops import WriteOp, WriteReply, WriteRequest

_log = log.get_logger("writer_client")
_SWEEP_S: Final = 0.5
# zmq_socket_monitor(3): an event and its value. (pyzmq's own parser imports asyncio and TLS.)
_EVENT: Final = struct.Struct("=Hi")


class _Call:
    """One `submit_all` that waits: its replies, which come in order, and how many there will be.

    The waiter belongs to one greenlet and costs a third of an event that many could wait for.
    It is woken from the hub only, and once.
    """

    __slots__ = ("count", "first_id", "replies", "since_s", "waiter", "woken")

    def __init__(self, first_id: int, count: int, now_s: float) -> None:
        self.first_id = first_id
        self.count = count
        self.replies: list[WriteReply] = []
        self.since_s = now_s
        self.waiter = Waiter()
        self.woken = False


class WriterClient:
    """Made after any fork, once in each process. `close` it at the end."""

    def __init__(
        self, runtime: Runtime, clock: Clock | None = None, random: RandomSource | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._pending: dict[int, _Call] = {}  # by request id
        self._outgoing: list[WriteRequest] = []
        self._next_id = 1
        self._flush_scheduled = False
        self._closed = False
        self._hub = get_hub()
        self._socket = contexts.open_socket(
            contexts.green(), zmq.DEALER, limits.BUS_WRITES_HWM, watched=True
        )
        # A routing id of our own: a reply to a dead worker can never reach its successor.
        routing_id = b"w" + (random or SystemRandom()).token_hex(12).encode()
        self._socket.setsockopt(zmq.ROUTING_ID, routing_id)
        monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(runtime.writes)
        self._sent = metrics.BUS_MESSAGES.labels("writes")
        metrics.WRITES_IN_FLIGHT.set_function(lambda: len(self._pending))
        # Watched here, not by a greenlet on a green socket: that costs several switches, and
        # exceptions, for each message.
        self._readable = self._hub.loop.io(self._socket.getsockopt(zmq.FD), 1)
        self._readable.start(self._take_replies)
        self._greenlets = [gevent.spawn(self._watch, monitor), gevent.spawn(self._sweep)]

    def submit(self, op: WriteOp) -> WriteReply:
        """Carry out one write; blocks this greenlet.

        Raises:
            WriteQueueFull, WriterUnavailable: see the module.
            PylonError: what the writer answered (policy, uniqueness, ...).
        """
        reply = self.submit_all((op,))[0]
        if reply.error is not None:
            raise reply.error.to_exception()
        return reply

    def submit_all(self, ops: Sequence[WriteOp]) -> list[WriteReply]:
        """Carry out several writes in this order; each succeeds or fails alone.

        Returns:
            One reply for each op, in order, errors inside.
        """
        if self._closed:
            raise WriterUnavailable("This worker is stopping")
        if len(self._pending) + len(ops) > limits.WRITES_IN_FLIGHT:
            raise WriteQueueFull(
                f"Too many writes in flight (limit {limits.WRITES_IN_FLIGHT} for each worker)",
                hint="Try again in a moment",
            )
        if not ops:
            return []
        first_id = self._next_id
        self._next_id += len(ops)
        call = _Call(first_id, len(ops), self._clock.monotonic_s())
        last_id = first_id + len(ops) - 1
        for number, op in enumerate(ops, first_id):
            self._pending[number] = call
            self._outgoing.append(WriteRequest(number, op, number != last_id))
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._hub.loop.run_callback(self._flush)
        try:
            call.waiter.get()
        except BaseException:  # also when the greenlet is killed: nobody waits any more
            for number in range(first_id, first_id + len(ops)):
                self._pending.pop(number, None)
            raise
        metrics.WRITE_WAIT.observe(self._clock.monotonic_s() - call.since_s)
        return call.replies

    def close(self) -> None:
        """Fail what waits, and let go of the socket."""
        if self._closed:
            return
        self._closed = True
        self._readable.stop()
        self._fail_all("This worker is stopping")
        for greenlet in self._greenlets:
            greenlet.kill(block=False)
        self._socket.disable_monitor()
        self._socket.close()

    def _flush(self) -> None:
        """Runs in the hub: send what this turn gathered, without waiting."""
        self._flush_scheduled = False
        requests, self._outgoing = self._outgoing, []
        # A caller that was killed before the flush has left: its write need not happen.
        requests = [request for request in requests if request.id in self._pending]
        if not requests or self._closed:
            return
        try:
            self._socket.send(messages.encode(requests), zmq.NOBLOCK)
            self._sent.inc()
        except zmq.ZMQError as ex:
            # The mark lies above the bound on writes in flight: only a dead socket gets here.
            _log.error("writes.not_sent", count=len(requests), error=str(ex))
            for request in requests:
                self._fail(request.id, f"The writer cannot be reached: {ex}")
        self._take_replies()  # sending may have used up what the descriptor had to tell

    def _take_replies(self) -> None:
        """Runs in the hub. The descriptor tells of changes only, so take all there is."""
        socket, pending = self._socket, self._pending
        ask: Any = socket.getsockopt
        while not self._closed and ask(zmq.EVENTS) & zmq.POLLIN:
            for reply in messages.write_replies.decode(socket.recv(zmq.NOBLOCK)):
                call = pending.pop(reply.id, None)
                if call is None:
                    continue  # its caller has given up
                call.replies.append(reply)
                if len(call.replies) == call.count and not call.woken:
                    call.woken = True
                    call.waiter.switch(None)  # returns when its greenlet waits again or ends

    def _watch(self, monitor: zmq.Socket[bytes]) -> None:
        """Fail what waits as soon as the connection to the supervisor is lost."""
        while True:
            try:
                event, _ = _EVENT.unpack(monitor.recv_multipart()[0])
            except zmq.ZMQError:
                return  # closed
            if event == zmq.EVENT_DISCONNECTED:
                if self._pending:
                    _log.warning("writer.lost", in_flight=len(self._pending))
                self._fail_all("The connection to the writer was lost")
            elif event == zmq.EVENT_MONITOR_STOPPED:
                return

    def _sweep(self) -> None:
        while True:
            gevent.sleep(_SWEEP_S)
            now_s = self._clock.monotonic_s()
            since_s = now_s - limits.WRITE_TIMEOUT_S
            late = [n for n, call in self._pending.items() if call.since_s <= since_s]
            for number in late:
                self._fail(
                    number, f"The writer did not answer within {limits.WRITE_TIMEOUT_S:g} s"
                )

    def _fail(self, number: int, why: str) -> None:
        call = self._pending.pop(number, None)
        if call is not None and not call.woken:
            call.woken = True
            error = WriterUnavailable(
                why, hint="The write may have happened: repeat it with the same op_id"
            )
            self._hub.loop.run_callback(call.waiter.throw, error)

    def _fail_all(self, why: str) -> None:
        for number in list(self._pending):
            self._fail(number, why)
