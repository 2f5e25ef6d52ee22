"""Migration: all data of one store into another, verified, resumable, and usable afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import orjson
import psycopg
import pytest

from pylon import limits
from pylon.clock import SystemClock
from pylon.errors import MigrationFailed, MigrationRefused, PylonError, SchemaRefused
from pylon.migrate.move import Move
from pylon.migrate.survey import survey
from pylon.policy.rules import compile_rules
from pylon.storage.postgres.backend import PostgresBackend
from pylon.storage.postgres.connect import open_session
from pylon.storage.postgres.schema.apply import prepare_store
from pylon.storage.postgres.transfer.manager import PostgresTransfer
from pylon.storage.sqlite.transfer.manager import SqliteTransfer
from tests.support import moved_store as kit
from tests.support.document_store import client_of, push
from tests.support.documents import LoroClient
from tests.support.storage import (
    MANIFEST,
    TASK,
    apply,
    insert,
    open_engine,
    open_reader,
    row_id,
    rows_of,
    task,
    update,
)

ROOT = Path(__file__).parent.parent
MOST_KILLS = 100
BIG_ROWS = int(os.environ.get("PYLON_TEST_MOVED_ROWS", "20000"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A SQLite database with data of every kind."""
    kit.fill(tmp_path / "a.db")
    return tmp_path / "a.db"


def execute(url: str, *statements: str) -> list[Any]:
    """Execute statements; the rows of the last one."""
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            found = conn.execute(statement)
        return found.fetchall() if found.description else []


def test_every_table_is_the_same_at_the_other_end_and_back(
    path: Path, tmp_path: Path, postgres_url: str
) -> None:
    out, back = PostgresTransfer(postgres_url), SqliteTransfer(tmp_path / "b.db")
    before = kit.all_rows(SqliteTransfer(path))
    assert [name for name, rows in before.items() if not rows] == []
    reports = kit.move(SqliteTransfer(path), out)
    moved = kit.all_rows(out)
    assert moved | {"_pylon_change_seq": []} == before | {"_pylon_change_seq": []}
    again = kit.move(out, back)
    assert kit.all_rows(back) == moved
    unlike = {r.table for r, other in zip(reports, again, strict=True) if r != other}
    assert unlike <= {"_pylon_change_seq"}
    assert not execute(postgres_url, "SELECT 1 FROM pg_class WHERE relname LIKE '_pylon_migr%' "
                       "AND relnamespace = current_schema()::regnamespace")


def test_sequences_go_on_behind_the_head(path: Path, postgres_url: str) -> None:
    with closing(SqliteTransfer(path).open_source(MANIFEST)) as source:
        facts = source.facts
    kit.move(SqliteTransfer(path), PostgresTransfer(postgres_url))
    assert execute(
        postgres_url, "SELECT nextval('_pylon_seq'), nextval('_pylon_document_seq'), "
        "nextval(pg_get_serial_sequence('_pylon_schema_history', 'id'))"
    ) == [(facts.head + 1, facts.document_number + 1, 3)]
    assert facts.document_number > 0


def test_secondary_indexes_are_those_of_a_start(path: Path, postgres_url: str) -> None:
    listing = (
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid "
        "FROM pg_index JOIN pg_class ON pg_class.oid = indrelid "
        "WHERE relnamespace = current_schema()::regnamespace ORDER BY 1"
    )
    target = PostgresTransfer(postgres_url)
    kit.move(SqliteTransfer(path), target)
    moved = execute(postgres_url, listing)
    names = {name for name, _, _ in moved}
    assert any("by_owner_rank" in name for name in names)
    tables = [name for (name,) in execute(
        postgres_url, "SELECT quote_ident(relname) FROM pg_class WHERE relkind = 'r' "
        "AND relnamespace = current_schema()::regnamespace"
    )]
    execute(postgres_url, *(f"DROP TABLE {name}" for name in tables))
    with closing(open_session(postgres_url, "plain", "", SystemClock())) as session:
        prepare_store(session, MANIFEST, SystemClock())
    assert execute(postgres_url, listing) == moved


