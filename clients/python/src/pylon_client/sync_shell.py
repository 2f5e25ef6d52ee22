"""The blocking shell: carries effects out with sockets, httpx2 and threads.

It works in any thread, and under gevent's patches, since it uses only what gevent patches: sockets,
selectors and threads. A thread of its own runs a shared connection; it ends with the process.

Called by `sync_client` and `sync_live`.
"""

from __future__ import annotations

import contextlib
import inspect
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, Final, TypeVar

import httpx2

from pylon_client.effects import (
    WOKEN,
    Answer,
    AskToken,
    Connect,
    Deliver,
    Effect,
    EffectFailed,
    Pause,
    Receive,
    Send,
    Shut,
    StartStream,
    Steps,
    Stopped,
    Transmit,
)
from pylon_client.options import log

T = TypeVar("T")

_PIECE_BYTES: Final = 256 * 1024
_WRITE_TIMEOUT_S: Final = 30.0
_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class SyncWake:
    """A wake whose `set` any thread may call."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is set already
            self._writer.send(b"\x00")

    def close(self) -> None:
        """Release the sockets. Nobody may wait for it any more."""
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        return self._reader.fileno()

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(1024):
                pass

    def wait(self, seconds: float) -> bool:
        """Return whether the wake was set within the time."""
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            is_set = bool(selector.select(seconds))
        if is_set:
            self.clear()
        return is_set


class SyncChannel:
    """An open connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0.0)
        self._sock = sock
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._wake: SyncWake | None = None

    def receive(self, timeout_s: float, wake: Any) -> bytes | None:
        if wake is not self._wake and isinstance(wake, SyncWake):
            self._selector.register(wake, selectors.EVENT_READ)
            self._wake = wake
        ends_at_s = time.monotonic() + timeout_s
        while True:
            try:
                return self._sock.recv(_PIECE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError as ex:
                raise EffectFailed(f"the connection broke: {ex}") from ex
            ready = self._selector.select(max(ends_at_s - time.monotonic(), 0.0))
            if not ready:
                return None
            if self._wake is not None and any(key.fileobj is self._wake for key, _ in ready):
                self._wake.clear()
                return WOKEN

    def transmit(self, data: bytes) -> None:
        try:
            self._sock.settimeout(_WRITE_TIMEOUT_S)
            self._sock.sendall(data)
            self._sock.settimeout(0.0)
        except OSError as ex:
            raise EffectFailed(f"the connection broke: {ex}") from ex

    def shut(self) -> None:
        self._selector.close()
        self._sock.close()


class SyncStream:
    """The open answer of a request."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._answer = answer
        self._pieces = answer.iter_bytes()

    def receive(self, timeout_s: float, wake: Any) -> bytes | None:
        try:
            return next(self._pieces, b"")
        except httpx2.TransportError as ex:
            raise EffectFailed(f"the answer was cut off: {ex!r}") from ex

    def shut(self) -> None:
        self._answer.close()


class SyncShell:
    """Carries out effects with blocking calls."""

    def __init__(
        self, http_client: httpx2.Client | None, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._owns_http = http_client is None
        self._ssl_context = ssl_context
        self.http = http_client or httpx2.Client(
            verify=True if ssl_context is None else ssl_context
        )

    def close(self) -> None:
        if self._owns_http:
            self.http.close()

    def run(self, steps: Steps[T]) -> T:
        """Return the result of the steps."""
        try:
            effect = next(steps)
            while True:
                try:
                    result = self._carry_out(effect)
                except EffectFailed as failed:
                    effect = steps.throw(failed)
                else:
                    effect = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def iterate(self, steps: Steps[None]) -> Iterator[Any]:
        """Yield what the steps deliver. Ending the iteration early lets the steps clean up."""
        try:
            effect = next(steps)
            while True:
                if isinstance(effect, Deliver):
                    yield from effect.items
                    effect = next(steps)
                    continue
                try:
                    result = self._carry_out(effect)
                except EffectFailed as failed:
                    effect = steps.throw(failed)
                else:
                    effect = steps.send(result)
        except StopIteration:
            return
        finally:
            self._end(steps)

    def spawn(self, steps: Steps[None], name: str) -> None:
        """Run steps in a thread of their own."""

        def run() -> None:
            try:
                self.run(steps)
            except Exception:  # noqa: BLE001 # the windows have the error already
                log.exception("thread.failed name=%s", name)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _end(self, steps: Generator[Effect, Any, Any]) -> None:
        try:
            effect = steps.throw(Stopped())
            while True:
                try:
                    result = self._carry_out(effect)
                except EffectFailed as failed:
                    effect = steps.throw(failed)
                else:
                    effect = steps.send(result)
        except (StopIteration, Stopped):
            return

    def _carry_out(self, effect: Effect) -> Any:
        match effect:
            case Send():
                return self._send(effect)
            case Receive(channel, timeout_s, wake):
                return channel.receive(timeout_s, wake)  # type: ignore[attr-defined]
            case Transmit(channel, data):
                return channel.transmit(data)  # type: ignore[attr-defined]
            case Connect():
                return self._connect(effect)
            case Shut(channel):
                return channel.shut()  # type: ignore[attr-defined]
            case Pause(seconds, wake):
                if isinstance(wake, SyncWake):
                    return WOKEN if wake.wait(seconds) else None
                return time.sleep(seconds)
            case AskToken(function):
                token = function()
                if inspect.isawaitable(token):
                    raise TypeError("Pylon takes a function that returns a token; AsyncPylon "
                                    "takes coroutine functions as well")
                return token
            case StartStream(request):
                return self._start_stream(request)
            case _:
                raise TypeError(f"{effect} is none of the shell's effects")

    def _send(self, send: Send) -> Answer:
        try:
            answer = self.http.request(
                send.method, send.url, headers=dict(send.headers), content=send.body,
                timeout=send.timeout_s,
            )
        except httpx2.TransportError as ex:
            raise describe_failure(ex) from ex
        return Answer(answer.status_code, lower_headers(answer), answer.content)

    def _start_stream(self, send: Send) -> tuple[Answer, SyncStream]:
        try:
            request = self.http.build_request(
                send.method, send.url, headers=dict(send.headers), content=send.body,
                timeout=send.timeout_s,
            )
            answer = self.http.send(request, stream=True)
            content = answer.read() if answer.status_code >= 400 else b""
        except httpx2.TransportError as ex:
            raise describe_failure(ex) from ex
        return Answer(answer.status_code, lower_headers(answer), content), SyncStream(answer)

    def _connect(self, connect: Connect) -> SyncChannel:
        try:
            sock = socket.create_connection((connect.host, connect.port), connect.timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if connect.is_tls:
                context = self._ssl_context or ssl.create_default_context()
                sock = context.wrap_socket(sock, server_hostname=connect.host)
        except OSError as ex:
            raise EffectFailed(
                f"{connect.host}:{connect.port} cannot be reached: {ex}", was_sent=False,
                is_timeout=isinstance(ex, TimeoutError),
            ) from ex
        return SyncChannel(sock)


def describe_failure(ex: httpx2.TransportError) -> EffectFailed:
    return EffectFailed(
        repr(ex) if not str(ex) else str(ex), was_sent=not isinstance(ex, _NOT_SENT),
        is_timeout=isinstance(ex, httpx2.TimeoutException),
    )


def lower_headers(answer: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}
