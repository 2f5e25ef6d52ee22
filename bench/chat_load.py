"""The parts of the chat benchmark share this: sessions, a probe, memory samples, looping readers.

The probe and the readers are processes of their own, because a thread would wait for the
interpreter of the part that it watches. Called by the parts of `chat.py`.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
import server as srv

FORK: Final = multiprocessing.get_context("fork")
PROBE_S: Final = 0.005
_SAMPLE_S: Final = 0.02
_READ_TIMEOUT_S: Final = 60.0


class WrongAnswer(SystemExit):
    """An answer of the server is wrong: the run fails."""


def check(holds: bool, what: str) -> None:
    """
    Raises:
        WrongAnswer: the condition does not hold.
    """
    if not holds:
        raise WrongAnswer(f"chat: wrong: {what}")


def percentiles(name: str, times_ms: Sequence[float]) -> dict[str, float]:
    """Return p50, p99, and the largest, by names that begin with `name`."""
    ordered = sorted(times_ms)
    check(bool(ordered), f"{name} has no samples")
    return {
        f"{name}_p50_ms": round(ordered[len(ordered) // 2], 2),
        f"{name}_p99_ms": round(ordered[int(len(ordered) * 0.99)], 2),
        f"{name}_max_ms": round(ordered[-1], 2),
    }


def sign_in(server: srv.Server, user_id: str) -> str:
    """Return the token of a new session."""
    body = {"user_id": user_id}
    return str(server.request("POST", "/api/auth/session", body)["token"])


def request_bytes(method: str, path: str, token: str, body: Any = None) -> bytes:
    """Return a whole HTTP request."""
    raw = b"" if body is None else json.dumps(body).encode()
    return (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    ).encode() + raw


@contextmanager
def probed(server: srv.Server, paths: list[str], token: str) -> Iterator[list[float]]:
    """Get rows, one each 5 ms, while the body runs; then the list has the latencies in ms.

    Raises:
        WrongAnswer: an answer was not 200, or had another row.
    """
    latencies: list[float] = []
    done = FORK.Event()
    ours, theirs = FORK.Pipe()
    process = FORK.Process(
        target=_probe, args=(server.port, paths, token, done, theirs), daemon=True
    )
    process.start()
    ours.recv()  # it is connected
    try:
        yield latencies
    finally:
        done.set()
        found, problem = ours.recv()
        process.join()
        latencies += found
    check(problem is None, f"a probe: {problem}")


def _probe(port: int, paths: list[str], token: str, done: Any, pipe: Any) -> None:
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=_READ_TIMEOUT_S)
    latencies: list[float] = []
    problem = None
    conn.connect()
    pipe.send(None)
    while not done.wait(PROBE_S):
        path = random.choice(paths)
        begun_ns = time.monotonic_ns()
        conn.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = conn.getresponse()
        body = answer.read()
        latencies.append((time.monotonic_ns() - begun_ns) / 1e6)
        if answer.status != 200 or json.loads(body)["id"] != path.rpartition("/")[2]:
            problem = f"{path}: {answer.status} {body[:200]!r}"
    pipe.send((latencies, problem))


def anon_mib(pid: int) -> float:
    """Return the RSS of a process without the pages of files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