def test_postgresql_serves_the_moved_data_and_cursors_stay_valid(
    path: Path, postgres_url: str
) -> None:
    """A client pulled at a cursor before; the next server gives it what came after, and only
    that."""
    with closing(open_reader(path)) as reader:
        head, events = reader.head_seq(), reader.events_after(5, 10_000)
        voids, document = reader.void_ranges(), reader.document("Note", row_id(1))
        oldest, rows = reader.oldest_seq(), rows_of(reader, "Task")
    kit.move(SqliteTransfer(path), PostgresTransfer(postgres_url))
    backend = PostgresBackend(postgres_url, is_dev=True)
    clock = kit.ManualClock()
    with closing(backend.open_writer(MANIFEST, compile_rules(MANIFEST), clock)) as engine, \
            closing(backend.open_reader(MANIFEST)) as served:
        assert (engine.head, served.oldest_seq()) == (head, oldest), "no epoch was opened"
        assert served.void_ranges() == voids
        assert served.events_after(5, 10_000) == events
        assert served.document("Note", row_id(1)) == document
        assert {row: orjson.loads(served.get("Task", row) or b"") for row in rows} == rows
        write: Any = engine
        (replayed,) = apply(write, task(900, title="again", op="op-900"))
        assert replayed.replayed
        (made,) = apply(write, task(901))
        assert made.seq > head
        assert [event.row_id for event in served.events_after(head, 10)] == [row_id(901)]
        (clash,) = apply(write, task(902, slug="Slug-7"))
        assert clash.error is not None and clash.error.code == "UNIQUE_VIOLATION"
        client = LoroClient(document.snapshot, *document.updates) if document else None
        assert client is not None
        client.text("text").insert(0, "three ")
        (pushed,) = apply(write, push(client.update(), "Note", 1))
        assert pushed.error is None
        assert str(orjson.loads(served.get("Note", row_id(1)) or b"")["text"]).startswith("three")


def test_a_database_that_came_back_works_as_before(
    path: Path, tmp_path: Path, postgres_url: str
) -> None:
    """Cursors, documents, op_ids and sessions of the time before are good."""
    with closing(open_reader(path)) as reader:
        head, events = reader.head_seq(), reader.events_after(5, 10_000)
        voids, document = reader.void_ranges(), reader.document("Note", row_id(1))
    postgres = PostgresTransfer(postgres_url)
    kit.move(SqliteTransfer(path), postgres)
    kit.move(postgres, SqliteTransfer(tmp_path / "b.db"))
    with closing(open_engine(tmp_path / "b.db")) as engine, \
            closing(open_reader(tmp_path / "b.db")) as reader:
        assert engine.head == head
        assert reader.events_after(5, 10_000) == events
        assert reader.void_ranges() == voids != []
        assert reader.document("Note", row_id(1)) == document
        (replayed,) = apply(engine, task(900, title="again", op="op-900"))
        assert replayed.replayed
        client = client_of(reader, "Note", 1)
        assert "one two" in str(client.text("text")) or "two one" in str(client.text("text"))
        apply(engine, task(901))
        assert [event.row_id for event in reader.events_after(head, 10)] == [row_id(901)]
        assert rows_of(reader, "Task")[row_id(901)]["title"] == "task 901"
        slug = apply(engine, task(902, slug="Slug-7"))[0]
        assert slug.error is not None  # a unique index of the time before


def be_killed(direction: str, path: Path, url: str, times: int) -> int:
    """Let moves be killed, `times` of them or until one is complete; how many were."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.moved_store", direction, str(path), url, str(times)],
        cwd=ROOT, timeout=300, check=False, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("direction", ["out", "back"])
def test_move_that_is_killed_in_every_step_goes_on(
    direction: str, path: Path, tmp_path: Path, postgres_url: str, processes: None
) -> None:
    wanted = kit.all_rows(SqliteTransfer(path))
    if direction == "back":
        kit.move(SqliteTransfer(path), PostgresTransfer(postgres_url))
        path = tmp_path / "b.db"
    kills = be_killed(direction, path, postgres_url, MOST_KILLS)
    assert 15 <= kills < MOST_KILLS, "the move was not killed in its steps"
    target = kit.managers(direction, path, postgres_url)[1]
    found = kit.all_rows(target)
    assert found | {"_pylon_change_seq": []} == wanted | {"_pylon_change_seq": []}


def test_a_killed_move_begins_anew_when_the_source_was_written_to(
    path: Path, postgres_url: str, processes: None
) -> None:
    assert be_killed("out", path, postgres_url, 6) == 6
    with closing(open_session(postgres_url, "plain", "", SystemClock())) as session, \
            pytest.raises(SchemaRefused, match="was not finished"):
        prepare_store(session, MANIFEST, SystemClock())
    with closing(open_engine(path)) as engine:
        apply(engine, update("Task", 1, {"title": "later"}))
    target = PostgresTransfer(postgres_url)
    kit.move(SqliteTransfer(path), target)
    assert kit.all_rows(target)["Task"] == kit.all_rows(SqliteTransfer(path))["Task"]


def test_verification_names_the_first_row_that_differs(
    path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else writes to the target between the copy and the comparison."""
    source = SqliteTransfer(path).open_source(MANIFEST)
    for damage, says in (
        (f"UPDATE \"Task\" SET weight = 0.5 WHERE id IN ('{row_id(9)}', '{row_id(7)}')",
         f"Task: the row {row_id(7)} differs: weight is 0.5, was None|weight is 0.5"),
        (f"DELETE FROM \"Task\" WHERE id = '{row_id(8)}'",
         f"Task: the row {row_id(8)} is not in the target"),
        ("INSERT INTO \"User\" (id, email, _json) VALUES ('0', 'x', '{}')",
         "User: the row 0 is not in the source"),
        ("DELETE FROM _pylon_auth_sessions WHERE user_id = 'user-3'", "_pylon_auth_sessions"),
    ):
        with closing(PostgresTransfer(postgres_url).open_target(MANIFEST)) as target:
            made = Move(target, MANIFEST, kit.ManualClock(), lambda _: None)
            index = type(target).make_indexes

            def damaging(
                self: Any, note: str, index: Any = index, damage: str = damage
            ) -> None:
                execute(postgres_url, damage)
                index(self, note)

            with monkeypatch.context() as patched:
                patched.setattr(type(target), "make_indexes", damaging)
                with pytest.raises(MigrationFailed, match=says):
                    made.copy(source, made.find_note(restart=True), is_online=False)
    source.close()


