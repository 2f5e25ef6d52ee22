"""The asyncio shell: carries effects out with streams, httpx2 and tasks.

Everything of one client runs in one event loop. A task of its own runs a shared connection.

Called by `async_client` and `async_live`.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Generator
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
from pylon_client.sync_shell import describe_failure, lower_headers

T = TypeVar("T")

_PIECE_BYTES: Final = 256 * 1024
_WRITE_TIMEOUT_S: Final = 30.0


class AsyncWake:
    """A wake within one event loop."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def set(self) -> None:
        self.event.set()

    def close(self) -> None:
        """Nothing is to be released."""


class AsyncChannel:
    """An open connection. A read that was not finished in time goes on in the next call."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._reading: asyncio.Task[bytes] | None = None

    async def receive(self, timeout_s: float, wake: Any) -> bytes | None:
        if isinstance(wake, AsyncWake) and wake.event.is_set():
            wake.event.clear()
            return WOKEN
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._reader.read(_PIECE_BYTES))
        waiting: set[asyncio.Future[Any]] = {self._reading}
        waking: asyncio.Task[Any] | None = None
        if isinstance(wake, AsyncWake):
            waking = asyncio.ensure_future(wake.event.wait())
            waiting.add(waking)
        try:
            await asyncio.wait(
                waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            if waking is not None:
                waking.cancel()
        if self._reading.done():
            reading, self._reading = self._reading, None
            try:
                return reading.result()
            except OSError as ex:
                raise EffectFailed(f"the connection broke: {ex}") from ex
        if isinstance(wake, AsyncWake) and wake.event.is_set():
            wake.event.clear()
            return WOKEN
        return None

    async def transmit(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await self._writer.drain()
        except OSError as ex:  # TimeoutError too
            raise EffectFailed(f"the connection broke: {ex}") from ex

    async def shut(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._writer.close()


class AsyncStream:
    """The open answer of a request."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._answer = answer
        self._pieces = answer.aiter_bytes()

    async def receive(self, timeout_s: float, wake: Any) -> bytes | None:
        try:
            return await anext(self._pieces, b"")
        except httpx2.TransportError as ex:
            raise EffectFailed(f"the answer was cut off: {ex!r}") from ex

    async def shut(self) -> None:
        await self._answer.aclose()


class AsyncShell:
    """Carries out effects with await."""

    def __init__(
        self, http_client: httpx2.AsyncClient | None, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._owns_http = http_client is None
        self._ssl_context = ssl_context
        self._tasks: set[asyncio.Task[None]] = set()
        self.http = http_client or httpx2.AsyncClient(
            verify=True if ssl_context is None else ssl_context
        )

    async def close(self) -> None:
        """Wait until the shared connections have ended, and close all others."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_WRITE_TIMEOUT_S)
        if self._owns_http:
            await self.http.aclose()

    async def run(self, steps: Steps[T]) -> T:
        """Return the result of the steps."""
        try:
            effect = next(steps)
            while True:
                try:
                    result = await self._carry_out(effect)
                except EffectFailed as failed:
                    effect = steps.throw(failed)
                else:
                    effect = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def iterate(self, steps: Steps[None]) -> AsyncIterator[Any]:
        """Yield what the steps deliver. Closing the iteration lets the steps clean up."""
        try:
            effect = next(steps)
            while True:
                if isinstance(effect, Deliver):
                    for item in effect.items:
                        yield item
                    effect = next(steps)
                    continue
                try:
                    result = await self._carry_out(effect)
                except EffectFailed as failed:
                    effect = steps.throw(failed)
                else:
                    effect = steps.send(result)
        except StopIteration:
            return
        finally:
            await self._end(steps)

    def spawn(self, steps: Steps[None], name: str) -> None:
        """Run steps in a task of their own."""

        async def run() -> None:
            try:
                await self.run(steps)
            except Exception:  # noqa: BLE001 # the windows have the error already
                log.exception("task.failed name=%s", name)

        task = asyncio.get_running_loop().create_task(run(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, steps: Generator[Effect, Any, Any]) -> None:
        try:
            effect = steps.throw(Stopped())
            while True:
                try:
                    result = await self._carry_out(effect)
                except EffectFailed as failed:
                    effect = steps.throw(failed)
                else:
                    effect = steps.send(result)
        except (StopIteration, Stopped):
            return

    async def _carry_out(self, effect: Effect) -> Any:
        match effect:
            case Send():
                return await self._send(effect)
            case Receive(channel, timeout_s, wake):
                return await channel.receive(timeout_s, wake)  # type: ignore[attr-defined]
            case Transmit(channel, data):
                return await channel.transmit(data)  # type: ignore[attr-defined]
            case Connect():
                return await self._connect(effect)
            case Shut(channel):
                return await channel.shut()  # type: ignore[attr-defined]
            case Pause(seconds, wake):
                return await self._pause(seconds, wake)
            case AskToken(function):
                token = function()
                return await token if inspect.isawaitable(token) else token
            case StartStream(request):
                return await self._start_stream(request)
            case _:
                raise TypeError(f"{effect} is none of the shell's effects")

    async def _pause(self, seconds: float, wake: Any) -> bytes | None:
        if not isinstance(wake, AsyncWake):
            await asyncio.sleep(seconds)
            return None
        try:
            async with asyncio.timeout(seconds):
                await wake.event.wait()
        except TimeoutError:
            return None
        wake.event.clear()
        return WOKEN

    async def _send(self, send: Send) -> Answer:
        try:
            answer = await self.http.request(
                send.method, send.url, headers=dict(send.headers), content=send.body,
                timeout=send.timeout_s,
            )
        except httpx2.TransportError as ex:
            raise describe_failure(ex) from ex
        return Answer(answer.status_code, lower_headers(answer), answer.content)

    async def _start_stream(self, send: Send) -> tuple[Answer, AsyncStream]:
        try:
            request = self.http.build_request(
                send.method, send.url, headers=dict(send.headers), content=send.body,
                timeout=send.timeout_s,
            )
            answer = await self.http.send(request, stream=True)
            content = await answer.aread() if answer.status_code >= 400 else b""
        except httpx2.TransportError as ex:
            raise describe_failure(ex) from ex
        return Answer(answer.status_code, lower_headers(answer), content), AsyncStream(answer)

    async def _connect(self, connect: Connect) -> AsyncChannel:
        context = None
        if connect.is_tls:
            context = self._ssl_context or ssl.create_default_context()
        try:
            async with asyncio.timeout(connect.timeout_s):
                reader, writer = await asyncio.open_connection(
                    connect.host, connect.port, ssl=context, limit=2 * _PIECE_BYTES
                )
        except OSError as ex:  # TimeoutError too
            raise EffectFailed(
                f"{connect.host}:{connect.port} cannot be reached: {ex}", was_sent=False,
                is_timeout=isinstance(ex, TimeoutError),
            ) from ex
        return AsyncChannel(reader, writer)
