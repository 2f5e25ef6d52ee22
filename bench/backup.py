"""How long writes wait while a large database is backed up, and how long a restore takes.

    python bench/backup.py [--megabytes 500] [--rate 500] [--seconds 30] [--restore-megabytes 1000]
                           [--out FOLDER]

A server of its own, a database of the given size, and a paced load of single inserts over HTTP.
Four runs: nothing else, `pylonctl backup`, the continuous backup to a folder, and its first
snapshot.
Each line has the latency of the inserts (median, p99, max) as the client sees it. Then a restore
of the given size is timed: of a bundle, and of the archive. Bounded: about five minutes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine
import server as srv

KINDS = ("nothing else", "pylonctl backup", "continuous", "snapshot")
CONNECTIONS = 8
_BLOB_BYTES = 3_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--restore-megabytes", type=int, default=1_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pylon-backup-") as name:
        folder = Path(name)
        for number, kind in enumerate(KINDS):
            lines.append(measure(kind, folder / str(number), args))
            print(text_of(lines[-1]), flush=True)
        restores = time_restores(folder / "restore", args.restore_megabytes)
        for what, took_s in restores.items():
            print(f"{what}: {took_s:.1f} s", flush=True)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        whole = {"machine": machine.fingerprint(), "megabytes": args.megabytes,
                 "rate": args.rate, "runs": lines, "restore_megabytes": args.restore_megabytes,
                 "restores_s": restores}
        (args.out / "backup.json").write_text(json.dumps(whole, indent=2) + "\n")
    return 0


def measure(kind: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run on a fresh database."""
    folder.mkdir()
    settings = {"PYLON_DB_PATH": str(folder / "data" / "bench.db")}
    with srv.served(**settings) as server:
        db_path = server.db_path
    grow(db_path, args.megabytes)
    if kind in ("continuous", "snapshot"):
        settings |= {"PYLON_BACKUP_URL": f"file://{folder}/archive",
                     "PYLON_BACKUP_INTERVAL_S": "1"}
    took_s = None
    with srv.served(**settings) as server:
        if kind == "continuous":  # the first snapshot is another line
            wait_for_snapshot(folder)
        load = Load(server.port, args.rate)
        load.start()
        began = time.monotonic()
        if kind == "pylonctl backup":
            took_s = ctl_s(server, "backup", str(folder / "bundle"))
        elif kind == "snapshot":
            wait_for_snapshot(folder)
            took_s = time.monotonic() - began
        while time.monotonic() - began < args.seconds:
            time.sleep(0.1)
        waits_ms = load.stop()
        ran_s = time.monotonic() - began
    waits_ms.sort()
    return {
        "kind": kind, "writes": len(waits_ms), "backup_s": took_s,
        "rate": round(len(waits_ms) / ran_s),
        "p50_ms": pick(waits_ms, 0.5), "p99_ms": pick(waits_ms, 0.99), "max_ms": waits_ms[-1],
        "over_50_ms": sum(wait > 50 for wait in waits_ms), "failed": load.failed,
    }


class Load:
    """Inserts at a fixed rate, each timed from when it was due to its answer."""

    def __init__(self, port: int, rate: int) -> None:
        self._port = port
        self._gap_s = CONNECTIONS / rate
        self._ending = threading.Event()
        self._waits: list[list[float]] = [[] for _ in range(CONNECTIONS)]
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(CONNECTIONS)
        ]
        self.failed = 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[float]:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        return [round(wait, 2) for waits in self._waits for wait in waits]

    def _run(self, number: int) -> None:
        conn = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Authorization": f"Bearer {srv.ADMIN}", "Content-Type": "application/json"}
        due = time.monotonic() + number * self._gap_s / CONNECTIONS
        made = 0
        while not self._ending.is_set():
            pause_s = due - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            made += 1
            body = json.dumps({
                "sku": f"{number}-{made}-{os.urandom(4).hex()}", "title": "t" * 100, "shelf": "a",
                "count": made,
            })
            began = time.monotonic()
            conn.request("POST", "/api/entities/Item", body, headers)
            answer = conn.getresponse()
            answer.read()
            self._waits[number].append((time.monotonic() - began) * 1000)
            self.failed += answer.status >= 400
            due += self._gap_s


def grow(db_path: Path, megabytes: int) -> None:
    """Fill a database with a table beside those of the app."""
    conn = sqlite3.connect(db_path)
    conn.execute("PRAGMA synchronous = OFF")
    conn.execute("CREATE TABLE filler(id INTEGER PRIMARY KEY, data BLOB)")
    rows = megabytes * 1_000_000 // (_BLOB_BYTES + 40)
    with conn:
        conn.executemany(
            "INSERT INTO filler(data) VALUES (?)", ((os.urandom(_BLOB_BYTES),) for _ in range(rows))
        )
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    os.sync()


def wait_for_snapshot(folder: Path) -> None:
    while not list(folder.glob("archive/*/snapshots/*/MANIFEST.json")):
        time.sleep(0.1)


def time_restores(folder: Path, megabytes: int) -> dict[str, float]:
    """Restore a bundle, and an archive with some minutes of writes, onto the same machine."""
    folder.mkdir()
    settings = {"PYLON_DB_PATH": str(folder / "data" / "bench.db")}
    with srv.served(**settings) as server:
        db_path = server.db_path
    grow(db_path, megabytes)
    url = f"file://{folder}/archive"
    settings |= {"PYLON_BACKUP_URL": url, "PYLON_BACKUP_INTERVAL_S": "1"}
    with srv.served(**settings) as server:
        wait_for_snapshot(folder)
        load = Load(server.port, 500)
        load.start()
        time.sleep(20)
        writes = len(load.stop())
        made_s = ctl_s(server, "backup", str(folder / "bundle"))
    bundle = str(folder / "bundle")
    return {
        f"bundle of {megabytes} MB made": made_s,
        f"bundle of {megabytes} MB verified": ctl_s(server, "backup", "verify", bundle),
        f"bundle of {megabytes} MB restored": ctl_s(server, "restore", "--yes", bundle),
        f"archive of {megabytes} MB and {writes} writes restored": ctl_s(
            server, "restore", "--yes", url),
    }


def ctl_s(server: srv.Server, *args: str) -> float:
    """Run `pylonctl`, and return how long it took."""
    began = time.monotonic()
    done = subprocess.run(
        [*server._cli, "--json", *args], env=server._env, capture_output=True, text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"pylonctl {' '.join(args)}: {done.stdout}{done.stderr}")
    return time.monotonic() - began


def pick(waits: list[float], share: float) -> float:
    return waits[min(len(waits) - 1, int(len(waits) * share))]


def text_of(line: dict[str, Any]) -> str:
    return (
        f"{line['kind']}: {line['writes']} writes at {line['rate']}/s, p50 {line['p50_ms']} ms, "
        f"p99 {line['p99_ms']} ms, max {line['max_ms']} ms, {line['over_50_ms']} over 50 ms, "
        f"{line['failed']} failed"
        + (f", backup {line['backup_s']:.1f} s" if line["backup_s"] is not None else "")
    )


if __name__ == "__main__":
    sys.exit(main())
