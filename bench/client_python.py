"""The Python client: how many changes it receives in a second, and what each costs.

    python bench/client_python.py [--changes 200000] [--live 20000] [--out FOLDER]

A child process sends frames of changes (300 bytes of JSON each, as a chat has them) as fast as the
client takes them, so the figures are those of the client: changes in a second, and in a second of
CPU time of its process, which other load on the machine does not change. It receives them as a
stream of changes (`changes`), as dicts and as Structs, and as differences of a live window; by the
blocking client and by the asyncio client.

Then the same stream comes from a real server while `--live` rows are inserted, to show the whole
path. Exit code 1 when a scenario of the client receives less than 20,000 changes in a second of CPU
time, or when a change is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

sys.path.insert(0, str(Path(__file__).parent))
import server as srv

from pylon_client import AsyncPylon, Pylon

LEAST_PER_S = 20_000
WINDOW_ROWS = 100
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class Message(msgspec.Struct):
    """A row as the changes have it."""

    id: str
    roomId: str  # noqa: N815
    authorId: str  # noqa: N815
    text: str
    sentAt: str  # noqa: N815


class Item(msgspec.Struct):
    """A row of the real server."""

    id: str
    sku: str
    title: str
    shelf: str
    count: int


# --- The sender -------------------------------------------------------------------------------


def make_row(number: int) -> dict[str, str]:
    return {
        "authorId": "guest_5e9a35e5de9c6e87816ee31ea89ceab5", "id": f"{number % WINDOW_ROWS:040x}",
        "roomId": f"{7:040x}", "sentAt": "2026-11-28T15:26:38.377258Z", "text": f"message {number}",
    }


def change_frames(count: int) -> bytes:
    """Return the frames of a stream of changes with the seqs 2, 3, ..."""
    return b"".join(
        Frame(Opcode.TEXT, json.dumps({
            "seq": number + 2, "entity": "Message", "row_id": f"{number % WINDOW_ROWS:040x}",
            "kind": "update", "data": make_row(number), "timestamp": "",
        }, separators=(",", ":")).encode()).serialize(mask=False)
        for number in range(count)
    )


def window_frames(count: int, sub_id: str) -> bytes:
    """Return the frames of a window and its differences."""
    rows = [make_row(number) for number in range(WINDOW_ROWS)]
    first = {"type": "subscribed", "seq": 1, "rows": rows, "last": True, "sub_id": sub_id}
    diffs = (
        {"type": "diff", "seq": number + 2, "kind": "update", "sub_id": sub_id,
         "row_id": f"{number % WINDOW_ROWS:040x}", "data": make_row(number)}
        for number in range(count)
    )
    return b"".join(
        Frame(Opcode.TEXT, json.dumps(each, separators=(",", ":")).encode()).serialize(mask=False)
        for each in (first, *diffs)
    )


def send_frames(port_pipe: Any, count: int) -> None:
    """Be a server: of the address, of an empty pull, and of sockets that get all frames at once."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    changes = change_frames(count)
    windows = {name: window_frames(count, name) for name in ("w1", "w2")}
    port_pipe.send(port)

    def serve(conn: socket.socket) -> None:
        protocol = ServerProtocol(max_size=None)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = conn.recv(65_536)
            if not piece:
                return
            head += piece
            if b"upgrade: websocket" not in head.lower() and b"\r\n\r\n" in head:
                body: dict[str, Any] = {"urls": {"ws": f"ws://127.0.0.1:{port}/"}}
                if b"/api/sync/pull" in head:
                    body = {"changes": [], "cursor": {"last_seq": 1}, "has_more": False}
                raw = json.dumps(body).encode()
                conn.sendall(_HEAD % (len(raw), raw))
                head = b""
        protocol.receive_data(head)
        request = next(e for e in protocol.events_received() if isinstance(e, Request))
        protocol.send_response(protocol.accept(request))
        conn.sendall(b"".join(protocol.data_to_send()))
        if "changes=0" not in request.path:
            conn.sendall(changes)
        while data := conn.recv(65_536):
            protocol.receive_data(data)
            for event in protocol.events_received():
                if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    said = json.loads(bytes(event.data))
                    if said["type"] == "subscribe":
                        conn.sendall(windows[said["sub_id"]])

    while True:
        threading.Thread(target=_quietly, args=(serve, listener.accept()[0]), daemon=True).start()


