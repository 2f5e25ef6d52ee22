"""Inserts and updates over HTTP: rates, percentiles and CPU, of this checkout and of another.

    python bench/writes.py [--seconds 5] [--repeats 3] [--connections 16 64] [--kinds insert update]
                           [--against CHECKOUT ...] [--reader] [--threads]

Each checkout serves with the interpreter of its own ``.venv``, on a database of its own. The runs
of all servers alternate, since the speed of a machine changes from minute to minute. A line is the
median of its runs, each figure by itself; `lowest p99` is that of the quietest run, and `lower
quartile` that of the CPU: beside other work compare it, over many short runs. `--reader` adds
a server of this checkout whose database another program reads: it holds a snapshot from before the
first write to the end. `--threads` prints the CPU of each thread for one write.
wrk runs on the same machine. Bounded: about `seconds` for each run.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
import http_load
import server as srv

KINDS: Final = ("insert", "update")
_HERE: Final = Path(__file__).resolve().parent.parent
_FIGURES: Final = ("requests_per_s", "p50_ms", "p99_ms", "p999_ms")
_NS_PER_US: Final = 1_000

Run = dict[str, Any]


def main() -> int:
    """Run every line; exit code 0."""
    args = _arguments()
    wrk = shutil.which("wrk")
    if wrk is None:
        print("writes: skipped: wrk is not installed (make test-tools, or: apt-get install wrk)")
        return 0
    servers = [(checkout.name, checkout.resolve(), False) for checkout in (*args.against, _HERE)]
    if args.reader:
        servers.append(("with a reader", _HERE, True))
    with ExitStack() as stack:
        loads = {
            name: stack.enter_context(_loaded(checkout, args.workers, has_reader=has_reader))
            for name, checkout, has_reader in servers
        }
        for connections in args.connections:
            for kind in args.kinds:
                runs: dict[str, list[Run]] = {name: [] for name in loads}
                for repeat in range(args.repeats):
                    for name, load in loads.items():
                        runs[name].append(load.run(wrk, kind, connections, args.seconds, repeat))
                first: Run | None = None
                for name in loads:
                    line = _median(runs[name])
                    print(_text(name, kind, connections, line), flush=True)
                    if args.threads:
                        _print_threads(line)
                    if first is not None:
                        print(_ratios(first, line), flush=True)
                    first = first or line
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="for each run")
    parser.add_argument("--repeats", type=int, default=3, help="runs for each line")
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--workers", type=int, default=2, help="HTTP workers")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="other checkouts")
    parser.add_argument("--reader", action="store_true", help="add a server whose file is read")
    parser.add_argument("--threads", action="store_true", help="print the CPU of each thread")
    return parser.parse_args()


class _Load:
    """A server under load."""

    def __init__(self, server: srv.Server) -> None:
        self._server = server
        self._token = server.request("POST", "/api/auth/guest")["token"]
        self._ids = srv.fill(server, http_load.ROWS)
        self._processes = server.processes()

    def run(self, wrk: str, kind: str, connections: int, seconds: int, repeat: int) -> Run:
        """One run of wrk."""
        script = http_load.wrk_script(
            self._token, f"{kind}{connections}", self._ids, http_load.WRITES[kind]
        )
        before = _cpu_ns_by_thread(self._processes)
        run = http_load.run_wrk(
            wrk, f"http://127.0.0.1:{self._server.port}", script, connections, seconds,
            connections * 100 + repeat,
        )
        after = _cpu_ns_by_thread(self._processes)
        count = max(1.0, run["requests_per_s"] * seconds)
        run["cpu_us"] = {
            name: (after[name] - before.get(name, 0)) / _NS_PER_US / count for name in after
        }
        return run


@contextmanager
def _loaded(checkout: Path, workers: int, *, has_reader: bool) -> Iterator[_Load]:
    with srv.served(checkout=checkout, PYLON_HTTP_WORKERS=str(workers)) as server:
        load = _Load(server)
        if not has_reader:
            yield load
            return
        with closing(sqlite3.connect(server.db_path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            yield load


def _cpu_ns_by_thread(processes: dict[str, int]) -> dict[str, int]:
    """CPU time of the threads of all processes, by the process's role and the thread's name."""
    found: dict[str, int] = {}
    for process, pid in processes.items():
        role = process.partition("/")[0]
        for task in Path(f"/proc/{pid}/task").iterdir():
            name = f"{role}: {(task / 'comm').read_text().strip()}"
            cpu_ns = int((task / "schedstat").read_text().split()[0])
            found[name] = found.get(name, 0) + cpu_ns
    return found


def _median(runs: list[Run]) -> Run:
    line: Run = {name: statistics.median(run[name] for run in runs) for name in _FIGURES}
    line["errors"] = sum(run["errors"] for run in runs)
    line["lowest_p99_ms"] = min(run["p99_ms"] for run in runs)
    totals = sorted(sum(run["cpu_us"].values()) for run in runs)
    line["low_cpu_us"] = totals[len(totals) // 4]
    line["cpu_us"] = {
        name: statistics.median(run["cpu_us"].get(name, 0.0) for run in runs)
        for name in runs[0]["cpu_us"]
    }
    return line


def _text(name: str, kind: str, connections: int, line: Run) -> str:
    return (
        f"{name:<14} {kind:<7} {connections:>4} conn  {line['requests_per_s']:>8,.0f}/s"
        f"  p50 {line['p50_ms']:>6.2f}  p99 {line['p99_ms']:>6.2f}  p99.9 {line['p999_ms']:>6.2f}"
        f"  lowest p99 {line['lowest_p99_ms']:>6.2f} ms"
        f"  CPU {sum(line['cpu_us'].values()):>4.0f} us, lower quartile {line['low_cpu_us']:>5.1f}"
        f"  errors {line['errors']}"
    )


def _ratios(other: Run, own: Run) -> str:
    shares = (f"{name} x {own[name] / max(other[name], 1e-9):.2f}" for name in _FIGURES)
    return f"{'':<14} {'  '.join(shares)}"


def _print_threads(line: Run) -> None:
    for name, cpu_us in sorted(line["cpu_us"].items(), key=lambda item: -item[1]):
        if cpu_us >= 0.5:
            print(f"{'':<14}   {name:<32} {cpu_us:>6.1f} us")


if __name__ == "__main__":
    sys.exit(main())
