"""A3: large rows have bounds in bytes, and a caller without rights makes no work with them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.query.predicate import TRUE
from pylon.query.rows import Query
from pylon.storage.interface import Reader
from pylon.storage.ops import ResetRows, Transact, UpdateRow
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.storage import (
    ADA,
    BOB,
    apply,
    code,
    delete,
    insert,
    open_reader,
    row_id,
    task,
    update,
)

LIMIT = 100_000
APP: dict[str, Any] = {
    "manifest_version": 1, "name": "large", "version": "1.0.0",
    "entities": [{
        "name": "Note", "relations": [{"name": "boss", "target": "Note", "field": "bossId"}],
        "indexes": [],
        "fields": [
            {"name": "text", "type": "string", "optional": False, "unique": False},
            {"name": "n", "type": "int", "optional": True, "unique": False},
            {"name": "bossId", "type": "id(Note)", "optional": True, "unique": False},
        ],
    }],
    "routes": [], "queries": [], "actions": [],
    "policies": [{"name": "all", "entity": "Note", "allow": "true"}],
}


# --- The limit of a row --------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, APP, {"PYLON_ROW_MAX_BYTES": str(LIMIT)}) as made:
        yield made


def too_large(error: dict[str, Any]) -> bool:
    return (
        error["code"] == "LIMIT_EXCEEDED" and error["entity"] == "Note"
        and error["size_bytes"] > error["limit_bytes"] == LIMIT
        and "PYLON_ROW_MAX_BYTES" in error["message"]
    )


def test_every_way_to_make_a_row_too_large_is_refused(server: ApiStage) -> None:
    big, half = "x" * LIMIT, "x" * (LIMIT // 2)
    path = "/api/entities/Note"
    made = server.call("POST", path, {"text": half}).json["id"]
    answer = server.call("POST", path, {"text": big})
    assert answer.status_code == 400 and too_large(answer.json["error"])
    answer = server.call("PATCH", f"{path}/{made}", {"text": big})
    assert answer.status_code == 400 and too_large(answer.json["error"])
    change = {"entity": "Note", "kind": "insert", "row_id": "_pending_1", "data": {"text": big}}
    pushed = server.call("POST", "/api/sync/push", {"changes": [
        change, {**change, "kind": "update", "row_id": made}, {**change, "data": {"text": "ok"}},
    ]}).json
    assert [r["status"] for r in pushed["results"]] == ["error", "error", "applied"]
    assert all(too_large(r["error"]) for r in pushed["results"][:2])
    for op in ({"op": "insert", "entity": "Note", "data": {"text": big}},
               {"op": "update", "entity": "Note", "id": made, "data": {"text": big}}):
        outcome = server.call("POST", "/api/transact", [op])
        assert outcome.status_code == 400 and "PYLON_ROW_MAX_BYTES" in outcome.text
    rows = {"entities": {"Note": [{"id": "imported", "text": big}, {"id": "good", "text": "x"}]}}
    imported = server.call("POST", "/api/import", rows, ADMIN_TOKEN).json
    assert (imported["imported"], imported["failed"]) == (1, 1) and too_large(imported["errors"][0])


def test_a_larger_row_is_readable_deletable_and_may_shrink(tmp_path: Path) -> None:
    with serve_api(tmp_path, APP) as server:
        ids = [
            server.call("POST", "/api/entities/Note", {"text": "x" * 3 * LIMIT}).json["id"]
            for _ in range(2)
        ]
    with serve_api(tmp_path, APP, {"PYLON_ROW_MAX_BYTES": str(LIMIT)}) as server:
        one, two = (f"/api/entities/Note/{row}" for row in ids)
        assert len(server.call("GET", one).json["text"]) == 3 * LIMIT
        link = {"entity": "Note", "id": ids[0], "relation": "boss", "target_id": ids[1]}
        assert too_large(server.call("POST", "/api/link", link).json["error"])
        assert server.call("PATCH", one, {"text": "x" * 3 * LIMIT + "y"}).status_code == 400
        assert server.call("PATCH", one, {"text": "x" * 2 * LIMIT}).status_code == 200
        assert server.call("PATCH", one, {"text": "small"}).status_code == 200
        assert server.call("DELETE", two).status_code == 200


# --- Transactions --------------------------------------------------------------------------------


def test_a_row_changed_often_in_one_transaction_is_logged_once(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    size = 50_000
    apply(engine, insert("Note", 1, {"text": "x" * size}))
    steps = [update("Note", 1, {"text": f"{n:05}".ljust(size)}) for n in range(100)]
    (reply,) = apply(engine, Transact(list(steps)))
    assert reply.count == 100
    conn = apsw.Connection(str(tmp_path / "a.db"))
    logged = conn.execute(
        "SELECT count(*), sum(octet_length(data) + octet_length(prev_data)) "
        "FROM _pylon_change_log WHERE seq > 1"
    ).get
    conn.close()
    assert logged[0] == 1 and logged[1] < 2 * size + 1_000


def test_a_transaction_is_bounded_by_the_images_that_it_makes(
    engine: SqliteEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TRANSACT_BYTES", 1_000_000)
    apply(engine, insert("Note", 1, {"text": "x" * 100_000}))
    small = [UpdateRow("Note", row_id(1), {"text": "y" * 100_000}, ADMIN)] * 4
    (reply,) = apply(engine, Transact([*small]))
    assert reply.count == 4
    (reply,) = apply(engine, Transact([*small, *small]))
    last = (reply.results or [])[-1]
    assert code(last) == "LIMIT_EXCEEDED" and "TRANSACT_BYTES" in (last.error or last).message  # type: ignore[union-attr]
    assert len(reply.results or []) == 5 and engine.head == 2
    reader = open_reader(tmp_path / "a.db")
    assert [e.seq for e in reader.events_after(0, 9)] == [1, 2]


# --- Rights before work --------------------------------------------------------------------------


class Reads:
    """Counts how often the JSON of a row is read whole, and the steps of SQLite."""

    def __init__(self, engine: SqliteEngine) -> None:
        self._conn = engine._conn
        self.sql: list[str] = []

    def __enter__(self) -> Reads:
        self._conn.exec_trace = self._note  # for all cursors made from now on
        return self

    def _note(self, _: Any, sql: str, __: Any) -> bool:
        self.sql.append(sql)
        return True

    def __exit__(self, *_: object) -> None:
        self._conn.exec_trace = None


@pytest.mark.parametrize("auth", [BOB, ANONYMOUS], ids=["bob", "anonymous"])
def test_a_row_that_may_not_be_changed_is_not_read(
    engine: SqliteEngine, auth: AuthContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(engine, task(1, title="x" * 1_000_000), task(2, title="y" * 1_000_000, done=True))
    loaded: list[int] = []
    real = orjson.loads

    def loads(text: Any) -> Any:
        loaded.append(len(text))
        return real(text)

    monkeypatch.setattr("pylon.storage.core.rows.orjson.loads", loads)
    rows: Any = engine._batches._handlers[ResetRows]
    table = rows.__self__.entity("Task").table
    monkeypatch.setattr(table, "_find", "SELECT no_row_is_read_whole")
    missing, hidden, gone = apply(
        engine, update("Task", 9, {"rank": 1}, auth), update("Task", 1, {"rank": 1}, auth),
        delete("Task", 1, auth),
    )
    assert [code(r) for r in (missing, hidden, gone)] == ["NOT_FOUND"] * 3
    assert hidden.error == missing.error
    readable = apply(engine, update("Task", 2, {"rank": 1}, ADA), delete("Task", 2, ADA))
    assert [code(r) for r in readable] == ["POLICY_DENIED"] * 2
    assert loaded == []


def test_a_verdict_by_columns_is_the_verdict_by_the_whole_row(engine: SqliteEngine) -> None:
    texts = ("small", "x" * (limits.JUDGED_FIRST_BYTES + 1), "x" * (limits.LARGE_ROW_BYTES + 1))
    for number, text in enumerate(texts, 1):
        apply(engine, task(number, title=text), task(number + 10, title=text, done=True))
        allowed, finished, again, hidden = apply(
            engine,
            update("Task", number, {"rank": number}, ADA),
            update("Task", number, {"done": True}, ADA),
            update("Task", number + 10, {"rank": 1}, ADA),
            update("Task", number, {"rank": 1}, BOB),
        )
        verdicts = [code(r) for r in (allowed, finished, again, hidden)]
        assert verdicts == [None, "POLICY_DENIED", "POLICY_DENIED", "NOT_FOUND"]


# --- Answers of many large rows ------------------------------------------------------------------


def test_a_long_answer_is_read_in_pages_of_bounded_size(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_bytes = 250_000
    sizes = [100, LIMIT - 1_000, LIMIT // 3]
    made = {
        server.call("POST", "/api/entities/Note", {"text": "x" * sizes[n % 3]}).json["id"]
        for n in range(30)
    }
    pages: list[list[bytes]] = []
    read = SqliteReader.rows_within

    def rows_within(
        reader: SqliteReader, entity: str, query: Query, size_bytes: int
    ) -> tuple[list[bytes], bool]:
        rows, has_more = read(reader, entity, query, size_bytes)
        pages.append(rows)
        return rows, has_more

    monkeypatch.setattr(limits, "SNAPSHOT_PAGE_BYTES", page_bytes)
    monkeypatch.setattr(SqliteReader, "rows_within", rows_within)
    changes = server.call("GET", "/api/sync/pull?since=0").json["changes"]
    assert [c["row_id"] for c in changes] == sorted(made)
    monkeypatch.setattr(limits, "LIST_BYTES", page_bytes)
    paged: list[str] = []
    while True:
        after = paged[-1] if paged else ""
        page = server.call("GET", f"/api/entities/Note/cursor?limit=100&after={after}").json
        paged += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
    assert paged == sorted(made)
    exported = server.call("GET", "/api/export", token=ADMIN_TOKEN).json
    assert [row["id"] for row in exported["entities"]["Note"]] == sorted(made)
    assert max(sum(map(len, page)) for page in pages) <= page_bytes
    assert len(pages) > 2 * sum(sizes) * 10 / page_bytes


def _read_within(reader: Reader, query: Query, size_bytes: int) -> tuple[list[bytes], bool]:
    return reader.rows_within("Note", query, size_bytes)


def test_a_row_larger_than_a_page_is_a_page_of_its_own(server: ApiStage) -> None:
    for n in range(3):
        server.call("POST", "/api/entities/Note", {"text": "x" * 50_000, "n": n})
    seen: list[bytes] = []
    after_id = None
    while True:
        query = Query(TRUE, limit=1_000, after_id=after_id)
        rows, has_more = server.services.data.store.point(
            partial(_read_within, query=query, size_bytes=1_000)
        )
        seen += rows
        if not has_more:
            break
        assert len(rows) == 1
        after_id = orjson.loads(rows[-1])["id"]
    assert [orjson.loads(row)["n"] for row in seen] == [0, 1, 2]
