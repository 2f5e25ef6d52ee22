"""Control socket: takes requests of `pylonctl` and of the metrics route.

It is a Unix stream socket (mode 0600) in the private runtime folder. A client sends its request as
one JSON line. The supervisor answers with JSON lines, the last of which has ``"done": true``, or
``error`` after a failure. In a dialogue the client sends further lines before the last answer.
`pylon.control` is the client; `supervisor.control_handlers` and `supervisor.backups` handle the
requests.

Bound: each connection has a thread; above `limits.CONTROL_CONNECTIONS` the supervisor refuses
connections. Made by `supervisor.main`.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pylon import limits, log
from pylon.control import is_readable
from pylon.errors import InternalError, InvalidData, PylonError, Unavailable

_log = log.get_logger("control")
_REQUEST_TIMEOUT_S: Final = 5.0
_SEND_TIMEOUT_S: Final = 30.0
_CLOSE_PATIENCE_S: Final = 2.0
_PEERCRED: Final = struct.Struct("3i")  # pid, uid, gid

Line = dict[str, Any]
SendLine = Callable[[Line], None]
CommandHandler = Callable[[Line, SendLine], Line]  # the request and a way to stream; the last line


class ClientLeft(Exception):
    """The client of a dialogue closed its connection."""


class Dialogue:
    """Both directions of one connection, once its request has been read."""

    def __init__(self, conn: socket.socket, received: bytes) -> None:
        """Args: `received` came behind the request's line."""
        self._conn = conn
        self._buffer = bytearray(received)

    @property
    def peer_pid(self) -> int:
        """The client's process, as the kernel knows it."""
        raw = self._conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        pid: int = _PEERCRED.unpack(raw)[0]
        return pid

    def send_line(self, line: Line) -> None:
        """Send a line that is not the last one.

        Raises:
            ClientLeft: nobody reads it.
        """
        try:
            _send(self._conn, line)
        except OSError as ex:
            raise ClientLeft(str(ex)) from ex

    def read_line(self, timeout_s: float) -> Line | None:
        """The client's next line; None when none comes within `timeout_s`.

        Raises:
            ClientLeft: the client closed the connection.
            InvalidData: the line is no JSON object, or too long.
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > limits.CONTROL_LINE_BYTES:
                raise InvalidData(f"A line has at most {limits.CONTROL_LINE_BYTES} bytes")
            if not is_readable(self._conn, timeout_s):
                return None
            try:
                chunk = self._conn.recv(4_096)
            except OSError as ex:
                raise ClientLeft(str(ex)) from ex
            if not chunk:
                raise ClientLeft("the connection was closed")
            self._buffer += chunk
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return _parse(line)


DialogueHandler = Callable[[Line, Dialogue], Line]  # the request and both directions; the last line


class ControlServer:
    """Listens on the socket between `start` and `close`; has the handler of each command."""

    def __init__(
        self, path: Path, handlers: dict[str, CommandHandler],
        dialogue_handlers: dict[str, DialogueHandler] | None = None,
    ) -> None:
        self._path = path
        self._handlers = handlers
        self._dialogue_handlers = dialogue_handlers or {}
        self._slots = threading.BoundedSemaphore(limits.CONTROL_CONNECTIONS)
        self._connections: set[threading.Thread] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen(limits.CONTROL_CONNECTIONS)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Accept no more, and let the open connections have their last lines. Idempotent."""
        if self._socket.fileno() < 0:
            return
        # A shutdown wakes the accepting thread; the close alone would not.
        self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        self._path.unlink(missing_ok=True)
        for thread in list(self._connections):
            thread.join(_CLOSE_PATIENCE_S)

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._socket.accept()
            except OSError:
                return  # closed
            if self._slots.acquire(blocking=False):
                thread = threading.Thread(
                    target=self._serve, args=(conn,), name="control-connection", daemon=True
                )
                self._connections.add(thread)
                thread.start()
            else:
                with conn:
                    _send(conn, _error_line(Unavailable(
                        f"More than {limits.CONTROL_CONNECTIONS} control connections"
                    )))

    def _serve(self, conn: socket.socket) -> None:
        try:
            with conn:
                self._converse(conn)
        except OSError as ex:
            _log.debug("control.client_left", error=str(ex))
        finally:
            self._connections.discard(threading.current_thread())
            self._slots.release()

    def _converse(self, conn: socket.socket) -> None:
        conn.settimeout(_REQUEST_TIMEOUT_S)
        try:
            request, rest = _read_request(conn)
            name = str(request.get("cmd"))
            conn.settimeout(_SEND_TIMEOUT_S)
            if name in self._handlers:
                last = self._handlers[name](request, lambda line: _send(conn, line))
            elif name in self._dialogue_handlers:
                last = self._dialogue_handlers[name](request, Dialogue(conn, rest))
            else:
                known = ", ".join((*self._handlers, *self._dialogue_handlers))
                raise InvalidData(f"Unknown command {request.get('cmd')!r}; known: {known}")
        except PylonError as ex:
            last = _error_line(ex)
        except OSError as ex:
            # An error of the disk (of a backup), which the client learns, or of its connection.
            _log.warning("control.failed", error=str(ex))
            last = _error_line(InternalError(str(ex)))
        except Exception as ex:  # noqa: BLE001  a defect in one answer must not end the socket
            _log.exception("control.defect", error=ex)
            last = _error_line(InternalError("The command failed; the server's log says why"))
        _send(conn, {**last, "done": True})


def _read_request(conn: socket.socket) -> tuple[Line, bytes]:
    buffer = b""
    while b"\n" not in buffer:
        chunk = conn.recv(4_096)
        if not chunk:
            raise InvalidData("Expected one line of JSON")
        buffer += chunk
        if len(buffer) > limits.CONTROL_LINE_BYTES:
            raise InvalidData(f"A request has at most {limits.CONTROL_LINE_BYTES} bytes")
    line, _, rest = buffer.partition(b"\n")
    return _parse(line), rest


def _parse(raw: bytes) -> Line:
    try:
        line = json.loads(raw)
    except ValueError as ex:
        raise InvalidData(f"Not JSON: {ex}") from ex
    if not isinstance(line, dict):
        raise InvalidData("Expected a JSON object")
    return line


def _error_line(error: PylonError) -> Line:
    code, message, hint, details = error.to_wire()
    body = {"code": code, "message": message, "hint": hint, "details": details}
    return {"error": body, "done": True}


def _send(conn: socket.socket, line: Line) -> None:
    conn.sendall(json.dumps(line, default=str).encode() + b"\n")
