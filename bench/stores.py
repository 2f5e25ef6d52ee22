"""SQLite and PostgreSQL as the store of the same server: requests/s and memory of each.

    python bench/stores.py [--url postgresql://…] [--seconds 5] [--repeats 3] [--workers 1 2]
                           [--lines "get by id" insert …] [--connections 64] [--no-pipe]

A server on each store runs for each number of HTTP workers, and wrk asks them in turn, so that all
have the same machine at the same time: PostgreSQL, SQLite with durability `normal`, and for the
writes SQLite with `full`. PostgreSQL itself works on the same machine. A line is the median of
`repeats` runs on each store, the ratios of PostgreSQL to the others (medians of the ratios of
neighbouring runs), and the CPU of a request: of all processes of Pylon and of PostgreSQL, the lower
quartile of the runs. Beside "get by id" pgbench reads the same rows by the same statement, with 16
prepared clients. Then the memory of the processes on each store, idle and loaded. The reads of the
pipe alone come first. Writes `stores.json` and `stores.md` into --out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parent))
import database
import http_load
import machine
import server as srv

SQLITE, FULL, POSTGRES, PGBENCH = "sqlite", "sqlite full", "postgresql", "pgbench"
PGBENCH_CLIENTS = 16
PIPE_READS = 40_000
PIPE_GREENLETS = (1, 4, 16, 64, 256)
LINES = {
    **{name: http_load.READS[name] for name in (
        "get by id", "lookup", "list 100, each another", "10 rows, each another", "pull(100)",
    )},
    "list 100": http_load.READS["list 100"],
    "insert": http_load.WRITES["insert"],
    "update": http_load.WRITES["update"],
}


def main() -> int:
    """Measure, print and write; exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    database.add_url(parser)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--lines", nargs="+", default=list(LINES), choices=LINES)
    parser.add_argument("--no-pipe", action="store_true", help="not the reads of the pipe alone")
    parser.add_argument("--out", type=Path, default=Path("bench/results/local"))
    args = parser.parse_args()
    wrk = shutil.which("wrk")
    if wrk is None:
        print("stores: skipped: wrk is not installed (make test-tools, or: apt-get install wrk)")
        return 0
    report: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.fingerprint(), "load": os.getloadavg(), "seconds": args.seconds,
        "repeats": args.repeats, "connections": args.connections, "pipe": [], "http": [],
        "memory": {},
    }
    with database.database(args.url) as url:
        if not args.no_pipe:
            report["pipe"] = measure_pipe(url)
    for workers in args.workers:
        with database.database(args.url) as url:
            report["http"] += measure_http(wrk, url, workers, args, report["memory"])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "stores.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.out / "stores.md").write_text(text_of(report))
    print(text_of(report))
    return 0


