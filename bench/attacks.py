"""The attacks that `abuse.py` runs, each a loop of one client in a process of its own.

A function takes the target and works until `target.is_over()`. Connections come from an address
of the attacker's own, so that limits by address do not meet the others. The tool counts the
server's answers by status, since a refusal is as good an end of an attack as any.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import server as srv

ADDRESS: Final = "127.0.0.66"
TEXT_BYTES: Final = 4_000  # of each of the rows that patterns meet
LARGE_BYTES: Final = 1_000_000  # of the attacker's own row; a row limit is 1 MiB
_WAIT_S: Final = 20.0
_PAUSE_S: Final = 0.2  # of a client that was refused and tries again


@dataclass
class Target:
    """The target of an attack, its end, and its results."""

    port: int
    token: str  # of a guest
    row_id: str  # of a large row of the guest's
    until_s: float
    counts: Counter[str] = field(default_factory=Counter)

    def is_over(self) -> bool:
        return time.monotonic() >= self.until_s

    def connect(self, port_offset: int = 0) -> socket.socket:
        sock = socket.create_connection(
            ("127.0.0.1", self.port + port_offset), timeout=_WAIT_S, source_address=(ADDRESS, 0)
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def http(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=_WAIT_S, source_address=(ADDRESS, 0)
        )

    def ask(
        self, conn: http.client.HTTPConnection, method: str, path: str, body: Any = None,
        *, is_guest: bool = False,
    ) -> bytes:
        """One request, counted by its status."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if is_guest:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            conn.request(method, path, data, headers)
            answer = conn.getresponse()
            raw = answer.read()
        except (OSError, http.client.HTTPException) as ex:
            self.counts[type(ex).__name__] += 1
            conn.close()
            time.sleep(_PAUSE_S)
            return b""
        self.counts[str(answer.status)] += 1
        if answer.status == 429:
            time.sleep(_PAUSE_S)
        return raw


Attack = Callable[[Target], None]


def _in_threads(count: int, target: Target, work: Callable[[http.client.HTTPConnection], None]
                ) -> None:
    """Do `work` on `count` connections, over and over."""

    def run() -> None:
        conn = target.http()
        while not target.is_over():
            work(conn)
        conn.close()

    _run_threads(count, run)


def _run_threads(count: int, run: Callable[[], None]) -> None:
    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- 1. Patterns ------------------------------------------------------------------------


