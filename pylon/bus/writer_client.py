"""The worker's end of the writes channel: greenlets submit writes, and wait for the replies.

All writes that greenlets submit during one turn of the event loop leave in one frame
(`pylon.bus.frames`). PERF: one frame for each write costs twice the CPU. The client connects with
its first write, and again after the writer has closed the connection.

Invariants: at most `limits.WRITES_IN_FLIGHT` writes are unanswered. Every write ends in its reply
or in WriterUnavailable: after `limits.WRITE_TIMEOUT_S`, or when the connection is lost. Then the
writer may have committed it or not; a repeat with the same op_id is safe. Metrics:
pylon_writes_in_flight, pylon_write_duration_seconds. Made in each worker that writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from pylon import limits, log, metrics
from pylon.bus import messages
from pylon.bus.frames import FrameStream
from pylon.bus.runtime import Runtime
from pylon.clock import Clock, SystemClock
from pylon.errors import WriteQueueFull, WriterUnavailable
from pylon.storage.ops import WriteOp, WriteReply, WriteRequest

_log = log.get_logger("writer_client")
_SWEEP_S: Final = 0.5
_READ: Final = 1  # events of a libev watcher
_WRITE: Final = 2


class _Call:
    """One `submit_all` that waits: its replies, which come in order, and how many there will be.

    Only the hub wakes the greenlet, and only once: `greenlet` is None from then on.
    PERF: gevent's `Waiter` around the two switches costs an insert 0.9 us more.
    """

    __slots__ = ("count", "first_id", "greenlet", "replies", "since_s")

    def __init__(self, first_id: int, count: int, now_s: float) -> None:
        self.first_id = first_id
        self.count = count
        self.replies: list[WriteReply] = []
        self.since_s = now_s
        self.greenlet: greenlet | None = getcurrent()


class WriterClient:
    """One for each process. Create it after any fork; `close` it at the end."""

    def __init__(self, runtime: Runtime, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._path = runtime.writes
        self._pending: dict[int, _Call] = {}  # by request id
        self._has_pending = Event()  # the sweep waits for it
        self._outgoing: list[WriteRequest] = []
        self._next_id = 1
        self._flush_scheduled = False
        self._closed = False
        self._hub = get_hub()
        self._stream: FrameStream | None = None  # connected with the first write
        self._watcher: Any = None  # of the stream
        self._sent = metrics.BUS_MESSAGES.labels("writes")
        metrics.WRITES_IN_FLIGHT.set_function(lambda: len(self._pending))
        self._greenlet = gevent.spawn(self._sweep)

    def submit(self, op: WriteOp) -> WriteReply:
        """Have the writer execute one write; return its reply. Blocks this greenlet.

        Raises:
            WriteQueueFull, WriterUnavailable: see the module.
            PylonError: what the writer answered (policy, uniqueness, ...).
        """
        number = self._take_ids(1)
        call = self._pending[number] = _Call(number, 1, self._clock.monotonic_s())
        self._outgoing.append(WriteRequest(number, op))
        reply = self._wait_for(call)[0]
        if reply.error is not None:
            raise reply.error.to_exception()
        return reply

    def submit_all(self, ops: Sequence[WriteOp]) -> list[WriteReply]:
        """Have the writer execute writes in this order; each succeeds or fails alone.

        Returns:
            One reply for each op, in order, errors inside.
        """
        first_id = self._take_ids(len(ops))
        if not ops:
            return []
        call = _Call(first_id, len(ops), self._clock.monotonic_s())
        last_id = first_id + len(ops) - 1
        for number, op in enumerate(ops, first_id):
            self._pending[number] = call
            self._outgoing.append(WriteRequest(number, op, number != last_id))
        return self._wait_for(call)

    def close(self) -> None:
        """Fail the writes that wait, and close the connection. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._disconnect()
        self._fail_all("This worker is stopping")
        self._greenlet.kill(block=False)

    def _take_ids(self, count: int) -> int:
        """Return the first of `count` new ids, if there is room for so many writes.

        Raises:
            WriteQueueFull, WriterUnavailable
        """
        if self._closed:
            raise WriterUnavailable("This worker is stopping")
        if len(self._pending) + count > limits.WRITES_IN_FLIGHT:
            raise WriteQueueFull(
                f"Too many writes in flight (limit {limits.WRITES_IN_FLIGHT} for each worker)",
                hint="Try again in a moment",
            )
        if not self._pending:
            self._has_pending.set()
        first_id = self._next_id
        self._next_id = first_id + count
        return first_id

    def _wait_for(self, call: _Call) -> list[WriteReply]:
        """Return the replies to a call whose requests are in `_outgoing`. Blocks this greenlet."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._hub.loop.run_callback(self._flush)
        try:
            self._hub.switch()
        except BaseException:  # also if the greenlet is killed: no caller waits any more
            call.greenlet = None
            for number in range(call.first_id, call.first_id + call.count):
                self._pending.pop(number, None)
            raise
        metrics.WRITE_WAIT.observe(self._clock.monotonic_s() - call.since_s)
        return call.replies

    def _flush(self) -> None:
        """Send the writes of this turn, without waiting. Runs in the hub."""
        self._flush_scheduled = False
        requests, self._outgoing = self._outgoing, []
        # `submit_all` has removed the writes of a caller that was killed before this flush.
        requests = [request for request in requests if request.id in self._pending]
        if not requests or self._closed:
            return
        try:
            stream = self._stream or self._connect()
            if not stream.send(messages.encode(requests)):
                self._watch(_READ | _WRITE)
            self._sent.inc()
        except (OSError, EOFError) as ex:
            self._fail_connection(str(ex))

    def _connect(self) -> FrameStream:
        """
        Raises:
            OSError: no writer listens.
        """
        self._stream = stream = FrameStream.connect(self._path)
        self._watcher = self._hub.loop.io(stream.fd, _READ)
        self._watcher.start(self._on_ready, pass_events=True)
        return stream

    def _watch(self, events: int) -> None:
        watcher = self._watcher
        watcher.stop()
        watcher.events = events
        watcher.start(self._on_ready, pass_events=True)

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._watcher.stop()
            self._watcher.close()
            stream.close()

    def _fail_connection(self, why: str) -> None:
        """Fail the writes that wait: the connection is lost. The next write connects again."""
        if self._pending:
            _log.warning("writer.lost", in_flight=len(self._pending), error=why)
        self._disconnect()
        self._fail_all("The connection to the writer was lost")

    def _on_ready(self, events: int) -> None:
        """Take replies, and send what the kernel did not take before. Runs in the hub."""
        stream = self._stream
        if stream is None:
            return
        try:
            if events & _WRITE and stream.flush():
                self._watch(_READ)
            frames = stream.receive()
        except EOFError:
            self._fail_connection("the writer closed it")
            return
        pending = self._pending
        for frame in frames:
            for reply in messages.write_replies.decode(frame):
                call = pending.pop(reply.id, None)
                if call is None:
                    continue  # its caller has timed out
                call.replies.append(reply)
                if len(call.replies) == call.count and call.greenlet is not None:
                    waiting, call.greenlet = call.greenlet, None
                    waiting.switch()  # returns when the greenlet waits again or ends

    def _sweep(self) -> None:
        while True:
            self._has_pending.wait()
            gevent.sleep(_SWEEP_S)
            if not self._pending:
                self._has_pending.clear()
            now_s = self._clock.monotonic_s()
            since_s = now_s - limits.WRITE_TIMEOUT_S
            late = [n for n, call in self._pending.items() if call.since_s <= since_s]
            for number in late:
                self._fail(
                    number, f"The writer did not answer within {limits.WRITE_TIMEOUT_S:g} s"
                )

    def _fail(self, number: int, why: str) -> None:
        call = self._pending.pop(number, None)
        if call is not None and call.greenlet is not None:
            error = WriterUnavailable(
                why, hint="The write may have happened: repeat it with the same op_id"
            )
            self._hub.loop.run_callback(_wake, call, error)

    def _fail_all(self, why: str) -> None:
        for number in list(self._pending):
            self._fail(number, why)


def _wake(call: _Call, error: WriterUnavailable) -> None:
    """Raise an error in the greenlet of a call, unless it was woken or killed meanwhile. Runs in
    the hub."""
    if call.greenlet is not None:
        waiting, call.greenlet = call.greenlet, None
        waiting.throw(error)
