"""Live windows: memory of many windows, and how soon a write reaches those that it touches.

    python bench/windows.py [--rows 1000000] [--windows 10000] [--live 1000] [--writes-per-s 200]
                            [--seconds 20] [--out FOLDER]

The rows are messages of rooms, 100 in each, put into the database before the server starts. First
one ws worker gets `--windows` windows of 50 rows, each of another room: "the newest 50 messages".
The tool prints what they add to the worker's memory (of all pages, and without those of files), and
the time and CPU time of one subscription.
Then all but `--live` of them end, and messages are inserted and deleted over HTTP in rooms with a
window. The latency of a write is the time from the start of its request until the client has the
diff. Each client applies its diffs and compares its windows with queries at the end. Exit code 1
when one differs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import select
import socket
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine
import server as srv

from pylon.clock import SystemClock, SystemRandom
from pylon.ids import RowIds
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.storage.ops import InsertRow, WriteRequest
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.values import EntityCodec

ROOM_ROWS = 100
WINDOW_ROWS = 50
WINDOWS_PER_SOCKET = 200
BATCH_ROWS = 5_000
WRITERS = 4
TIMEOUT_S = 120.0
_FIELDS = (("roomId", "string"), ("sentAt", "int"), ("userId", "string"), ("text", "string"))
MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "windows", "version": "1",
    "entities": [{
        "name": "Message", "crdt": False,
        "fields": [
            {"name": name, "type": kind, "optional": False, "unique": False}
            for name, kind in _FIELDS
        ],
        "indexes": [{"name": "by_room", "fields": ["roomId", "sentAt"], "unique": False}],
    }],
    "policies": [{"name": "open", "entity": "Message", "allow": "true"}],
}


def message(room: int, sent_at: int) -> dict[str, Any]:
    """A row of about 330 bytes as JSON."""
    return {
        "roomId": f"room-{room}", "sentAt": sent_at, "userId": f"user-{sent_at % 97}",
        "text": f"message {sent_at} " + "lorem ipsum " * 15,
    }


def fill(path: Path, rows: int) -> None:
    """Put the rows into a new database."""
    manifest = parse_manifest(json.dumps(MANIFEST), "manifest.json")
    codec = EntityCodec(manifest.entities[0])
    ids = RowIds(SystemClock(), SystemRandom())
    path.parent.mkdir(mode=0o700, exist_ok=True)
    engine = SqliteEngine.open(path, manifest, compile_rules(manifest), SystemClock(), "normal")
    rooms = max(1, rows // ROOM_ROWS)
    requests: list[WriteRequest] = []
    for number in range(rows):
        row_id = ids.new()
        encoded = codec.insert(message(number % rooms, number), row_id)
        op = InsertRow("Message", row_id, encoded.values, encoded.row_json)
        requests.append(WriteRequest(number, op))
        if len(requests) == BATCH_ROWS or number == rows - 1:
            engine.apply(requests)
            requests.clear()
    engine.close()


@dataclass
class Socket:
    """One connection with many windows: the ids of each window's rows, by sub_id."""

    sock: socket.socket
    windows: dict[str, list[str]] = field(default_factory=dict)
    rest: bytes = b""
    answers: int = 0
    seen: list[tuple[str, int]] = field(default_factory=list)  # (row id, ns) of inserts


def connect(
    port: int, token: str = srv.ADMIN, parameters: str = "changes=0", address: str = "127.0.0.1"
) -> Socket:
    """Open a socket from an address of loopback; by default without the stream of changes."""
    sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S, (address, 0))
    request = srv.upgrade_request(f"Authorization: Bearer {token}")
    sock.sendall(request.replace(b"GET / ", f"GET /?{parameters} ".encode(), 1))
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4_096)
    if b" 101 " not in head.split(b"\r\n", 1)[0]:
        raise SystemExit(f"no upgrade: {head[:200]!r}")
    return Socket(sock, rest=head.split(b"\r\n\r\n", 1)[1])


