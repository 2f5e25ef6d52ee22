"""Server-sent events without IO: the answer of HTTP/1.1, its chunks, and the lines of events.

h11 reads the answer, so the same effects as those of a WebSocket carry the bytes. The server sends
a comment every 30 s; a stream that is silent for 75 s counts as lost. Called by `links` and
`changes`, where no WebSocket opens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import h11

from pylon_client.effects import (
    WOKEN,
    Channel,
    Connect,
    EffectFailed,
    Receive,
    Shut,
    Steps,
    Transmit,
    Wake,
)
from pylon_client.errors import status_error
from pylon_client.sockets import OPEN_TIMEOUT_S

_SILENT_S: Final = 75.0


class EventStream:
    """An open stream of events."""

    def __init__(self, http: h11.Connection, channel: Channel, wake: Wake | None) -> None:
        self._http = http
        self._channel = channel
        self._wake = wake
        self._rest = b""
        self._data: list[bytes] = []
        self._heard_at_s = time.monotonic()

    def read(self, timeout_s: float) -> Steps[list[bytes]]:
        """Return the data of the events that have come; an empty list after the timeout or a wake.

        Raises:
            EffectFailed: the stream has ended, or the network failed.
        """
        ends_at_s = time.monotonic() + timeout_s
        while True:
            events = self._drain()
            if events:
                return events
            now_s = time.monotonic()
            if now_s >= ends_at_s:
                return []
            if now_s >= self._heard_at_s + _SILENT_S:
                raise EffectFailed(f"the event stream was silent for {_SILENT_S:g} s")
            wait_s = min(ends_at_s, self._heard_at_s + _SILENT_S) - now_s
            data = yield Receive(self._channel, wait_s, self._wake)
            if data is WOKEN:
                return []
            if data is not None:
                self._heard_at_s = time.monotonic()
                self._receive(data)

    def _receive(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
        except h11.RemoteProtocolError as ex:
            raise EffectFailed(f"the event stream is broken: {ex}") from ex

    def _drain(self) -> list[bytes]:
        found: list[bytes] = []
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as ex:
                raise EffectFailed(f"the event stream is broken: {ex}") from ex
            if isinstance(event, h11.Data):
                found.extend(self._split(bytes(event.data)))
            elif event is h11.NEED_DATA:
                return found
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                if found:
                    return found
                raise EffectFailed("the server ended the event stream")

    def _split(self, piece: bytes) -> list[bytes]:
        found: list[bytes] = []
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                found.append(b"\n".join(self._data))
                self._data = []
        return found

    def close(self) -> Steps[None]:
        """Close the connection. Never fails."""
        yield Shut(self._channel)


def open_events(
    url: str, headers: Mapping[str, str], wake: Wake | None = None
) -> Steps[EventStream]:
    """Open a stream of events within `OPEN_TIMEOUT_S` seconds.

    Raises:
        APIStatusError: an answer with an error status.
        EffectFailed: the network failed, or no answer came in time.
    """
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    ends_at_s = time.monotonic() + OPEN_TIMEOUT_S
    channel = yield Connect(parts.hostname or "", port, is_tls, OPEN_TIMEOUT_S)
    try:
        http = h11.Connection(h11.CLIENT)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = http.send(h11.Request(
            method="GET", target=target,
            headers=[("Host", parts.netloc), *headers.items(), ("Accept", "text/event-stream")],
        ))
        yield Transmit(channel, (sent or b"") + (http.send(h11.EndOfMessage()) or b""))
        stream = EventStream(http, channel, wake)
        answer: h11.Response | None = None
        content = b""
        while True:
            event = http.next_event()
            if isinstance(event, h11.Response):
                answer = event
                if event.status_code == 200:
                    return stream
            elif isinstance(event, h11.Data):
                content += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and answer is not None:
                found = {k.decode().lower(): v.decode() for k, v in answer.headers}
                raise status_error(answer.status_code, found, content, f"GET {parts.path}")
            elif isinstance(event, h11.ConnectionClosed):
                raise EffectFailed("the server closed the connection before it answered")
            else:
                left_s = ends_at_s - time.monotonic()
                data = yield Receive(channel, max(left_s, 0.0))
                if data is None:
                    raise EffectFailed(f"no answer within {OPEN_TIMEOUT_S:g} s", is_timeout=True)
                http.receive_data(data)
    except h11.ProtocolError as ex:
        yield Shut(channel)
        raise EffectFailed(f"the answer is no HTTP: {ex}") from ex
    except BaseException:
        yield Shut(channel)
        raise
