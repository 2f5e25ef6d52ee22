"""Schema changes beside nodes that serve: nobody waits long, a killed start is continued, and two
starts at once do the work of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import orjson
import psycopg
import pytest

from pylon.clock import SystemClock
from pylon.errors import SchemaRefused, StartDelayed
from pylon.manifest.model import Field, Index
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import Step
from pylon.storage.postgres.locks import WRITER, lock_key
from pylon.storage.postgres.schema import apply, backfill, online
from pylon.storage.postgres.schema import contract as contract_module
from pylon.storage.postgres.schema.apply import prepare_store
from pylon.storage.postgres.schema.contract import finish_contract
from pylon.storage.postgres.schema.pending import count_pending, finish_pending
from tests.support.schema_apps import (
    APP,
    APP_BEFORE,
    ITEM,
    TEXT,
    WANTED,
    WIDER,
    check_keys,
    check_rows,
    fill,
    register,
)
from tests.support.schema_stage import SchemaStage

ROWS: Final = 30_000
LONGEST_S: Final = 1.0  # that a statement of others may wait, beside what it takes without a start
LONGEST_SHARE: Final = 1 / 3  # of the change that it may wait: a busy machine makes both longer


@pytest.fixture
def stage(postgres_url: str) -> Iterator[SchemaStage]:
    made = SchemaStage(postgres_url)
    yield made
    made.close()


class Load:
    """Readers and a writer as other nodes have them. `longest_s`: of each kind of statement."""

    def __init__(self, stage: SchemaStage) -> None:
        self.longest_s = {"read": 0.0, "write": 0.0}
        self.counts = {"read": 0, "write": 0}
        self.failures: list[str] = []
        self.took_s = 0.0
        self._stage = stage
        self._is_over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Run the load while the block runs."""
        threads = [threading.Thread(target=self._run, args=(kind, number))
                   for kind in ("read", "write") for number in (1, 2)]
        for thread in threads:
            thread.start()
        begun_s = time.monotonic()
        try:
            yield self
        finally:
            self.took_s = time.monotonic() - begun_s
            self._is_over.set()
            for thread in threads:
                thread.join(30)

    def check(self, calm: Load) -> None:
        """Fail if a statement failed, or waited for a large part of the change.

        Args:
            calm: the same load without a change.
        """
        print(f"alone: {calm.longest_s}, beside {self.took_s:.1f} s of a change: {self.longest_s}, "
              f"{self.counts}")
        assert self.failures == [] and min(self.counts.values()) > 50
        allowed_s = max(LONGEST_S, LONGEST_SHARE * self.took_s)
        for kind, longest_s in self.longest_s.items():
            assert longest_s < allowed_s + calm.longest_s[kind], kind

    def _run(self, kind: str, number: int) -> None:
        session = self._stage.open()
        key = lock_key(session, WRITER)
        turn = 0
        while not self._is_over.is_set():
            turn += 1
            row_id = f"{(turn * 7919 * number) % ROWS + 1:08}"
            started_s = time.monotonic()
            try:
                if kind == "read":
                    session.execute('SELECT _json FROM "Item" WHERE id = $1', (row_id,))
                else:
                    session.pipeline([
                        ("BEGIN", ()), ("SELECT pg_advisory_xact_lock($1)", (key,)),
                        ('UPDATE "Item" SET rank = rank + 1, _seq = _seq + 1 WHERE id = $1',
                         (row_id,)),
                        ("COMMIT", ()),
                    ])
            except psycopg.Error as error:
                self.failures.append(str(error))
                return
            self.longest_s[kind] = max(self.longest_s[kind], time.monotonic() - started_s)
            self.counts[kind] += 1
            time.sleep(0.002)
        session.close()


