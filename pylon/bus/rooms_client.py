"""A worker's way to the rooms: greenlets ask, one socket carries, replies wake them.

All commands that greenlets give during one turn of the event loop leave in one message, for
the rooms share an interpreter with the writer. Used by the API of HTTP workers and by the ws
worker.

Invariants: at most `limits.ROOM_COMMANDS_IN_FLIGHT` commands are unanswered; every command that
wants an answer ends in it, or in Unavailable when `limits.ROOM_TIMEOUT_S` has passed.
"""

from __future__ import annotations

import os
from typing import Final

import gevent
import zmq
from gevent.hub import Waiter, get_hub

from pylon import limits, metrics
from pylon.bus import contexts, messages, rooms_messages
from pylon.bus.rooms_messages import RoomCommand, RoomReply, RoomRequest, client_name
from pylon.bus.runtime import Runtime
from pylon.clock import RandomSource, SystemRandom
from pylon.errors import Unavailable

_NO_REPLY: Final = 0
_TRY_AGAIN: Final = "Try again in a moment"


class RoomsClient:
    """Made after any fork, once in each process. `close` it at the end."""

    def __init__(self, runtime: Runtime, random: RandomSource | None = None) -> None:
        self.name = client_name(os.getpid(), (random or SystemRandom()).token_hex(12))
        self._pending: dict[int, Waiter[RoomReply]] = {}
        self._outgoing: list[RoomRequest] = []
        self._next_id = 1
        self._flush_scheduled = False
        self._closed = False
        self._hub = get_hub()
        self._socket = contexts.open_socket(contexts.green(), zmq.DEALER, limits.BUS_ROOMS_HWM)
        self._socket.setsockopt(zmq.ROUTING_ID, self.name)
        self._socket.connect(runtime.rooms)
        self._sent = metrics.BUS_MESSAGES.labels("rooms")
        self._greenlet = gevent.spawn(self._receive)

    def submit(self, command: RoomCommand) -> RoomReply:
        """Carry out a command; blocks this greenlet.

        Raises:
            Unavailable: see the module.
            PylonError: what the rooms answered.
        """
        if len(self._pending) >= limits.ROOM_COMMANDS_IN_FLIGHT or self._closed:
            raise Unavailable("Too many requests to rooms are in flight", hint=_TRY_AGAIN)
        number = self._next_id
        self._next_id += 1
        waiter: Waiter[RoomReply] = Waiter()
        self._pending[number] = waiter
        self._put(RoomRequest(number, command))
        reply: RoomReply | None = None
        try:
            with gevent.Timeout(limits.ROOM_TIMEOUT_S, False):
                reply = waiter.get()
        finally:
            self._pending.pop(number, None)
        if reply is None:
            raise Unavailable(
                f"The rooms did not answer within {limits.ROOM_TIMEOUT_S:g} s", hint=_TRY_AGAIN
            )
        if reply.error is not None:
            raise reply.error.to_exception()
        return reply

    def tell(self, command: RoomCommand) -> None:
        """Give a command that wants no answer. Never blocks."""
        self._put(RoomRequest(_NO_REPLY, command))

    def close(self) -> None:
        """Fail what waits, and let go of the socket."""
        if self._closed:
            return
        self._closed = True
        for waiter in self._pending.values():
            self._hub.loop.run_callback(waiter.throw, Unavailable("This worker is stopping"))
        self._greenlet.kill(block=False)
        self._socket.close()

    def _put(self, request: RoomRequest) -> None:
        self._outgoing.append(request)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._hub.loop.run_callback(self._flush)

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
            # The rooms have not read for thousands of messages. Who waits gives up in time;
            # sockets whose end is lost here are found gone with this worker.
            metrics.BUS_DROPPED.labels("rooms").inc()

    def _receive(self) -> None:
        while True:
            try:
                frame = self._socket.recv()
            except zmq.ZMQError:
                return  # closed
            for reply in rooms_messages.replies.decode(frame):
                waiter = self._pending.pop(reply.id, None)
                if waiter is not None:  # else its caller has given up
                    self._hub.loop.run_callback(waiter.switch, reply)
