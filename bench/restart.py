"""Restart: what clients notice of a reload, a scaling and a restart, under load.

    bench/restart.py [--rate 1000] [--sockets 500] [--seconds 12] [--rounds 1] [--only COMMAND]

Keep-alive clients in two processes send `--rate` requests a second, one in ten of them an insert
(`asking`); `--sockets` clients in two other processes sync over WebSocket (`syncing`). For each of
`pylonctl reload`, `scale`, a reload with a new manifest, and `restart` it prints: failed requests,
reads that were repeated because a kept connection had been closed (RFC 9112 §9.3.1), the longest
time that a client waited for an answer, the time until every socket was back, events that a client
never got, and how long the last client needed to have every event. Exit code 1 if a request has
failed, a socket is not back, or an event is lost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
import asking
import machine
import server as srv
import syncing

_PROCESSES: Final = 2  # for requests, and again for sockets
_CLIENTS: Final = 50
_PATIENCE_S: Final = 90.0
_LOOK_S: Final = 0.05
_SPAWN: Final = multiprocessing.get_context("spawn")
_COMMANDS: Final = {
    "reload": ["reload"], "scale": ["scale", "http=3"], "manifest": ["reload"],
    "restart": ["restart"],
}


def app(version: str = "1") -> dict[str, Any]:
    """One entity that everybody may read."""
    fields = [
        {"name": name, "type": kind, "optional": False, "unique": False}
        for name, kind in (("n", "int"), ("sender", "string"))
    ]
    return {
        "manifest_version": 1, "name": "restart", "version": version, "routes": [],
        "entities": [{"name": "Tick", "crdt": False, "fields": fields, "indexes": []}],
        "policies": [{"name": "open", "entity": "Tick", "allow": "true"}],
    }


class Crowd:
    """The processes with the sockets."""

    def __init__(self, port: int, token: str, sockets: int) -> None:
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(_PROCESSES):
            count = sockets // _PROCESSES + (number < sockets % _PROCESSES)
            if not count:
                continue
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(
                target=syncing.run, args=(theirs, port, token, count), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def tell(self, *command: Any) -> list[Any]:
        """Send a command to every process; return the answers."""
        for pipe in self._pipes:
            pipe.send(command)
        return [pipe.recv() for pipe in self._pipes]

    def wait_live(self) -> None:
        """Wait until every socket is open."""
        until_s = time.monotonic() + _PATIENCE_S
        while any(each.live < each.clients for each in self.tell("stats", 0)):
            if time.monotonic() > until_s:
                raise SystemExit("not every socket was opened")
            time.sleep(_LOOK_S)

    def close(self) -> None:
        """End the processes."""
        self.tell("quit")
        for process in self._processes:
            process.join(10)


class Requests:
    """The processes that send requests, until `stop`."""

    def __init__(self, port: int, rate: float) -> None:
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(_PROCESSES):
            load = asking.Load(
                port, srv.ADMIN, _CLIENTS // _PROCESSES, rate / _PROCESSES, f"p{number}"
            )
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=asking.run, args=(theirs, load), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def stop(self) -> dict[str, Any]:
        """End them, and return the figures of all."""
        for pipe in self._pipes:
            pipe.send(None)
        asked = asking.together([pipe.recv() for pipe in self._pipes])
        for process in self._processes:
            process.join()
        return asked


def converge(server: srv.Server, crowd: Crowd) -> list[syncing.Synced]:
    """Wait until every client has every event; return the counts."""
    head, until_s = head_of(server), time.monotonic() + _PATIENCE_S
    while True:
        synced: list[syncing.Synced] = crowd.tell("stats", head)
        if not any(each.behind for each in synced) or time.monotonic() > until_s:
            return synced
        time.sleep(_LOOK_S)


def head_of(server: srv.Server) -> int:
    """Return the last seq of the change log."""
    since = 1
    while True:
        page = server.request("GET", f"/api/sync/pull?since={since}")
        since = page["cursor"]["last_seq"]
        if not page["has_more"]:
            return int(since)


def measure(
    server: srv.Server, crowd: Crowd, rate: float, seconds: float, args: list[str]
) -> dict[str, Any]:
    """Run one command in the middle of the load; return the figures."""
    load = Requests(server.port, rate)
    time.sleep(seconds / 3)
    crowd.tell("reset")
    started_s = time.monotonic()
    done = server.ctl(*args)
    command_s = time.monotonic() - started_s
    has_sockets = args != _COMMANDS["scale"]
    while has_sockets and time.monotonic() - started_s < _PATIENCE_S:
        if all(each.reconnected == each.clients for each in crowd.tell("stats", 0)):
            break
        time.sleep(_LOOK_S)
    time.sleep(seconds / 3)
    asked = load.stop()
    ended_s = time.monotonic()
    synced = converge(server, crowd)
    converged_s = time.monotonic() - ended_s
    return {
        "exit": done.returncode, **asked, "command_s": round(command_s, 2),
        **syncing.together(synced, started_s), "converged_s": round(converged_s, 2),
        "said": done.stderr.strip()[-200:] if done.returncode else "",
    }


def is_good(found: dict[str, Any]) -> bool:
    """Return whether nothing was dropped."""
    return not (
        found["exit"] or found["failed"] or found["events_lost"]
        or found["live"] < found["sockets"]
    )


def main() -> int:
    """Measure, and print a line of JSON for each command and round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1_000)
    parser.add_argument("--sockets", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=list(_COMMANDS))
    options = parser.parse_args()
    print(machine.text(machine.fingerprint()))
    ok = True
    with srv.served(app(), PYLON_LOG_LEVEL="error") as server:
        token = server.request("POST", "/api/auth/guest")["token"]
        server.request("POST", "/api/entities/Tick", {"n": 0, "sender": "first"})
        crowd = Crowd(server.port, token, options.sockets)
        try:
            for number in range(options.rounds):
                for name, args in _COMMANDS.items():
                    if options.only not in (None, name):
                        continue
                    crowd.wait_live()
                    if name == "manifest":
                        server.manifest_path.write_text(json.dumps(app(f"9.{number}")))
                    found = measure(server, crowd, options.rate, options.seconds, args)
                    ok = ok and is_good(found)
                    print(json.dumps({"command": name, **found}), flush=True)
        finally:
            crowd.close()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