def test_nobody_waits_long_while_a_start_changes_a_table(stage: SchemaStage) -> None:
    fill(stage, ROWS)
    calm = Load(stage)
    with calm.running():
        time.sleep(1.5)
    load = Load(stage)
    with load.running():
        stage.start(WANTED)
    load.check(calm)
    assert stage.left(WANTED) == []
    (row,) = stage.ask("SELECT count(*), count(_fold_title), count(_words), "
                       "count(*) FILTER (WHERE state = 'new') FROM \"Item\"")
    assert row == (str(ROWS),) * 4
    assert stage.ask("SELECT id FROM \"Item\" WHERE _json::json ->> 'state' IS DISTINCT FROM 'new' "
                     "OR (_json::json -> 'note') IS NULL") == []


def test_nobody_waits_long_while_versions_are_mixed_and_no_longer(stage: SchemaStage) -> None:
    """Triggers are made and dropped, and all rows are written for the manifest that is left."""
    fill(stage, ROWS)
    register(stage, "old", APP_BEFORE)
    calm = Load(stage)
    with calm.running():
        time.sleep(1.5)
    load = Load(stage)
    session = stage.open()
    with load.running():
        stage.start(WIDER)
        stage.ask("DELETE FROM _pylon_nodes")
        assert finish_pending(session, APP_BEFORE) == 0
    session.close()
    load.check(calm)
    check_keys(stage, ROWS, ("id", "rank", "title"))


def test_nobody_waits_long_while_an_upgrade_is_finished(stage: SchemaStage) -> None:
    """NOT NULL for a column of a large table, and a column that is dropped."""
    fill(stage, ROWS)
    narrow = replace(APP, text="narrow", entities=(replace(
        ITEM, fields=(replace(ITEM.fields[1], optional=False),)
    ),))
    calm = Load(stage)
    with calm.running():
        time.sleep(1.5)
    load = Load(stage)
    session = stage.open()
    with load.running():
        stage.start(narrow)
        done = finish_contract(
            session, narrow, MigrationOptions(), SystemClock(), allow_destructive=False
        )
        drop = MigrationOptions(drop_fields=frozenset({("item", "title")}))
        done += finish_contract(session, narrow, drop, SystemClock(), allow_destructive=True)
    session.close()
    assert [step.render() for step in done] == [
        "alter_field Item.rank: NOT NULL", "alter_field Item.title: may be null",
        "remove_field Item.title: its values are removed",
    ]
    load.check(calm)


def test_a_null_that_comes_while_a_column_is_checked_is_no_harm(stage: SchemaStage) -> None:
    fill(stage, 10)
    must = replace(APP, entities=(replace(
        ITEM, fields=(ITEM.fields[0], replace(ITEM.fields[1], optional=False))
    ),))
    contract = contract_module._Contract(stage.session)
    stage.ask('UPDATE "Item" SET rank = NULL WHERE id = $1', "00000003")
    with pytest.raises(psycopg.errors.CheckViolation):
        contract.run(Step("alter_field", "Item", "rank", detail="NOT NULL"))
    assert stage.ask("SELECT conname FROM pg_constraint WHERE conname ~ '^_pylon_required'") == []
    stage.ask('UPDATE "Item" SET rank = 0 WHERE id = $1', "00000003")
    # A killed run has left its check; the next one takes it up.
    stage.ask('ALTER TABLE "Item" ADD CONSTRAINT _pylon_required_rank '
              'CHECK (rank IS NOT NULL) NOT VALID')
    done = finish_contract(
        stage.session, must, MigrationOptions(), SystemClock(), allow_destructive=False
    )
    assert [step.name for step in done] == ["rank"]


def test_a_long_transaction_delays_the_change_and_not_the_readers(stage: SchemaStage) -> None:
    fill(stage, 100)
    blocker = stage.open()
    blocker.execute("BEGIN")
    blocker.execute('SELECT count(*) FROM "Item"')  # has the table's weakest lock
    starter = threading.Thread(target=lambda: stage.start(WANTED))
    starter.start()
    longest_s, until_s = 0.0, time.monotonic() + 2.5
    while time.monotonic() < until_s:
        started_s = time.monotonic()
        stage.session.execute('SELECT _json FROM "Item" WHERE id = $1', ("00000001",))
        longest_s = max(longest_s, time.monotonic() - started_s)
        time.sleep(0.005)
    assert starter.is_alive()
    assert longest_s < online.LOCK_WAIT_MS / 1_000 + LONGEST_S
    blocker.execute("COMMIT")
    starter.join(30)
    assert not starter.is_alive() and stage.left(WANTED) == []
    blocker.close()


