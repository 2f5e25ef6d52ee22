"""Run: measures every line of the table, in a new database in a temporary folder.

The hub's line comes from another process (`workers.ws.bench`), because the hub belongs to a worker,
and `pylon` imports no worker. Called by `pylonctl bench`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from pylon import __version__
from pylon import config as settings
from pylon.app import build_app
from pylon.auth_context import ADMIN
from pylon.bench import rows
from pylon.bench.measure import Measured, Step, measure
from pylon.bench.reads import Reads
from pylon.bench.table import BenchReport
from pylon.bench.writes import BATCH, Writes
from pylon.changelog.feed import Feed
from pylon.changelog.pull import build_delta
from pylon.changelog.tail import Tail
from pylon.clock import SystemClock, SystemRandom
from pylon.ids import RowIds
from pylon.manifest.model import Entity, Manifest
from pylon.manifest_loader import load_manifest
from pylon.storage.events import ChangeBatch
from pylon.storage.factory import open_store_at

ROWS: Final = 1_000
PULLED: Final = 100
_TAIL_BATCHES: Final = 200

Progress = Callable[[str], None]


def run(manifest_path: Path | None, budget_s: float, progress: Progress | None) -> BenchReport:
    """Measure each line for about `budget_s` seconds.

    Raises:
        ManifestInvalid: the user's manifest has errors.
    """
    manifest = rows.fixture() if manifest_path is None else load_manifest(manifest_path)
    manifest = rows.without_references(manifest)
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as folder:
        bench = _Bench(manifest, Path(folder) / "bench.db", budget_s, progress)
        try:
            measured = bench.measure_all()
        finally:
            bench.close()
    return BenchReport(
        version=__version__,
        python=platform.python_version(),
        sqlite=open_store_at(Path("app.db")).engine_version,
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        budget_s=budget_s,
        rows=tuple(measured),
    )


class _Bench:
    """One run: a write engine, a reader, and the rows of each entity."""

    def __init__(
        self, manifest: Manifest, path: Path, budget_s: float, progress: Progress | None
    ) -> None:
        self._manifest = manifest
        self._store = open_store_at(path)
        self._budget_s = budget_s
        self._progress = progress
        self._clock = SystemClock()
        self._app = build_app(settings.load({}).config, manifest)
        self._rules = self._app.rules
        self._engine = self._store.open_writer(manifest, self._rules, self._clock)
        self._reader = self._store.open_reader(manifest)
        self._bare = self._store.open_bare_reads()
        self._ids = RowIds(self._clock, SystemRandom())
        self._writes = {entity.name: self._writes_of(entity) for entity in manifest.entities}

    def _writes_of(self, entity: Entity) -> Writes:
        return Writes(entity, self._rules.for_entity(entity.name), self._engine, self._ids)

    def close(self) -> None:
        self._bare.close()
        self._reader.close()
        self._engine.close()

    def measure_all(self) -> list[Measured]:
        """Return the lines in the order of the table. Measure reads first, on 1,000 rows."""
        for writes in self._writes.values():
            writes.fill(ROWS)
        main = self._main_entity()
        reads = list(self._measure_reads(main))
        written = list(self._measure_writes(main))
        return [*written, *reads, *self._measure_changes(main), self._measure_hub()]

    def _main_entity(self) -> Entity:
        """Return the entity of most lines: one with a unique field, if any."""
        entities = self._manifest.entities
        return next((e for e in entities if rows.unique_field(e) is not None), entities[0])

    def _measure(self, name: str, step: Step, note: str = "") -> Measured:
        if self._progress is not None:
            self._progress(name)
        return measure(name, step, self._budget_s, self._clock, note)

    def _measure_writes(self, main: Entity) -> Iterator[Measured]:
        for name, writes in self._writes.items():
            count = len(writes.entity.fields)
            yield self._measure(f"insert, {count} fields ({name})", writes.insert())
        writes = self._writes[main.name]
        yield self._measure("update", writes.update())
        yield self._measure("delete + reinsert", writes.delete_and_reinsert())

    def _measure_reads(self, main: Entity) -> Iterator[Measured]:
        reads = Reads(
            main, self._rules.for_entity(main.name), self._reader, self._writes[main.name].row_ids
        )
        yield self._measure("get_by_id", reads.get())
        yield self._measure("bare apsw get", reads.bare_get(self._bare), "what get_by_id wraps")
        unique = rows.unique_field(main)
        if unique is None:
            yield Measured("lookup by unique field", None, "no entity has a unique field")
        else:
            value_of = rows.value_maker(unique, distinct=True)
            yield self._measure("lookup by unique field", reads.lookup(unique.name, value_of))
            yield self._measure(
                "bare apsw lookup", reads.bare_lookup(self._bare, unique.name, value_of),
                "what lookup wraps",
            )
        grouped = rows.grouped_field(main)
        if grouped is None:
            yield Measured("query equality", None, f"{main.name} has no field for it")
        else:
            value = rows.value_maker(grouped, distinct=False)(7)
            yield self._measure(
                "query equality", reads.query({grouped.name: value}),
                f"{main.name}.{grouped.name}, 10 of {ROWS} rows",
            )
        text = rows.text_field(main)
        if text is None:
            yield Measured("query $like", None, f"{main.name} has no text field")
        else:
            yield self._measure(
                "query $like", reads.query({text.name: {"$like": "0017"}}),
                f"{main.name}.{text.name}, a scan of {ROWS} rows",
            )
        yield self._measure(f"list {ROWS}", reads.list_rows(ROWS))
        yield self._measure_graph()

    def _measure_graph(self) -> Measured:
        """Measure a graph: the rows of an entity with a to-one relation, each with its target."""
        name = f"graph {ROWS}"
        for entity in self._manifest.entities:
            relation = rows.to_one_relation(entity)
            if relation is not None:
                writes = self._writes[entity.name]
                writes.set_references(relation.field, self._writes[relation.target].row_ids)
                rules = self._rules.for_entity(entity.name)
                reads = Reads(entity, rules, self._reader, writes.row_ids)
                return self._measure(
                    name, reads.graph(self._app, relation.name, ROWS),
                    f"{entity.name} including {relation.name}",
                )
        return Measured(name, None, "no entity has a to-one relation to follow")

    def _measure_changes(self, main: Entity) -> Iterator[Measured]:
        batch = self._writes[main.name].last_batch
        if batch is None:
            raise AssertionError("the writes above published changes")
        yield self._measure("change log append", _append(batch), f"in batches of {BATCH}")
        pool = self._store.open_readers(self._manifest, self._clock)
        try:
            feed = Feed(pool)
            newest = pool.point(lambda reader: reader.newest_events(PULLED + 1))
            since = newest[0].seq
            body = build_delta(feed, self._rules, ADMIN, since).body
            if len(json.loads(body)["changes"]) != PULLED:
                raise AssertionError(f"{PULLED} changes wanted")

            def pull() -> int:
                build_delta(feed, self._rules, ADMIN, since)
                return 1

            yield self._measure(f"pull({PULLED})", pull, f"{len(body)} bytes")
        finally:
            pool.close()

    def _measure_hub(self) -> Measured:
        name = "hub broadcast enqueue"
        if self._progress is not None:
            self._progress(name)
        process = subprocess.run(
            [sys.executable, "-m", "workers.ws.bench", str(self._budget_s)],
            capture_output=True, text=True, check=False, timeout=60 + 10 * self._budget_s,
        )
        if process.returncode != 0:
            return Measured(name, None, f"failed: {process.stderr.strip().splitlines()[-1:]}")
        result = json.loads(process.stdout)
        return Measured(name, result["ops_per_s"], result["note"])


def _append(batch: ChangeBatch) -> Step:
    """Return a step. Each op appends one event to the change log's tail in memory.

    The events exist beforehand. They are so many that the tail drops old ones. After the last one
    the step starts again with an empty tail.
    """
    batches = []
    seq = 0
    for _ in range(_TAIL_BATCHES):
        events = [replace(event, seq=seq + n) for n, event in enumerate(batch.events, start=1)]
        batches.append(ChangeBatch(seq, events))
        seq += len(events)
    tail = Tail()
    position = 0

    def step() -> int:
        nonlocal tail, position
        if position == len(batches):
            tail, position = Tail(), 0
        tail.append(batches[position])
        position += 1
        return len(batch.events)

    return step