def _quietly(serve: Callable[[socket.socket], None], conn: socket.socket) -> None:
    try:
        with conn:
            serve(conn)
    except OSError:
        return  # the client has what it wanted


# --- The receivers ------------------------------------------------------------------------------


def stream(url: str, count: int, entity: Any) -> None:
    with Pylon(url, "token") as app:
        changes = app.changes(since=1, entities=[entity])
        for number, change in enumerate(changes):
            if change.seq != number + 2:
                raise SystemExit(f"change {number} has seq {change.seq}")
            if number + 1 == count:
                return


def follow_window(url: str, count: int, entity: Any) -> None:
    with Pylon(url, "token") as app, app.rows(entity).limit(WINDOW_ROWS).live() as window:
        last = f"message {count - 1}"
        for rows in window:
            if any(row.text == last for row in rows):
                return


def stream_async(url: str, count: int, entity: Any) -> None:
    async def run() -> None:
        async with AsyncPylon(url, "token") as app:
            number = 0
            async for change in app.changes(since=1, entities=[entity]):
                if change.seq != number + 2:
                    raise SystemExit(f"change {number} has seq {change.seq}")
                number += 1
                if number == count:
                    return

    asyncio.run(run())


def follow_window_async(url: str, count: int, entity: Any) -> None:
    async def run() -> None:
        async with AsyncPylon(url, "token") as app:
            window = app.rows(entity).limit(WINDOW_ROWS).live()
            last = f"message {count - 1}"
            async for rows in window:
                if any(row.text == last for row in rows):
                    return

    asyncio.run(run())


def measure(name: str, work: Callable[[], None], count: int) -> dict[str, Any]:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    work()
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    found = {
        "scenario": name, "changes": count, "changes_per_s": round(count / wall_s),
        "changes_per_cpu_s": round(count / cpu_s),
    }
    print(f"{name:34} {found['changes_per_s']:>8,} in a second,"
          f" {found['changes_per_cpu_s']:>8,} in a second of CPU time")
    return found


def measure_server(count: int) -> dict[str, Any]:
    """Receive the inserts of a real server while they are made."""
    with srv.served() as server:
        url = f"http://127.0.0.1:{server.port}"

        def insert() -> None:
            with Pylon(url, srv.ADMIN) as app:
                app.rows("Item").insert_many(
                    {"sku": f"s{n}", "title": f"item {n}", "shelf": f"{n % 100}", "count": n}
                    for n in range(count)
                )

        with Pylon(url, srv.ADMIN) as app:
            cursor = app.request("GET", "/api/sync/pull?since=0")["cursor"]["last_seq"]
            app["Item"].insert_many([{"sku": "first", "title": "x", "shelf": "0", "count": 0}])
            changes = app.changes(since=cursor, entities=[Item])
            next(changes)
            writer = threading.Thread(target=insert)

            def receive() -> None:
                writer.start()
                seen = {next(changes).row_id for _ in range(count)}
                if len(seen) != count:
                    raise SystemExit(f"{count - len(seen)} of {count} changes are missing")

            found = measure("a real server, inserts over HTTP", receive, count)
            writer.join()
            return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=200_000)
    parser.add_argument("--live", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    sender = context.Process(target=send_frames, args=(theirs, args.changes), daemon=True)
    sender.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    count = args.changes
    scenarios: list[tuple[str, Callable[[], None]]] = [
        ("changes, sync, dicts", lambda: stream(url, count, "Message")),
        ("changes, sync, Structs", lambda: stream(url, count, Message)),
        ("changes, asyncio, Structs", lambda: stream_async(url, count, Message)),
        ("live window, sync, Structs", lambda: follow_window(url, count, Message)),
        ("live window, asyncio, Structs", lambda: follow_window_async(url, count, Message)),
    ]
    results = [measure(name, work, count) for name, work in scenarios]
    sender.terminate()
    is_fast = all(result["changes_per_cpu_s"] >= LEAST_PER_S for result in results)
    if args.live:
        results.append(measure_server(args.live))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "client_python.json").write_text(json.dumps(results, indent=2) + "\n")
    if not is_fast:
        print(f"less than {LEAST_PER_S:,} changes in a second of CPU time", file=sys.stderr)
    return 0 if is_fast else 1


if __name__ == "__main__":
    sys.exit(main())