def test_a_table_that_stays_locked_delays_the_start(
    stage: SchemaStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(stage, 10)
    monkeypatch.setattr(online, "RETRY_S", 0.5)
    blocker = stage.open()
    blocker.execute("BEGIN")
    blocker.execute('LOCK TABLE "Item" IN ACCESS SHARE MODE')
    wanted = replace(APP, entities=(replace(ITEM, fields=(
        *ITEM.fields, Field("note", TEXT, True, False)
    )),))
    with pytest.raises(StartDelayed, match=r"Item is locked by others: pylon-test/"):
        stage.start(wanted)
    blocker.execute("ROLLBACK")
    blocker.close()
    stage.start(wanted)
    assert stage.left(wanted) == []


STARTER = textwrap.dedent("""
    import sys, time
    from pylon.clock import SystemClock
    from pylon.storage.postgres.connect import open_session
    from pylon.storage.postgres.schema.apply import prepare_store
    from tests.test_postgres_schema_online import WANTED
    session = open_session(sys.argv[1], "starter", "", SystemClock())
    print("go", flush=True)
    prepare_store(session, WANTED, SystemClock())
    print("done", flush=True)
""")


def begin_start(stage: SchemaStage) -> subprocess.Popen[str]:
    """Begin a start in a process of its own; return when it is about to begin."""
    started = subprocess.Popen(
        [sys.executable, "-c", STARTER, stage.url], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert started.stdout is not None and started.stdout.readline() == "go\n"
    return started


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.45, 0.7])
def test_a_start_that_is_killed_is_continued(
    stage: SchemaStage, processes: None, share: float
) -> None:
    fill(stage, 8_000)
    whole_s = 2.0
    started = begin_start(stage)
    time.sleep(whole_s * share)
    started.send_signal(signal.SIGKILL)
    started.communicate(timeout=10)
    wait_for_end(stage)
    stage.start(WANTED)
    assert stage.left(WANTED) == []
    check_rows(stage, 8_000)
    assert stage.ask("SELECT indexrelid FROM pg_index WHERE NOT indisvalid") == []
    assert stage.ask("SELECT key FROM _pylon_meta WHERE key ~ '^(backfill|unfinished)'") == []


