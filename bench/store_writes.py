"""Inserts by the engines of both stores, without HTTP, beside a bare loop of libpq.

    python bench/store_writes.py [--url postgresql://…] [--batches 1 10 64 100] [--rows 3000]
                                 [--repeats 5] [--folder DIR]

Each round inserts `--rows` rows in batches of one size: by the engine on PostgreSQL, by a loop over
libpq that sends the statements of such a batch one for each row (BEGIN, the lock, the seqs, a row
and an event each, NOTIFY, COMMIT, in one flush), and by the engine on SQLite with durability `full`
and `normal`. The ways alternate, since the speed of a machine changes from minute to minute; a
figure is the median of its rounds, and a ratio that of the ratios of each round. CPU is that of
this process, and of the server's process that carried the statements out. `--folder` holds the
SQLite files: on the disk that the server uses, or in memory if the server's is. Without `--url` the
server is the tool's own, and all files are in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import psycopg
from psycopg import pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import database

from pylon.bench import rows
from pylon.clock import SystemClock, SystemRandom
from pylon.ids import RowIds
from pylon.policy.rules import compile_rules
from pylon.storage.interface import WriteEngine
from pylon.storage.ops import InsertRow, WriteRequest
from pylon.storage.postgres.backend import PostgresBackend
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.values import EntityCodec

_ENTITY: Final = "Three"
_US: Final = 1e6
_ENGINE: Final = "postgres engine"
_BARE: Final = "bare libpq"
_FULL: Final = "sqlite full"
_NORMAL: Final = "sqlite normal"

Write = Callable[[list[InsertRow]], None]


class Way:
    """One way to write. `server_pid`: of the server's process, 0 if there is none."""

    def __init__(self, write: Write, server_pid: Callable[[], int]) -> None:
        self.write = write
        self.server_pid = server_pid


def main() -> int:
    """Run all rounds and print the medians; exit code 0."""
    args = _arguments()
    manifest = rows.fixture()
    entity = manifest.by_name[_ENTITY]
    codec, body_of = EntityCodec(entity), rows.body_maker(entity)
    ids, numbers = RowIds(SystemClock(), SystemRandom()), count(1)

    def make(size: int) -> list[InsertRow]:
        made = []
        for _ in range(size):
            row_id = ids.new()
            encoded = codec.insert(body_of(next(numbers)), row_id)
            made.append(InsertRow(_ENTITY, row_id, encoded.values, encoded.row_json))
        return made

    with database.database(args.url) as url, _ways(url, args.folder) as ways:
        for size in args.batches:
            figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
            batches = max(1, args.rows // size)
            for repeat in range(args.repeats + 1):
                for name, way in ways.items():
                    found = _measure(way, [make(size) for _ in range(batches)])
                    if repeat:  # the first round prepares statements
                        figures[name].append(found)
            _report(size, figures)
    return 0


def _measure(way: Way, batches: list[list[InsertRow]]) -> tuple[float, float, float]:
    """Return rows a second, and µs of CPU for a row here and in the server."""
    total = sum(map(len, batches))
    pid = way.server_pid()
    server_s = database.process_cpu_s(pid)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for batch in batches:
        way.write(batch)
    cpu_s, took_s = time.process_time() - cpu_s, time.perf_counter() - began_s
    server_s = database.process_cpu_s(pid) - server_s
    return total / took_s, cpu_s / total * _US, server_s / total * _US


def _report(size: int, figures: dict[str, list[tuple[float, float, float]]]) -> None:
    medians = {
        name: tuple(statistics.median(column) for column in zip(*found, strict=True))
        for name, found in figures.items()
    }
    for name, (rate, here_us, server_us) in medians.items():
        print(f"batch {size:4}  {name:16} {rate:9.0f} rows/s  {here_us:6.1f} us here  "
              f"{server_us:6.1f} us server")
    ratios = {
        name: statistics.median(
            ours[0] / other[0] for ours, other in zip(figures[_ENGINE], found, strict=True)
        )
        for name, found in figures.items()
    }
    print(f"batch {size:4}  of bare {ratios[_BARE]:.2f}  of sqlite full {ratios[_FULL]:.2f}  "
          f"of sqlite normal {ratios[_NORMAL]:.2f}", flush=True)


@contextmanager
def _ways(url: str, folder: str | None) -> Iterator[dict[str, Way]]:
    """Yield the ways, by name, on empty tables."""
    manifest = rows.fixture()
    rules = compile_rules(manifest)
    engines: list[WriteEngine] = []
    bare: BareWriter | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="bench-writes-", dir=folder) as place:
            backend = PostgresBackend(url, application="bench", is_dev=True)
            engines.append(backend.open_writer(manifest, rules, SystemClock()))
            bare = BareWriter(url)
            for durability in ("full", "normal"):
                engines.append(SqliteEngine.open(
                    Path(place) / f"{durability}.db", manifest, rules, SystemClock(), durability
                ))
            postgres, full, normal = engines
            pid = _find_writer(url)
            yield {
                _ENGINE: Way(_by_engine(postgres), lambda: pid),
                _BARE: Way(bare.write, lambda: bare.pid),
                _FULL: Way(_by_engine(full), lambda: 0),
                _NORMAL: Way(_by_engine(normal), lambda: 0),
            }
    finally:
        for engine in engines:
            engine.close()
        if bare is not None:
            bare.close()


