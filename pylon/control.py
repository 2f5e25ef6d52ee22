"""Control client: sends commands to the supervisor over its control socket.

One connection carries one request, a JSON line ``{"cmd": ..., ...}``. The responses are JSON lines;
the last one has ``"done": true``. A `ControlDialogue` sends further lines after its request (a
backup reports its progress). The module uses plain sockets, so it works in an ordinary process and
under gevent's monkey-patching. The server is `supervisor.control`.

Invariants: `call` ends with the line that has ``done``, or raises. A failure that the supervisor
reports is raised as the `PylonError` that the supervisor raised. Called by `pylonctl`, and by HTTP
workers for /metrics.
"""

from __future__ import annotations

import json
import select
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from pylon.errors import NotRunning, PylonError

_LINE_BYTES_MAX: Final = 64 * 1024 * 1024  # the text of /metrics is the largest answer


class ControlClient:
    """Sends commands to the supervisor that listens at `path`."""

    __slots__ = ("_path", "_timeout_s")

    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        """Args: `timeout_s` is the longest silence between two lines of an answer."""
        self._path = path
        self._timeout_s = timeout_s

    def call(self, cmd: str, **args: Any) -> Iterator[dict[str, Any]]:
        """Send one request and yield the responses as they arrive, the last one included.

        Raises:
            NotRunning: no process listens there, or the supervisor ended without a response.
            PylonError: the error that the supervisor returned.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(self._timeout_s)
                sock.connect(str(self._path))
                with suppress(BrokenPipeError):  # refused before it was read; read the refusal
                    sock.sendall(json.dumps({"cmd": cmd, **args}).encode() + b"\n")
                for line in _lines(sock):
                    answer = json.loads(line)
                    _raise_error(answer)
                    yield answer
                    if answer.get("done"):
                        return
        except TimeoutError as ex:
            raise NotRunning(
                f"The supervisor at {self._path} said nothing for {self._timeout_s:g} s"
            ) from ex
        except OSError as ex:
            raise NotRunning(f"No supervisor listens at {self._path}: {ex.strerror or ex}") from ex
        raise NotRunning(f"The supervisor at {self._path} ended without a last answer")

    def ask(self, cmd: str, **args: Any) -> dict[str, Any]:
        """Send one request and return the last response."""
        return deque(self.call(cmd, **args), maxlen=1)[0]

    def open_dialogue(self, cmd: str, **args: Any) -> ControlDialogue:
        """Send a request that further lines will follow. The caller closes the dialogue.

        Raises:
            NotRunning: no process listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._timeout_s)
            sock.connect(str(self._path))
            with suppress(BrokenPipeError):
                sock.sendall(json.dumps({"cmd": cmd, **args}).encode() + b"\n")
        except OSError as ex:
            sock.close()
            raise NotRunning(f"No supervisor listens at {self._path}: {ex.strerror or ex}") from ex
        return ControlDialogue(sock, self._path)


class ControlDialogue:
    """A request during which both sides send lines. A context manager; not thread-safe."""

    __slots__ = ("_buffer", "_path", "_sock")

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self._sock = sock
        self._path = path
        self._buffer = bytearray()

    def __enter__(self) -> ControlDialogue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._sock.close()

    def send_line(self, **line: Any) -> None:
        """Send one line.

        Raises:
            NotRunning: the supervisor has ended.
        """
        try:
            self._sock.sendall(json.dumps(line).encode() + b"\n")
        except OSError as ex:
            raise NotRunning(f"The supervisor at {self._path} has ended: {ex.strerror}") from ex

    def receive_line(self) -> dict[str, Any]:
        """Wait for the supervisor's next line and return it.

        Raises:
            NotRunning: the supervisor has ended, or sends nothing within the timeout.
            PylonError: the supervisor refuses the request.
        """
        while (line := self._take_line()) is None:
            try:
                chunk = self._sock.recv(65_536)
            except OSError as ex:
                raise NotRunning(f"The supervisor at {self._path} says nothing: {ex}") from ex
            if not chunk:
                raise NotRunning(f"The supervisor at {self._path} ended without a last answer")
            self._buffer += chunk
        return line

    def poll_line(self) -> dict[str, Any] | None:
        """Return the supervisor's next line if it has arrived, else None.

        Raises:
            NotRunning: the supervisor has ended.
            PylonError: the supervisor refuses the request.
        """
        line = self._take_line()
        if line is None and is_readable(self._sock, 0.0):
            return self.receive_line()
        return line

    def _take_line(self) -> dict[str, Any] | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        answer: dict[str, Any] = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        _raise_error(answer)
        return answer


def is_readable(sock: socket.socket, timeout_s: float) -> bool:
    """Whether data or the end of the stream arrives within the time."""
    poll = select.poll()  # select() fails above 1,024 descriptors
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(timeout_s * 1_000))


def _lines(sock: socket.socket) -> Iterator[bytes]:
    buffer = bytearray()
    while chunk := sock.recv(65_536):
        buffer += chunk
        while (end := buffer.find(b"\n")) >= 0:
            yield bytes(buffer[:end])
            del buffer[: end + 1]
        if len(buffer) > _LINE_BYTES_MAX:
            raise OSError(f"an answer is longer than {_LINE_BYTES_MAX} bytes")


def _raise_error(answer: dict[str, Any]) -> None:
    error = answer.get("error")
    if isinstance(error, dict):
        details = error.get("details")
        raise PylonError.from_wire(
            str(error.get("code")), str(error.get("message")), error.get("hint"),
            details if isinstance(details, dict) else {},
        )