def wait_for_end(stage: SchemaStage) -> None:
    """Wait until the server has noticed that a starter is gone."""
    until_s = time.monotonic() + 20
    while stage.ask("SELECT 1 FROM pg_stat_activity WHERE application_name ~ '^pylon-starter'"):
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_two_starts_at_once_do_the_work_of_one(stage: SchemaStage, processes: None) -> None:
    fill(stage, 2_000)
    started = [begin_start(stage) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert outputs == ["done\n", "done\n"]
    assert stage.left(WANTED) == []
    check_rows(stage, 2_000)
    counts = [entry["operation_count"] for entry in stage.manager.history(2)]
    assert sorted(counts)[0] == 0 and sorted(counts)[1] > 4


def test_two_starts_at_once_in_an_empty_schema(stage: SchemaStage, processes: None) -> None:
    outputs = [p.communicate(timeout=60)[0] for p in [begin_start(stage) for _ in range(3)]]
    assert outputs == ["done\n"] * 3
    assert len(stage.ask("SELECT key FROM _pylon_meta WHERE key = 'lineage'")) == 1


def test_an_index_that_was_not_built_to_its_end_is_made_again(stage: SchemaStage) -> None:
    fill(stage, 10)
    stage.ask("UPDATE \"Item\" SET title = 'same' WHERE id < '00000003'")
    with pytest.raises(psycopg.errors.UniqueViolation):
        stage.session.execute_script(
            'CREATE UNIQUE INDEX CONCURRENTLY "Item_title_unique" ON "Item" (title NULLS FIRST)'
        )
    assert len(stage.ask("SELECT 1 FROM pg_index WHERE NOT indisvalid")) == 1
    with pytest.raises(SchemaRefused, match="rows share 'same'"):
        stage.start(WANTED)
    stage.ask("UPDATE \"Item\" SET title = id")
    stage.start(WANTED)
    assert stage.left(WANTED) == []
    assert stage.ask("SELECT 1 FROM pg_index WHERE NOT indisvalid") == []


def test_rows_that_break_an_index_while_it_is_built_refuse_the_start(stage: SchemaStage) -> None:
    fill(stage, 10)
    steps = online.OnlineSteps(stage.session)
    unique = replace(APP, entities=(replace(
        ITEM, fields=(replace(ITEM.fields[0], unique=True), ITEM.fields[1])
    ),))
    (step,) = stage.manager.plan(unique, MigrationOptions()).steps
    stage.ask("UPDATE \"Item\" SET title = 'same' WHERE id < '00000003'")
    with pytest.raises(SchemaRefused, match=r"UNIQUE constraint failed: Key \(title\)=\(same\)"):
        steps.run(step)
    assert stage.ask("SELECT 1 FROM pg_index WHERE NOT indisvalid") == []


def test_plain_indexes_of_a_large_table_wait_until_the_node_serves(
    stage: SchemaStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(stage, 200)
    monkeypatch.setattr(apply, "ROWS_AT_START", 100)
    plain = replace(APP, entities=(replace(ITEM, indexes=(
        Index("by_rank", ("rank",), False), Index("one", ("rank",), True),
    )),))
    stage.start(plain)
    assert stage.left(plain) == ["add_index Item.Item_by_rank"]
    session = stage.open()
    assert count_pending(session, plain) == 1
    assert finish_pending(session, plain) == 0
    assert count_pending(session, plain) == 0 and stage.left(plain) == []
    session.close()
    stage.start(APP)  # the index is Pylon's own, so it leaves with the manifest
    assert stage.ask("SELECT 1 FROM pg_indexes WHERE indexname = 'Item_by_rank'") == []


def test_steps_of_a_backfill_adapt_to_the_time_they_take(stage: SchemaStage) -> None:
    fill(stage, 3_000)
    stage.ask("UPDATE _pylon_change_seq SET value = 10")
    sizes = []

    class SlowClock:
        """Each reading is 20 ms later for each 100 rows that were written meanwhile."""

        def wall_ns(self) -> int:
            return 0

        def monotonic_s(self) -> float:
            ((count,),) = stage.ask(
                "SELECT count(*) FROM \"Item\" WHERE _seq IS DISTINCT FROM 1"
            )
            sizes.append(int(count or 0))
            return int(count or 0) / 100 * 0.02

    session = stage.open()
    rows = backfill.backfill(
        session, ITEM, backfill.Goal("test", has_json=True), SlowClock()
    )
    session.close()
    assert rows == 3_000
    steps = [after - before for before, after in zip(sizes[::2], sizes[1::2], strict=False)]
    assert steps[0] == 50 and max(steps) <= 400, steps
    versions = stage.ask("SELECT DISTINCT _seq FROM \"Item\"")
    assert len(versions) == len(steps) + 1, "one for each step; the last one is not measured"
    ((head,),) = stage.ask("SELECT value FROM _pylon_change_seq")
    assert int(head or 0) == max(int(v or 0) for (v,) in versions)
    assert orjson.loads(str(stage.ask('SELECT _json FROM "Item" LIMIT 1')[0][0]))["title"]


def test_a_session_has_its_limits_again_after_a_refused_start(stage: SchemaStage) -> None:
    fill(stage, 10)
    session = stage.open()
    must = replace(APP, entities=(replace(ITEM, fields=(
        *ITEM.fields, Field("must", TEXT, False, False)
    )),))
    with pytest.raises(SchemaRefused):
        prepare_store(session, must, SystemClock())
    assert session.execute("SHOW lock_timeout").get_value(0, 0) == b"5s"
    assert not session.is_in_transaction
    prepare_store(stage.session, APP, SystemClock(), wait_s=0.5)  # the lock is free
    session.close()