def _by_engine(engine: WriteEngine) -> Write:
    def write(batch: list[InsertRow]) -> None:
        result = engine.apply([WriteRequest(n, op) for n, op in enumerate(batch)])
        for reply in result.replies:
            if reply.error is not None:
                raise reply.error.to_exception()

    return write


class BareWriter:
    """The statements of a batch, one for each row and event, over libpq alone."""

    _ROW: Final = (
        b"INSERT INTO \"Three\" (_seq, id, title, count, done, _json) "
        b"VALUES (currval('_pylon_seq') + $1, $2, $3, $4, $5, $6)"
    )
    _EVENT: Final = (
        b"INSERT INTO _pylon_change_log (seq, entity, row_id, kind, data, prev_data, timestamp) "
        b"VALUES (currval('_pylon_seq') + $1, $2, $3, 'insert', $4, NULL, $5)"
    )
    _TAKE: Final = (
        b"SELECT setval('_pylon_seq', greatest((SELECT max(seq) FROM _pylon_change_log), 0) + $1)"
    )
    _STATEMENTS: Final = {
        b"begin": b"BEGIN", b"lock": b"SELECT pg_advisory_xact_lock($1)", b"take": _TAKE,
        b"row": _ROW, b"event": _EVENT, b"notify": b"SELECT pg_notify('bench', $1)",
        b"commit": b"COMMIT",
    }

    def __init__(self, url: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True)
        self._pgconn = self._conn.pgconn
        self.pid = self._pgconn.backend_pid
        for name, text in self._STATEMENTS.items():
            self._pgconn.prepare(name, text)

    def write(self, batch: list[InsertRow]) -> None:
        pgconn = self._pgconn
        send = pgconn.send_query_prepared
        pgconn.enter_pipeline_mode()
        now = b"%d" % time.time()
        last = len(batch)
        send(b"begin", None)
        send(b"lock", [b"1"])
        send(b"take", [b"%d" % last])
        for n, op in enumerate(batch, 1):
            title, number, done = op.values
            send(b"row", [b"%d" % (n - last), op.row_id.encode(), str(title).encode(),
                          str(number).encode(), b"t" if done else b"f", op.row_json])
        for n, op in enumerate(batch, 1):
            send(b"event", [b"%d" % (n - last), b"Three", op.row_id.encode(), op.row_json, now])
        send(b"notify", [b"x"])
        send(b"commit", None)
        pgconn.pipeline_sync()
        pgconn.flush()
        while True:
            result = pgconn.get_result()
            if result is None:
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
                raise RuntimeError(result.error_message.decode())
        pgconn.exit_pipeline_mode()

    def close(self) -> None:
        self._conn.close()


def _find_writer(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as conn:
        found = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'pylon-writer/bench' "
            "ORDER BY backend_start DESC LIMIT 1"
        ).fetchone()
    return 0 if found is None else int(found[0])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    database.add_url(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 64, 100])
    parser.add_argument("--rows", type=int, default=3_000, help="of a round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="of the SQLite files")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
