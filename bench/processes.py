"""Processes: memory, start, restarts and idle cost of a whole server.

    bench/processes.py [--checkout DIR …] [--rounds N] [--only start idle restart load dev]
                       [--database-url postgresql://…]

For each checkout (this one, unless others are named; each with a ``.venv``):

- `ready_s`: from the start of `pylonctl start` to `/readyz` saying 200; `ready_cpu_s`: the CPU time
  of all processes until then, which says more beside other work.
- `idle_pss_mib`, `idle_rss_mib`: of all processes together (``smaps_rollup``); `loaded_pss_mib` is
  the same after 100,000 inserts, reads of every kind and with 1,000 open sockets (``load``).
- `idle_cpu_percent`: of one core, all processes; `wakeups_per_s`: voluntary context switches of all
  threads, by process.
- `restart_s`: by role, from SIGKILL of its only worker to the first answer on its port.
- `reload_s`: from the change of `PYLON_APP` under `pylonctl dev` to the first answer of the new
  code; `refused_while_reloading`: connections to the HTTP port that were refused meanwhile.

Medians over the rounds; checkouts take turns, so that all see the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import machine
from bench.server import ADMIN, MANIFEST, Server, fill, free_port, served, upgrade_request

_KIB_PER_MIB: Final = 1_024
_NS_PER_S: Final = 1_000_000_000
_ROWS: Final = 100_000
_SOCKETS: Final = 1_000
_PORT_OFFSET: Final = {"http": 0, "ws": 1, "sse": 2, "shards": 3}
_SETTLE_S: Final = 3.0

Figures = dict[str, list[float]]


def processes_below(root: int) -> list[int]:
    """Return `root` and its descendants."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(stat.parent.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def memory_mib(pids: list[int]) -> tuple[float, float]:
    """Return PSS and RSS of the processes together."""
    pss = rss = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Pss":
                pss += int(value.split()[0])
            elif name == "Rss":
                rss += int(value.split()[0])
    return pss / _KIB_PER_MIB, rss / _KIB_PER_MIB


def title_of(pid: int) -> str:
    """Return the module that a process runs, with its pid."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
    return f"{words[words.index('-m') + 1]} {pid}" if "-m" in words else f"{words[0]} {pid}"


def activity(pids: list[int]) -> dict[int, tuple[int, int]]:
    """Return CPU time in ns and voluntary context switches of each process, all threads."""
    found = {}
    for pid in pids:
        cpu_ns = switches = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            cpu_ns += int((task / "schedstat").read_text().split()[0])
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    switches += int(line.split()[1])
        found[pid] = (cpu_ns, switches)
    return found


def cpu_s(root: int) -> float:
    """Return the CPU time of a process, its descendants, and those that it has reaped."""
    ticks = 0
    for pid in processes_below(root):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure_idle(server: Server, idle_s: float, figures: Figures, wakeups: Figures) -> None:
    """Measure memory, CPU and wake-ups of a server that nobody uses."""
    time.sleep(_SETTLE_S)
    pids = processes_below(server.process.pid)
    before, started_s = activity(pids), time.monotonic()
    time.sleep(idle_s)
    after, took_s = activity(pids), time.monotonic() - started_s
    pss, rss = memory_mib(pids)
    figures["idle_pss_mib"].append(pss)
    figures["idle_rss_mib"].append(rss)
    cpu_ns = sum(after[pid][0] - before[pid][0] for pid in pids)
    figures["idle_cpu_percent"].append(100 * cpu_ns / _NS_PER_S / took_s)
    switches = [after[pid][1] - before[pid][1] for pid in pids]
    figures["wakeups_per_s"].append(sum(switches) / took_s)
    for pid in pids:
        name = title_of(pid).rpartition(" ")[0]
        cpu_ms = (after[pid][0] - before[pid][0]) / 1e6 / took_s
        wakeups[f"{name} wakeups/s"].append((after[pid][1] - before[pid][1]) / took_s)
        wakeups[f"{name} cpu ms/s"].append(cpu_ms)


def _request_of(role: str) -> bytes:
    if role in ("ws", "shards"):
        return upgrade_request()
    path = "/livez" if role == "http" else "/events"
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def ask(port: int, role: str, timeout_s: float = 20.0) -> float:
    """Open a connection and wait for the first byte of its answer; the time then (monotonic)."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as sock:
        sock.sendall(_request_of(role))
        if not sock.recv(1):
            raise ConnectionError("closed without an answer")
    return time.monotonic()


def measure_restarts(server: Server, rounds: int, figures: Figures) -> None:
    """Kill the only worker of each role, again and again."""
    for _ in range(rounds):
        for role, offset in _PORT_OFFSET.items():
            # A worker that dies within limits.RESTART_RESET_S of its start waits longer.
            time.sleep(11.0 / len(_PORT_OFFSET))
            [pid] = server.status()["roles"][role]["pids"]
            os.kill(pid, signal.SIGKILL)
            started_s = time.monotonic()
            while True:
                try:
                    answered_s = ask(server.port + offset, role)
                    break
                except ConnectionError:  # it was accepted by the worker that died
                    continue
            figures[f"restart_s {role}"].append(answered_s - started_s)


