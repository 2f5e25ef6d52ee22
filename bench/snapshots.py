"""Snapshots of a large table: other requests' latency meanwhile, memory, and the size compressed.

    .venv/bin/python bench/snapshots.py [ROWS] [--clients 1]

One HTTP worker serves a database of messages. Clients pull `since=0` again and again, in one of the
encodings, while another connection reads single rows. Each encoding alternates with a time without
a snapshot, since the speed of a shared machine changes. The figures: latency of the single reads
(p50, p99, most), bytes and seconds of a snapshot, memory of the worker before and at its highest.
Bounded: about 10 s and one snapshot for each encoding.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import paging
import server as srv

ENCODINGS = ("identity", "gzip", "zstd")
_SECONDS = 8.0


def main() -> None:
    """Print a line for each encoding."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=1)
    args = parser.parse_args()
    manifest = {
        **paging.MANIFEST,
        "policies": [{"name": "open", "entity": "Message", "allow": "true"}],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data" / "a.db"
        path.parent.mkdir(mode=0o700)
        paging.fill(path, args.rows)
        settings = {"PYLON_DB_PATH": str(path), "PYLON_HTTP_WORKERS": "1"}
        with srv.served(manifest, **settings) as server:
            _run(server.port, args.rows, server.processes()["http/1"], args.clients)


def _run(port: int, rows: int, pid: int, clients: int) -> None:
    print(f"{rows} rows, {clients} clients; ms of a read: p50 p99 most")
    for encoding in ENCODINGS:
        quiet = _read_rows(port, rows, threading.Event(), _SECONDS / 2)
        before = _rss_mib(pid)
        done = threading.Event()
        pulls: list[tuple[int, float]] = []
        threads = [
            threading.Thread(target=_pull, args=(port, encoding, done, pulls))
            for _ in range(clients)
        ]
        peak = [before]
        watch = threading.Thread(target=_watch, args=(pid, done, peak))
        for thread in (*threads, watch):
            thread.start()
        busy = _read_rows(port, rows, done, _SECONDS)
        done.set()
        for thread in (*threads, watch):
            thread.join()
        size = f"{pulls[0][0] / 1e6:.1f} MB in {pulls[0][1]:.1f} s" if pulls else "-"
        print(
            f"{encoding:9} without {_figures(quiet)}   with {_figures(busy)}   {size}   "
            f"worker {before:.0f} MiB, at most {max(peak):.0f} MiB"
        )


def _pull(port: int, encoding: str, done: threading.Event, pulls: list[tuple[int, float]]) -> None:
    while True:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("GET", "/api/sync/pull?since=0", headers={"Accept-Encoding": encoding})
        answer = connection.getresponse()
        size = 0
        while chunk := answer.read(256 * 1024):
            size += len(chunk)
        connection.close()
        pulls.append((size, time.monotonic() - began))
        if done.is_set():
            return


def _read_rows(port: int, rows: int, done: threading.Event, seconds: float) -> list[float]:
    """Return the latencies of single reads, in ms, one after the other."""
    took: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    ends = time.monotonic() + seconds
    number = 1
    while time.monotonic() < ends and not done.is_set():
        number = number * 7919 % rows + 1
        began = time.perf_counter()
        connection.request("GET", f"/api/entities/Message/{number:040x}")
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - began) * 1_000)
        time.sleep(0.002)
    connection.close()
    return took


def _watch(pid: int, done: threading.Event, peak: list[float]) -> None:
    while not done.wait(0.2):
        peak.append(_rss_mib(pid))


def _rss_mib(pid: int) -> float:
    """Return the memory that a process has written to; the mapped database is not part of it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def _figures(took: list[Any]) -> str:
    took.sort()
    return " ".join(
        f"{value:6.2f}" for value in (took[len(took) // 2], took[len(took) * 99 // 100], took[-1])
    )


if __name__ == "__main__":
    main()