def send(client: Socket, body: dict[str, Any]) -> None:
    payload = json.dumps(body).encode()
    size = (
        bytes([0x80 | len(payload)]) if len(payload) < 126
        else b"\xfe" + len(payload).to_bytes(2, "big")
    )
    client.sock.sendall(b"\x81" + size + bytes(4) + payload)


def read(client: Socket) -> None:
    """Take what has arrived, and apply it."""
    now_ns = time.monotonic_ns()
    for body in receive(client):
        apply(client, body, now_ns)


def receive(client: Socket) -> list[dict[str, Any]]:
    """Take the messages that have arrived, and answer pings. A close has the type `close`."""
    data = client.sock.recv(1 << 18)
    if not data:
        raise SystemExit("the server closed a socket")
    messages: list[dict[str, Any]] = []
    data = client.rest + data
    at = 0
    while len(data) - at >= 2:
        size, start = data[at + 1], at + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, start = int.from_bytes(data[start : start + width], "big"), start + width
        if start + size > len(data):
            break
        if data[at] & 15 == 1:
            messages.append(json.loads(data[start : start + size]))
        elif data[at] & 15 == 8:
            code = int.from_bytes(data[start : start + 2], "big")
            messages.append({"type": "close", "code": code})
        elif data[at] & 15 == 9:
            client.sock.sendall(b"\x8a\x80\0\0\0\0")
        at = start + size
    client.rest = data[at:]
    return messages


def apply(client: Socket, body: dict[str, Any], now_ns: int) -> None:
    if body["type"] in ("subscribed", "unsubscribed"):
        client.answers += 1
        if body["type"] == "subscribed":
            client.windows[body["sub_id"]] = [row["id"] for row in body["rows"]]
        return
    if body["type"] != "diff":
        raise SystemExit(f"unexpected: {body}")
    ids = client.windows[body["sub_id"]]
    if body["kind"] != "insert":
        ids.remove(body["row_id"])
    else:
        after = body["after"]
        ids.insert(0 if after is None else ids.index(after) + 1, body["row_id"])
        client.seen.append((body["row_id"], now_ns))


def window_of(room: int) -> dict[str, Any]:
    return {"roomId": f"room-{room}", "$order": {"sentAt": "desc"}, "$limit": WINDOW_ROWS}


