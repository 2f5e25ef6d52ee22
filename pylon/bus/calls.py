"""Calls between workers: commands and answers as bytes, whose types belong to the callers.

    worker DEALER -> port ROUTER   one frame: list[Call]      (`pylon.bus.exchange`)
    port ROUTER -> worker DEALER   one frame: list[Answer]

Invariants: at most `limits.CALLS_IN_FLIGHT` calls are unanswered. Each ends in its answer, or in
Unavailable after `limits.CALL_TIMEOUT_S`; then the port may have executed it or not. The port drops
and counts an answer that its socket does not take. Metrics: pylon_bus_messages_total,
pylon_bus_messages_dropped_total. Called by `pylon.bus.shards`, `pylon.bus.identity` and the
servers of the workers that answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import gevent
import msgspec
import zmq

from pylon import limits, log, metrics
from pylon.bus import contexts, messages
from pylon.bus.exchange import Exchange, Route
from pylon.clock import RandomSource
from pylon.errors import InternalError, PylonError, Unavailable
from pylon.errors.wire import WireError

_TRY_AGAIN: Final = "Try again in a moment"
_log = log.get_logger("calls")


class Call(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A command. `id` is unique within the caller's process."""

    id: int
    command: bytes


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    id: int
    body: bytes = b""
    error: WireError | None = None


_calls: Final = msgspec.msgpack.Decoder(list[Call])
_answers: Final = msgspec.msgpack.Decoder(list[Answer])


class Caller:
    """The connection of a process to a port. Create it after any fork; `close` it at the end."""

    def __init__(
        self, endpoint: str, channel: str, random: RandomSource, *,
        timeout_s: float = limits.CALL_TIMEOUT_S, connect_s: float | None = None,
    ) -> None:
        """
        Args:
            channel: the label of the bus's metrics.
            connect_s: see `pylon.bus.exchange`.
        """
        route = Route(
            endpoint, channel, channel, limits.BUS_CALLS_HWM, limits.CALLS_IN_FLIGHT,
            timeout_s, connect_s,
        )
        name = b"c" + random.token_hex(12).encode()
        self._exchange: Exchange[Call, Answer] = Exchange(route, name, _answers.decode)

    def call(self, command: bytes) -> bytes:
        """Have the port execute a command; return its answer. Blocks this greenlet.

        Raises:
            Unavailable: too many calls are in flight, or no answer came in time.
            PylonError: the error that the port answered.
        """
        return self._exchange.request(lambda number: Call(number, command)).body

    def close(self) -> None:
        """Fail the calls that wait, and close the socket."""
        self._exchange.close()


class CallPort:
    """Answers calls in a worker process. `run` it in a greenlet of its own."""

    def __init__(self, endpoint: str, channel: str, answer: Callable[[bytes], bytes]) -> None:
        """
        Args:
            answer: executes one command and returns its answer, in a greenlet of its own. It may
                block, and it may raise a `PylonError`, which the caller gets.
        """
        self._channel = channel
        self._answer = answer
        self._socket = contexts.open_socket(contexts.green(), zmq.ROUTER, limits.BUS_CALLS_HWM)
        self._socket.bind(endpoint)
        self._running = 0

    @property
    def running(self) -> int:
        """Return the number of calls that are being executed."""
        return self._running

    def run(self) -> NoReturn:
        """Answer calls for ever."""
        while True:
            peer, frame = self._socket.recv_multipart()
            try:
                calls = _calls.decode(frame)
            except msgspec.DecodeError as ex:
                # The folder is private, so this is a defect, or a Pylon of another version.
                _log.error("calls.unreadable", channel=self._channel, error=str(ex))
                metrics.BUS_DROPPED.labels(self._channel).inc()
                continue
            for call in calls:
                if self._running >= limits.CALLS_IN_FLIGHT:
                    busy = Unavailable(f"{self._channel} is busy", hint=_TRY_AGAIN)
                    self._send(peer, Answer(call.id, error=WireError.from_error(busy)))
                    continue
                self._running += 1
                gevent.spawn(self._execute, peer, call)

    def _execute(self, peer: bytes, call: Call) -> None:
        try:
            answer = Answer(call.id, self._answer(call.command))
        except PylonError as ex:
            answer = Answer(call.id, error=WireError.from_error(ex))
        except Exception as ex:  # noqa: BLE001  the caller needs an answer to any error
            _log.exception("call.failed", channel=self._channel, error=ex)
            refusal = InternalError("The call failed; the server's log says why")
            answer = Answer(call.id, error=WireError.from_error(refusal))
        finally:
            self._running -= 1
        self._send(peer, answer)

    def _send(self, peer: bytes, answer: Answer) -> None:
        try:
            self._socket.send_multipart((peer, messages.encode([answer])), zmq.NOBLOCK)
            metrics.BUS_MESSAGES.labels(self._channel).inc()
        except zmq.ZMQError:  # the caller has ended or does not read; its call times out
            metrics.BUS_DROPPED.labels(self._channel).inc()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
