"""Fan-out: many subscribers, one writer at a rate, and how long each delivery takes.

    python bench/fan_out.py [--transport ws] [--subscribers 1000] [--rate 20] [--seconds 10]

Each row carries the time at which it was sent; a subscriber that reads it subtracts. Both clocks
are one machine's monotonic clock. The subscribers are plain sockets in one epoll loop, the writer
is a process of its own, and all is on loopback. Bounded by `seconds` and a grace of five.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import re
import resource
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import server as srv

SENT = re.compile(rb'"title":"t-(\d+)"')
KEEP_BYTES = 64  # the longest match, kept in case it is cut in two
GRACE_S = 5.0
ANSWER_BYTES = 65_536


def main() -> int:
    """Run once and report; exit code 1 when a delivery is missing."""
    args = _arguments()
    _raise_file_limit(args.subscribers + 200)
    with srv.served() as server:
        processes = server.processes()
        cold = server.usage(processes)
        started_s = time.monotonic()
        sockets = [_subscribe(server, args.transport) for _ in range(args.subscribers)]
        connect_s = time.monotonic() - started_s
        idle = server.usage(processes)
        writer = multiprocessing.get_context("fork").Process(
            target=_write, args=(server, args.rate, args.seconds)
        )
        writer.start()
        wanted = int(args.rate * args.seconds) * args.subscribers
        latencies_ms, took_s = _receive(sockets, wanted, args.seconds + GRACE_S)
        writer.join()
        loaded = server.usage(processes)
        for sock in sockets:
            sock.close()
    report = _report(args, wanted, latencies_ms, took_s, connect_s)
    report["processes"] = {
        name: {
            "rss_cold_mib": cold[name][0], "rss_idle_mib": idle[name][0],
            "rss_loaded_mib": loaded[name][0],
            "cpu_s": round(loaded[name][1] - idle[name][1], 2),
        }
        for name in processes
    }
    print(json.dumps(report, indent=2))
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"fan_out_{args.transport}_{args.subscribers}"
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.out / f"{name}.md").write_text(_markdown(report))
    return 0 if report["missing"] == 0 else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=("ws", "sse"), default="ws")
    parser.add_argument("--subscribers", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=20.0, help="changes per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/local"))
    return parser.parse_args()


def _raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        if hard not in (resource.RLIM_INFINITY,) and hard < wanted:
            raise SystemExit(f"fan_out: {wanted} descriptors are needed, ulimit -Hn is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _subscribe(server: srv.Server, transport: str) -> socket.socket:
    """A socket that has been answered and will receive changes."""
    offset = {"ws": 1, "sse": 2}[transport]
    sock = socket.create_connection(("127.0.0.1", server.port + offset), timeout=30)
    head = ["GET /events HTTP/1.1", "Host: localhost", f"Authorization: Bearer {srv.ADMIN}"]
    if transport == "ws":
        key = base64.b64encode(os.urandom(16)).decode()
        head += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                 f"Sec-WebSocket-Key: {key}"]
    sock.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = sock.recv(ANSWER_BYTES)
        if not chunk:
            raise SystemExit(f"fan_out: refused: {answer[:200]!r}")
        answer += chunk
    status = answer.split(b" ", 2)[1]
    if status not in (b"101", b"200"):
        raise SystemExit(f"fan_out: refused: {answer[:200]!r}")
    sock.setblocking(False)
    return sock


def _write(server: srv.Server, rate: float, seconds: float) -> None:
    """Insert at a steady rate; each row says when it was sent."""
    started_s = time.monotonic()
    for number in range(int(rate * seconds)):
        wait_s = started_s + number / rate - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        row = {"sku": f"f-{number}", "shelf": "s", "count": number,
               "title": f"t-{time.monotonic_ns()}"}
        server.request("POST", "/api/entities/Item", row)


def _receive(
    sockets: list[socket.socket], wanted: int, limit_s: float
) -> tuple[list[float], float]:
    """Latencies in ms of all deliveries until `wanted` or the time is over."""
    by_fd = {sock.fileno(): sock for sock in sockets}
    rest = dict.fromkeys(by_fd, b"")
    poll = select.epoll()
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    latencies_ms: list[float] = []
    started_s = time.monotonic()
    while len(latencies_ms) < wanted and time.monotonic() - started_s < limit_s:
        for fd, _ in poll.poll(0.2):
            chunk = by_fd[fd].recv(ANSWER_BYTES)
            if not chunk:
                poll.unregister(fd)
                continue
            now_ns = time.monotonic_ns()
            data = rest[fd] + chunk
            end = 0
            for match in SENT.finditer(data):
                latencies_ms.append((now_ns - int(match[1])) / 1e6)
                end = match.end()
            rest[fd] = data[max(end, len(data) - KEEP_BYTES):]
    return latencies_ms, time.monotonic() - started_s


def _report(
    args: argparse.Namespace, wanted: int, latencies_ms: list[float], took_s: float,
    connect_s: float,
) -> dict[str, Any]:
    ordered = sorted(latencies_ms)

    def percentile(which: float) -> float | None:
        return round(ordered[int(which * (len(ordered) - 1))], 2) if ordered else None

    return {
        "transport": args.transport, "subscribers": args.subscribers, "changes_per_s": args.rate,
        "seconds": args.seconds, "deliveries": len(ordered), "missing": wanted - len(ordered),
        "deliveries_per_s": round(len(ordered) / took_s),
        "connections_per_s": round(args.subscribers / connect_s),
        "p50_ms": percentile(0.5), "p99_ms": percentile(0.99), "max_ms": percentile(1.0),
    }


def _markdown(report: dict[str, Any]) -> str:
    head = {key: value for key, value in report.items() if key != "processes"}
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
             "| " + " | ".join(str(value) for value in head.values()) + " |", "",
             "| process | RSS cold MiB | RSS idle MiB | RSS loaded MiB | CPU s |",
             "|---|---|---|---|---|"]
    lines += [
        f"| {name} | " + " | ".join(str(value) for value in figures.values()) + " |"
        for name, figures in report["processes"].items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