def test_what_does_not_fit_is_listed_and_nothing_is_written(
    path: Path, postgres_url: str
) -> None:
    long, manifest = "é" * (limits.INDEXED_TEXT_BYTES // 2 + 1), MANIFEST
    with closing(open_engine(path)) as engine:
        apply(engine, task(950), task(951), task(952, slug=long))
        apply(engine, insert("Note", 950, {"text": "x" * 5_000}))  # in no index
    conn = apsw.Connection(str(path))  # a row of an earlier version
    conn.execute(
        "UPDATE Task SET title = 'a' || char(0), _json = replace(_json, 'task 95', 'a\\u0000') "
        "WHERE title IN ('task 950', 'task 951')"
    )
    conn.close()
    with closing(SqliteTransfer(path).open_source(manifest)) as source:
        found = survey(source, manifest, PostgresTransfer(postgres_url).limits, "PostgreSQL")
    assert len(found.problems) == 2, found.problems
    assert f"Task.title: 2 rows ({row_id(950)}, {row_id(951)})" in found.problems[0]
    assert "U+0000" in found.problems[0]
    assert "1 row " in found.problems[1] and "over slug" in found.problems[1]
    assert found.rows == sum(found.rows_by_table.values()) > 100


def test_names_and_values_of_other_programs_are_listed(tmp_path: Path, postgres_url: str) -> None:
    field = replace(TASK.fields[0], name="f" * 64)
    manifest = replace(MANIFEST, entities=(replace(TASK, fields=(*TASK.fields, field)),))
    manifest = replace(manifest, policies=())
    with closing(open_engine(tmp_path / "a.db", manifest=manifest)):
        pass
    conn = apsw.Connection(str(tmp_path / "a.db"))
    conn.execute("CREATE TABLE theirs (n)")
    conn.execute('ALTER TABLE "Task" ADD COLUMN old TEXT')
    conn.execute(
        f'INSERT INTO "Task" (id, title, done, rank, "{"f" * 64}", _json) '
        "VALUES ('x', 't', 1, 'no number', 'f', '{}')"
    )
    conn.close()
    with closing(SqliteTransfer(tmp_path / "a.db").open_source(manifest)) as source:
        found = survey(source, manifest, PostgresTransfer(postgres_url).limits, "PostgreSQL")
    assert len(found.problems) == 2, found.problems
    assert "longer than the 63 bytes" in found.problems[0]
    assert "Task.rank: 1 row (x) have a value of another type" in found.problems[1]
    assert found.left_behind == (
        "Task.old: the manifest has no such field", "theirs: the manifest has no such entity",
    )


def test_a_target_with_data_is_refused(path: Path, tmp_path: Path, postgres_url: str) -> None:
    target = PostgresTransfer(postgres_url)
    kit.move(SqliteTransfer(path), target)
    before = kit.all_rows(target)
    with pytest.raises(MigrationRefused, match="has data already"):
        kit.move(SqliteTransfer(path), target, restart=True)
    assert kit.all_rows(target) == before
    with pytest.raises(MigrationRefused, match="there is a database at"):
        kit.move(target, SqliteTransfer(path))
    execute(postgres_url, "CREATE TABLE theirs (n INT)")
    with pytest.raises(MigrationRefused, match="other tables, such as theirs"):
        kit.move(SqliteTransfer(path), target)


def test_two_migrations_into_one_target_exclude_each_other(path: Path, postgres_url: str) -> None:
    with closing(PostgresTransfer(postgres_url).open_target(MANIFEST)), \
            pytest.raises(MigrationRefused, match="another migration"):
        kit.move(SqliteTransfer(path), PostgresTransfer(postgres_url))
    kit.move(SqliteTransfer(path), PostgresTransfer(postgres_url))
    back = SqliteTransfer(path.with_name("b.db"))
    with closing(back.open_target(MANIFEST)), \
            pytest.raises(MigrationRefused, match="another migration"):
        kit.move(PostgresTransfer(postgres_url), back)


def test_a_database_that_another_made_meanwhile_is_not_replaced(
    path: Path, tmp_path: Path, postgres_url: str
) -> None:
    kit.move(SqliteTransfer(path), PostgresTransfer(postgres_url))
    back = SqliteTransfer(tmp_path / "b.db")
    with closing(PostgresTransfer(postgres_url).open_source(MANIFEST)) as source, \
            closing(back.open_target(MANIFEST)) as target:
        move = Move(target, MANIFEST, SystemClock(), lambda _: None)
        move.copy(source, None, is_online=False)
        (tmp_path / "b.db").write_bytes(b"theirs")
        with pytest.raises(MigrationRefused, match="came into being meanwhile"):
            move.finish(source)
    assert (tmp_path / "b.db").read_bytes() == b"theirs"
    (tmp_path / "b.db").unlink()
    assert kit.move(PostgresTransfer(postgres_url), back) == [], "all was copied and verified"
    assert kit.all_rows(back)["Task"] == kit.all_rows(SqliteTransfer(path))["Task"]


def test_a_source_that_no_start_has_brought_up_is_refused(
    tmp_path: Path, path: Path
) -> None:
    with pytest.raises(MigrationRefused, match="there is no database"):
        SqliteTransfer(tmp_path / "none.db").open_source(MANIFEST)
    apsw.Connection(str(tmp_path / "new.db")).execute("CREATE TABLE t (n)")
    with pytest.raises(MigrationRefused, match="never opened"):
        SqliteTransfer(tmp_path / "new.db").open_source(MANIFEST)
    conn = apsw.Connection(str(path))
    conn.execute("INSERT INTO _pylon_schema_history SELECT 99, 1, '', '', 0, '', ''")
    conn.close()
    with pytest.raises(MigrationRefused, match="not as this version"):
        SqliteTransfer(path).open_source(MANIFEST)


def test_a_held_source_refuses_writes_and_takes_them_again_afterwards(
    path: Path, postgres_url: str
) -> None:
    postgres = PostgresTransfer(postgres_url)
    kit.move(SqliteTransfer(path), postgres)
    backend = PostgresBackend(postgres_url, is_dev=True)
    with closing(backend.open_writer(MANIFEST, compile_rules(MANIFEST), kit.ManualClock())) as made:
        engine: Any = made
        with postgres.hold_source():
            (refused,) = apply(engine, task(901))
            assert refused.error is not None
            error = refused.error
            raised = PylonError.from_wire(error.code, error.message, error.hint, error.details)
            assert raised.status == 503
        assert apply(engine, task(901))[0].error is None


def test_servers_that_run_on_the_source_are_named(path: Path, postgres_url: str) -> None:
    postgres = PostgresTransfer(postgres_url)
    kit.move(SqliteTransfer(path), postgres)
    execute(postgres_url, "INSERT INTO _pylon_nodes (node, incarnation, roles, version, manifest, "
            "workers, started_at, seen_at) VALUES ('n1', '', '', '', '', '', now(), now())")
    assert postgres.list_servers() == ["n1"]
    with pytest.raises(MigrationRefused, match=r"servers run on .*: n1"), postgres.hold_source():
        pass
    with postgres.hold_source(while_running=True):
        pass


def test_many_rows_move_quickly(tmp_path: Path, postgres_url: str) -> None:
    """PYLON_TEST_MOVED_ROWS sets how many. The rates are printed, and not judged."""
    progress: list[Any] = []
    with closing(open_engine(tmp_path / "a.db")) as engine:
        for at in range(0, BIG_ROWS, 500):
            apply(engine, *(
                task(n, rank=n, ownerId=f"u{n % 100}", slug=f"s-{n}") for n in range(at, at + 500)
            ))
    target = PostgresTransfer(postgres_url)
    kit.move(SqliteTransfer(tmp_path / "a.db"), target, progress=progress)
    kit.move(target, SqliteTransfer(tmp_path / "b.db"), progress=progress)
    for step in progress:
        if step.table == "Task" and step.rows == BIG_ROWS:
            print(f"{step.step} {step.table}: {step.rows_per_s:,.0f} rows/s")
    with closing(open_reader(tmp_path / "b.db")) as reader:
        assert reader.head_seq() == BIG_ROWS
