"""Sizing: what a machine of a given size carries.

    python bench/sizing.py small | medium | tiny [--seconds 8] [--sockets 10000]

- `small`: the server on one core (taskset), the load on another one.
- `medium`: the server on two cores. On a machine with two cores the load shares them, and the
  figures are lower than on a machine with more.
- `tiny`: 512 MB of memory and a quarter of a core (a cgroup; needs root). It prints the time of the
  start, too; the bar is 5 s.

For each it prints: reads and inserts a second at 64 connections (wrk), the p99 of both at half of
that rate (`asking`), and with `--sockets` WebSockets open (`syncing`) how many were held, the
memory of all processes, and how long one event takes to reach the last of them. tiny has 1,000
sockets, and the load of a tenth. Exit code 1 if a request fails, a socket is not held, or the start
is above its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
import http_load
import machine
import restart
import server as srv

START_BAR_S: Final = 5.0
_CONNECTIONS: Final = 64
_BEGIN_S: Final = 1.0  # until the processes with the load have begun
_CGROUP: Final = Path("/sys/fs/cgroup")
_GET: Final = 'return get("/api/entities/Tick?limit=1")'
_INSERT: Final = 'made = made + 1; return post("/api/entities/Tick", \'{"n":1,"sender":"a"}\')'


def main() -> int:
    """Measure one size; print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=["small", "medium", "tiny"])
    parser.add_argument("--seconds", type=int, default=8, help="for each run")
    parser.add_argument("--sockets", type=int, default=None)
    args = parser.parse_args()
    sockets = args.sockets or (1_000 if args.size == "tiny" else 10_000)
    print(machine.text(machine.fingerprint()))
    with limited(args.size) as prefix:
        began_s = time.monotonic()
        with srv.served(
            restart.app(), prefix=prefix, poll_s=0.02, PYLON_LOG_LEVEL="error",
            PYLON_HTTP_WORKERS="2" if args.size == "medium" else "1",
        ) as server:
            found = {"size": args.size, "start_s": round(time.monotonic() - began_s, 2)}
            if args.size == "small" and len(cores := sorted(os.sched_getaffinity(0))) > 1:
                os.sched_setaffinity(0, cores[1:])  # the load, in children of this process
            found |= measure(server, args.seconds, sockets)
    print(json.dumps(found))
    is_bad = found["failed"] or found["held"] < sockets
    return 1 if is_bad or (args.size == "tiny" and found["start_s"] > START_BAR_S) else 0


def measure(server: srv.Server, seconds: int, sockets: int) -> dict[str, Any]:
    """Return the figures of a running server."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk is not installed (make test-tools, or: apt-get install wrk)")
    server.request("POST", "/api/entities/Tick", {"n": 0, "sender": "first"})
    # First, as each client begins with a snapshot, and the inserts below make a large one.
    found = hold(server, sockets)
    url = f"http://127.0.0.1:{server.port}"
    rates = {}
    for name, body in (("reads", _GET), ("inserts", _INSERT)):
        script = http_load.wrk_script(srv.ADMIN, name, [], body)
        run = http_load.run_wrk(wrk, url, script, _CONNECTIONS, seconds, 1)
        rates[name] = run["requests_per_s"]
        if run["errors"]:
            raise SystemExit(f"{name}: {run['errors']} errors")
    # One in ten requests of the paced load is an insert: half of what both need together.
    half = 0.5 / (0.9 / rates["reads"] + 0.1 / rates["inserts"])
    load = restart.Requests(server.port, min(half, 6_000))  # the clients' own limit
    time.sleep(seconds + _BEGIN_S)
    asked = load.stop()
    return {
        **found,
        "reads_per_s": round(rates["reads"]), "inserts_per_s": round(rates["inserts"]),
        "half_load_per_s": asked["rate"], "half_load_p99_ms": asked["p99_ms"],
        "failed": asked["failed"],
    }


def hold(server: srv.Server, sockets: int) -> dict[str, Any]:
    """Open sockets, and send one event to all."""
    token = server.request("POST", "/api/auth/guest")["token"]
    crowd = restart.Crowd(server.port, token, sockets)
    crowd.wait_live()
    memory_mib = sum(_pss_mib(pid) for pid in server.processes().values())
    began_s = time.monotonic()
    server.request("POST", "/api/entities/Tick", {"n": 1, "sender": "last"})
    synced = restart.converge(server, crowd)
    reached_s = time.monotonic() - began_s
    crowd.close()
    return {
        "held": sum(each.live for each in synced), "memory_mib": round(memory_mib),
        "reached_all_s": round(reached_s, 2),
    }


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


@contextmanager
def limited(size: str) -> Iterator[list[str]]:
    """Yield the command that starts a server within the limits of a size."""
    if size == "small":
        yield ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    elif size == "medium":
        yield []
    else:
        files = _make_cgroup()
        joins = "; ".join(f"echo $$ > {file}" for file in files)
        try:
            yield ["sh", "-c", f'{joins}; exec "$@"', "sh"]
        finally:
            for file in files:
                _remove(file.parent)


def _make_cgroup() -> list[Path]:
    """Make a cgroup with 512 MB and a quarter of a core; return the files that take a process."""
    name = f"pylon-sizing-{os.getpid()}"
    if (_CGROUP / "cgroup.controllers").exists():
        folder = _CGROUP / name
        folder.mkdir()
        (folder / "cpu.max").write_text("25000 100000")
        (folder / "memory.max").write_text("512M")
        return [folder / "cgroup.procs"]
    cpu, memory = _CGROUP / "cpu" / name, _CGROUP / "memory" / name
    cpu.mkdir()
    memory.mkdir()
    (cpu / "cpu.cfs_period_us").write_text("100000")
    (cpu / "cpu.cfs_quota_us").write_text("25000")
    (memory / "memory.limit_in_bytes").write_text("512M")
    return [cpu / "cgroup.procs", memory / "cgroup.procs"]


def _remove(folder: Path) -> None:
    for _ in range(50):  # the last process leaves it a moment after its end
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
