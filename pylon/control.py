"""The client of the supervisor's control socket: how `pylonctl` and /metrics ask it things.

One connection carries one request, a JSON line ``{"cmd": ..., ...}``; the answers are JSON
lines and the last one has ``"done": true``. Plain sockets only, so that it works in an
ordinary process and under gevent's monkey-patching alike. The server is `supervisor.control`.

Invariants: `call` ends with the line that has ``done``, or raises; a failure that the
supervisor reports arrives as the `PylonError` that it raised.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pylon.errors import NotRunning, PylonError

_LINE_BYTES_MAX: Final = 64 * 1024 * 1024  # the text of /metrics is the largest answer


class ControlClient:
    """Asks the supervisor that listens at `path`."""

    __slots__ = ("_path", "_timeout_s")

    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        """Args: `timeout_s` is the longest silence between two lines of an answer."""
        self._path = path
        self._timeout_s = timeout_s

    def call(self, cmd: str, **args: Any) -> Iterator[dict[str, Any]]:
        """Send one request and yield the answers as they arrive, the last one included.

        Raises:
            NotRunning: nobody listens there, or the supervisor ended without an answer.
            PylonError: what the supervisor answered in place of a result.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(self._timeout_s)
                sock.connect(str(self._path))
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
        """`call`, where only the last answer matters."""
        return deque(self.call(cmd, **args), maxlen=1)[0]


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
