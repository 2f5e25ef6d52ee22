"""Syncing: clients that sync over WebSocket as the published client does, many in one process.

Start: pull until done, then connect. After each close: wait a moment, pull, connect again. A live
event counts if its seq is above the cursor. Nothing that the published client lacks is used (no
`?since=`). All sockets are in one epoll set. All clients get the same bytes, so a chunk that equals
one of the last few is not parsed again (`subscribers`).

Every change must be one that each client may read: then seqs have no holes, and each hole that a
client sees is a lost event. `restart` starts `run` in processes of its own.
"""

from __future__ import annotations

import heapq
import random
import re
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
from subscribers import PONG, REMEMBERED, SEQ, Parsed, parse_ws

_BACKOFF_S: Final = 0.25
_RECEIVE_BYTES: Final = 1 << 18
_LAST_SEQ: Final = re.compile(rb'"last_seq":(\d+)')
_OPENING_AT_ONCE: Final = 100


@dataclass
class Synced:
    """The counts of one process, for one measurement."""

    clients: int = 0
    live: int = 0
    lowest_cursor: int = 0
    events: int = 0
    missing: int = 0  # holes in the seqs of a client
    reconnected: int = 0  # clients that have connected since the last `reset`
    back_s: float = 0.0  # monotonic time at which the last of them had
    pulls: int = 0
    pulls_failed: int = 0
    close_codes: dict[int, int] = field(default_factory=dict)
    behind: int = 0  # sum over the clients of how many events they lack of `head`


@dataclass(slots=True)
class _Client:
    sock: socket.socket | None = None
    state: str = "lost"  # pulling, asked, live
    cursor: int = 0
    rest: bytes = b""
    connects: int = 0