def wait_for(clients: list[Socket], answers: int) -> None:
    """Read until all answers together have come."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while sum(client.answers for client in clients) < answers:
        if time.monotonic() > deadline_s:
            raise SystemExit("the answers do not come")
        by_socket = {client.sock: client for client in clients}
        for sock in select.select(list(by_socket), [], [], 1.0)[0]:
            read(by_socket[sock])


def write(port: int, rooms: list[int], rate: float, until_s: float, sent: dict[str, int]) -> None:
    """Insert newest messages, and delete every second of them a little later."""
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {srv.ADMIN}", "Content-Type": "application/json"}
    due_s = time.monotonic()
    mine: list[str] = []
    while (now_s := time.monotonic()) < until_s:
        if now_s < due_s:
            time.sleep(due_s - now_s)
        due_s += 1.0 / rate
        started_ns = time.monotonic_ns()
        if len(mine) >= 20:
            row_id = mine.pop(0)
            conn.request("DELETE", f"/api/entities/Message/{row_id}", headers=headers)
            conn.getresponse().read()
            mine.pop(0)
            continue
        body = message(random.choice(rooms), time.time_ns() // 1_000)
        conn.request("POST", "/api/entities/Message", json.dumps(body), headers)
        answer = json.loads(conn.getresponse().read())
        sent[answer["id"]] = started_ns
        mine.append(answer["id"])


def anonymous_mib(pid: int) -> float:
    """Memory of a process without the pages of files: SQLite maps the database."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def measure(server: srv.Server, args: argparse.Namespace, rooms: int) -> dict[str, Any]:
    pids = server.processes()
    worker = {"ws": pids["ws/1"]}
    clients = [
        connect(server.port + 1)
        for _ in range(-(-args.windows // WINDOWS_PER_SOCKET))
    ]
    time.sleep(1.0)
    rss_before, cpu_before = server.usage(worker)["ws"]
    anonymous_before = anonymous_mib(pids["ws/1"])
    started_s = time.monotonic()
    place = {room: clients[room % len(clients)] for room in range(args.windows)}
    answers = 0
    for room, client in place.items():
        send(client, {
            "type": "subscribe", "sub_id": f"w{room}", "entity": "Message",
            "filter": window_of(room % rooms),
        })
        answers += 1
        if answers % 50 == 0:
            wait_for(clients, answers)
    wait_for(clients, answers)
    spent_s = time.monotonic() - started_s
    time.sleep(1.0)
    rss, cpu = server.usage(worker)["ws"]
    anonymous = anonymous_mib(pids["ws/1"])
    report: dict[str, Any] = {
        "machine": machine.text(machine.fingerprint()), "rows": args.rows,
        "windows": args.windows, "rss_before_mib": rss_before, "rss_mib": rss,
        "anonymous_before_mib": anonymous_before, "anonymous_mib": anonymous,
        "bytes_per_window": round((anonymous - anonymous_before) * 1024 * 1024 / args.windows),
        "subscribe_ms": round(spent_s * 1_000 / args.windows, 3),
        "subscribe_cpu_ms": round((cpu - cpu_before) * 1_000 / args.windows, 3),
    }
    live = list(place)[: args.live]
    for room in list(place)[args.live :]:
        send(place[room], {"type": "unsubscribe", "sub_id": f"w{room}"})
        answers += 1
        if answers % 50 == 0:
            wait_for(clients, answers)
    wait_for(clients, answers)
    sent: dict[str, int] = {}
    until_s = time.monotonic() + args.seconds
    threads = [
        threading.Thread(
            target=write,
            args=(server.port, live, args.writes_per_s / WRITERS, until_s, sent),
        ) for _ in range(WRITERS)
    ]
    _, cpu_before = server.usage(worker)["ws"]
    for thread in threads:
        thread.start()
    by_socket = {client.sock: client for client in clients}
    while any(thread.is_alive() for thread in threads) or time.monotonic() < until_s + 2:
        for sock in select.select(list(by_socket), [], [], 0.2)[0]:
            read(by_socket[sock])
    _, cpu = server.usage(worker)["ws"]
    seen = {row_id: at_ns for client in reversed(clients) for row_id, at_ns in client.seen}
    took_ms = sorted((seen[i] - at) / 1e6 for i, at in sent.items() if i in seen)
    differing = 0
    for room in random.sample(live, min(100, len(live))):
        rows = server.request("POST", "/api/query/Message", window_of(room))
        differing += [row["id"] for row in rows] != place[room].windows[f"w{room}"]
    report |= {
        "live": len(live), "writes_per_s": args.writes_per_s, "inserts": len(sent),
        "delivered": len(took_ms), "missing": len(sent) - len(took_ms),
        "p50_ms": round(statistics.median(took_ms), 2),
        "p99_ms": round(took_ms[int(len(took_ms) * 0.99)], 2), "max_ms": round(took_ms[-1], 2),
        "ws_cpu_percent": round((cpu - cpu_before) * 100 / args.seconds, 1),
        "load": os.getloadavg()[0], "differing": differing,
    }
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--live", type=int, default=1_000)
    parser.add_argument("--writes-per-s", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pylon-windows-") as name:
        path = Path(name) / "data" / "windows.db"
        fill(path, args.rows)
        with srv.served(
            MANIFEST, PYLON_DB_PATH=str(path), PYLON_WS_WORKERS="1", PYLON_SHARD_WORKERS="1"
        ) as server:
            report = measure(server, args, max(1, args.rows // ROOM_ROWS))
    for key, value in report.items():
        print(f"{key}: {value}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "windows.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["differing"] or report["missing"] else 0


if __name__ == "__main__":
    sys.exit(main())
