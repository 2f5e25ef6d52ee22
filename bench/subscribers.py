"""Many subscribers in one process: plain sockets in one epoll set, frames parsed, nothing lost.

The load tool starts this process and talks to it over a pipe. All subscribers get the same
bytes, so a chunk that equals one of the last few that were parsed is not parsed again; that is
all that lets one process check a million frames a second. What is checked: each subscriber gets
seqs one by one, without a hole; an event that it has already is counted as repeated and dropped,
as published clients do.

A row's title carries the monotonic time in ns at which it was sent; latency is from there to
here, on one machine's clock. Of a chunk of more than `SAMPLED` events, the first, the middle and
the last stand for all.
"""

from __future__ import annotations

import base64
import os
import re
import resource
import select
import socket
import time
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

SENT = re.compile(rb'"title":"t-(\d+)"')
SEQ = re.compile(rb'\{"seq":(\d+),')
RECEIVE_BYTES = 1 << 20
HANDSHAKES_AT_ONCE = 200
SAMPLED = 6
REMEMBERED = 8  # parsed chunks
STEP_NS = 100_000  # of the histogram
STUCK_BUFFER_BYTES = 4_096
PONG = b"\x8a\x80\0\0\0\0"


@dataclass
class Client:
    """One subscriber."""

    number: int
    token: str
    sock: socket.socket | None = None
    state: str = "new"  # connecting, asked, live, lost
    rest: bytes = b""
    last_seq: int = 0  # 0: whatever comes first is the beginning
    stuck: bool = False
    lost_at_ns: int = 0
    was_cut: bool = False  # its deliveries no longer count for latency


@dataclass
class Parsed:
    """What a chunk has in it."""

    used_bytes: int = 0
    seqs: list[int] = field(default_factory=list)
    contiguous: bool = True
    sent_ns: list[int] = field(default_factory=list)
    pings: int = 0
    closes: list[int] = field(default_factory=list)


