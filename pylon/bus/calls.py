"""Requests with answers between workers: greenlets call, one socket carries, replies wake them.

    worker DEALER -> port ROUTER   one frame: list[Call]
    port ROUTER -> worker DEALER   one frame: list[Answer]

All calls that greenlets make during one turn of the event loop leave in one message. Commands
and answers are the callers' own types; here they are bytes.

Invariants: at most `limits.CALLS_IN_FLIGHT` calls are unanswered; each ends in its answer, or in
Unavailable when `limits.CALL_TIMEOUT_S` has passed (then it may or may not have been carried
out). What a port's socket does not take is dropped and counted. Used by `pylon.bus.shards`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import gevent
import msgspec
import zmq
from gevent.hub import Waiter, get_hub

from pylon import limits, log, metrics
from pylon.bus import contexts, messages
from pylon.bus.messages import WriteError
from pylon.clock import RandomSource
from pylon.errors import InternalError, PylonError, Unavailable

_TRY_AGAIN: Final = "Try again in a moment"
_log = log.get_logger("calls")


class Call(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`id` is unique within its caller's process."""

    id: int
    command: bytes


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    id: int
    body: bytes = b""
    error: WriteError | None = None


_calls: Final = msgspec.msgpack.Decoder(list[Call])
_answers: Final = msgspec.msgpack.Decoder(list[Answer])


class Caller:
    """One process's way to one port. Made after any fork; `close` it at the end."""

    def __init__(self, endpoint: str, channel: str, random: RandomSource) -> None:
        """Args: `channel` is the label of the bus's metrics."""
        self._channel = channel
        self._pending: dict[int, Waiter[Answer]] = {}
        self._outgoing: list[Call] = []
        self._next_id = 1
        self._flush_scheduled = False
        self._closed = False
        self._hub = get_hub()
        self._socket = contexts.open_socket(contexts.green(), zmq.DEALER, limits.BUS_CALLS_HWM)
        # A routing id of our own: an answer to a dead process can never reach its successor.
        self._socket.setsockopt(zmq.ROUTING_ID, b"c" + random.token_hex(12).encode())
        self._socket.connect(endpoint)
        self._greenlet = gevent.spawn(self._receive)

    def call(self, command: bytes) -> bytes:
        """Have a command carried out; blocks this greenlet.

        Raises:
            Unavailable: see the module.
            PylonError: what the other side answered.
        """
        if len(self._pending) >= limits.CALLS_IN_FLIGHT or self._closed:
            raise Unavailable(f"Too many calls to {self._channel} wait", hint=_TRY_AGAIN)
        number = self._next_id
        self._next_id += 1
        waiter: Waiter[Answer] = Waiter()
        self._pending[number] = waiter
        self._outgoing.append(Call(number, command))
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._hub.loop.run_callback(self._flush)
        answer: Answer | None = None
        try:
            with gevent.Timeout(limits.CALL_TIMEOUT_S, False):
                answer = waiter.get()
        finally:
            self._pending.pop(number, None)
        if answer is None:
            raise Unavailable(
                f"{self._channel} did not answer within {limits.CALL_TIMEOUT_S:g} s",
                hint=_TRY_AGAIN,
            )
        if answer.error is not None:
            raise answer.error.to_exception()
        return answer.body

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
        calls, self._outgoing = self._outgoing, []
        if self._closed:
            return
        try:
            self._socket.send(messages.encode(calls), zmq.NOBLOCK)
            metrics.BUS_MESSAGES.labels(self._channel).inc()
        except zmq.Again:  # who waits gives up in time
            metrics.BUS_DROPPED.labels(self._channel).inc()

    def _receive(self) -> None:
        while True:
            try:
                frame = self._socket.recv()
            except zmq.ZMQError:
                return  # closed
            for answer in _answers.decode(frame):
                waiter = self._pending.pop(answer.id, None)
                if waiter is not None:  # else its caller has given up
                    self._hub.loop.run_callback(waiter.switch, answer)


class CallPort:
    """Answers calls in a worker process. `run` it in a greenlet of its own."""

    def __init__(self, endpoint: str, channel: str, answer: Callable[[bytes], bytes]) -> None:
        """Args: `answer` carries out one command, in a greenlet of its own; it may block, and
        raise a `PylonError`, which the caller gets."""
        self._channel = channel
        self._answer = answer
        self._socket = contexts.open_socket(contexts.green(), zmq.ROUTER, limits.BUS_CALLS_HWM)
        self._socket.bind(endpoint)
        self._running = 0

    def run(self) -> NoReturn:
        """Answer for ever."""
        while True:
            peer, frame = self._socket.recv_multipart()
            try:
                calls = _calls.decode(frame)
            except msgspec.DecodeError as ex:
                # The folder is private, so this is a defect or a mixed-up version of ours.
                _log.error("calls.unreadable", channel=self._channel, error=str(ex))
                metrics.BUS_DROPPED.labels(self._channel).inc()
                continue
            for call in calls:
                if self._running >= limits.CALLS_IN_FLIGHT:
                    busy = Unavailable(f"{self._channel} is busy", hint=_TRY_AGAIN)
                    self._send(peer, Answer(call.id, error=WriteError.of(busy)))
                    continue
                self._running += 1
                gevent.spawn(self._carry_out, peer, call)

    def _carry_out(self, peer: bytes, call: Call) -> None:
        try:
            answer = Answer(call.id, self._answer(call.command))
        except PylonError as ex:
            answer = Answer(call.id, error=WriteError.of(ex))
        except Exception as ex:  # noqa: BLE001  whatever it is, the caller must be answered
            _log.exception("call.failed", channel=self._channel, error=ex)
            refusal = InternalError("The call failed; the server's log says why")
            answer = Answer(call.id, error=WriteError.of(refusal))
        finally:
            self._running -= 1
        self._send(peer, answer)

    def _send(self, peer: bytes, answer: Answer) -> None:
        try:
            self._socket.send_multipart((peer, messages.encode([answer])), zmq.NOBLOCK)
            metrics.BUS_MESSAGES.labels(self._channel).inc()
        except zmq.ZMQError:  # its caller is gone, or reads no more: it gives up in time
            metrics.BUS_DROPPED.labels(self._channel).inc()

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
