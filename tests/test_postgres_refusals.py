"""Writes that PostgreSQL refuses after their primitives have returned, and values that it cannot
store: each is the refusal of one request, and never that of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest
from msgspec.structs import replace as changed

from pylon import limits
from pylon.auth_context import ADMIN
from pylon.manifest.model import Search
from pylon.storage.ops import (
    DeleteRow,
    InsertRow,
    OpKey,
    Transact,
    UpdateRow,
)
from tests.support.storage import (
    MANIFEST,
    NOTE,
    TASK,
    USER,
    insert,
    row_id,
    task,
    update,
)
from tests.support.two_writers import Writers


@pytest.fixture
def writers(postgres_url: str) -> Iterator[Writers]:
    made = Writers(postgres_url)
    yield made
    made.close()


def test_foreign_trigger_breaks_its_own_request_only(writers: Writers) -> None:
    writers.sql.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.title LIKE 'bad%%' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$;"""
        'CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON "Task" FOR EACH ROW '
        "EXECUTE FUNCTION refuse()"
    )
    writers.apply(writers.a, task(1))
    transact = Transact([task(5), task(6, title="bad too")])
    codes = writers.codes(
        writers.a, task(2), task(3, title="bad"), update("Task", 1, {"title": "bad"}), transact,
        task(4),
    )
    assert codes == [None, "INTERNAL", "INTERNAL", "INTERNAL", None]
    assert [e.row_id for e in writers.events(1)] == [row_id(2), row_id(4)]


def test_constraint_that_is_checked_at_the_commit_breaks_its_own_request_only(
    writers: Writers
) -> None:
    writers.sql.execute(
        """CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.title = 'bad' THEN RAISE EXCEPTION 'no'; END IF; RETURN NULL; END $$;"""
        'CREATE CONSTRAINT TRIGGER refuse_late AFTER INSERT ON "Task" DEFERRABLE INITIALLY '
        "DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_late()"
    )
    assert writers.codes(writers.a, task(1), task(2, title="bad"), task(3)) == [
        None, "INTERNAL", None,
    ]
    assert [e.row_id for e in writers.events()] == [row_id(1), row_id(3)]


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_batch_that_the_server_asks_for_again_is_sent_again(writers: Writers, state: str) -> None:
    writers.sql.execute(
        "CREATE SEQUENCE tries; "
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('tries') < 3 THEN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END IF; "
        "RETURN NEW; END $$; "
        'CREATE TRIGGER again BEFORE INSERT ON "Task" FOR EACH ROW EXECUTE FUNCTION again()'
    )
    assert writers.codes(writers.a, task(1)) == [None]
    assert writers.one("SELECT last_value FROM tries") == 3


def test_batch_that_never_goes_through_is_refused(writers: Writers) -> None:
    writers.sql.execute(
        "CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$; "
        'CREATE TRIGGER never BEFORE INSERT ON "Task" FOR EACH ROW EXECUTE FUNCTION never()'
    )
    assert writers.codes(writers.a, task(1)) == ["STORE_UNAVAILABLE"]
    assert writers.codes(writers.a, insert("Note", 1, {})) == [None]


def test_value_that_is_too_long_for_its_index_is_refused(writers: Writers) -> None:
    writers.apply(writers.a, task(1))
    long = "x" * (limits.INDEXED_TEXT_BYTES + 1)
    codes = writers.codes(
        writers.a, task(2, title=long), update("Task", 1, {"slug": long}), task(3, slug=long[1:]),
        insert("Note", 4, {"text": long * 100}),
    )
    assert codes == ["VALUE_TOO_LONG_TO_INDEX"] * 2 + [None, None]


def test_nul_is_refused_though_it_was_not_checked_before(writers: Writers) -> None:
    row = {"id": row_id(1), "text": "a\0b"}
    raw = InsertRow("Note", row_id(1), ["a\0b"], orjson.dumps(row))
    assert writers.codes(
        writers.a, raw, update("Note", 2, {"text": "x"}), UpdateRow("Note", "a\0b", {}, ADMIN),
        DeleteRow("Note", "a\0b", ADMIN),
        changed(task(3), op=OpKey("a\0b", "x")), insert("Note", 2, {"text": "kept"}),
    ) == ["INVALID_VALUE", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "INVALID_VALUE", None]


def test_search_words_follow_the_row(postgres_url: str) -> None:
    note = replace(NOTE, search=Search(("text",), (), ()))
    writers = Writers(postgres_url, replace(MANIFEST, entities=(TASK, USER, note)))
    try:
        writers.apply(writers.a, insert("Note", 1, {"text": "Grüne 'Tee\\kanne\\' tee"}))
        assert writers.one('SELECT _words::text FROM "Note"') == "'grune':1 'kanne':3 'tee':2,4"
        writers.apply(writers.b, update("Note", 1, {"text": "x " * 20_000}))
        assert writers.one('SELECT array_length(tsvector_to_array(_words), 1) FROM "Note"') == 1
        writers.sql.execute("UPDATE \"Note\" SET _words = ''")
        assert writers.a.maintenance.renew_search("Note", "", 10) == (1, "")
        assert writers.one("SELECT _words @@ 'x' FROM \"Note\"")
    finally:
        writers.close()
