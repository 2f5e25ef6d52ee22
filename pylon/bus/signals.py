"""Signals between all processes: revoked sessions, changed documents, the state of the roles.

Any process may send and receive signals, through a proxy in the supervisor. Delivery is not
guaranteed. So every signal is either repeated (roles), or the store has the same fact (sessions,
documents). Two frames: the signal's tag, then the signal. Metric: pylon_bus_messages_total. Called
by `supervisor.main`, `supervisor.writer` and the workers.
"""

from __future__ import annotations

import threading
from typing import Any

import zmq

from pylon import limits, log, metrics
from pylon.bus import contexts, messages
from pylon.bus.messages import Signal
from pylon.bus.runtime import Runtime

_log = log.get_logger("signals")


def tag_of(kind: type[Any]) -> bytes:
    """Return the first frame of a signal: the tag of its type."""
    return str(kind.__struct_config__.tag).encode()


class SignalProxy:
    """The thread in the supervisor that forwards signals. Call `start`, and `stop` at the end."""

    def __init__(self, runtime: Runtime) -> None:
        # A separate context: its termination makes `zmq.proxy` return.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbound = contexts.open_socket(self._context, zmq.XSUB, limits.BUS_SIGNALS_HWM)
        self._inbound.bind(runtime.signals_in)
        self._outbound = contexts.open_socket(self._context, zmq.XPUB, limits.BUS_SIGNALS_HWM)
        self._outbound.bind(runtime.signals_out)
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._context.term()
        self._thread.join()

    def _run(self) -> None:
        try:
            zmq.proxy(self._inbound, self._outbound)
        except zmq.ContextTerminated:
            _log.debug("signals.proxy_ended")
        finally:
            self._inbound.close()
            self._outbound.close()


class PlainSignalSender:
    """Sends from one thread of the supervisor."""

    __slots__ = ("_socket",)

    def __init__(self, runtime: Runtime) -> None:
        self._socket = _connected_pub(contexts.plain(), runtime)

    def send(self, signal: Signal) -> None:
        """Send a signal to all receivers. Never blocks."""
        _send(self._socket, signal)

    def close(self) -> None:
        self._socket.close()


class SignalSender:
    """Sends from the greenlets of a worker."""

    __slots__ = ("_socket",)

    def __init__(self, runtime: Runtime) -> None:
        self._socket = _connected_pub(contexts.green(), runtime)

    def send(self, signal: Signal) -> None:
        """Send a signal to all receivers. Never blocks, never switches greenlets."""
        _send(self._socket, signal)

    def close(self) -> None:
        self._socket.close()


class SignalReceiver:
    """Receives the given kinds of signals; for one greenlet of a worker."""

    __slots__ = ("_socket",)

    def __init__(self, runtime: Runtime, *kinds: type[Any]) -> None:
        """Args: `kinds` are the types to receive, e.g. ``RolesReport``; none means all."""
        self._socket = contexts.open_socket(contexts.green(), zmq.SUB, limits.BUS_SIGNALS_HWM)
        for prefix in [tag_of(kind) for kind in kinds] or [b""]:
            self._socket.setsockopt(zmq.SUBSCRIBE, prefix)
        self._socket.connect(runtime.signals_out)

    def receive(self) -> Signal:
        """Return the next signal; blocks this greenlet.

        Raises:
            zmq.ZMQError: the socket was closed.
        """
        _, frame = self._socket.recv_multipart()
        signal: Signal = messages.signal.decode(frame)
        return signal

    def close(self) -> None:
        self._socket.close()


def _connected_pub(
    context: zmq.Context[zmq.Socket[bytes]], runtime: Runtime
) -> zmq.Socket[bytes]:
    socket = contexts.open_socket(context, zmq.PUB, limits.BUS_SIGNALS_HWM)
    socket.connect(runtime.signals_in)
    return socket


def _send(socket: zmq.Socket[bytes], signal: Signal) -> None:
    socket.send_multipart((tag_of(type(signal)), messages.encode(signal)), zmq.NOBLOCK)
    metrics.BUS_MESSAGES.labels("signals").inc()
