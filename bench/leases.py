"""Leases of shards on PostgreSQL: what a heartbeat, a claim and a fenced save cost.

    python bench/leases.py [--url postgresql://…] [--shards 20000] [--repeats 5]

One node has claimed `--shards` rows of 500 bytes. A heartbeat renews the lease in the row of the
node. The other way, the end of the lease in the row of each shard, is measured beside it: one
UPDATE of all. Claims and saves go through the engine of the writer, in batches of one and of 64;
saves with and without a generation take turns. A figure is the median of its rounds. The tables are
in a schema of their own, which the program drops at the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import database

from pylon.bench import rows
from pylon.clock import SystemClock
from pylon.policy.rules import compile_rules
from pylon.storage.interface import WriteEngine
from pylon.storage.nodes import NodeFacts
from pylon.storage.ops import ClaimShard, PutShard, WriteOp, WriteRequest
from pylon.storage.postgres import registry
from pylon.storage.postgres.backend import PostgresBackend

_STATE: Final = bytes(500)
_LEASE: Final = "n1.1"
_NODE: Final = NodeFacts("n", "n1", ("shards",), "1", workers={"shards": 1})
_numbers = count(1)


def main() -> int:
    """Measure and print; exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    database.add_url(parser)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with (
        database.database(args.url) as url, psycopg.connect(url, autocommit=True) as conn,
    ):
        _measure(url, conn, args.shards, args.repeats)
    return 0


def _measure(url: str, conn: psycopg.Connection, shards: int, repeats: int) -> None:
    manifest = rows.fixture()
    backend = PostgresBackend(url, application="bench", is_dev=True)
    engine = backend.open_writer(manifest, compile_rules(manifest), SystemClock())
    link = psycopg.connect(url, autocommit=True)
    try:
        for text, values in (registry.register(_NODE), registry.take(_NODE, _LEASE)):
            link.execute(_with_marks(text), dict(_named(values)))  # type: ignore[call-overload]
        conn.execute(
            "INSERT INTO _pylon_shards (id, tick, data, saved_at, owner, lease, generation) "
            "SELECT 'sim:' || n, 1, %s, 0, 'n/1', %s, n FROM generate_series(1, %s) AS n",
            (_STATE, _LEASE, shards),
        )
        conn.execute("ALTER TABLE _pylon_shards ADD COLUMN lease_until TIMESTAMPTZ")
        conn.execute("ANALYZE _pylon_shards")
        renew, values = registry.renew(_NODE, _LEASE)
        one, each = _in_turns(repeats, [
            lambda: _execute(link, _with_marks(renew), dict(_named(values))),
            lambda: _execute(link, (
                "UPDATE _pylon_shards SET lease_until = clock_timestamp() + interval '10 s' "
                "WHERE owner = 'n/1' AND lease = %(p1)s"
            ), {"p1": _LEASE}),
        ])
        print(f"a heartbeat, {shards} shards: the row of the node {one:.2f} ms, "
              f"the rows of all shards {each:.1f} ms")
        for size in (1, 64):
            claim, plain, fenced = _in_turns(repeats, [
                lambda size=size: _claim(engine, size),
                lambda size=size: _save(engine, size, is_fenced=False),
                lambda size=size: _save(engine, size, is_fenced=True),
            ])
            print(f"batches of {size:2}, ms for each batch: claim {claim:.2f}, save {plain:.2f}, "
                  f"fenced save {fenced:.2f}", flush=True)
    finally:
        link.close()
        engine.close()


def _with_marks(text: str) -> str:
    for number in range(20, 0, -1):
        text = text.replace(f"${number}", f"%(p{number})s")
    return text


def _named(values: Sequence[object]) -> list[tuple[str, object]]:
    return [(f"p{number}", value) for number, value in enumerate(values, 1)]


def _execute(conn: psycopg.Connection, text: str, values: dict[str, object]) -> None:
    conn.execute(text, values)  # type: ignore[call-overload]


def _in_turns(repeats: int, ways: Sequence[Callable[[], None]]) -> list[float]:
    """Return the median of each way, in ms; the first round does not count."""
    figures: list[list[float]] = [[] for _ in ways]
    for repeat in range(repeats + 1):
        for found, way in zip(figures, ways, strict=True):
            began_s = time.perf_counter()
            way()
            if repeat:
                found.append((time.perf_counter() - began_s) * 1_000)
    return [statistics.median(found) for found in figures]


def _claim(engine: WriteEngine, size: int) -> None:
    _apply(engine, [ClaimShard(f"new:{next(_numbers)}", "n/1", _LEASE, "") for _ in range(size)])


def _save(engine: WriteEngine, size: int, *, is_fenced: bool) -> None:
    _apply(engine, [
        PutShard(f"sim:{n}", 2, _STATE, n if is_fenced else None) for n in range(1, size + 1)
    ])


def _apply(engine: WriteEngine, ops: Sequence[WriteOp]) -> None:
    result = engine.apply([WriteRequest(n, op) for n, op in enumerate(ops)])
    for reply in result.replies:
        if reply.error is not None:
            raise reply.error.to_exception()


if __name__ == "__main__":
    sys.exit(main())