def _patterns() -> Iterator[dict[str, Any]]:
    """Filters that are as costly as the limits allow, and some that are beyond them."""
    for length, count in ((9_900, 6), (2_000, 30), (950, 60), (450, 60), (200, 60), (90, 60)):
        texts = ["a%" * (length // 2 - 2) + f"b{n}" for n in range(count)]
        plain = ["a" * (length - 4) + f"b{n}" for n in range(count)]
        for operator, values in (("$like", texts), ("$like", plain), ("$contains", plain)):
            for most in (count, 8, 1):
                yield {"$or": [{"text": {operator: value}} for value in values[:most]]}


def patterns(target: Target) -> None:
    """Anonymous filters of up to 60 kB over 30 rows of 4 kB, and over one of 1 MB."""
    bodies = list(_patterns())
    turns = iter(range(10**9))

    def work(conn: http.client.HTTPConnection) -> None:
        target.ask(conn, "POST", "/api/query/Text", bodies[next(turns) % len(bodies)])

    _in_threads(2, target, work)


def search(target: Target) -> None:
    """Anonymous searches for many long words."""
    bodies = [
        {"query": " ".join("a" * length + str(n) for n in range(32))[:1_000], "page_size": 100}
        for length in (1, 8, 28)
    ]
    turns = iter(range(10**9))

    def work(conn: http.client.HTTPConnection) -> None:
        target.ask(conn, "POST", "/api/search/Text", bodies[next(turns) % len(bodies)])

    _in_threads(2, target, work)


# --- 2. JSON ----------------------------------------------------------------------------


def json_depth(target: Target) -> None:
    """10 MB of `[[],[],…]`, and nesting that never ends, to routes that need no caller."""
    bodies = [b"[" + b"[]," * 3_490_000 + b"[]]", b"[" * 10_000_000, b'{"a":' * 2_000_000]
    paths = ("/api/sync/push", "/api/batch", "/api/entities/Item", "/api/query/Item")
    turns = iter(range(10**9))

    def work(conn: http.client.HTTPConnection) -> None:
        turn = next(turns)
        target.ask(conn, "POST", paths[turn % len(paths)], bodies[turn % len(bodies)])

    _in_threads(1, target, work)


# --- 3. Large rows ----------------------------------------------------------------------


def large_transact(target: Target) -> None:
    """100 updates of a row of 1 MB in one small request."""
    ops = [
        {"op": "update", "entity": "Own", "id": target.row_id, "data": {"n": n}}
        for n in range(100)
    ]

    def work(conn: http.client.HTTPConnection) -> None:
        target.ask(conn, "POST", "/api/transact", ops, is_guest=True)

    _in_threads(1, target, work)


def large_patches(target: Target) -> None:
    """Patches of a few bytes to a row of 1 MB, one after the other."""

    def work(conn: http.client.HTTPConnection) -> None:
        body = {"n": time.monotonic_ns() % 1_000}
        target.ask(conn, "PATCH", f"/api/entities/Own/{target.row_id}", body, is_guest=True)

    _in_threads(1, target, work)


def patches_without_right(target: Target) -> None:
    """The same by a caller without the right."""

    def work(conn: http.client.HTTPConnection) -> None:
        target.ask(conn, "PATCH", f"/api/entities/Own/{target.row_id}", {"n": 1})

    _in_threads(4, target, work)


# --- 4. Sockets -------------------------------------------------------------------------


def _send_on_sockets(target: Target, count: int, send: Callable[[socket.socket], None]) -> None:
    """Call `send` on each of `count` anonymous sockets, over and over; closed ones open again."""

    def run() -> None:
        while not target.is_over():
            try:
                with _upgraded(target) as sock:
                    while not target.is_over():
                        send(sock)
            except OSError:
                target.counts["closed"] += 1
                time.sleep(_PAUSE_S)

    _run_threads(count, run)


def _bombs(target: Target, sockets: int) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    payload = packer.compress(b"a" * 1_000_000) + packer.flush(zlib.Z_SYNC_FLUSH)
    frame = _masked(0xC1, payload[:-4])

    def send(sock: socket.socket) -> None:
        sock.sendall(frame)
        target.counts["sent"] += 1
        time.sleep(len(frame) / 50_000)

    _send_on_sockets(target, sockets, send)


def bomb(target: Target) -> None:
    """1 kB that unpacks to 1 MB, at 50 kB/s on an anonymous socket."""
    _bombs(target, 1)


def bombs(target: Target) -> None:
    """The same on twenty."""
    _bombs(target, 20)


def messages(target: Target) -> None:
    """As many small messages as twenty anonymous sockets can send."""
    text = b'{"type":"topic","topic":"t","data":1}'
    burst = _masked(0x81, text) * 200

    def send(sock: socket.socket) -> None:
        sock.sendall(burst)
        target.counts["sent"] += 200

    _send_on_sockets(target, 20, send)


def _upgraded(target: Target) -> socket.socket:
    sock = target.connect(1)
    sock.sendall(srv.upgrade_request("Sec-WebSocket-Extensions: permessage-deflate"))
    if b" 101 " not in sock.recv(4_096):
        sock.close()
        raise ConnectionRefusedError
    return sock


def _masked(first: int, payload: bytes) -> bytes:
    size = len(payload)
    head = bytes([first, 0x80 | size]) if size < 126 else (
        bytes([first, 0x80 | 126]) + size.to_bytes(2, "big")
    )
    return head + b"\0\0\0\0" + payload


# --- 5. Connections and bodies ----------------------------------------------------------


def idle_connections(target: Target) -> None:
    """As many idle keep-alive connections as descriptors allow (16,000)."""
    held: list[socket.socket] = []
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    while not target.is_over() and len(held) < 16_000:
        try:
            sock = target.connect()
            sock.sendall(request)
            held.append(sock)
            target.counts["opened"] += 1
        except OSError as ex:
            target.counts[type(ex).__name__] += 1
            time.sleep(_PAUSE_S)
    while not target.is_over():
        time.sleep(_PAUSE_S)
    for sock in held:
        sock.close()


def half_bodies(target: Target) -> None:
    """64 bodies of 9 MB, of which a half was sent."""
    head = (
        b"POST /api/sync/push HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9000000\r\n\r\n"
    )
    held: list[socket.socket] = []
    half = b" " * 65_536
    while not target.is_over():
        held = [sock for sock in held if sock.fileno() >= 0]
        if len(held) >= 64:
            time.sleep(_PAUSE_S)
        try:
            if len(held) < 64:
                sock = target.connect()
                held.append(sock)
                sock.sendall(head)
                for _ in range(4_500_000 // len(half)):
                    sock.sendall(half)
                target.counts["half sent"] += 1
            for sock in held:
                sock.setblocking(False)
                sock.send(b" ")
        except BlockingIOError:
            continue
        except OSError as ex:
            target.counts[type(ex).__name__] += 1
            sock.close()
            time.sleep(0.02)


# --- 6. Quotas --------------------------------------------------------------------------


def guests(target: Target) -> None:
    """Guest sessions, as fast as they are made."""
    _in_threads(4, target, lambda conn: _drop(target.ask(conn, "POST", "/api/auth/guest")))


def rooms(target: Target) -> None:
    """A new room with each request."""
    numbers = iter(range(10**9))

    def work(conn: http.client.HTTPConnection) -> None:
        body = {"room": f"r{next(numbers)}", "user_id": "x", "data": {}}
        target.ask(conn, "POST", "/api/rooms/join", body, is_guest=True)

    _in_threads(4, target, work)


def _drop(_: bytes) -> None:
    return


# --- 7. Fairness ------------------------------------------------------------------------


def sorts(target: Target) -> None:
    """20 anonymous sorts of 20,000 rows at a time."""
    turns = iter(range(10**9))

    def work(conn: http.client.HTTPConnection) -> None:
        body = {"$order": {"title": "desc"}, "$limit": 100, "$offset": next(turns) % 10_000}
        target.ask(conn, "POST", "/api/query/Item", body)

    _in_threads(20, target, work)


def snapshots(target: Target) -> None:
    """8 anonymous pulls of everything at a time."""
    _in_threads(8, target, lambda conn: _drop(target.ask(conn, "GET", "/api/sync/pull?since=0")))


def document_pushes(target: Target) -> None:
    """30 document updates at a time, to a row that is not there."""
    body = {"update": os.urandom(30_000).hex()}
    path = f"/api/crdt/Page/{'0' * 40}"

    def work(conn: http.client.HTTPConnection) -> None:
        target.ask(conn, "POST", path, body, is_guest=True)

    _in_threads(30, target, work)


ATTACKS: Final[dict[str, Attack]] = {
    "1 patterns": patterns, "1 search": search,
    "2 json depth": json_depth,
    "3 large transact": large_transact, "3 large patches": large_patches,
    "3 patches without right": patches_without_right,
    "4 one bomb": bomb, "4 twenty bombs": bombs, "4 messages": messages,
    "5 idle connections": idle_connections, "5 half-sent bodies": half_bodies,
    "6 guests": guests, "6 rooms": rooms,
    "7 sorts": sorts, "7 snapshots": snapshots, "7 document pushes": document_pushes,
}
