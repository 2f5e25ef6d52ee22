"""Abuse: how others are served while one client attacks.

    python bench/abuse.py [--attacks NAME …] [--seconds 10] [--items 20000]
                           [--out FOLDER] [--list]

One attack at a time (`attacks.py`), by a process with an address of its own. Meanwhile another
process gets a row by id, inserts rows, and measures how long each takes, and how long an insert
takes to reach a WebSocket. The bar: p99 of get-by-id below 50 ms, no request of others refused, no
worker restarted. Exit code 1 when an attack is above it. Server and tools share the machine, so
the line `none` shows the figures without an attack, and the load average the machine's other
work.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import re
import resource
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
import attacks
import machine
import server as srv

BAR_MS: Final = 50.0
OTHERS_ADDRESS: Final = "127.0.0.2"
GETS_PER_S: Final = 100
INSERTS_PER_S: Final = 20
ITEMS: Final = 20_000
TEXTS: Final = 30
SETTLE_S: Final = 1.0  # from the attack's begin to the first measurement
WAIT_S: Final = 30.0
SENT: Final = re.compile(rb'"title":"t-(\d+)"')


def _entity(name: str, *fields: str, **more: Any) -> dict[str, Any]:
    kinds = {"n": "int"}
    return {
        "name": name, "crdt": False, "indexes": [], **more,
        "fields": [
            {"name": each, "type": kinds.get(each, "string"), "optional": True, "unique": False}
            for each in fields
        ],
    }


MANIFEST: Final[dict[str, Any]] = {
    **srv.MANIFEST,
    "entities": [
        *srv.MANIFEST["entities"],  # type: ignore[misc]
        _entity("Text", "text", search={"text": ["text"]}),
        _entity("Own", "text", "n", "ownerId"),
        _entity("Page", "text", crdt=True),
    ],
    "policies": [
        *srv.MANIFEST["policies"],  # type: ignore[misc]
        {"name": "texts", "entity": "Text", "allow": "true"},
        {"name": "pages", "entity": "Page", "allow": "true"},
        {"name": "own", "entity": "Own", "allowRead": "true",
         "allowInsert": "auth.userId == data.ownerId",
         "allowUpdate": "auth.userId == existing.ownerId",
         "allowDelete": "auth.userId == existing.ownerId"},
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attacks", nargs="+", choices=list(attacks.ATTACKS), metavar="NAME",
                        default=list(attacks.ATTACKS))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--items", type=int, default=ITEMS, help="rows that sorts sort")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.list:
        print("\n".join(attacks.ATTACKS))
        return 0
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    reports = []
    for name in [None, *args.attacks]:
        report = _attacked(name, args.seconds, args.items)
        reports.append(report)
        print(_line(report), flush=True)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        whole = {"machine": machine.fingerprint(), "runs": reports}
        (args.out / "abuse.json").write_text(json.dumps(whole, indent=2) + "\n")
        (args.out / "abuse.md").write_text("\n".join([*_HEAD, *map(_line, reports)]) + "\n")
    return 0 if all(report["holds"] for report in reports) else 1


def _attacked(name: str | None, seconds: float, items: int) -> dict[str, Any]:
    """One attack on a server of its own."""
    with srv.served(
        MANIFEST, PYLON_SOCKETS_PER_IP="64", PYLON_GUESTS_PER_IP_PER_MIN="30",
        PYLON_LOG_LEVEL="error", PYLON_HTTP_WORKERS="2", PYLON_WS_WORKERS="1",
        PYLON_SSE_WORKERS="1", PYLON_SHARD_WORKERS="1",
    ) as server:
        row_id = srv.fill(server, items)[0]
        for _ in range(TEXTS):
            server.request("POST", "/api/entities/Text", {"text": "a" * attacks.TEXT_BYTES})
        server.request("POST", "/api/entities/Text", {"text": "a" * attacks.LARGE_BYTES})
        attacker = server.request("POST", "/api/auth/session", {"user_id": "attacker"})["token"]
        others = server.request("POST", "/api/auth/session", {"user_id": "others"})["token"]
        large = server.request(
            "POST", "/api/entities/Own",
            {"text": "b" * attacks.LARGE_BYTES, "n": 0, "ownerId": "attacker"},
        )["id"]
        before = server.status()
        begin_s = time.monotonic() + SETTLE_S
        until_s = begin_s + seconds
        target = attacks.Target(server.port, attacker, large, until_s)
        ours, theirs = multiprocessing.Pipe()
        processes = [multiprocessing.Process(
            target=_measure, args=(theirs, server.port, others, row_id, begin_s, until_s)
        )]
        attack_ours, attack_theirs = multiprocessing.Pipe()
        if name is not None:
            processes.append(
                multiprocessing.Process(target=_attack, args=(attack_theirs, name, target))
            )
        for process in processes:
            process.start()
        peak_mib = 0.0
        while not ours.poll(0.25):
            peak_mib = max(peak_mib, server.usage({"it": server.process.pid})["it"][0])
            if time.monotonic() > until_s + 2 * WAIT_S:
                raise RuntimeError(f"{name}: the measuring process does not end")
        figures = ours.recv()
        answers = attack_ours.recv() if name is not None and attack_ours.poll(WAIT_S) else {}
        for process in processes:
            process.join(WAIT_S)
            process.kill()
        restarts = server.status()["restarts"] - before["restarts"]
    return {
        "attack": name or "none", "load_average": round(os.getloadavg()[0], 1), **figures,
        "restarts": restarts, "supervisor_peak_mib": round(peak_mib), "attacker_saw": answers,
        "holds": figures["get_p99_ms"] < BAR_MS and not restarts and not figures["others_failed"],
    }


def _attack(pipe: Connection, name: str, target: attacks.Target) -> None:
    attacks.ATTACKS[name](target)
    pipe.send(dict(target.counts))


# --- Others -----------------------------------------------------------------------------


class _Others:
    """Clients that only want to work."""

    def __init__(
        self, port: int, token: str, row_id: str, begin_s: float, until_s: float
    ) -> None:
        self.port, self.token, self.row_id = port, token, row_id
        self.begin_s, self.until_s = begin_s, until_s
        self.gets_ms: list[float] = []
        self.inserts_ms: list[float] = []
        self.deliveries_ms: list[float] = []
        self.failed: list[str] = []
        self.expected = 0

    def _ask(self, conn: http.client.HTTPConnection, method: str, path: str, body: Any) -> None:
        try:
            conn.request(
                method, path, None if body is None else json.dumps(body),
                {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            )
            answer = conn.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as ex:
            self.failed.append(f"{method}: {ex!r}")
            conn.close()
            return
        if answer.status not in (200, 201):
            self.failed.append(f"{method}: {answer.status}")

    def _paced(self, per_s: int, work: Any) -> None:
        """Call at fixed times; a call that is late counts from when it was due."""
        conn = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=WAIT_S, source_address=(OTHERS_ADDRESS, 0)
        )
        due_s = self.begin_s
        while due_s < self.until_s:
            time.sleep(max(0.0, due_s - time.monotonic()))
            work(conn, due_s)
            due_s = max(due_s + 1 / per_s, time.monotonic() - WAIT_S)
        conn.close()

    def get(self) -> None:
        def work(conn: http.client.HTTPConnection, due_s: float) -> None:
            self._ask(conn, "GET", f"/api/entities/Item/{self.row_id}", None)
            self.gets_ms.append((time.monotonic() - due_s) * 1_000)

        self._paced(GETS_PER_S, work)

    def insert(self) -> None:
        def work(conn: http.client.HTTPConnection, due_s: float) -> None:
            number = time.monotonic_ns()
            row = {"sku": f"o-{number}", "title": f"t-{number}", "shelf": "s", "count": 1}
            self._ask(conn, "POST", "/api/entities/Item", row)
            self.expected += 1
            self.inserts_ms.append((time.monotonic() - due_s) * 1_000)

        self._paced(INSERTS_PER_S, work)

    def watch(self) -> None:
        sock = socket.create_connection(
            ("127.0.0.1", self.port + 1), timeout=WAIT_S, source_address=(OTHERS_ADDRESS, 0)
        )
        sock.sendall(srv.upgrade_request(f"Authorization: Bearer {self.token}"))
        rest = b""
        sock.settimeout(1.0)
        while time.monotonic() < self.until_s + WAIT_S:
            done = time.monotonic() > self.until_s + 0.5
            if done and len(self.deliveries_ms) >= self.expected:
                break
            try:
                data = sock.recv(1 << 18)
            except TimeoutError:
                continue
            if not data:
                self.failed.append("WS: closed")
                return
            now_ns = time.monotonic_ns()
            rest += data
            for found in SENT.finditer(rest):
                self.deliveries_ms.append((now_ns - int(found[1])) / 1e6)
                end = found.end()
            if SENT.search(rest):
                rest = rest[end:]
            rest = rest[-2_000_000:]
        sock.close()


def _measure(
    pipe: Connection, port: int, token: str, row_id: str, begin_s: float, until_s: float
) -> None:
    others = _Others(port, token, row_id, begin_s, until_s)
    threads = [
        threading.Thread(target=each, daemon=True)
        for each in (others.get, others.insert, others.watch)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(until_s - time.monotonic() + 2 * WAIT_S)
    figures: dict[str, Any] = {}
    for name in ("gets", "inserts", "deliveries"):
        found = sorted(getattr(others, f"{name}_ms"))
        short = {"gets": "get", "inserts": "insert", "deliveries": "ws"}[name]
        for share in (50, 99):
            at = min(len(found) - 1, share * len(found) // 100)
            figures[f"{short}_p{share}_ms"] = round(found[at], 1) if found else float("inf")
    undelivered = max(0, others.expected - len(others.deliveries_ms))
    pipe.send({**figures, "others_failed": len(others.failed), "undelivered": undelivered,
               "failures": sorted(set(others.failed))[:5]})


# --- The table --------------------------------------------------------------------------

_HEAD: Final = (
    "| attack | machine's load | get p50 / p99 ms | insert p50 / p99 ms | WS p50 / p99 ms | "
    "others failed | restarts | supervisor MiB | holds | attacker saw |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def _line(report: dict[str, Any]) -> str:
    saw = ", ".join(f"{name}: {count}" for name, count in sorted(report["attacker_saw"].items()))
    return (
        f"| {report['attack']} | {report['load_average']} | "
        f"{report['get_p50_ms']} / {report['get_p99_ms']} | "
        f"{report['insert_p50_ms']} / {report['insert_p99_ms']} | "
        f"{report['ws_p50_ms']} / {report['ws_p99_ms']} | "
        f"{report['others_failed']} {' '.join(report['failures'])} | {report['restarts']} | "
        f"{report['supervisor_peak_mib']} | {'yes' if report['holds'] else 'NO'} | {saw} |"
    )


if __name__ == "__main__":
    sys.exit(main())
