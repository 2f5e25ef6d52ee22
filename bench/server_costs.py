"""CPU of the PostgreSQL server: for a row beside an old snapshot, and for an event of a relay.

    python bench/server_costs.py [--url postgresql://…] [--only snapshot relay] [--snapshot-s 60]
                                 [--batch 16] [--relay-s 6]

*snapshot*: one writer inserts rows in batches of `--batch`, at a fixed rate. The figure is the CPU
time of all processes of the server for a row: without another transaction, then in each tenth of
the time for which another connection holds a snapshot open, as `pg_dump` does.
*relay*: a writer commits batches of 64 and relays of `--nodes` other nodes read them. The figure is
the CPU time of a relay's process in the server for an event, and the same for batches of 1 and
of 500.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import psycopg

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
_PARTS: Final = ("snapshot", "relay")
_BATCHES_PER_S: Final = 100
_SLICES: Final = 10
_CALM_S: Final = 8.0  # at the most
_US: Final = 1e6


def main() -> int:
    """Measure and print; exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    database.add_url(parser)
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--snapshot-s", type=float, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--nodes", type=int, default=2, help="that follow")
    parser.add_argument("--relay-s", type=float, default=6, help="for each size of a batch")
    args = parser.parse_args()
    with database.database(args.url) as url, _writer(url) as write:
        if "snapshot" in args.only:
            _measure_snapshot(url, write, args)
        if "relay" in args.only:
            _measure_relay(url, write, args)
    return 0


@contextmanager
def _writer(url: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that commits a batch of so many inserts."""
    manifest = rows.fixture()
    entity = manifest.by_name[_ENTITY]
    codec, body_of = EntityCodec(entity), rows.body_maker(entity)
    ids, numbers = RowIds(SystemClock(), SystemRandom()), count(1)
    backend = PostgresBackend(url, application="bench", is_dev=True)
    with closing(backend.open_writer(manifest, compile_rules(manifest), SystemClock())) as engine:

        def write(size: int) -> None:
            requests = []
            for number in range(size):
                row_id = ids.new()
                row = codec.insert(body_of(next(numbers)), row_id)
                op = InsertRow(_ENTITY, row_id, row.values, row.row_json)
                requests.append(WriteRequest(number, op))
            for reply in engine.apply(requests).replies:
                if reply.error is not None:
                    raise reply.error.to_exception()

        yield write


def _paced(write: Callable[[int], None], size: int, seconds: float) -> int:
    """Commit `_BATCHES_PER_S` batches a second; the number of rows."""
    began_s, batches = time.perf_counter(), 0
    while (passed_s := time.perf_counter() - began_s) < seconds:
        if batches > passed_s * _BATCHES_PER_S:
            time.sleep(batches / _BATCHES_PER_S - passed_s)
        write(size)
        batches += 1
    return batches * size


def _measure_snapshot(url: str, write: Callable[[int], None], args: argparse.Namespace) -> None:
    pid = database.server_pid(url)

    def cost_us(seconds: float) -> float:
        before_s = database.server_cpu_s(pid)
        written = _paced(write, args.batch, seconds)
        return (database.server_cpu_s(pid) - before_s) / written * _US

    calm_s = min(_CALM_S, args.snapshot_s)
    cost_us(calm_s / 4)  # statements are prepared, and the caches filled
    calm_us = cost_us(calm_s)
    with psycopg.connect(url) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM pg_class")
        held_us = [cost_us(args.snapshot_s / _SLICES) for _ in range(_SLICES)]
    print("server CPU of a row, us: without a snapshot", f"{calm_us:.1f}; with one:",
          " ".join(f"{each:.1f}" for each in held_us))
    print(f"the last three tenths to the calm time: {statistics.mean(held_us[-3:]) / calm_us:.2f}",
          flush=True)


def _measure_relay(url: str, write: Callable[[int], None], args: argparse.Namespace) -> None:
    with ExitStack() as stack:
        relays = [stack.enter_context(_relay(url, number)) for number in range(args.nodes)]
        for size in (64, 1, 500):
            before = [(database.process_cpu_s(pid), events()) for pid, events in relays]
            _paced(write, size, args.relay_s)
            time.sleep(0.5)  # what was committed last is read
            costs_us = [
                (database.process_cpu_s(pid) - cpu_s) / (events() - begin) * _US
                for (pid, events), (cpu_s, begin) in zip(relays, before, strict=True)
            ]
            print(f"relay, batches of {size:3}: server CPU for an event and node, us:",
                  " ".join(f"{each:.2f}" for each in costs_us), flush=True)


@contextmanager
def _relay(url: str, number: int) -> Iterator[tuple[int, Callable[[], int]]]:
    """Follow the changes; the pid of its process in the server, and how many events it had."""
    name = f"bench-{number}"
    backend = PostgresBackend(url, application=name, is_dev=True)
    changes = backend.changes(SystemClock(), SystemRandom(), 1.0)
    changes.begin()
    is_over, found = threading.Event(), [0]

    def follow() -> None:
        while not is_over.is_set():
            found[0] += sum(len(batch.events) for batch in changes.receive(1.0).batches)

    thread = threading.Thread(target=follow)
    thread.start()
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s", (f"pylon-relay/{name}",)
        ).fetchone()
    assert row is not None
    try:
        yield int(row[0]), lambda: found[0]
    finally:
        is_over.set()
        changes.wake()
        thread.join()
        changes.close()


if __name__ == "__main__":
    sys.exit(main())
