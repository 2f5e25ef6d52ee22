"""Writers of several nodes on one PostgreSQL: rows/s of three nodes, and of one.

    python bench/node_writes.py [--url postgresql://…] [--commit-ms 2] [--nodes 3] [--clients 64]
                                [--seconds 3] [--repeats 5]

A node is a process with the writer's engine and the relay that follows the others, without HTTP:
on a machine with few cores, HTTP workers would take the CPU that is to be measured. `--clients`
clients of each node insert a row again and again, so a batch has as many rows. Runs of one node and
of all take turns. `--commit-ms` slows each sync of a server of its own by so much. A line has the
median of the runs, rows/s and µs of CPU for a row of all processes, and the ratio of all nodes to
one: the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import database

from pylon.bench import rows
from pylon.clock import SystemClock, SystemRandom
from pylon.ids import RowIds
from pylon.policy.rules import compile_rules
from pylon.storage.ops import InsertRow, WriteRequest
from pylon.storage.postgres.backend import PostgresBackend
from pylon.values import EntityCodec

_ENTITY: Final = "Three"
_POLL_S: Final = 1.0
_US: Final = 1e6


def main() -> int:
    """Run and print; exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    database.add_url(parser)
    parser.add_argument("--commit-ms", type=float, default=0, help="more for each sync of the log")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64, help="of each node")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--be", type=int, default=-1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.be >= 0:
        _be_node(args.url, args.be, args.clients)
        return 0
    with database.database(args.url, slow_sync_ms=args.commit_ms) as url, ExitStack() as stack:
        nodes = [
            stack.enter_context(_node(url, number, args.clients)) for number in range(args.nodes)
        ]
        pid = database.server_pid(url)
        figures: dict[int, list[tuple[float, float]]] = {1: [], args.nodes: []}
        for repeat in range(args.repeats + 1):
            for number, found in figures.items():
                run = _run(nodes[:number], pid, args.seconds)
                if repeat:  # the first round prepares statements
                    found.append(run)
    for number, found in figures.items():
        print(f"{number} nodes: {statistics.median(rate for rate, _ in found):8.0f} rows/s  "
              f"{statistics.median(cpu_us for _, cpu_us in found):6.1f} us of CPU for a row")
    ratios = sorted(
        many / one for (many, _), (one, _) in zip(figures[args.nodes], figures[1], strict=True)
    )
    print(f"{args.nodes} nodes to one, syncs {args.commit_ms:g} ms slower: "
          f"{statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")
    return 0


def _run(nodes: list[subprocess.Popen[str]], pid: int, seconds: float) -> tuple[float, float]:
    """Let these nodes write; rows a second, and µs of CPU for a row."""
    before = _cpu_s(nodes, pid)
    for node in nodes:
        assert node.stdin is not None
        print(seconds, file=node.stdin, flush=True)
    rates, written = 0.0, 0
    for node in nodes:
        assert node.stdout is not None
        count_text, took_text = node.stdout.readline().split()
        written += int(count_text)
        rates += int(count_text) / float(took_text)
    return rates, (_cpu_s(nodes, pid) - before) / written * _US


def _cpu_s(nodes: list[subprocess.Popen[str]], pid: int) -> float:
    threads = [
        int((task / "schedstat").read_text().split()[0]) / 1e9
        for node in nodes for task in Path(f"/proc/{node.pid}/task").iterdir()
    ]
    return database.server_cpu_s(pid) + sum(threads)


@contextmanager
def _node(url: str, number: int, clients: int) -> Iterator[subprocess.Popen[str]]:
    """Start a node, and wait until it can write."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--be", str(number), "--url", url, "--clients", str(clients)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    with process:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("a node did not start")
        yield process
        process.stdin.close()


def _be_node(url: str, number: int, clients: int) -> None:
    """Write for as many seconds as each line of the input says."""
    manifest = rows.fixture()
    entity = manifest.by_name[_ENTITY]
    codec, body_of = EntityCodec(entity), rows.body_maker(entity)
    ids, numbers = RowIds(SystemClock(), SystemRandom()), count(1)
    backend = PostgresBackend(url, application=f"bench-{number}", is_dev=True)
    engine = backend.open_writer(manifest, compile_rules(manifest), SystemClock())
    changes = backend.changes(SystemClock(), SystemRandom(), _POLL_S)
    changes.begin()
    is_over = threading.Event()

    def follow() -> None:
        while not is_over.is_set():
            changes.receive(_POLL_S)

    relay = threading.Thread(target=follow)
    relay.start()
    print("ready", flush=True)
    for line in sys.stdin:
        written, began_s = 0, time.perf_counter()
        while (took_s := time.perf_counter() - began_s) < float(line):
            requests = []
            for client in range(clients):
                row_id = ids.new()
                row = codec.insert(body_of(next(numbers)), row_id)
                requests.append(
                    WriteRequest(client, InsertRow(_ENTITY, row_id, row.values, row.row_json))
                )
            result = engine.apply(requests)
            for reply in result.replies:
                if reply.error is not None:
                    raise reply.error.to_exception()
            if result.batch is not None:
                changes.hand_over(result.batch)
            written += clients
        print(written, took_s, flush=True)
    is_over.set()
    changes.wake()
    relay.join()
    changes.close()
    engine.close()


if __name__ == "__main__":
    sys.exit(main())
