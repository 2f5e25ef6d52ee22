"""Drain: how long SIGTERM takes with many sockets open and requests in flight.

    python bench/drain.py [--sockets 2000] [--requests 64]

The sockets sync over WebSocket (`syncing`). Each request is an insert of which the server has the
head and a part of the body; its client sends the rest after SIGTERM. It prints the time until the
server has exited, its exit code, the answers, and the close codes. Exit code 1 if the drain takes
longer than the bar of 3 s, a request gets no 201, or a socket no close frame.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
import machine
import restart
import server as srv
import syncing

BAR_S: Final = 3.0
_BODY: Final = b'{"n":1,"sender":"in flight"}'
_SENT_BYTES: Final = 5


def main() -> int:
    """Measure once; print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sockets", type=int, default=2_000)
    parser.add_argument("--requests", type=int, default=64)
    args = parser.parse_args()
    print(machine.text(machine.fingerprint()))
    found = measure(args.sockets, args.requests)
    print(json.dumps(found))
    is_good = (
        found["drain_s"] <= BAR_S and found["exit"] == 0
        and found["answers"] == {"201": args.requests}
        and sum(found["close_codes"].values()) == args.sockets
    )
    return 0 if is_good else 1


def measure(sockets: int, requests: int) -> dict[str, Any]:
    """Drain a server, and return the figures."""
    with srv.served(restart.app(), PYLON_LOG_LEVEL="error") as server:
        token = server.request("POST", "/api/auth/guest")["token"]
        server.request("POST", "/api/entities/Tick", {"n": 0, "sender": "first"})
        crowd = restart.Crowd(server.port, token, sockets)
        crowd.wait_live()
        crowd.tell("reset")
        started = [_begin(server.port) for _ in range(requests)]
        time.sleep(0.5)
        began_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for conn in started:
            conn.sendall(_BODY[_SENT_BYTES:])
        answers: dict[str, int] = {}
        for conn in started:
            status = conn.recv(65_536)[9:12].decode() or "none"
            answers[status] = answers.get(status, 0) + 1
            conn.close()
        code = server.process.wait(60)
        drain_s = time.monotonic() - began_s
        time.sleep(0.2)
        synced = syncing.together(crowd.tell("stats", 0), began_s)
        crowd.close()
    return {"drain_s": round(drain_s, 2), "exit": code, "answers": answers,
            "sockets": sockets, "close_codes": synced["close_codes"]}


def _begin(port: int) -> socket.socket:
    conn = socket.create_connection(("127.0.0.1", port), timeout=60)
    conn.sendall(
        f"POST /api/entities/Tick HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {srv.ADMIN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(_BODY)}\r\n\r\n".encode()
        + _BODY[:_SENT_BYTES]
    )
    return conn


if __name__ == "__main__":
    sys.exit(main())
