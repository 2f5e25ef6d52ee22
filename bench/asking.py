"""Asking: keep-alive HTTP clients with a fixed rate, many in one process, in one epoll set.

Each client has one request under way at a time, and keeps its connection. It sees the end of an
idle connection at once, as clients with an event loop do, and then connects anew.

A server may close a kept connection at the moment in which its client sends. Then a client repeats
an idempotent request (RFC 9112 §9.3.1): such a repetition counts as `repeated`, and a second end
as failed. A write that met the end of its connection counts as failed. `restart` starts `run` in
processes of its own, and `soak` too.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

_PATIENCE_S: Final = 60.0  # for an answer
_BEHIND_S: Final = 1.0  # a client that is later than this leaves requests out
_RECEIVE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one process. Every `write_every`-th request is an insert."""

    port: int
    token: str
    clients: int
    rate: float  # requests a second of all clients together
    label: str  # of the rows that they write
    write_every: int = 10
    read_path: str = "/api/entities/Tick?limit=1"
    write_path: str = "/api/entities/Tick"


@dataclass
class Asked:
    """The counts of one process. `failed`: how often each failure was seen."""

    requests: int = 0
    ran_s: float = 0.0
    written: int = 0
    repeated: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    waits_s: list[float] = field(default_factory=list)

    def note_failure(self, text: str) -> None:
        """Count a request without a good answer."""
        self.failed[text] = self.failed.get(text, 0) + 1


@dataclass(slots=True)
class _Asker:
    number: int
    sock: socket.socket | None = None
    request: bytes = b""  # under way
    is_write: bool = False
    is_repeated: bool = False
    is_fresh: bool = True  # the connection has answered nothing yet
    begun_s: float = 0.0
    due_s: float = 0.0
    answer: bytes = b""


class Askers:
    """All clients of one process."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._pause_s = load.clients / load.rate
        self._sent = 0
        self._poll = select.epoll()
        self._by_fd: dict[int, _Asker] = {}
        self._due: list[tuple[float, int]] = []
        self._askers = [_Asker(number) for number in range(load.clients)]
        self.asked = Asked()

    def run(self, pipe: Connection) -> None:
        """Send requests until the pipe has a message; answer it with the counts."""
        start_s = time.monotonic()
        for asker in self._askers:
            asker.due_s = start_s + self._pause_s * asker.number / len(self._askers)
            heapq.heappush(self._due, (asker.due_s, asker.number))
        while not pipe.poll():
            self._turn()
        self.asked.ran_s = time.monotonic() - start_s
        end_s = time.monotonic() + _PATIENCE_S
        self._due = []
        while any(asker.request for asker in self._askers) and time.monotonic() < end_s:
            self._turn()
            self._due = []
        for asker in self._askers:
            if asker.request:
                self._fail(asker, "no answer")
        pipe.send(self.asked)

    def _turn(self) -> None:
        now_s = time.monotonic()
        while self._due and self._due[0][0] <= now_s:
            self._ask(self._askers[heapq.heappop(self._due)[1]])
        wait_s = self._due[0][0] - time.monotonic() if self._due else 0.05
        for fd, _ in self._poll.poll(min(max(wait_s, 0.0), 0.05)):
            asker = self._by_fd.get(fd)
            if asker is not None:
                self._receive(asker)

    # --- A request -----------------------------------------------------------------------

    def _ask(self, asker: _Asker) -> None:
        load = self._load
        self._sent += 1
        asker.is_write = self._sent % load.write_every == 0
        asker.is_repeated = False
        head = (
            f"Host: localhost\r\nAuthorization: Bearer {load.token}\r\n"
            "Content-Type: application/json\r\n"
        )
        if asker.is_write:
            body = f'{{"n":{self._sent},"sender":"{load.label}-{asker.number}"}}'
            text = (
                f"POST {load.write_path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n"
                + body
            )
        else:
            text = f"GET {load.read_path} HTTP/1.1\r\n{head}\r\n"
        asker.request, asker.begun_s = text.encode(), time.monotonic()
        self._send(asker)

    def _send(self, asker: _Asker) -> None:
        asker.answer = b""
        try:
            if asker.sock is None:
                asker.sock = socket.create_connection(("127.0.0.1", self._load.port), timeout=10)
                asker.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                asker.is_fresh = True
                self._by_fd[asker.sock.fileno()] = asker
                self._poll.register(asker.sock.fileno(), select.EPOLLIN)
            asker.sock.sendall(asker.request)
        except OSError as ex:
            self._meet_end(asker, repr(ex))

    def _receive(self, asker: _Asker) -> None:
        assert asker.sock is not None
        try:
            chunk = asker.sock.recv(_RECEIVE_BYTES)
        except OSError as ex:
            self._meet_end(asker, repr(ex))
            return
        if not chunk:
            self._meet_end(asker, "closed without an answer")
            return
        asker.answer += chunk
        head, found, body = asker.answer.partition(b"\r\n\r\n")
        if not found or len(body) < _content_length(head):
            return
        status = int(head[9:12])
        if status >= 400:
            self.asked.note_failure(f"status {status}: {body[:120]!r}")
        elif asker.is_write:
            self.asked.written += 1
        asker.is_fresh = False
        if b"\r\nconnection: close" in head.lower():
            self._close(asker)
        self._end_request(asker)

    def _meet_end(self, asker: _Asker, text: str) -> None:
        """The connection has ended: an idle one, or one with a request under way."""
        was_kept = not asker.is_fresh
        self._close(asker)
        if not asker.request:
            return
        if was_kept and not asker.is_write and not asker.answer and not asker.is_repeated:
            asker.is_repeated = True
            self.asked.repeated += 1
            self._send(asker)
            return
        self._fail(asker, ("write: " if asker.is_write else "read: ") + text)

    def _fail(self, asker: _Asker, text: str) -> None:
        self.asked.note_failure(text)
        self._end_request(asker)

    def _end_request(self, asker: _Asker) -> None:
        now_s = time.monotonic()
        self.asked.requests += 1
        self.asked.waits_s.append(now_s - asker.begun_s)
        asker.request = b""
        asker.due_s = max(asker.due_s + self._pause_s, now_s - _BEHIND_S)
        heapq.heappush(self._due, (asker.due_s, asker.number))

    def _close(self, asker: _Asker) -> None:
        if asker.sock is not None:
            self._by_fd.pop(asker.sock.fileno(), None)
            asker.sock.close()
            asker.sock = None


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def run(pipe: Connection, load: Load) -> None:
    """The process's main: ask until the pipe has a message, then send `Asked`."""
    Askers(load).run(pipe)


def together(results: list[Asked]) -> dict[str, Any]:
    """Return the figures of several processes as one."""
    waits_s = sorted(wait_s for each in results for wait_s in each.waits_s)
    failures: dict[str, int] = {}
    for each in results:
        for text, count in each.failed.items():
            failures[text] = failures.get(text, 0) + count
    return {
        "requests": sum(each.requests for each in results),
        "rate": round(sum(each.requests / each.ran_s for each in results if each.ran_s)),
        "written": sum(each.written for each in results),
        "failed": sum(failures.values()),
        "repeated": sum(each.repeated for each in results),
        "p99_ms": round(waits_s[int(0.99 * (len(waits_s) - 1))] * 1_000, 1) if waits_s else None,
        "longest_wait_s": round(waits_s[-1], 3) if waits_s else None,
        "failures": failures,
    }
