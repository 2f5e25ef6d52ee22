"""HTTP by hand: bytes out, answers read strictly; and a process that serves the echo app."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) [ -~]*")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ([\t\x20-\x7e\x80-\xff]*)")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection to the server."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *ex: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send; a server that has heard enough may have closed already."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def answer(self, *, bodiless: bool = False) -> Answer:
        """Read one answer.

        Args:
            bodiless: it is one to HEAD.
        """
        head = self._until(b"\r\n\r\n")[:-4].split(b"\r\n")
        status = _STATUS.fullmatch(head[0])
        assert status is not None, head
        headers: dict[str, str] = {}
        for line in head[1:]:
            field = _FIELD.fullmatch(line)
            assert field is not None, line
            name = field[1].decode().lower()
            assert name not in headers, head
            headers[name] = field[2].decode("latin-1")
        code = int(status[1])
        if code == 100:
            return Answer(code, headers, b"")
        assert "date" in headers
        assert not ("content-length" in headers and "transfer-encoding" in headers)
        if bodiless or code in (204, 304):
            body = b""
        elif "transfer-encoding" in headers:
            assert headers["transfer-encoding"] == "chunked"
            body = b"".join(self._chunks())
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        else:
            assert headers["connection"] == "close"
            body = self.rest()
        return Answer(code, headers, body)

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while self._receive():
            pass
        rest, self._got = self._got, b""
        return rest

    def _chunks(self) -> Iterator[bytes]:
        while True:
            size = int(self._until(b"\r\n"), 16)
            data = self._exactly(size + 2)
            assert data.endswith(b"\r\n")
            if not size:
                return
            yield data[:-2]

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._got:
            assert self._receive(), f"the connection ended within an answer: {self._got[:500]!r}"
        found, _, self._got = self._got.partition(mark)
        return found + mark

    def _exactly(self, size: int) -> bytes:
        while len(self._got) < size:
            assert self._receive(), "the connection ended within a body"
        found, self._got = self._got[:size], self._got[size:]
        return found

    def _receive(self) -> bool:
        try:
            got = self.sock.recv(1 << 20)
        except ConnectionResetError:
            return False
        self._got += got
        return bool(got)


@contextmanager
def echo_server(
    workers: int = 1, **limits: float
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The echo app under an arbiter: its port and process.

    Args:
        limits: of `pylon.limits`, other than they are there.
    """
    more = [f"{name}={value}" for name, value in limits.items()]
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        fd = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.echo_server", str(fd), str(workers), *more],
            cwd=_ROOT, pass_fds=[fd], stderr=subprocess.PIPE,
        )
        port = listener.getsockname()[1]
    try:
        yield port, process
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
        sys.stderr.write(errors.decode(errors="replace"))
