"""A move while a server writes: the changes that it makes meanwhile follow to the target."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from pylon.clock import SystemClock
from pylon.errors import MigrationFailed
from pylon.migrate.follow import Follower
from pylon.migrate.move import Move
from pylon.policy.rules import compile_rules
from pylon.storage.ops import DropSession, OpenDocument, PutSession, PutShard
from pylon.storage.postgres.backend import PostgresBackend
from pylon.storage.postgres.transfer.manager import PostgresTransfer
from pylon.storage.sqlite.transfer.manager import SqliteTransfer
from tests.support import moved_store as kit
from tests.support.document_store import ok
from tests.support.storage import MANIFEST, apply, delete, open_engine, row_id, task, update


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A SQLite database with data of every kind."""
    kit.fill(tmp_path / "a.db")
    return tmp_path / "a.db"


def test_a_target_follows_what_nodes_write_meanwhile(
    path: Path, tmp_path: Path, postgres_url: str
) -> None:
    """Back to SQLite with `--online`, with writes of every kind between the steps."""
    postgres = PostgresTransfer(postgres_url)
    kit.move(SqliteTransfer(path), postgres)
    backend = PostgresBackend(postgres_url, is_dev=True)
    sqlite = SqliteTransfer(tmp_path / "b.db")
    rules, clock = compile_rules(MANIFEST), kit.ManualClock()
    with closing(backend.open_writer(MANIFEST, rules, clock)) as made, \
            closing(sqlite.open_target(MANIFEST)) as target:
        engine: Any = made
        move = Move(target, MANIFEST, SystemClock(), lambda _: None)
        with closing(postgres.open_source(MANIFEST)) as source:
            ok(*apply(engine, task(903), update("Task", 5, {"title": "while copying"})))
            move.copy(source, None, is_online=True)
        follower = Follower(move, target, MANIFEST)
        # Two rows exchange a unique value, and a third one takes a deleted row's.
        ok(*apply(engine, update("Task", 7, {"slug": "free"})))
        ok(*apply(engine, update("Task", 8, {"slug": "Slug-7"})))
        ok(*apply(engine, update("Task", 7, {"slug": "Slug-8"}), delete("Task", 9)))
        ok(*apply(engine, task(904, slug="Slug-9", op="op-904"), OpenDocument("Note", row_id(4))))
        ok(*apply(engine, PutSession("f" * 64, "late", False, 1, 0, "")))
        ok(*apply(engine, DropSession(f"{1:064x}"), PutShard("arena", 13, b"later")))
        with closing(postgres.open_source(MANIFEST)) as source:
            assert follower.catch_up(source) > 5
        ok(*apply(engine, delete("Task", 904), update("User", 1, {"email": "new@x.org"})))
        with postgres.hold_source(while_running=True), \
                closing(postgres.open_source(MANIFEST)) as source:
            assert follower.catch_up(source) == 2
            follower.compare_counts(source)
            move.finish(source)
    own = {"_pylon_change_seq": []}
    assert kit.all_rows(sqlite) | own == kit.all_rows(postgres) | own
    with closing(open_engine(tmp_path / "b.db")) as reopened:
        assert reopened.head == made.head


def test_an_online_move_that_was_interrupted_follows_from_its_last_commit(
    path: Path, postgres_url: str
) -> None:
    """Each part is of another process; the copy of the first one is not made again."""
    sqlite, postgres = SqliteTransfer(path), PostgresTransfer(postgres_url)

    def go_on(*, copied: bool, ends: bool = False) -> int:
        with closing(postgres.open_target(MANIFEST)) as target:
            move = Move(target, MANIFEST, SystemClock(), lambda _: None)
            with closing(sqlite.open_source(MANIFEST, copy=True)) as source:
                found = move.find_note(restart=False)
                assert bool(move.copy(source, found, is_online=True)) is copied
            follower = Follower(move, target, MANIFEST)
            with closing(sqlite.open_source(MANIFEST)) as source:
                events = follower.catch_up(source)
                if ends:
                    move.finish(source)
        return events

    assert go_on(copied=True) == 0
    with closing(open_engine(path)) as engine:
        ok(*apply(engine, task(911), update("Task", 5, {"title": "later"})))
    assert go_on(copied=False) == 2
    with closing(open_engine(path)) as engine:
        ok(*apply(engine, delete("Task", 911)))
    assert go_on(copied=False, ends=True) == 1
    sqlite.forget_copy()
    own: dict[str, list[Any]] = {"_pylon_change_seq": []}
    assert kit.all_rows(postgres) | own == kit.all_rows(sqlite) | own
    assert not list(path.parent.glob("*migrat*"))


def test_events_that_were_dropped_meanwhile_end_the_move(path: Path, postgres_url: str) -> None:
    sqlite, postgres = SqliteTransfer(path), PostgresTransfer(postgres_url)
    with closing(postgres.open_target(MANIFEST)) as target:
        move = Move(target, MANIFEST, SystemClock(), lambda _: None)
        with closing(sqlite.open_source(MANIFEST)) as source:
            move.copy(source, None, is_online=True)
        with closing(open_engine(path)) as engine:
            ok(*apply(engine, task(905), task(906), task(907)))
        conn = apsw.Connection(str(path))
        conn.execute("DELETE FROM _pylon_change_log WHERE seq < "
                     "(SELECT max(seq) FROM _pylon_change_log)")
        conn.close()
        with closing(sqlite.open_source(MANIFEST)) as source, \
                pytest.raises(MigrationFailed, match="has dropped events"):
            Follower(move, target, MANIFEST).catch_up(source)
