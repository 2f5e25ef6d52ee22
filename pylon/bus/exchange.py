"""A worker's end of requests with replies: greenlets ask, one socket carries, replies wake them.

    worker DEALER -> somebody's ROUTER   one frame: a list of requests
    somebody's ROUTER -> worker DEALER   one frame: a list of replies

All that greenlets ask during one turn of the event loop leaves in one message. What requests
and replies are is their owners' business, as long as both have an `id` and a reply an `error`.

Invariants: at most `in_flight` requests are unanswered; each ends in its reply, or in
Unavailable when `timeout_s` has passed (then it may or may not have been carried out). What the
socket does not take is dropped and counted; who waits for it gives up in time. Used by
`pylon.bus.rooms_client` and `pylon.bus.calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import gevent
import zmq
from gevent.hub import Waiter, get_hub

from pylon import metrics
from pylon.bus import contexts, messages
from pylon.errors import Unavailable
from pylon.errors.wire import WireError

_TRY_AGAIN: Final = "Try again in a moment"


class Reply(Protocol):
    """What comes back."""

    @property
    def id(self) -> int: ...

    @property
    def error(self) -> WireError | None: ...


_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply", bound=Reply)


@dataclass(frozen=True, slots=True)
class Route:
    """Where an exchange goes, and its bounds."""

    endpoint: str
    channel: str  # the label of the bus's metrics
    whom: str  # names the other side in errors
    hwm: int
    in_flight: int
    timeout_s: float


class Exchange(Generic[_Request, _Reply]):
    """One process's way to one ROUTER. Made after any fork; `close` it at the end."""

    def __init__(
        self, route: Route, name: bytes, decode: Callable[[bytes], Sequence[_Reply]]
    ) -> None:
        """Args: `name` is the routing id: never one that another process has or had, so that a
        reply to a dead process cannot reach its successor."""
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
        self._socket.connect(route.endpoint)
        self._sent = metrics.BUS_MESSAGES.labels(route.channel)
        self._in_flight = metrics.BUS_IN_FLIGHT.labels(route.channel)  # of all on this channel
        self._greenlet: gevent.Greenlet[..., Any] = gevent.spawn(self._receive)

    def ask(self, make: Callable[[int], _Request]) -> _Reply:
        """Send the request that `make` gives for an id, and wait for its reply.

        Raises:
            Unavailable: see the module.
            PylonError: what the other side answered.
        """
        route = self._route
        if len(self._pending) >= route.in_flight or self._closed:
            raise Unavailable(f"Too many requests to {route.whom} are in flight", hint=_TRY_AGAIN)
        number = self._next_id
        self._next_id += 1
        waiter: Waiter[_Reply] = Waiter()
        self._pending[number] = waiter
        self._in_flight.inc()
        reply: _Reply | None = None
        try:
            self.tell(make(number))
            with gevent.Timeout(route.timeout_s, False):
                reply = waiter.get()
        finally:
            self._pending.pop(number, None)
            self._in_flight.dec()
        if reply is None:
            raise Unavailable(
                f"No answer from {route.whom} within {route.timeout_s:g} s", hint=_TRY_AGAIN
            )
        if reply.error is not None:
            raise reply.error.to_exception()
        return reply

    def tell(self, request: _Request) -> None:
        """Send a request and wait for nothing. Never blocks."""
        self._outgoing.append(request)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._hub.loop.run_callback(self._flush)

    def close(self) -> None:
        """Fail what waits, and let go of the socket."""
        if self._closed:
            return
        self._closed = True
        for waiter in self._pending.values():
            self._hub.loop.run_callback(waiter.throw, Unavailable("This worker is stopping"))
        self._greenlet.kill(block=False)
        self._socket.close()

    def _flush(self) -> None:
        """Runs in the hub: send what this turn gathered, without waiting."""
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
                return  # closed
            for reply in self._decode(frame):
                waiter = self._pending.pop(reply.id, None)
                if waiter is not None:  # else its caller has given up
                    self._hub.loop.run_callback(waiter.switch, reply)