def measure_pipe(url: str) -> list[dict[str, Any]]:
    """Point reads of one process over its pipe, and over a connection whose caller waits."""
    import gevent

    from pylon.clock import SystemClock, SystemRandom
    from pylon.storage.postgres.connect import Limits, open_session
    from pylon.storage.postgres.pipe import Pipe

    clock = SystemClock()
    connect = partial(
        open_session, url, "reader", "bench", clock, Limits(statement_ms=1_000), writes=False
    )
    plain = connect()
    plain.execute_script(
        'CREATE TABLE _bench (id text COLLATE "C" PRIMARY KEY, _json text);'
        "INSERT INTO _bench SELECT 'id' || n, repeat('x', 200) FROM generate_series(1, 100000) n;"
        "ANALYZE _bench"
    )
    pipe = Pipe(connect, clock, SystemRandom())
    pipe.open()

    def read(execute: Any, count: int, first: int) -> None:
        for number in range(count):
            row_id = f"id{(first * 7_919 + number) % 100_000 + 1}"
            execute("SELECT _json FROM _bench WHERE id = $1", [row_id]).get_value(0, 0)

    def timed(name: str, session: Any, greenlets: int) -> dict[str, Any]:
        pid = int(session.execute("SELECT pg_backend_pid()").get_value(0, 0))
        began = time.perf_counter(), time.process_time(), database.process_cpu_s(pid)
        gevent.joinall([
            gevent.spawn(read, session.execute, PIPE_READS // greenlets, number)
            for number in range(greenlets)
        ], raise_error=True)
        ended = time.perf_counter(), time.process_time(), database.process_cpu_s(pid)
        wall_s, here_s, there_s = (end - begin for begin, end in zip(began, ended, strict=True))
        return {
            "name": name, "greenlets": greenlets, "reads_per_s": round(PIPE_READS / wall_s),
            "cpu_here_us": round(here_s / PIPE_READS * 1e6, 1),
            "cpu_server_us": round(there_s / PIPE_READS * 1e6, 1),
        }

    try:
        found = [timed("pipe", pipe, greenlets) for greenlets in PIPE_GREENLETS]
        return [*found, timed("a connection that waits", plain, 1)]
    finally:
        pipe.close()
        plain.execute_script("DROP TABLE _bench")
        plain.close()


def measure_http(
    wrk: str, url: str, workers: int, args: argparse.Namespace, memory: dict[str, Any]
) -> list[dict[str, Any]]:
    """The lines of all stores with this many HTTP workers."""
    found: list[dict[str, Any]] = []
    settings = {SQLITE: {}, POSTGRES: {"DATABASE_URL": url}}
    if not http_load.WRITES.keys().isdisjoint(args.lines):
        settings[FULL] = {"PYLON_DURABILITY": "full"}
    with ExitStack() as stack:
        loads = {
            name: Load(wrk, stack.enter_context(
                srv.served(PYLON_HTTP_WORKERS=str(workers), **each)
            ), args, database.server_pid(url) if name == POSTGRES else None)
            for name, each in settings.items()
        }
        for name, load in loads.items():
            memory[f"{name}, {workers} workers"] = {"idle": _memory(load.server)}
        pgbench = shutil.which("pgbench")
        for line in args.lines:
            runs: dict[str, Callable[[int], dict[str, Any]]] = {
                name: partial(load.run, line, workers) for name, load in loads.items()
                if name != FULL or line in http_load.WRITES
            }
            if line == "get by id" and pgbench is not None:
                runs[PGBENCH] = make_pgbench(pgbench, url, args.seconds)
            found.append(_in_turn(line, workers, runs, args.repeats))
            print(_line_text(found[-1]), flush=True)
        for name, load in loads.items():
            memory[f"{name}, {workers} workers"]["loaded"] = _memory(load.server)
    return found


class Load:
    """A server with its rows. `pid`: of the PostgreSQL server on this machine, whose CPU counts."""

    def __init__(
        self, wrk: str, server: srv.Server, args: argparse.Namespace, pid: int | None
    ) -> None:
        self.server = server
        self._wrk, self._args, self._pid = wrk, args, pid
        self._token = server.request("POST", "/api/auth/guest")["token"]
        self.ids = srv.fill(server, http_load.ROWS)
        head = server.request("GET", "/api/sync/pull?since=0")["cursor"]["last_seq"]
        self._since = head - 100
        self._processes = server.processes()

    def run(self, line: str, workers: int, repeat: int) -> dict[str, Any]:
        """One run of wrk; `cpu_us` of Pylon and of PostgreSQL for a request."""
        body = LINES[line] % self._since if line.startswith("pull") else LINES[line]
        script = http_load.wrk_script(self._token, line[:3], self.ids, body)
        before = self._cpu_s()
        run = http_load.run_wrk(
            self._wrk, f"http://127.0.0.1:{self.server.port}", script, self._args.connections,
            self._args.seconds, workers * 1_000 + repeat,
        )
        count = max(1.0, run["requests_per_s"] * self._args.seconds)
        run["cpu_us"] = [
            round((after - begin) / count * 1e6, 1)
            for begin, after in zip(before, self._cpu_s(), strict=True)
        ]
        return run

    def _cpu_s(self) -> tuple[float, float]:
        own = sum(cpu_s for _, cpu_s in self.server.usage(self._processes).values())
        return own, 0.0 if self._pid is None else database.server_cpu_s(self._pid)


def make_pgbench(program: str, url: str, seconds: int) -> Callable[[int], dict[str, Any]]:
    """Make rows for pgbench; return what measures the reads a second of one row by its key."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            'CREATE TABLE bench_rows (id text COLLATE "C" PRIMARY KEY, _json text, _seq bigint)'
        )
        conn.execute(
            "INSERT INTO bench_rows SELECT 'id' || n, repeat('x', 150), n "
            "FROM generate_series(1, %s) AS n", (http_load.ROWS,),
        )
        conn.execute("ANALYZE bench_rows")

    def run(_repeat: int) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
            file.write(
                f"\\set n random(1, {http_load.ROWS})\n"
                "SELECT _json, _seq FROM bench_rows WHERE id = 'id' || :n;\n"
            )
            file.flush()
            done = subprocess.run(
                [program, "-n", "-M", "prepared", "-c", str(PGBENCH_CLIENTS), "-T", str(seconds),
                 "-f", file.name, url],
                capture_output=True, text=True, timeout=seconds + 60, check=True,
            )
        rate = float(done.stdout.rpartition("tps = ")[2].split()[0])
        return {"requests_per_s": rate, "p50_ms": 0.0, "p99_ms": 0.0, "errors": 0}

    return run


def _in_turn(
    line: str, workers: int, runs: dict[str, Callable[[int], dict[str, Any]]], repeats: int
) -> dict[str, Any]:
    """Run all in turn; the median of each, and PostgreSQL's ratios to the others."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in runs if repeat % 2 == 0 else reversed(runs):
            found[name].append(runs[name](repeat))
    medians: dict[str, Any] = {name: http_load.median_run(each) for name, each in found.items()}
    for name, each in found.items():
        totals = sorted((run["cpu_us"] for run in each if "cpu_us" in run), key=sum)
        if totals:
            medians[name]["cpu_us"] = totals[len(totals) // 4]
    ratios = {
        name: round(statistics.median(
            ours["requests_per_s"] / other["requests_per_s"]
            for ours, other in zip(found[POSTGRES], each, strict=True)
        ), 2)
        for name, each in found.items() if name != POSTGRES
    }
    return {"line": line, "workers": workers, "ratios": ratios, **medians}


def _memory(server: srv.Server) -> dict[str, dict[str, float]]:
    """RSS and what no other process shares, in MiB, of one process of each role."""
    found = {}
    for name, pid in server.processes().items():
        if name.endswith("/1") or name == "supervisor":
            sizes = dict.fromkeys(("Rss", "Private_Clean", "Private_Dirty"), 0)
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                key, _, rest = line.partition(":")
                if key in sizes:
                    sizes[key] = int(rest.split()[0])
            private = sizes["Private_Clean"] + sizes["Private_Dirty"]
            found[name] = {
                "rss_mib": round(sizes["Rss"] / 1024, 1), "private_mib": round(private / 1024, 1)
            }
    return found


def _line_text(line: dict[str, Any]) -> str:
    parts = [f"{line['workers']} workers  {line['line']:<24}"]
    for name in (POSTGRES, *line["ratios"]):
        parts.append(f"{name} {line[name]['requests_per_s']:>8,.0f}/s" + (
            f" (ratio {line['ratios'][name]:.2f})" if name in line["ratios"] else ""
        ))
        if "cpu_us" in line[name]:
            parts.append("CPU {:.0f} + {:.0f} us".format(*line[name]["cpu_us"]))
        if line[name]["errors"]:
            parts.append(f"{line[name]['errors']} ERRORS")
    return "  ".join(parts)


def text_of(report: dict[str, Any]) -> str:
    """The report as Markdown tables."""
    rows = [
        f"SQLite and PostgreSQL, {report['at']}; wrk with {report['connections']} connections and "
        f"PostgreSQL on the same machine; medians of {report['repeats']} runs of "
        f"{report['seconds']} s in turn.", "",
        f"{machine.text(report['machine'])}. Load averages at the beginning: "
        + ", ".join(f"{value:.1f}" for value in report["load"]) + ".", "",
    ]
    if report["pipe"]:
        rows += [
            "| reads of one row | greenlets | reads/s | µs CPU here | µs CPU in the server |",
            "|---|---|---|---|---|",
        ]
    rows += [
        f"| {each['name']} | {each['greenlets']} | {each['reads_per_s']:,} | "
        f"{each['cpu_here_us']} | {each['cpu_server_us']} |" for each in report["pipe"]
    ]
    rows += [
        "", "| request | HTTP workers | store | requests/s | PostgreSQL to it | p99 ms | CPU µs, "
        "Pylon + PostgreSQL | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in report["http"]:
        for name in (POSTGRES, *each["ratios"]):
            run = each[name]
            rows.append(
                f"| {each['line']} | {each['workers']} | {name} | {run['requests_per_s']:,.0f} | "
                f"{each['ratios'].get(name, '')} | {run['p99_ms']} | "
                f"{' + '.join(map(str, run.get('cpu_us', ())))} | {run['errors']} |"
            )
    rows += [
        "", "| processes | RSS MiB idle | RSS MiB loaded | private MiB idle | private MiB loaded |",
        "|---|---|---|---|---|",
    ]
    for name, memory in report["memory"].items():
        for process, idle in memory["idle"].items():
            loaded = memory["loaded"].get(process, {})
            rows.append(
                f"| {name}: {process} | {idle['rss_mib']} | {loaded.get('rss_mib', '')} | "
                f"{idle['private_mib']} | {loaded.get('private_mib', '')} |"
            )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