class Subscribers:
    """The process's state. `run` answers commands until it is told to quit."""

    def __init__(
        self, pipe: Connection, progress: Any, port: int, transport: str, address: str
    ) -> None:
        self.pipe, self.progress, self.port, self.transport = pipe, progress, port, transport
        self.address = address
        self.parse = parse_ws if transport == "ws" else parse_sse
        self.poll = select.epoll()
        self.poll.register(pipe.fileno(), select.EPOLLIN)
        self.by_fd: dict[int, Client] = {}
        self.clients: list[Client] = []
        self.waiting: list[Client] = []
        self.opening = 0
        self.known: list[tuple[bytes, Parsed]] = []
        self.reconnects = False
        self.handshakes_ns: list[int] = []
        self.buffer = bytearray(RECEIVE_BYTES)
        self.reset()

    def reset(self) -> None:
        """Count anew."""
        self.delivered = self.repeated = self.missing = self.reads = self.closed = 0
        self.histogram: dict[int, int] = {}
        self.first_ns = self.last_ns = 0
        self.close_codes: dict[int, int] = {}
        self.back_ns: list[int] = []
        self.began_cpu_s = time.process_time()

    def forget_times(self) -> None:
        """Measure latencies anew; all else is counted on."""
        self.histogram = {}

    def run(self) -> None:
        """Serve the pipe and the sockets."""
        while True:
            while self.waiting and self.opening < HANDSHAKES_AT_ONCE:
                self.open(self.waiting.pop())
            for fd, events in self.poll.poll(1.0, 512):
                if fd == self.pipe.fileno():
                    command, *args = self.pipe.recv()
                    if command == "quit":
                        self.pipe.send(None)
                        return
                    self.pipe.send(getattr(self, command)(*args))
                    continue
                client = self.by_fd.get(fd)
                if client is None:
                    continue
                if client.state == "live":
                    self.read(client)
                else:
                    self.shake(client, events)
            self.progress.value = self.delivered

    # --- Commands ------------------------------------------------------------------------

    def connect(self, count: int, tokens: list[str], stuck: bool) -> None:
        """Begin to connect `count` more; `live` says how far that is."""
        for _ in range(count):
            number = len(self.clients)
            client = Client(number, tokens[number % len(tokens)], stuck=stuck)
            self.clients.append(client)
            self.waiting.append(client)

    def live(self) -> int:
        """How many have been answered, and have the row that was there before them.

        It comes after the answer. On a busy machine it came after `reset`, which counted it.
        """
        return sum(
            client.state == "live" and (client.stuck or client.last_seq > 0)
            for client in self.clients
        )

    def come_back(self, on: bool) -> None:
        """Whether clients that are cut off connect again, from where they were."""
        self.reconnects = on

    def stats(self) -> dict[str, Any]:
        """What was counted since `reset`."""
        heads = [client.last_seq for client in self.clients if not client.stuck]
        return {
            "delivered": self.delivered, "repeated": self.repeated, "missing": self.missing,
            "reads": self.reads, "closed": self.closed, "close_codes": self.close_codes,
            "histogram": self.histogram, "first_ns": self.first_ns, "last_ns": self.last_ns,
            "lowest_seq": min(heads, default=0), "highest_seq": max(heads, default=0),
            "cpu_s": time.process_time() - self.began_cpu_s, "back_ns": self.back_ns,
            "handshakes_ns": self.handshakes_ns,
        }

    # --- Connecting ----------------------------------------------------------------------

    def open(self, client: Client) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        if client.stuck:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STUCK_BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        sock.bind((self.address, 0))
        sock.connect_ex(("127.0.0.1", self.port))
        client.sock, client.state, client.rest = sock, "connecting", b""
        client.lost_at_ns = client.lost_at_ns or time.monotonic_ns()
        self.by_fd[sock.fileno()] = client
        self.poll.register(sock.fileno(), select.EPOLLOUT)
        self.opening += 1

    def shake(self, client: Client, events: int) -> None:
        sock = client.sock
        assert sock is not None
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self.drop(client, again=True)
            return
        if client.state == "connecting":
            since = f"?since={client.last_seq}" if client.last_seq else ""
            head = [f"GET /events{since} HTTP/1.1", "Host: localhost",
                    f"Authorization: Bearer {client.token}"]
            if self.transport == "ws":
                key = base64.b64encode(os.urandom(16)).decode()
                head += ["Connection: Upgrade", "Upgrade: websocket",
                         "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
            sock.send(("\r\n".join(head) + "\r\n\r\n").encode())
            client.state = "asked"
            self.poll.modify(sock.fileno(), select.EPOLLIN)
            return
        try:
            client.rest += sock.recv(16_384)
        except OSError:
            self.drop(client, again=True)
            return
        if not client.rest:
            self.drop(client, again=True)
            return
        head_bytes, found, rest = client.rest.partition(b"\r\n\r\n")
        if not found:
            return
        if head_bytes.split(b" ", 2)[1] not in (b"101", b"200"):
            raise SystemExit(f"refused: {head_bytes[:300]!r} {rest[:300]!r}")
        client.state, client.rest = "live", b""
        self.opening -= 1
        now_ns = time.monotonic_ns()
        self.handshakes_ns.append(now_ns - client.lost_at_ns)
        self.back_ns.append(now_ns)
        client.lost_at_ns = 0
        if client.stuck:
            self.poll.unregister(sock.fileno())
        elif rest:
            self.take(client, rest)

    def drop(self, client: Client, *, again: bool) -> None:
        assert client.sock is not None
        if client.state != "live":
            self.opening -= 1
        else:
            self.closed += 1
            client.was_cut = True
            client.lost_at_ns = time.monotonic_ns()
        del self.by_fd[client.sock.fileno()]
        client.sock.close()
        client.sock, client.state, client.rest = None, "lost", b""
        if again:
            self.waiting.insert(0, client)

    # --- Reading -------------------------------------------------------------------------

    def read(self, client: Client) -> None:
        assert client.sock is not None
        try:
            size_bytes = client.sock.recv_into(self.buffer)
        except BlockingIOError:
            return
        except OSError:
            size_bytes = 0
        if not size_bytes:
            self.drop(client, again=self.reconnects)
            return
        self.take(client, bytes(memoryview(self.buffer)[:size_bytes]))

    def take(self, client: Client, chunk: bytes) -> None:
        self.reads += 1
        if client.rest:
            chunk = client.rest + chunk
        parsed = next((parsed for known, parsed in self.known if known == chunk), None)
        if parsed is None:
            parsed = self.parse(chunk)
            self.known = [(chunk, parsed), *self.known[: REMEMBERED - 1]]
        client.rest = chunk[parsed.used_bytes:]
        for _ in range(parsed.pings):
            assert client.sock is not None
            client.sock.send(PONG)
        for code in parsed.closes:
            self.close_codes[code] = self.close_codes.get(code, 0) + 1
        if parsed.seqs:
            self.count(client, parsed)

    def count(self, client: Client, parsed: Parsed) -> None:
        now_ns = self.last_ns = time.monotonic_ns()
        self.first_ns = self.first_ns or now_ns
        seqs, sent = parsed.seqs, parsed.sent_ns
        if not (parsed.contiguous and (seqs[0] == client.last_seq + 1 or not client.last_seq)):
            fresh = 0
            for seq in seqs:
                if client.last_seq and seq <= client.last_seq:
                    self.repeated += 1
                    continue
                if client.last_seq and seq > client.last_seq + 1:
                    self.missing += seq - client.last_seq - 1
                client.last_seq = seq
                fresh += 1
            self.delivered += fresh
            return
        client.last_seq = seqs[-1]
        count = len(seqs)
        self.delivered += count
        if not sent or client.was_cut:
            return
        weight = 1
        if count > SAMPLED:
            sent, weight = [sent[0], sent[len(sent) // 2], sent[-1]], count // 3
        histogram = self.histogram
        for at_ns in sent:
            bucket = (now_ns - at_ns) // STEP_NS
            histogram[bucket] = histogram.get(bucket, 0) + weight


def parse_ws(chunk: bytes) -> Parsed:
    """Whole frames at the start of a chunk."""
    parsed, at, end = Parsed(), 0, len(chunk)
    while end - at >= 2:
        opcode, size_bytes, start = chunk[at] & 0x0F, chunk[at + 1], at + 2
        if size_bytes == 126:
            size_bytes, start = int.from_bytes(chunk[at + 2 : at + 4], "big"), at + 4
        elif size_bytes == 127:
            size_bytes, start = int.from_bytes(chunk[at + 2 : at + 10], "big"), at + 10
        if start + size_bytes > end:
            break
        payload = chunk[start : start + size_bytes]
        at = start + size_bytes
        if opcode == 1:
            _event(parsed, payload)
        elif opcode == 9:
            parsed.pings += 1
        elif opcode == 8:
            parsed.closes.append(int.from_bytes(payload[:2], "big"))
    parsed.used_bytes = at
    return _checked(parsed)


def parse_sse(chunk: bytes) -> Parsed:
    """Whole blocks at the start of a chunk."""
    parsed = Parsed()
    parsed.used_bytes = chunk.rfind(b"\n\n") + 2 if b"\n\n" in chunk else 0
    for block in chunk[: parsed.used_bytes].split(b"\n\n"):
        if block.startswith(b"id:"):
            _event(parsed, block.partition(b"data: ")[2])
    return _checked(parsed)


def _event(parsed: Parsed, text: bytes) -> None:
    found = SEQ.match(text)
    if found is None:
        return
    parsed.seqs.append(int(found[1]))
    sent = SENT.search(text)
    if sent is not None:
        parsed.sent_ns.append(int(sent[1]))


def _checked(parsed: Parsed) -> Parsed:
    seqs = parsed.seqs
    parsed.contiguous = not seqs or all(
        after == before + 1 for before, after in pairwise(seqs)
    )
    return parsed


def run(pipe: Connection, progress: Any, port: int, transport: str, address: str) -> None:
    """The process's main. `address` is the loopback address of its own that it connects from:
    one has about 28,000 ports."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Subscribers(pipe, progress, port, transport, address).run()
