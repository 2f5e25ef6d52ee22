"""Reads of PostgreSQL: CPU here and in the server, for each read of a reader and its alternatives.

Run: python -m bench.postgres_reads URL [rows]. It makes the table `BenchItem` in the schema of the
URL, and drops it. The server must be on this machine: the CPU of its process is read from /proc.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg

from pylon.clock import SystemClock
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest
from pylon.query.conditions import guarded
from pylon.query.parse import parse_where
from pylon.query.predicate import Column, Compare, Literal
from pylon.query.rows import Query
from pylon.storage.postgres.dialect import numbered
from pylon.storage.postgres.functions import FUNCTIONS
from pylon.storage.postgres.reader import PostgresReader
from pylon.storage.postgres.schema import ddl
from pylon.storage.postgres.wire import BlockingSession

ITEM: Final = Entity(
    "BenchItem",
    (
        Field("owner", FieldType.STRING, False, False),
        Field("slug", FieldType.STRING, False, True),
        Field("rank", FieldType.INT, False, False), Field("open", FieldType.BOOL, False, False),
        Field("body", FieldType.STRING, False, False),
    ),
    (Index("by_owner_rank", ("owner", "rank"), False), Index("by_rank", ("rank",), False)),
)
MANIFEST: Final = Manifest("bench", "1", (ITEM,))
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
RUN_S: Final = 1.0


def fill(session: BlockingSession, rows: int) -> None:
    """Make the table; a row's JSON has about 300 bytes."""
    session.execute_script('DROP TABLE IF EXISTS "BenchItem"')
    for text in (*FUNCTIONS, ddl.create_table(ITEM)):
        session.execute_script(text)
    session.execute(
        'INSERT INTO "BenchItem" (id, owner, slug, rank, open, body, _json, _seq) '
        "SELECT lpad(to_hex(n), 40, '0'), 'u' || n % 1000, 'slug-' || n, n, n % 2 = 0, "
        "repeat('x', 120), '{\"id\":\"' || lpad(to_hex(n), 40, '0') || '\",\"owner\":\"u' || "
        "n % 1000 || '\",\"slug\":\"slug-' || n || '\",\"rank\":' || n || ',\"open\":' || "
        "(n % 2 = 0) || ',\"body\":\"' || repeat('x', 120) || '\"}', n "
        "FROM generate_series(1, $1) AS n", (rows,)
    )
    for index in ITEM.indexes:
        session.execute_script(ddl.create_manifest_index(ITEM, index))
    session.execute_script('VACUUM ANALYZE "BenchItem"')


def server_cpu_s(pid: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def measure(pid: int, read: Callable[[int], Any]) -> tuple[float, float]:
    """Return microseconds of CPU for one read: here, and in the server."""
    for number in range(50):
        read(number)
    count, begin = 0, time.perf_counter()
    here, there = time.process_time(), server_cpu_s(pid)
    while time.perf_counter() - begin < RUN_S or server_cpu_s(pid) - there < 20 * TICK_S:
        for _ in range(20):
            read(count)
            count += 1
    return (
        (time.process_time() - here) / count * 1e6, (server_cpu_s(pid) - there) / count * 1e6
    )


def main() -> None:
    """Measure all reads, and print a table."""
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    session = BlockingSession(psycopg.connect(sys.argv[1], autocommit=True))
    session.execute("SELECT set_config('max_parallel_workers_per_gather', '0', false)")
    session.execute("SELECT set_config('jit', 'off', false)")
    fill(session, rows)
    pid = int(session.execute("SELECT pg_backend_pid()").get_value(0, 0) or 0)
    reader = PostgresReader(session, MANIFEST, SystemClock())
    mine = Compare("=", Column("open"), Literal(True))
    by_rank = parse_where(ITEM, {"rank": {"$gt": 5}})

    def plain(limit: int, form: str) -> Callable[[int], Any]:
        inner = 'SELECT _json AS _j FROM "BenchItem" WHERE "rank" > ? ORDER BY "rank" ' \
            "NULLS FIRST, \"id\" LIMIT ?"
        text = numbered(form.format(inner))

        def read(number: int) -> Any:
            result = session.execute(text, (number, limit))
            if result.nfields == 1 and result.ntuples > 1:
                value = result.get_value
                return [value(row, 0) for row in range(result.ntuples)]
            return result.get_value(0, 0)

        return read

    reads: dict[str, Callable[[int], Any]] = {
        "get": lambda n: reader.get("BenchItem", f"{n % rows + 1:040x}"),
        "get_version, policy": lambda n: reader.get_version(
            "BenchItem", f"{n % rows + 1:040x}", mine
        ),
        "lookup, unique": lambda n: reader.lookup("BenchItem", "slug", f"slug-{n % rows + 1}"),
        "lookup, unique, policy": lambda n: reader.lookup(
            "BenchItem", "slug", f"slug-{n % rows + 1}", mine
        ),
        "page of 20 by equality": lambda n: reader.page("BenchItem", Query(
            parse_where(ITEM, {"owner": f"u{n % 1000}"}), 20, order=(("rank", False),)
        )),
        "page of 20 by equality, policy": lambda n: reader.page("BenchItem", Query(
            guarded(mine, parse_where(ITEM, {"owner": f"u{n % 1000}"})), 20,
            order=(("rank", False),)
        )),
        "count by equality": lambda n: reader.count(
            "BenchItem", parse_where(ITEM, {"owner": f"u{n % 1000}"})
        ),
        "SELECT 1": lambda _: session.execute("SELECT 1"),
    }
    for limit in (100, 1_000):
        reads |= {
            f"rows, {limit}": lambda n, k=limit: reader.rows("BenchItem", Query(
                by_rank, k, order=(("rank", False),)
            )),
            f"page, {limit}": lambda n, k=limit: reader.page("BenchItem", Query(
                by_rank, k, order=(("rank", False),)
            )),
            f"{limit}: row by row": plain(limit, "{}"),
            f"{limit}: string_agg alone": plain(
                limit, "SELECT string_agg(_j, ',') FROM ({}) AS _p"
            ),
            f"{limit}: string_agg and sum": plain(
                limit, "SELECT string_agg(_j, ','), sum(octet_length(_j)) FROM ({}) AS _p"
            ),
        }
    print("| read | here, us | server, us |\n|---|---|---|")
    for name, read in reads.items():
        here, there = measure(pid, read)
        print(f"| {name} | {here:.0f} | {there:.0f} |", flush=True)
    session.execute_script('DROP TABLE "BenchItem"')


if __name__ == "__main__":
    main()