class Syncers:
    """All clients of one process."""

    def __init__(self, pipe: Connection, port: int, token: str, count: int) -> None:
        self._pipe, self._port, self._token = pipe, port, token
        self._poll = select.epoll()
        self._poll.register(pipe.fileno(), select.EPOLLIN)
        self._by_fd: dict[int, _Client] = {}
        self._clients = [_Client() for _ in range(count)]
        self._due: list[tuple[float, int]] = [(0.0, number) for number in range(count)]
        self._number_by_id = {id(client): number for number, client in enumerate(self._clients)}
        self._known: list[tuple[bytes, Parsed]] = []
        self.counts = Synced()

    def run(self) -> None:
        """Serve the sockets, and answer the pipe: `reset`, `stats HEAD`, `quit`."""
        while True:
            self._begin_due()
            for fd, _ in self._poll.poll(0.02, 512):
                if fd == self._pipe.fileno():
                    command, *args = self._pipe.recv()
                    if command == "quit":
                        self._pipe.send(None)
                        return
                    self._pipe.send(getattr(self, command)(*args))
                    continue
                client = self._by_fd.get(fd)
                if client is not None:
                    self._receive(client)

    # --- Commands ------------------------------------------------------------------------

    def reset(self) -> None:
        """Count anew."""
        self.counts = Synced()
        for client in self._clients:
            client.connects = 0

    def stats(self, head: int) -> Synced:
        """Return the counts since `reset`. `head`: the last seq that every client should have."""
        counts = self.counts
        counts.clients = len(self._clients)
        counts.live = sum(client.state == "live" for client in self._clients)
        counts.lowest_cursor = min(client.cursor for client in self._clients)
        counts.reconnected = sum(client.connects > 0 for client in self._clients)
        counts.behind = sum(max(0, head - client.cursor) for client in self._clients)
        return counts

    # --- Connecting ----------------------------------------------------------------------

    def _begin_due(self) -> None:
        now_s = time.monotonic()
        opened = 0
        while self._due and self._due[0][0] <= now_s and opened < _OPENING_AT_ONCE:
            opened += 1
            self._begin_pull(self._clients[heapq.heappop(self._due)[1]])

    def _begin_pull(self, client: _Client) -> None:
        self._open(
            client, "pulling", self._port,
            f"GET /api/sync/pull?since={client.cursor} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {self._token}\r\nConnection: close\r\n\r\n",
        )

    def _connect(self, client: _Client) -> None:
        self._open(
            client, "asked", self._port + 1,
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Protocol: bearer.{self._token}\r\n\r\n",
        )

    def _open(self, client: _Client, state: str, port: int, request: str) -> None:
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=10)
            sock.sendall(request.encode())
        except OSError:
            self._lose(client)
            return
        sock.setblocking(False)
        client.sock, client.state, client.rest = sock, state, b""
        self._by_fd[sock.fileno()] = client
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def _close(self, client: _Client) -> None:
        if client.sock is not None:
            self._by_fd.pop(client.sock.fileno(), None)
            client.sock.close()
            client.sock = None
        client.rest = b""

    def _lose(self, client: _Client) -> None:
        self._close(client)
        client.state = "lost"
        again_s = time.monotonic() + random.uniform(0, _BACKOFF_S)
        heapq.heappush(self._due, (again_s, self._number_by_id[id(client)]))

    # --- Receiving -----------------------------------------------------------------------

    def _receive(self, client: _Client) -> None:
        assert client.sock is not None
        try:
            chunk = client.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if client.state == "pulling":
            self._receive_pull(client, chunk)
        elif not chunk:
            self._lose(client)
        elif client.state == "asked":
            self._receive_upgrade(client, chunk)
        else:
            self._take(client, chunk)

    def _receive_pull(self, client: _Client, chunk: bytes) -> None:
        """As the published client, go on to connect after a pull that has failed, except for the
        first one."""
        if chunk:
            client.rest += chunk
            return
        head, _, body = client.rest.partition(b"\r\n\r\n")
        self._close(client)
        self.counts.pulls += 1
        if not head.startswith(b"HTTP/1.1 200") or not body.endswith(b"}"):
            self.counts.pulls_failed += 1
            if client.cursor == 0:
                self._lose(client)
            else:
                self._connect(client)
            return
        if client.cursor:
            self._count(client, [int(seq) for seq in SEQ.findall(body)])
        client.cursor = max(client.cursor, int(_LAST_SEQ.findall(body)[-1]))
        if b'"has_more":true' in body:
            self._begin_pull(client)
        else:
            self._connect(client)

    def _receive_upgrade(self, client: _Client, chunk: bytes) -> None:
        client.rest += chunk
        head, found, rest = client.rest.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 101"):
            self._lose(client)
            return
        client.state, client.rest = "live", b""
        client.connects += 1
        if client.connects == 1:
            self.counts.back_s = time.monotonic()
        if rest:
            self._take(client, rest)

    def _take(self, client: _Client, chunk: bytes) -> None:
        chunk = client.rest + chunk if client.rest else chunk
        parsed = next((parsed for known, parsed in self._known if known == chunk), None)
        if parsed is None:
            parsed = parse_ws(chunk)
            self._known = [(chunk, parsed), *self._known[: REMEMBERED - 1]]
        client.rest = chunk[parsed.used_bytes:]
        self._count(client, parsed.seqs)
        for _ in range(parsed.pings):
            assert client.sock is not None
            client.sock.send(PONG)
        for code in parsed.closes:
            self.counts.close_codes[code] = self.counts.close_codes.get(code, 0) + 1
            self._lose(client)

    def _count(self, client: _Client, seqs: list[int]) -> None:
        for seq in seqs:
            if seq <= client.cursor:
                continue
            self.counts.missing += seq - client.cursor - 1
            self.counts.events += 1
            client.cursor = seq


def run(pipe: Connection, port: int, token: str, count: int) -> None:
    """The process's main."""
    Syncers(pipe, port, token, count).run()


def together(results: list[Synced], since_s: float) -> dict[str, Any]:
    """Return the figures of several processes as one. `since_s`: monotonic, of the command."""
    codes: dict[int, int] = {}
    for each in results:
        for code, count in each.close_codes.items():
            codes[code] = codes.get(code, 0) + count
    back_s = max(each.back_s for each in results)
    return {
        "sockets": sum(each.clients for each in results),
        "live": sum(each.live for each in results),
        "reconnected": sum(each.reconnected for each in results),
        "sockets_back_s": round(back_s - since_s, 2) if back_s else None,
        "events": sum(each.events for each in results),
        "events_lost": sum(each.missing + each.behind for each in results),
        "pulls_failed": sum(each.pulls_failed for each in results),
        "close_codes": codes,
    }
