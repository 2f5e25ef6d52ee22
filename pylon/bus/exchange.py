"""A worker's end of requests with replies: greenlets wait, and one socket serves all of them.

    worker DEALER -> ROUTER   one frame: a list of requests
    ROUTER -> worker DEALER   one frame: a list of replies

All requests of one turn of the event loop leave in one message. Callers define the types; a request
and a reply have an `id`, and a reply has an `error`.

Invariants: at most `in_flight` requests are unanswered. Each ends in its reply, or in Unavailable
after `timeout_s`; then the other side may have executed it or not. The exchange drops and counts
requests that the socket does not take, and their callers time out.

With `connect_s` the exchange watches its connection: a request waits so long at most while there
is none, and the loss of a connection ends all unanswered requests in Unavailable at once. Metrics:
pylon_bus_messages_total, pylon_bus_messages_dropped_total. Called by `pylon.bus.rooms_client` and
`pylon.bus.calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

import gevent
import msgspec
import zmq
from gevent.event import Event
from gevent.hub import Waiter, get_hub
from zmq.utils.monitor import recv_monitor_message

from pylon import metrics
from pylon.bus import contexts, messages
from pylon.errors import Unavailable
from pylon.errors.wire import WireError

_TRY_AGAIN: Final = "Try again in a moment"


class Reply(Protocol):
    """A reply to a request."""

    @property
    def id(self) -> int: ...

    @property
    def error(self) -> WireError | None: ...


_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply", bound=Reply)


class Route(msgspec.Struct, frozen=True):
    """The endpoint of an exchange, and its bounds."""

    endpoint: str
    channel: str  # the label of the bus's metrics
    peer: str  # the name of the other side in errors
    hwm: int
    in_flight: int
    timeout_s: float
    connect_s: float | None = None  # None: the connection is not watched


class Exchange(Generic[_Request, _Reply]):
    """The connection of one process to one ROUTER. Create it after any fork; `close` it at last."""

    def __init__(
        self, route: Route, name: bytes, decode: Callable[[bytes], Sequence[_Reply]]
    ) -> None:
        """
        Args:
            name: the routing id. No other process may ever have had it, so that no reply to a dead
                process reaches another one.
        """
        self._route = route
        self._decode = decode
        self._pending: dict[int, Waiter[_Reply]] = {}
        self._outgoing: list[_Request] = []
        self._next_id = 1
        self._flush_scheduled = False
        self._closed = False
        self._hub = get_hub()
        self._socket = contexts.open_socket(contexts.green(), zmq.DEALER, route.hwm)
        self._socket.setsockopt(zmq.ROUTING_ID, name)
        self._connected = Event()
        self._watch: gevent.Greenlet[..., Any] | None = None
        if route.connect_s is not None:
            monitor = self._socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
            self._watch = gevent.spawn(self._watch_connection, monitor)
        self._socket.connect(route.endpoint)
        self._sent = metrics.BUS_MESSAGES.labels(route.channel)
        self._in_flight = metrics.BUS_IN_FLIGHT.labels(route.channel)  # of all on this channel
        self._greenlet: gevent.Greenlet[..., Any] = gevent.spawn(self._receive)

    def request(self, make: Callable[[int], _Request]) -> _Reply:
        """Send the request that `make` gives for an id, and wait for its reply.

        Raises:
            Unavailable: see the module.
            PylonError: the error that the other side replied.
        """
        route = self._route
        if route.connect_s is not None and not self._connected.wait(route.connect_s):
            raise Unavailable(f"No connection to {route.peer}", hint=_TRY_AGAIN)
        if len(self._pending) >= route.in_flight or self._closed:
            raise Unavailable(f"Too many requests to {route.peer} are in flight", hint=_TRY_AGAIN)
        number = self._next_id
        self._next_id += 1
        waiter: Waiter[_Reply] = Waiter()
        self._pending[number] = waiter
        self._in_flight.inc()
        reply: _Reply | None = None
        try:
            self.send(make(number))
            with gevent.Timeout(route.timeout_s, False):
                reply = waiter.get()
        finally:
            self._pending.pop(number, None)
            self._in_flight.dec()
        if reply is None:
            raise Unavailable(
                f"No answer from {route.peer} within {route.timeout_s:g} s", hint=_TRY_AGAIN
            )
        if reply.error is not None:
            raise reply.error.to_exception()
        return reply

    def send(self, request: _Request) -> None:
        """Send a request without waiting for a reply. Never blocks."""
        self._outgoing.append(request)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._hub.loop.run_callback(self._flush)

    def close(self) -> None:
        """Fail the requests that wait, and close the socket."""
        if self._closed:
            return
        self._closed = True
        self._fail_all("This worker is stopping")
        self._greenlet.kill(block=False)
        if self._watch is not None:
            self._watch.kill(block=False)
            self._socket.disable_monitor()
        self._socket.close()

    def _fail_all(self, why: str) -> None:
        pending, self._pending = self._pending, {}
        for waiter in pending.values():
            self._hub.loop.run_callback(waiter.throw, Unavailable(why, hint=_TRY_AGAIN))

    def _watch_connection(self, monitor: zmq.Socket[bytes]) -> None:
        """Note whether there is a connection. A lost one ends the requests that wait."""
        while True:
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_CONNECTED:
                self._connected.set()
            elif event == zmq.EVENT_DISCONNECTED:
                self._connected.clear()
                self._fail_all(f"The connection to {self._route.peer} was lost")
            else:
                return  # the monitor has ended

    def _flush(self) -> None:
        """Send the requests of this turn, without waiting. Runs in the hub."""
        self._flush_scheduled = False
        requests, self._outgoing = self._outgoing, []
        if self._closed:
            return
        try:
            self._socket.send(messages.encode(requests), zmq.NOBLOCK)
            self._sent.inc()
        except zmq.Again:
            metrics.BUS_DROPPED.labels(self._route.channel).inc()

    def _receive(self) -> None:
        while True:
            try:
                frame = self._socket.recv()
            except zmq.ZMQError:
                return  # `close` was called
            for reply in self._decode(frame):
                waiter = self._pending.pop(reply.id, None)
                if waiter is not None:  # else its caller has timed out
                    self._hub.loop.run_callback(waiter.switch, reply)
