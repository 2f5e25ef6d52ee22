"""Committed changes, from the writer to whoever pushes them to clients.

Batches are frames on streams (`pylon.bus.frames`), one stream for each subscriber. The publisher
drops batches for a subscriber that does not read: it keeps `limits.CHANGES_UNREAD_BYTES` at most
that the kernel does not take. `ChangeBatch.prev_seq` makes every loss visible: a subscriber whose
last seq is another one reads the change log. PERF: with ZeroMQ a batch cost the writer 45 us and
three I/O threads as much.

`ChangesPublisher` belongs to the writer thread, `ChangesSubscriber` to one greenlet.
"""

from __future__ import annotations

import select
from collections import deque
from typing import Any, Final

from pylon import limits, log, metrics
from pylon.bus import messages
from pylon.bus.frames import FrameStream, Listener
from pylon.bus.runtime import Runtime
from pylon.storage.events import ChangeBatch

_log = log.get_logger("changes")
_RECONNECT_S: Final = 0.2


class ChangesPublisher:
    """Binds the changes endpoint. Call `attend` when `fd` is readable."""

    __slots__ = ("_epoll", "_listener", "_published", "_subscribers", "fd")

    def __init__(self, runtime: Runtime) -> None:
        self._listener = Listener(runtime.changes)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fd, select.EPOLLIN)
        self._subscribers: dict[int, FrameStream] = {}
        self._published = metrics.BUS_MESSAGES.labels("changes")
        self.fd = self._epoll.fileno()

    def publish(self, batch: ChangeBatch) -> None:
        """Send a batch to every subscriber that keeps up. Never blocks."""
        self.attend()
        self._published.inc()
        if not self._subscribers:
            return
        payload = messages.encode(batch)
        for subscriber in list(self._subscribers.values()):
            if subscriber.unsent_bytes > limits.CHANGES_UNREAD_BYTES:
                continue  # it reads the change log
            try:
                if not subscriber.send(payload):
                    self._epoll.modify(subscriber.fd, select.EPOLLIN | select.EPOLLOUT)
            except EOFError:
                self._drop(subscriber)

    def attend(self) -> None:
        """Take new subscribers, and send what waits for others. Never blocks."""
        for descriptor, events in self._epoll.poll(0):
            subscriber = self._subscribers.get(descriptor)
            if subscriber is None:
                self._accept()
                continue
            try:
                if events & select.EPOLLOUT and subscriber.flush():
                    self._epoll.modify(descriptor, select.EPOLLIN)
                if events & ~select.EPOLLOUT:
                    subscriber.receive()  # a subscriber says nothing: this is its end
            except EOFError:
                self._drop(subscriber)

    def close(self) -> None:
        for subscriber in list(self._subscribers.values()):
            self._drop(subscriber)
        self._epoll.close()
        self._listener.close()

    def _accept(self) -> None:
        while (subscriber := self._listener.accept()) is not None:
            self._subscribers[subscriber.fd] = subscriber
            self._epoll.register(subscriber.fd, select.EPOLLIN)

    def _drop(self, subscriber: FrameStream) -> None:
        del self._subscribers[subscriber.fd]
        subscriber.close()


class ChangesSubscriber:
    """Receives every batch from now on, except those that were dropped.

    Its descriptor is watched only while a greenlet waits.
    """

    __slots__ = ("_arrived", "_hub", "_last_seq", "_path", "_readable", "_stream")

    def __init__(self, runtime: Runtime) -> None:
        from gevent.hub import get_hub  # the supervisor imports this module, without gevent

        self._last_seq: int | None = None
        self._path = runtime.changes
        self._hub = get_hub()
        self._arrived: deque[bytes] = deque()
        self._stream: FrameStream | None = None
        self._readable: Any = None  # watches the stream
        self._connect()

    def receive(self) -> ChangeBatch:
        """The next batch; blocks this greenlet. Counts gaps; closing them is the caller's."""
        while (batch := self.waiting()) is None:
            self._wait_readable()
        return batch

    def wait(self) -> None:
        """Block this greenlet until a batch is here."""
        while not self._is_here():
            self._wait_readable()

    def waiting(self) -> ChangeBatch | None:
        """The next batch if it is here already, else None. Never blocks."""
        data = self.receive_raw()
        return None if data is None else self.read(data)

    def receive_raw(self) -> bytes | None:
        """The next batch if it is here already, as it came: for `read`, in order. Never blocks."""
        return self._arrived.popleft() if self._is_here() else None

    def read(self, data: bytes) -> ChangeBatch:
        """What `receive_raw` gave."""
        batch = messages.change_batch.decode(data)
        if self._last_seq is not None and batch.prev_seq != self._last_seq:
            metrics.BUS_DROPPED.labels("changes").inc()
        if batch.events:
            self._last_seq = batch.events[-1].seq
        return batch

    def skip(self) -> None:
        """Batches will not be read: the next one that is read is no sign of a loss."""
        self._last_seq = None

    def close(self) -> None:
        """Idempotent. A greenlet that waits must have ended."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._readable.stop()
            self._readable.close()
            stream.close()

    def _is_here(self) -> bool:
        if not self._arrived and self._stream is not None:
            try:
                self._arrived += self._stream.receive()
            except EOFError:
                self.close()
        return bool(self._arrived)

    def _wait_readable(self) -> None:
        """Wait until there is something to read, or the publisher is back."""
        if self._stream is not None:
            self._hub.wait(self._readable)
            return
        import gevent

        gevent.sleep(_RECONNECT_S)
        self._connect()

    def _connect(self) -> None:
        try:
            self._stream = stream = FrameStream.connect(self._path)
        except OSError as ex:
            _log.debug("changes.not_connected", error=str(ex))
            return
        self._readable = self._hub.loop.io(stream.fd, 1)
