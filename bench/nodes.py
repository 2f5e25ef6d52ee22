"""Two nodes on one PostgreSQL database: how long a change takes to a client on the other node.

    python bench/nodes.py [--url postgresql://…] [--writes 1000] [--rate 50]

A client inserts rows on one node at a fixed rate. Another one listens on a WebSocket of the same
node, a third on one of the other node. The figures are milliseconds: from the request to its
answer, from the request to each client, and from the answer to the client on the other node.
Writes `nodes.json` into --out.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import database
import machine
import server as srv

NS_PER_MS = 1_000_000
SKU = re.compile(rb'"sku":"(\d+)"')
PERCENTILES = (50, 90, 99)


class Listener:
    """A WebSocket that notes when each row arrives."""

    def __init__(self, port: int) -> None:
        self.at_ns: dict[int, int] = {}
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.sendall(srv.upgrade_request(f"Sec-WebSocket-Protocol: bearer.{srv.ADMIN}"))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        rest = b""
        while chunk := self._sock.recv(1 << 16):
            now_ns = time.monotonic_ns()
            rest += chunk
            found = list(SKU.finditer(rest))
            for match in found:
                self.at_ns.setdefault(int(match[1]), now_ns)
            rest = rest[found[-1].end():] if found else rest[-4_096:]


def main() -> int:
    """Measure, print and write; exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    database.add_url(parser)
    parser.add_argument("--writes", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/local"))
    args = parser.parse_args()
    with database.database(args.url) as url:
        return _measure(url, args)


def _measure(url: str, args: argparse.Namespace) -> int:
    settings = {
        "DATABASE_URL": url, "PYLON_HTTP_WORKERS": "1", "PYLON_SSE_WORKERS": "0",
        "PYLON_SHARD_WORKERS": "0",
    }
    with srv.served(**settings) as one, srv.served(**settings) as other:
        here, there = Listener(one.port + 1), Listener(other.port + 1)
        time.sleep(3.0)  # both nodes know of each other
        sent_ns, acked_ns = write(one.port, args.writes, args.rate)
        deadline_s = time.monotonic() + 10
        while len(there.at_ns) < args.writes and time.monotonic() < deadline_s:
            time.sleep(0.1)
    rows = range(args.writes)
    lost = [row for row in rows if row not in there.at_ns or row not in here.at_ns]
    seen = [row for row in rows if row not in set(lost)]
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.fingerprint(), "load": os.getloadavg(), "writes": args.writes,
        "rate_per_s": args.rate, "lost": len(lost),
        "ack_ms": percentiles([acked_ns[row] - sent_ns[row] for row in seen]),
        "same_node_ms": percentiles([here.at_ns[row] - sent_ns[row] for row in seen]),
        "other_node_ms": percentiles([there.at_ns[row] - sent_ns[row] for row in seen]),
        "other_node_after_ack_ms": percentiles(
            [there.at_ns[row] - acked_ns[row] for row in seen]
        ),
    }
    print(json.dumps(report, indent=2))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "nodes.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if lost else 0


def write(port: int, count: int, rate: float) -> tuple[list[int], list[int]]:
    """Insert rows at a rate; when each was sent and answered (monotonic, in ns)."""
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {srv.ADMIN}", "Content-Type": "application/json"}
    sent_ns, acked_ns = [], []
    begin_s = time.monotonic()
    for row in range(count):
        time.sleep(max(0.0, begin_s + row / rate - time.monotonic()))
        body = json.dumps({**srv.item(row), "sku": str(row)}).encode()
        sent_ns.append(time.monotonic_ns())
        conn.request("POST", "/api/entities/Item", body, headers)
        answer = conn.getresponse()
        answer.read()
        acked_ns.append(time.monotonic_ns())
        if answer.status != 201:
            raise SystemExit(f"insert: {answer.status}")
    return sent_ns, acked_ns


def percentiles(values_ns: list[int]) -> dict[str, float]:
    """The percentiles of durations, in milliseconds."""
    ordered = sorted(values_ns)
    return {
        f"p{percent}": round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
                             / NS_PER_MS, 2)
        for percent in PERCENTILES
    } if ordered else {}


if __name__ == "__main__":
    raise SystemExit(main())
