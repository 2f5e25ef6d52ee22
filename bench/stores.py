"""SQLite and PostgreSQL as the store of the same server: requests/s and memory of each.

    python bench/stores.py --url postgresql://… [--seconds 5] [--repeats 3] [--workers 1 2]

The database of the URL must be empty. A server on each store runs for each number of HTTP workers,
and wrk asks them in turn, so that both have the same machine at the same time. PostgreSQL itself
works on the same machine. A line is the median of `repeats` runs on each store, and the ratio of
these. Then the memory of an HTTP worker on each store, idle and loaded. The reads of the pipe alone
come first. Writes `stores.json` and `stores.md` into --out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import http_load
import machine
import server as srv

CONNECTIONS = 64
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
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lines", nargs="+", default=list(LINES))
    parser.add_argument("--out", type=Path, default=Path("bench/results/local"))
    args = parser.parse_args()
    wrk = shutil.which("wrk")
    if wrk is None:
        print("stores: skipped: wrk is not installed (make test-tools, or: apt-get install wrk)")
        return 0
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.fingerprint(), "load": os.getloadavg(),
        "seconds": args.seconds, "repeats": args.repeats, "pipe": measure_pipe(args.url),
        "http": [], "memory": {},
    }
    for workers in args.workers:
        report["http"] += measure_http(wrk, workers, args, report["memory"])
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
        began = time.perf_counter(), time.process_time(), _cpu_s(pid)
        gevent.joinall([
            gevent.spawn(read, session.execute, PIPE_READS // greenlets, number)
            for number in range(greenlets)
        ], raise_error=True)
        ended = time.perf_counter(), time.process_time(), _cpu_s(pid)
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
    wrk: str, workers: int, args: argparse.Namespace, memory: dict[str, Any]
) -> list[dict[str, Any]]:
    """The lines of both stores with this many HTTP workers."""
    settings = {"PYLON_HTTP_WORKERS": str(workers)}
    url = _schema_of(args.url, f"bench_{workers}_{os.getpid()}")
    found: list[dict[str, Any]] = []
    with srv.served(**settings) as sqlite, srv.served(DATABASE_URL=url, **settings) as postgres:
        servers = {"sqlite": sqlite, "postgresql": postgres}
        scripts: dict[str, tuple[str, list[str], int]] = {}
        for name, server in servers.items():
            token = server.request("POST", "/api/auth/guest")["token"]
            ids = srv.fill(server, http_load.ROWS)
            head = server.request("GET", "/api/sync/pull?since=0")["cursor"]["last_seq"]
            scripts[name] = token, ids, head - 100
            memory.setdefault(f"{name}, {workers} workers", {})["idle"] = _memory(server)
        for line in args.lines:
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
            for repeat in range(args.repeats):
                for name, server in servers.items():
                    token, ids, since = scripts[name]
                    body = LINES[line] % since if line.startswith("pull") else LINES[line]
                    script = http_load.wrk_script(token, f"{name}{line[:3]}", ids, body)
                    runs[name].append(http_load.run_wrk(
                        wrk, f"http://127.0.0.1:{server.port}", script, CONNECTIONS,
                        args.seconds, workers * 1_000 + repeat,
                    ))
            medians = {name: http_load.median_run(each) for name, each in runs.items()}
            ratio = medians["postgresql"]["requests_per_s"] / medians["sqlite"]["requests_per_s"]
            found.append({
                "line": line, "workers": workers, "ratio": round(ratio, 2), **medians,
            })
            print(_line_text(found[-1]), flush=True)
        for name, server in servers.items():
            memory[f"{name}, {workers} workers"]["loaded"] = _memory(server)
    return found


def _schema_of(url: str, name: str) -> str:
    import psycopg

    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {name}")
    return f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{name}"


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


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _line_text(line: dict[str, Any]) -> str:
    return (
        f"{line['workers']} workers  {line['line']:<24} sqlite "
        f"{line['sqlite']['requests_per_s']:>8,.0f}/s  postgresql "
        f"{line['postgresql']['requests_per_s']:>8,.0f}/s  ratio {line['ratio']:.2f}  errors "
        f"{line['sqlite']['errors']} {line['postgresql']['errors']}"
    )


def text_of(report: dict[str, Any]) -> str:
    """The report as Markdown tables."""
    rows = [
        f"SQLite and PostgreSQL, {report['at']}; wrk with {CONNECTIONS} connections and PostgreSQL "
        f"on the same machine; medians of {report['repeats']} runs of {report['seconds']} s in "
        "turn.", "", f"{machine.text(report['machine'])}. Load averages at the beginning: "
        + ", ".join(f"{value:.1f}" for value in report["load"]) + ".", "",
        "| reads of one row | greenlets | reads/s | µs CPU here | µs CPU in the server |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {each['name']} | {each['greenlets']} | {each['reads_per_s']:,} | "
        f"{each['cpu_here_us']} | {each['cpu_server_us']} |" for each in report["pipe"]
    ]
    rows += [
        "", "| request | HTTP workers | SQLite/s | PostgreSQL/s | ratio | p99 ms (both) | errors |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {each['line']} | {each['workers']} | {each['sqlite']['requests_per_s']:,.0f} | "
        f"{each['postgresql']['requests_per_s']:,.0f} | {each['ratio']} | "
        f"{each['sqlite']['p99_ms']}, {each['postgresql']['p99_ms']} | "
        f"{each['sqlite']['errors'] + each['postgresql']['errors']} |" for each in report["http"]
    ]
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
