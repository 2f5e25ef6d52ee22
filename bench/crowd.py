"""Crowd: many clients come back at once to a young hub that knows no cursors.

    python bench/crowd.py [--clients 1000] [--events 20000] [--writes-per-s 50] [--out FOLDER]

Events are written, then an HTTP worker and the ws worker are killed, so that cursor hints may be
missing. Then all clients connect at once, and each gets the whole window. The tool reads as fast
as it can, in one process, and looks at the last seq only. It prints the time that this takes, its
CPU cost to the ws worker, and the latency of get-by-id meanwhile. Exit code 1 when a client lacks
the end.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import select
import signal
import socket
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine
import server as srv

SEQ = re.compile(rb'\{"seq":(\d+),')
RECEIVE_BYTES = 1 << 18
TIMEOUT_S = 300.0
PROBE_S = 0.02


@dataclass
class Client:
    """One subscriber, and the end of what it has read."""

    sock: socket.socket
    end: bytes = b""
    last_seq: int = 0
    received_bytes: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--writes-per-s", type=float, default=50.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with srv.served(PYLON_SHARD_WORKERS="1") as server:
        report = _run(server, args.clients, args.events, args.writes_per_s)
    for name, value in report.items():
        print(f"{name}: {value}")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        whole = {"machine": machine.fingerprint(), **report}
        (args.out / "crowd.json").write_text(json.dumps(whole, indent=2) + "\n")
    return 1 if report["clients_without_the_end"] else 0


def _run(server: srv.Server, count: int, events: int, writes_per_s: float) -> dict[str, Any]:
    row_id = srv.fill(server, events)[0]
    dead = [server.status()["roles"][role]["pids"][0] for role in ("http", "ws")]
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    while not _is_ready(server, dead):
        time.sleep(0.1)
    head = server.request("GET", "/api/sync/pull?since=1")["cursor"]["last_seq"]
    while (page := server.request("GET", f"/api/sync/pull?since={head}"))["changes"]:
        head = page["cursor"]["last_seq"]
    started_s = time.monotonic()
    done = threading.Event()
    probe = _Probe(server.port, row_id, done)
    writer = threading.Thread(target=_write, args=(server, writes_per_s, done), daemon=True)
    probe.start()
    writer.start()
    clients = [_connect(server.port + 1) for _ in range(count)]
    _read_all(clients, head, started_s + TIMEOUT_S)
    took_s = time.monotonic() - started_s
    done.set()
    probe.join()
    writer.join()
    usage = server.usage(server.processes())
    latencies = sorted(probe.latencies_ms)
    return {
        "clients": count, "events": events, "took_s": round(took_s, 2),
        "received_mib": round(sum(c.received_bytes for c in clients) / 2**20),
        "clients_without_the_end": sum(c.last_seq < head for c in clients),
        "ws_cpu_s": round(usage["ws/1"][1], 2), "ws_rss_mib": round(usage["ws/1"][0]),
        "get_p50_ms": round(statistics.median(latencies), 1),
        "get_p99_ms": round(latencies[int(0.99 * (len(latencies) - 1))], 1),
    }


def _is_ready(server: srv.Server, dead: list[int]) -> bool:
    """Whether new workers have replaced the killed ones."""
    roles = server.status()["roles"]
    return all(
        roles[role]["ready"] >= roles[role]["wanted"] and not set(dead) & set(roles[role]["pids"])
        for role in ("http", "ws")
    )


class _Probe(threading.Thread):
    """Gets one row, over and over, and once at the least."""

    def __init__(self, port: int, row_id: str, done: threading.Event) -> None:
        super().__init__(daemon=True)
        self.latencies_ms: list[float] = []
        self._port, self._row_id, self._done = port, row_id, done

    def run(self) -> None:
        conn = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        is_done = False
        while not is_done:
            begun_s = time.monotonic()
            conn.request("GET", f"/api/entities/Item/{self._row_id}")
            conn.getresponse().read()
            self.latencies_ms.append((time.monotonic() - begun_s) * 1_000)
            is_done = self._done.wait(PROBE_S)
        conn.close()


def _write(server: srv.Server, writes_per_s: float, done: threading.Event) -> None:
    number = 10**7
    while writes_per_s and not done.wait(1 / writes_per_s):
        number += 1
        server.request("POST", "/api/entities/Item", srv.item(number))


def _connect(port: int) -> Client:
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.sendall(srv.upgrade_request())
    sock.setblocking(False)
    return Client(sock)


def _read_all(clients: list[Client], head: int, until_s: float) -> None:
    """Read until every client has `head`."""
    waiting = {client.sock.fileno(): client for client in clients}
    poll = select.epoll()
    for fd in waiting:
        poll.register(fd, select.EPOLLIN)
    while waiting and time.monotonic() < until_s:
        for fd, _ in poll.poll(1.0):
            client = waiting.get(fd)
            if client is None:
                continue
            try:
                data = client.sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            if not data:
                poll.unregister(fd)
                del waiting[fd]
                continue
            client.received_bytes += len(data)
            client.end = (client.end + data)[-2_000:]
            found = SEQ.findall(client.end)
            if found:
                client.last_seq = int(found[-1])
            if client.last_seq >= head:
                poll.unregister(fd)
                del waiting[fd]
    poll.close()


if __name__ == "__main__":
    sys.exit(main())