class Memory(threading.Thread):
    """Samples the RSS of a process; use as a context manager."""

    def __init__(self, server: srv.Server, name: str) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._process = {name: server.processes()[name]}
        self._done = threading.Event()
        self.before_mib, self._cpu_before_s = self._read()
        self.peak_mib = self.before_mib
        self._anon_before_mib = self._anon_peak_mib = self._anon_mib()
        self.cpu_s = 0.0

    def _read(self) -> tuple[float, float]:
        (found,) = self._server.usage(self._process).values()
        return found

    def _anon_mib(self) -> float:
        (pid,) = self._process.values()
        return anon_mib(pid)

    def run(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self.peak_mib = max(self.peak_mib, self._read()[0])
            self._anon_peak_mib = max(self._anon_peak_mib, self._anon_mib())

    def __enter__(self) -> Memory:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self.join()
        rss_mib, cpu_s = self._read()
        self.peak_mib = max(self.peak_mib, rss_mib)
        self.cpu_s = cpu_s - self._cpu_before_s

    def report(self) -> dict[str, float]:
        """Return RSS before, the most since, and the CPU time meanwhile."""
        return {
            "rss_before_mib": self.before_mib, "rss_peak_mib": self.peak_mib,
            "anon_before_mib": self._anon_before_mib, "anon_peak_mib": self._anon_peak_mib,
            "cpu_s": round(self.cpu_s, 3),
        }


def read_once(server: srv.Server, request: bytes) -> bytes:
    """Return the body of the answer to a request.

    Raises:
        WrongAnswer: the answer is an error.
    """
    with socket.create_connection(("127.0.0.1", server.port), _READ_TIMEOUT_S) as sock:
        sock.sendall(request)
        data = b""
        while (found := _answer(data)) is None:
            data += _receive(sock)
        return found


def _receive(sock: socket.socket) -> bytes:
    data = sock.recv(1 << 18)
    check(bool(data), "the server closed a connection")
    return data


def _answer(data: bytes) -> bytes | None:
    """Return the body of the answer that begins `data`; None until all of it has come."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return None
    check(head.split(b" ", 2)[1] == b"200", f"{head[:80]!r} {rest[:300]!r}")
    size_bytes = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return rest if len(rest) >= size_bytes else None


def read_in_a_loop(
    server: srv.Server, requests: list[tuple[bytes, bytes]], connections: int, seconds: float
) -> dict[str, float]:
    """Send requests by turns on some connections, each its next when the answer has come.

    Args:
        requests: each with the only right body of its answer.

    Returns:
        Requests/s, p50 and p99, and the CPU time of the HTTP workers for each request.
    """
    workers = {
        name: pid for name, pid in server.processes().items()
        if name.startswith("http/")
    }
    before = server.usage(workers)
    ours, theirs = FORK.Pipe()
    process = FORK.Process(
        target=_read_in_a_loop, args=(server.port, requests, connections, seconds, theirs),
        daemon=True,
    )
    process.start()
    latencies, problem = ours.recv()
    process.join()
    check(problem is None, str(problem))
    after = server.usage(workers)
    cpu_s = sum(after[name][1] - before[name][1] for name in workers)
    return {
        "requests_per_s": round(len(latencies) / seconds), **percentiles("read", latencies),
        "cpu_us": round(cpu_s * 1e6 / len(latencies), 1),
    }


def _read_in_a_loop(
    port: int, requests: list[tuple[bytes, bytes]], connections: int, seconds: float, pipe: Any
) -> None:
    poll = select.epoll()
    socks: dict[int, socket.socket] = {}
    waiting: dict[int, tuple[int, bytes, bytes]] = {}  # by fd: sent at ns, what came, the answer
    latencies: list[float] = []
    place = 0

    def send(sock: socket.socket) -> None:
        nonlocal place
        request, body = requests[place % len(requests)]
        place += 1
        waiting[sock.fileno()] = (time.monotonic_ns(), b"", body)
        sock.sendall(request)

    problem = None
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port), _READ_TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
        send(sock)
    until_s = time.monotonic() + seconds
    try:
        while time.monotonic() < until_s:
            for fd, _ in poll.poll(1.0):
                sent_ns, data, body = waiting[fd]
                data += _receive(socks[fd])
                answer = _answer(data)
                if answer is None:
                    waiting[fd] = (sent_ns, data, body)
                    continue
                latencies.append((time.monotonic_ns() - sent_ns) / 1e6)
                check(answer == body, f"the answer differs: {answer[:200]!r}")
                send(socks[fd])
    except WrongAnswer as wrong:
        problem = str(wrong)
    pipe.send((latencies, problem))
