"""The index is what the rows are: whatever is written, undone, killed or brought up again."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pylon.auth_context import ADMIN
from pylon.clock import ManualClock
from pylon.errors import SchemaRefused
from pylon.manifest.model import Manifest
from pylon.policy.rules import compile_rules
from pylon.query.rows import Query
from pylon.query.words import parse_words
from pylon.storage.ops import (
    DeleteRow,
    InsertRow,
    ResetRows,
    Transact,
    UpdateRow,
    WriteReply,
    WriteRequest,
)
from pylon.storage.schemas import SearchCheck
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from pylon.values import EntityCodec
from tests.support.examples import count_examples
from tests.support.search import SEARCH, checked, pages_manifest
from tests.support.storage import apply, code, row_id

MANIFEST = pages_manifest()
PAGE = MANIFEST.by_name["Page"]
CODEC = EntityCodec(PAGE)
_ids = itertools.count(1)

NUMBERS = st.integers(1, 5)
TEXTS = st.sampled_from(["red pump", "Red Café", "blue-green pump pump", "", "日本語 \U0001f680"])
PATCHES = st.fixed_dictionaries({}, optional={
    "title": TEXTS, "body": st.none() | TEXTS, "rank": st.none() | st.integers(0, 3),
    "open": st.booleans(), "slug": st.sampled_from([None, "a", "b"]),
}).filter(bool)
STEPS = st.one_of(
    st.tuples(st.just("insert"), NUMBERS, PATCHES),
    st.tuples(st.just("update"), NUMBERS, PATCHES),
    st.tuples(st.just("delete"), NUMBERS, st.just({})),
)


def open_pages(path: Path, manifest: Manifest = MANIFEST) -> SqliteEngine:
    rules = compile_rules(manifest)
    return SqliteEngine.open(path, manifest, rules, ManualClock(), "normal", boot_id="one")


def page(number: int, **fields: Any) -> InsertRow:
    body = {"title": "a page", "open": True, "ownerId": "ada", **fields}
    encoded = CODEC.insert(body, row_id(number))
    return InsertRow("Page", row_id(number), encoded.values, encoded.row_json)


def request_of(kind: str, number: int, fields: dict[str, Any]) -> Any:
    if kind == "insert":
        return page(number, **fields)
    if kind == "update":
        return UpdateRow("Page", row_id(number), fields, ADMIN)
    return DeleteRow("Page", row_id(number), ADMIN)


def found(path: Path, text: str, manifest: Manifest = MANIFEST) -> list[int]:
    """The numbers of the pages that a text finds."""
    entity = manifest.by_name["Page"]
    reader = SqliteReader(path, manifest)
    try:
        rows = reader.rows("Page", Query(parse_words(entity, text), limit=100))
    finally:
        reader.close()
    return [int(orjson.loads(row)["id"], 16) for row in rows]


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pylon-test-"))
        self.path = self.folder / "a.db"
        self.engine = open_pages(self.path)

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.folder)

    @rule(steps=st.lists(STEPS, min_size=1, max_size=8))
    def batch(self, steps: list[tuple[str, int, dict[str, Any]]]) -> None:
        replies = apply(self.engine, *(request_of(*step) for step in steps))
        assert {code(r) for r in replies} <= {None, "NOT_FOUND", "UNIQUE_VIOLATION"}

    @rule(steps=st.lists(STEPS, min_size=1, max_size=5))
    def transact(self, steps: list[tuple[str, int, dict[str, Any]]]) -> None:
        (reply,) = apply(self.engine, Transact([request_of(*step) for step in steps]))
        assert reply.error is None

    @rule(steps=st.lists(STEPS, min_size=1, max_size=4))
    def a_batch_with_one_that_breaks(self, steps: list[tuple[str, int, dict[str, Any]]]) -> None:
        ops = [request_of(*step) for step in steps]
        ops.insert(1, UpdateRow("Page", row_id(1), {"no such field": 1}, ADMIN))
        replies: list[WriteReply] = apply(self.engine, *ops)
        assert {code(r) for r in replies} <= {
            None, "NOT_FOUND", "UNIQUE_VIOLATION", "INTERNAL", "INVALID_COLUMN"
        }

    @rule()
    def a_commit_that_fails(self) -> None:
        head = self.engine.head
        blocker = apsw.Connection(str(self.path))
        blocker.execute("BEGIN IMMEDIATE")
        self.engine._conn.set_busy_timeout(0)
        result = self.engine.apply([WriteRequest(next(_ids), page(9))])
        assert [code(r) for r in result.replies] == ["STORE_UNAVAILABLE"]
        blocker.close()
        assert self.engine.head == head

    @rule()
    def reset(self) -> None:
        apply(self.engine, ResetRows())

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.engine = open_pages(self.path)

    @invariant()
    def the_index_is_as_if_it_were_new(self) -> None:
        assert checked(self.path, MANIFEST).problems == ()

    @invariant()
    def so_it_is_after_a_crash_here(self) -> None:
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in ("a.db", "a.db-wal"):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, copy / name)
        assert checked(copy / "a.db", MANIFEST).problems == ()


IndexMachine.TestCase.settings = settings(
    max_examples=count_examples(15), stateful_step_count=10
)
TestIndex = IndexMachine.TestCase


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


def damage(path: Path, *statements: str) -> None:
    conn = apsw.Connection(str(path))
    for statement in statements:
        conn.execute(statement)
    conn.close()


def test_an_index_is_built_where_rows_have_none(path: Path) -> None:
    plain = pages_manifest(None)
    engine = open_pages(path, plain)
    apply(engine, page(1, title="red pump"), page(2, body="the Pump", open=False), page(3))
    engine.close()
    assert checked(path, MANIFEST).problems == ("there is no index for this search config",)
    open_pages(path).close()
    assert checked(path, MANIFEST) == SearchCheck("Page", 3, ())
    assert found(path, "pump") == [1, 2]


def test_an_index_is_built_anew_for_another_config_and_goes_with_it(path: Path) -> None:
    engine = open_pages(path)
    apply(engine, page(1, title="red", body="pump"), page(2, title="pump"))
    engine.close()
    narrow = pages_manifest({**SEARCH, "text": ["title"]})
    engine = open_pages(path, narrow)
    assert found(path, "pump", narrow) == [2]
    engine.close()
    assert checked(path, narrow).problems == ()
    plain = pages_manifest(None)
    open_pages(path, plain).close()
    conn = apsw.Connection(str(path))
    left = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%fts%' OR name LIKE '%search%'"
    assert conn.execute(left).get == 0
    assert conn.execute("SELECT count(*) FROM _pylon_meta WHERE key LIKE 'search:%'").get == 0
    conn.close()
    assert found(path, "pump", plain) == [1, 2]  # by looking at each row
    open_pages(path).close()
    assert checked(path, MANIFEST).problems == ()


def test_an_index_of_another_tokenizer_is_built_anew_by_a_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        name = "pylon.storage.sqlite.schema.search.TOKENIZER"
        patched.setattr(name, "unicode61 remove_diacritics 2")
        engine = open_pages(path)
        apply(engine, page(1, title="สวัสดี"))
        engine.close()
        made = "SELECT sql FROM sqlite_schema WHERE name = '_fts_Page'"
    conn = apsw.Connection(str(path))
    assert "M*" not in conn.execute(made).get
    open_pages(path).close()
    assert "M*" in conn.execute(made).get
    assert found(path, "สวัส") == [1]


def test_what_another_server_left_or_did_is_made_good(path: Path) -> None:
    damage(
        path,
        "CREATE TABLE Page (id TEXT PRIMARY KEY NOT NULL, title TEXT NOT NULL, body TEXT, "
        "kind TEXT, open INTEGER NOT NULL, rank INTEGER, price REAL, ownerId TEXT NOT NULL, "
        "slug TEXT UNIQUE)",
        f"INSERT INTO Page VALUES ('{row_id(1)}', 'red pump', NULL, NULL, 1, NULL, NULL, 'a', "
        "NULL)",
        "CREATE VIRTUAL TABLE _fts_Page USING fts5(entity_id UNINDEXED, title, body)",
        "INSERT INTO _fts_Page VALUES ('gone', 'blue', '')",
    )
    open_pages(path).close()
    assert (found(path, "pump"), found(path, "blue")) == ([1], [])
    damage(
        path, "UPDATE Page SET title = 'blue'",
        "INSERT INTO _pylon_schema_history (manifest_version, app_version, applied_at, "
        "operation_count, baseline, plan_json) VALUES (1, '', '', 0, '', '[]')",
    )
    assert checked(path, MANIFEST).problems != ()
    open_pages(path).close()
    assert checked(path, MANIFEST).problems == ()
    assert found(path, "blue") == [1]


@pytest.mark.parametrize(("statement", "problem"), [
    ("UPDATE Page SET title = 'other' WHERE id LIKE '%1'", 'the index has "pump" in title'),
    ("DELETE FROM Page WHERE id LIKE '%1'", "1 numbers have no row"),
    ("DELETE FROM _fts_Page WHERE rowid = 1", "1 rows are not in the index"),
    ("DELETE FROM _pylon_search_Page WHERE number = 1", "1 rows have no number"),
    ("INSERT INTO _fts_Page (rowid, title) VALUES (7, 'x')", "1 entries have no number"),
    ("INSERT INTO _fts_Page (_fts_Page) VALUES ('delete-all')", "2 rows are not in the index"),
    ("UPDATE Page SET body = 'zzz' WHERE id LIKE '%2'", "no further word"),
])
def test_a_check_finds_every_difference(path: Path, statement: str, problem: str) -> None:
    engine = open_pages(path)
    apply(engine, page(1, title="the pump"), page(2, title="the pump"))
    engine.close()
    assert checked(path, MANIFEST).problems == ()
    damage(path, statement)
    assert problem in "; ".join(checked(path, MANIFEST).problems)


DAMAGES = (
    "DELETE FROM _fts_Page WHERE rowid = 1",
    "DELETE FROM _pylon_search_Page WHERE number <= 2",
    "INSERT INTO _fts_Page (rowid, title) VALUES (99, 'stray')",
    "INSERT INTO _pylon_search_Page (number, id) VALUES (98, 'nobody')",
    "INSERT OR REPLACE INTO _fts_Page (rowid, title) VALUES (2, 'wrong words')",
    "INSERT INTO _fts_Page (_fts_Page) VALUES ('delete-all')",
    "DROP TABLE _fts_Page",
    "DELETE FROM _pylon_meta WHERE key = 'search:Page'",
)


@pytest.mark.parametrize("statement", DAMAGES)
@settings(max_examples=count_examples(4))
@given(between=st.lists(st.lists(STEPS, max_size=3), min_size=1, max_size=4))
def test_an_index_is_renewed_in_portions_while_others_write(
    statement: str, between: list[list[tuple[str, int, dict[str, Any]]]]
) -> None:
    with tempfile.TemporaryDirectory(prefix="pylon-test-") as name:
        path = Path(name) / "a.db"
        engine = open_pages(path)
        apply(engine, *[page(number, title=f"pump {number}") for number in (1, 2, 3, 5)])
        damage(path, statement)
        steps = iter(between)
        after_id = ""
        while True:
            _, after_id = engine.maintenance.renew_search("Page", after_id, 2)
            if not after_id:
                break
            for step in next(steps, []):
                apply(engine, request_of(*step))
        assert checked(path, MANIFEST).problems == ()
        engine.close()


def test_a_renewal_that_is_not_finished_is_made_good_by_the_next_start(path: Path) -> None:
    engine = open_pages(path)
    apply(engine, page(1, title="red pump"), page(2), page(3))
    damage(path, "DELETE FROM _fts_Page WHERE rowid = 3")
    assert engine.maintenance.renew_search("Page", "", 1) == (1, row_id(1))
    assert checked(path, MANIFEST).problems
    engine.close()
    open_pages(path).close()
    assert checked(path, MANIFEST).problems == ()


def test_only_what_the_server_knows_can_be_renewed(path: Path) -> None:
    engine = open_pages(path)
    for name in ("Plain", "Nope"):
        with pytest.raises(SchemaRefused):
            engine.maintenance.renew_search(name, "", 10)
    engine.close()


def test_a_row_that_the_index_never_heard_of_joins_it_when_it_changes(path: Path) -> None:
    engine = open_pages(path)
    apply(engine, page(1, title="the pump"))
    damage(path, "DELETE FROM _pylon_search_Page", "DELETE FROM _fts_Page WHERE rowid = 1")
    update = UpdateRow("Page", row_id(1), {"title": "the ship"}, ADMIN)
    assert [code(r) for r in apply(engine, update)] == [None]
    engine.close()
    assert checked(path, MANIFEST).problems == ()


def test_an_update_of_other_fields_leaves_the_index_alone(path: Path) -> None:
    engine = open_pages(path)
    apply(engine, page(1, title="the pump"))
    state = "SELECT total(length(block)), count(*) FROM _fts_Page_data"
    conn = apsw.Connection(str(path))
    before = conn.execute(state).fetchall()
    apply(engine, UpdateRow("Page", row_id(1), {"open": False, "kind": "x"}, ADMIN))
    assert conn.execute(state).fetchall() == before
    conn.close()
    engine.close()


def test_sortable_fields_have_an_index(path: Path) -> None:
    open_pages(path).close()
    conn = apsw.Connection(str(path))
    names = conn.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'Page_sort_%'").fetchall()
    assert sorted(name for (name,) in names) == ["Page_sort_rank", "Page_sort_title"]
    conn.close()