def put_load(server: Server, figures: Figures) -> None:
    """Insert, read in every way, hold sockets; then measure memory."""
    ids = fill(server, _ROWS)
    for number in range(300):
        row_id = ids[number * 331 % _ROWS]
        server.request("GET", f"/api/entities/Item/{row_id}")
        server.request("GET", "/api/entities/Item?limit=100")
        shelf = {"shelf": f"shelf-{number % 100}", "$limit": 100}
        server.request("POST", "/api/query/Item", shelf)
        title = {"title": {"$like": f"%-{number}%"}, "$limit": 50}
        server.request("POST", "/api/query/Item", title)
        server.request("GET", f"/api/sync/pull?since={number * 300}")
        server.request("PATCH", f"/api/entities/Item/{row_id}", {"count": number})
    server.request("POST", "/api/aggregate/Item", {"count": "*", "groupBy": ["shelf"]})
    server.request("POST", "/api/query", {"Item": {"where": {"shelf": "shelf-1"}}})
    sockets = []
    for number in range(_SOCKETS):
        role = ("ws", "sse")[number % 2]
        sock = socket.create_connection(("127.0.0.1", server.port + _PORT_OFFSET[role]))
        sock.sendall(_request_of(role))
        sockets.append(sock)
    for number in range(50):
        server.request("PATCH", f"/api/entities/Item/{ids[number]}", {"count": -number})
    time.sleep(_SETTLE_S)
    pss, rss = memory_mib(processes_below(server.process.pid))
    figures["loaded_pss_mib"].append(pss)
    figures["loaded_rss_mib"].append(rss)
    for sock in sockets:
        sock.close()


def measure_start(checkout: Path | None, figures: Figures, **settings: str) -> Any:
    """Start a server and note how long it takes."""
    started_s = time.monotonic()
    context = served(checkout=checkout, poll_s=0.005, **settings)
    server = context.__enter__()
    figures["ready_s"].append(time.monotonic() - started_s)
    figures["ready_cpu_s"].append(cpu_s(server.process.pid))
    return context, server


def measure_reload(checkout: Path | None, folder: Path, rounds: int, figures: Figures) -> None:
    """Change the app of a `pylonctl dev`, and wait for the new code to answer."""
    python = sys.executable if checkout is None else str(checkout / ".venv/bin/python")
    app, manifest = folder / "app.py", folder / "pylon.manifest.json"
    app.write_text("LEVEL = 0\n")
    manifest.write_text(json.dumps(MANIFEST))
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYLON_")} | {
        "PYLON_MANIFEST": str(manifest), "PYLON_APP": str(app), "PYLON_ADMIN_TOKEN": ADMIN,
        "PYLON_PORT": str(port), "PYLON_LOG_LEVEL": "info", "PYLON_LOG_FORMAT": "json",
    }
    if checkout is not None:
        env["PYTHONPATH"] = str(checkout)
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [python, "-m", "pylon.cli.main", "dev"], env=env, cwd=folder, stdout=out, stderr=out,
        )
    refused = [0]
    ended = threading.Event()

    def connect_often() -> None:
        while not ended.wait(0.01):
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
            except OSError:
                refused[0] += 1

    def loads() -> int:
        return log.read_text().count('"app.loaded"')

    def wait_for(count: int) -> None:
        deadline_s = time.monotonic() + 30
        while loads() < count and time.monotonic() < deadline_s:
            time.sleep(0.002)

    try:
        wait_for(1)
        time.sleep(_SETTLE_S)
        prober = threading.Thread(target=connect_often)
        prober.start()
        for number in range(1, rounds + 1):
            time.sleep(1.0 + number * 0.137)
            known = loads()
            app.write_text(f"LEVEL = {number}\n")
            started_s = time.monotonic()
            wait_for(known + 1)
            while True:
                try:
                    answered_s = ask(port + _PORT_OFFSET["shards"], "shards")
                    break
                except OSError:
                    continue
            figures["reload_s"].append(answered_s - started_s)
        ended.set()
        prober.join()
        figures["refused_while_reloading"].append(refused[0])
    finally:
        ended.set()
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkout", type=Path, action="append", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle-s", type=float, default=20.0)
    parser.add_argument("--only", nargs="+", default=["start", "idle", "restart"],
                        choices=["start", "idle", "restart", "load", "dev"])
    parser.add_argument("--database-url", help="an empty PostgreSQL database, for start and idle")
    options = parser.parse_args()
    checkouts: list[Path | None] = options.checkout or [None]
    settings = {} if options.database_url is None else {"DATABASE_URL": options.database_url}
    figures: dict[Path | None, Figures] = {each: defaultdict(list) for each in checkouts}
    wakeups: dict[Path | None, Figures] = {each: defaultdict(list) for each in checkouts}
    if "start" in options.only:
        for _ in range(options.rounds):
            for checkout in checkouts:
                context, _server = measure_start(checkout, figures[checkout], **settings)
                context.__exit__(None, None, None)
    for checkout in checkouts:
        if "idle" in options.only or "load" in options.only:
            context, server = measure_start(checkout, defaultdict(list), **settings)
            if "idle" in options.only:
                measure_idle(server, options.idle_s, figures[checkout], wakeups[checkout])
            if "load" in options.only:
                put_load(server, figures[checkout])
            context.__exit__(None, None, None)
        if "restart" in options.only:
            context, server = measure_start(checkout, defaultdict(list), PYLON_HTTP_WORKERS="1")
            measure_restarts(server, options.rounds, figures[checkout])
            context.__exit__(None, None, None)
        if "dev" in options.only:
            with tempfile.TemporaryDirectory(prefix="pylon-dev-") as name:
                measure_reload(checkout, Path(name), options.rounds, figures[checkout])
    print(machine.text(machine.fingerprint()))
    for table in (figures, wakeups):
        for name in sorted({name for each in table.values() for name in each}):
            values = [
                f"{statistics.median(table[each][name]):10.3f}" if table[each][name] else " " * 10
                for each in checkouts
            ]
            print(f"{name:<34}", *values)


if __name__ == "__main__":
    main()
