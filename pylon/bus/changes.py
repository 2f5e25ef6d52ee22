"""Committed changes, from the writer to the workers that send them to clients.

ZeroMQ drops batches for a subscriber that is slow or has just connected. `ChangeBatch.prev_seq`
makes every loss visible: a subscriber whose last seq is another one reads the change log.

While a worker has clients, it also subscribes to the topic `_CLIENTS`, which no batch has. ZeroMQ
tells the publisher of the first such subscription and of the end of the last one, also if a worker
dies. So the writer can tell whether any client waits for a change.

`ChangesPublisher` belongs to the writer thread, `ChangesSubscriber` to one greenlet. Metric:
pylon_bus_messages_dropped_total. Used by `supervisor.writer` and `workers.hub.feed`.
"""

from __future__ import annotations

from typing import Any, Final

import zmq

from pylon import limits, metrics
from pylon.bus import contexts, messages
from pylon.bus.runtime import Runtime
from pylon.storage.events import ChangeBatch
from pylon.storage.public_rows import PublicRows

# PERF: with pyzmq's flag each check of the socket makes enum members: 9.6 in place of 4.5 us.
_READABLE: Final = int(zmq.POLLIN)
_CLIENTS: Final = b"clients"  # a batch is a msgpack array, so it never begins with this
_SUBSCRIBED: Final = 1  # first byte of the message about a subscription


class ChangesPublisher:
    """Binds the changes endpoint."""

    __slots__ = ("_has_clients", "_rows", "_sent", "_socket")

    def __init__(self, runtime: Runtime, rows: PublicRows) -> None:
        """Args: `rows` removes the hidden fields, which no worker may have."""
        self._rows = rows
        self._socket = contexts.open_socket(contexts.plain(), zmq.XPUB, limits.BUS_CHANGES_HWM)
        self._socket.bind(runtime.changes)
        self._has_clients = False
        self._sent = metrics.BUS_MESSAGES.labels("changes")

    def publish(self, batch: ChangeBatch) -> None:
        """Send a batch to every subscriber that keeps up. Never blocks."""
        self._socket.send(messages.encode(self._rows.batch(batch)), zmq.NOBLOCK)
        self._sent.inc()

    def has_clients(self) -> bool:
        """Whether some subscriber has clients, who wait for changes. Never blocks."""
        while _is_readable(self._socket):
            told = self._socket.recv(zmq.NOBLOCK)
            if told[1:] == _CLIENTS:
                self._has_clients = told[0] == _SUBSCRIBED
        return self._has_clients

    def close(self) -> None:
        self._socket.close()


class ChangesSubscriber:
    """Receives every later batch, except those that ZeroMQ drops.

    A greenlet watches its descriptor only while it waits: a green socket costs several switches,
    and exceptions, for each message.
    """

    __slots__ = ("_has_clients", "_last_seq", "_loop", "_readable", "_socket")

    def __init__(self, runtime: Runtime) -> None:
        from gevent.hub import get_hub  # the supervisor imports this module, without gevent

        self._last_seq: int | None = None
        self._has_clients = False
        self._socket = contexts.open_socket(
            contexts.green(), zmq.SUB, limits.BUS_CHANGES_HWM, watched=True
        )
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(runtime.changes)
        self._loop = get_hub()
        self._readable = self._loop.loop.io(self._socket.getsockopt(zmq.FD), 1)

    def set_has_clients(self, has_clients: bool) -> None:
        """Tell the publisher whether this worker has clients. Never blocks."""
        if has_clients != self._has_clients:
            self._has_clients = has_clients
            self._socket.setsockopt(zmq.SUBSCRIBE if has_clients else zmq.UNSUBSCRIBE, _CLIENTS)

    def receive(self) -> ChangeBatch:
        """Return the next batch; blocks this greenlet. The caller fills the gaps.

        Raises:
            zmq.ZMQError: the socket was closed.
        """
        while (batch := self.receive_waiting()) is None:
            self._loop.wait(self._readable)
        return batch

    def wait(self) -> None:
        """Block this greenlet until a batch has arrived."""
        while not _is_readable(self._socket):
            self._loop.wait(self._readable)

    def receive_waiting(self) -> ChangeBatch | None:
        """Return the next batch, or None if none has arrived. Never blocks."""
        data = self.receive_raw()
        return None if data is None else self.read(data)

    def receive_raw(self) -> bytes | None:
        """Return the next batch undecoded, for `read`; None if none has arrived. Never blocks."""
        return self._socket.recv(zmq.NOBLOCK) if _is_readable(self._socket) else None

    def read(self, data: bytes) -> ChangeBatch:
        """Decode a batch that `receive_raw` gave. Count a gap before it."""
        batch = messages.change_batch.decode(data)
        if self._last_seq is not None and batch.prev_seq != self._last_seq:
            metrics.BUS_DROPPED.labels("changes").inc()
        if batch.events:
            self._last_seq = batch.events[-1].seq
        return batch

    def skip(self) -> None:
        """Expect a gap: some batches are not read on purpose."""
        self._last_seq = None

    def close(self) -> None:
        self._readable.stop()
        self._readable.close()
        self._socket.close()


def _is_readable(socket: zmq.Socket[bytes]) -> bool:
    # The descriptor signals changes only, so a caller must check the socket before it waits.
    events: Any = socket.getsockopt(zmq.EVENTS)
    return bool(events & _READABLE)
