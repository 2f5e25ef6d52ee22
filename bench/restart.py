"""Restart: what clients notice of a reload, a scaling and a restart, under load.

    bench/restart.py [--rate 1000] [--sockets 500] [--seconds 20] [--rounds 3]

Keep-alive clients send `--rate` requests a second, one in ten of them an insert; `--sockets`
published clients sync over WebSocket. For each of `pylonctl reload`, `scale`, a reload with a new
manifest, and `restart`, it prints: failed requests, the longest time that a client waited for an
answer, the time until every socket was back, and events that a client never received.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import machine
from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient

_THREADS: Final = 25
_WRITES: Final = 10  # every tenth request
_SETTLE_S: Final = 60.0
_HEADERS: Final = {
    "Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json",
}


class Asker(threading.Thread):
    """One keep-alive client with a fixed rate."""

    def __init__(self, port: int, name: str, pause_s: float) -> None:
        super().__init__(daemon=True)
        self.port, self.label, self.pause_s = port, name, pause_s
        self.failed: list[str] = []
        self.waits: list[float] = []
        self.written = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Send requests until told to end."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        due_s = time.monotonic()
        for number in range(1 << 30):
            if self.ended.is_set():
                return
            due_s = max(due_s + self.pause_s, time.monotonic() - 1.0)
            started_s = time.monotonic()
            try:
                if number % _WRITES:
                    conn.request("GET", "/api/entities/Tick?limit=1", headers=_HEADERS)
                else:
                    body = json.dumps({"n": number, "sender": self.label})
                    conn.request("POST", "/api/entities/Tick", body, _HEADERS)
                    self.written += 1
                answer = conn.getresponse()
                answer.read()
                if answer.status >= 400:
                    self.failed.append(f"status {answer.status}")
                if answer.will_close:
                    conn.close()
            except (OSError, http.client.HTTPException) as ex:
                self.failed.append(repr(ex))
                conn.close()
            self.waits.append(time.monotonic() - started_s)
            time.sleep(max(0.0, due_s - time.monotonic()))


def measure(
    server: PylonServer, clients: list[SyncClient], rate: int, seconds: float, args: list[str]
) -> dict[str, Any]:
    """Run one command in the middle of the load; return the figures."""
    askers = [Asker(server.port, f"a{n}", _THREADS / rate) for n in range(_THREADS)]
    connects = [client.connects for client in clients]
    for asker in askers:
        asker.start()
    time.sleep(seconds / 4)
    started_s = time.monotonic()
    done = server.ctl(*args, "--json", timeout_s=200)
    command_s = time.monotonic() - started_s
    back_s = None
    while time.monotonic() - started_s < _SETTLE_S and "http=3" not in args:
        if all(c.connects > n for c, n in zip(clients, connects, strict=True)):
            back_s = time.monotonic() - started_s
            break
        time.sleep(0.02)
    time.sleep(seconds / 4)
    for asker in askers:
        asker.ended.set()
    for asker in askers:
        asker.join()
    wanted = server.rows("Tick").keys()
    until_s = time.monotonic() + _SETTLE_S
    while time.monotonic() < until_s and any(
        client.snapshot().get("Tick", {}).keys() != wanted for client in clients
    ):
        time.sleep(0.2)
    waits = [wait for asker in askers for wait in asker.waits]
    return {
        "command": " ".join(args), "exit": done.returncode, "requests": len(waits),
        "failed": sum(len(asker.failed) for asker in askers),
        "longest_wait_s": round(max(waits), 3), "command_s": round(command_s, 2),
        "sockets_back_s": None if back_s is None else round(back_s, 2),
        "events_lost": sum(
            len(wanted - client.snapshot().get("Tick", {}).keys()) for client in clients
        ),
        "failures": sorted({text for asker in askers for text in asker.failed})[:3],
    }


def main() -> None:
    """Measure, and print a line of JSON for each command and round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--sockets", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    print(machine.text(machine.fingerprint()))
    with tempfile.TemporaryDirectory() as folder:
        server = PylonServer(Path(folder), notes_app()).start()
        token, _ = server.guest()
        clients = [SyncClient(server, "ws", token) for _ in range(options.sockets)]
        try:
            for client in clients:
                client.__enter__()
            for number in range(options.rounds):
                for args in (["reload"], ["scale", "http=3"], ["manifest"], ["restart"]):
                    command = args
                    if args == ["manifest"]:
                        manifest = {**notes_app(), "version": f"9.{number}"}
                        server.manifest_path.write_text(json.dumps(manifest))
                        command = ["reload"]
                    found = measure(server, clients, options.rate, options.seconds, command)
                    print(json.dumps({**found, "command": " ".join(args)}), flush=True)
        finally:
            for client in clients:
                client.__exit__()
            server.close()


if __name__ == "__main__":
    main()
