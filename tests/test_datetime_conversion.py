"""Rows whose datetimes have another notation are found rightly, and converted in the background."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.clock import ManualClock
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Search
from pylon.policy.rules import compile_rules
from pylon.query.aggregate import parse_aggregate
from pylon.query.parse import parse_where
from pylon.query.rows import parse_filter
from pylon.storage.ops import InsertRow, UpdateRow, WriteRequest
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from pylon.values import EntityCodec
from supervisor.conversion import DatetimeConversion
from tests.support.moments import stored_moment
from tests.support.storage import row_id

NOTE = Entity(
    "Note",
    (
        Field("title", FieldType.STRING, True, False),
        Field("at", FieldType.DATETIME, True, False),
        Field("code", FieldType.DATETIME, True, True),
    ),
    indexes=(Index("by_at", ("at",), False),),
    search=Search(("title", "at"), (), ("at",)),
)
PLAIN = Entity("Plain", (Field("n", FieldType.INT, True, False),))
MANIFEST = Manifest("notes", "1", (NOTE, PLAIN))
OLD = [
    "2026-03-29T00:30:00.000Z", "2026-03-28T19:30:00-05:00", "2026-03-29 00:30:00Z",
    "1774744199Z", "2026-03-29T00:30:00.000001Z", "no datetime", None,
]


def open_engine(path: Path) -> SqliteEngine:
    return SqliteEngine.open(path, MANIFEST, compile_rules(MANIFEST), ManualClock(), "normal")


def insert(engine: SqliteEngine, number: int, **body: Any) -> None:
    encoded = EntityCodec(NOTE).insert(body, row_id(number))
    (reply,) = engine.apply([WriteRequest(
        1, InsertRow("Note", row_id(number), encoded.values, encoded.row_json)
    )]).replies
    assert reply.error is None


def make_old(path: Path, column: str = "at", texts: list[str | None] = OLD) -> None:
    """A database as an earlier version left it: with the texts that clients had sent."""
    engine = open_engine(path)
    for number in range(1, len(texts) + 1):
        insert(engine, number, title=f"note {number}")
    engine.close()
    with apsw.Connection(str(path)) as conn:
        for number, text in enumerate(texts, 1):
            row = orjson.dumps(
                {"at": None, "code": None, column: text, "id": row_id(number),
                 "title": f"note {number}"}, option=orjson.OPT_SORT_KEYS,
            ).decode()
            conn.execute(
                f"UPDATE Note SET {column} = ?, _json = ? WHERE id = ?", (text, row, row_id(number))
            )
        conn.execute("DELETE FROM _pylon_meta WHERE key = 'instants:Note'")
    conn.close()


def found(reader: SqliteReader, body: dict[str, Any]) -> list[int]:
    rows = reader.rows("Note", parse_filter(NOTE, body, 100))
    return [int(orjson.loads(row)["id"], 16) for row in rows]


def check_answers(reader: SqliteReader) -> None:
    """What a client may ask for, whatever notation the rows have."""
    assert found(reader, {"at": {"$gte": "2026-03-29T00:30:00Z", "$lt": "2027-01-01"}}) == [
        1, 2, 3, 5,
    ]
    assert found(reader, {"at": "2026-03-29T00:30:00Z"}) == [1, 2, 3]
    assert found(reader, {"at": {"$in": ["2026-03-29T02:30:00+02:00"]}}) == [1, 2, 3]
    assert found(reader, {"at": {"$lt": "2026-03-29T00:30:00.5Z"}}) == [1, 2, 3, 4, 5]
    assert found(reader, {"$order": {"at": "asc"}, "at": {"$exists": True}}) == [4, 1, 2, 3, 5, 6]
    assert found(reader, {"$order": {"at": "desc"}, "$limit": 2}) == [6, 5]
    after = {"at": "2026-03-29T00:30:00Z", "id": row_id(2)}
    assert found(reader, {"$order": {"at": "asc"}, "$after": after}) == [3, 5, 6]
    row = reader.lookup("Note", "at", "2026-03-28T23:30:00-01:00")
    assert row is not None and orjson.loads(row)["id"] == row_id(1)
    (figures,) = reader.aggregate("Note", parse_aggregate(
        NOTE, {"min": ["at"], "countDistinct": ["at"], "where": {"title": {"$ne": "note 6"}}}
    ))
    assert figures == {"min_at": "2026-03-29T00:29:59.000000Z", "count_distinct_at": 3}
    assert found(reader, {"$search": "note 5"}) == [5]


def test_filters_are_right_before_while_and_after_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONVERSION_ROWS", 2)
    path = tmp_path / "a.db"
    make_old(path)
    engine = open_engine(path)
    clock = ManualClock()
    reader = SqliteReader(path, MANIFEST, clock)
    check_answers(reader)
    rows = []
    while True:
        step = engine.maintenance.convert_datetimes()
        if step is None:
            break
        rows.append((step.rows, step.is_last))
        clock.advance(2)
        check_answers(reader)
        late = SqliteReader(path, MANIFEST, clock)
        check_answers(late)
        late.close()
    assert rows == [(2, False), (2, False), (0, False), (0, True)]
    with apsw.Connection(str(path)) as conn:
        for at, code, text in conn.execute("SELECT at, code, _json FROM Note ORDER BY id"):
            row = orjson.loads(text)
            assert (row["at"], row["code"]) == (at, code)
            old = OLD[int(row["id"], 16) - 1]
            assert at == (old if old == "no datetime" else stored_moment(old))
    conn.close()
    plan = reader._conn.execute("EXPLAIN QUERY PLAN SELECT id FROM Note WHERE at > ?", ("2",))
    assert "USING COVERING INDEX" in plan.fetchall()[0][3], "the view is gone"
    reader.close()
    engine.close()


def test_the_conversion_writes_no_change_and_keeps_versions(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    make_old(path)
    engine = open_engine(path)
    reader = SqliteReader(path, MANIFEST)
    head = engine.head
    versions = [reader.get_version("Note", row_id(n)) for n in range(1, 4)]
    while engine.maintenance.convert_datetimes() is not None:
        pass
    assert engine.head == head == reader.head_seq()
    for number, before in enumerate(versions, 1):
        after = reader.get_version("Note", row_id(number))
        assert before is not None and after is not None
        assert after[1] == before[1]
        assert orjson.loads(after[0])["at"] == "2026-03-29T00:30:00.000000Z"
    reader.close()
    engine.close()


def test_a_conversion_goes_on_after_the_death_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONVERSION_ROWS", 3)
    path = tmp_path / "a.db"
    make_old(path)
    engine = open_engine(path)
    first = engine.maintenance.convert_datetimes()
    assert first is not None and (first.rows, first.rows_done, first.is_last) == (3, 3, False)
    # The copy has what a killed server leaves: the file and the log of the last commit.
    copy = tmp_path / "b.db"
    for ending in ("", "-wal"):
        Path(f"{copy}{ending}").write_bytes(Path(f"{path}{ending}").read_bytes())
    engine.close()
    engine = open_engine(copy)
    insert(engine, 9, title="new", at="2026-05-01")
    second = engine.maintenance.convert_datetimes()
    assert second is not None and (second.rows, second.rows_done) == (1, 4)
    third = engine.maintenance.convert_datetimes()
    assert third is not None and third.is_last
    assert engine.maintenance.convert_datetimes() is None
    engine.close()
    engine = open_engine(copy)
    assert engine.maintenance.convert_datetimes() is None
    engine.close()


def test_two_notations_of_one_unique_instant_stay_and_filters_stay_right(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    make_old(path, "code", ["2026-03-29", "2026-03-29T00:00:00Z", "2026-03-30"])
    engine = open_engine(path)
    step = engine.maintenance.convert_datetimes()
    assert step is not None and (step.rows, step.rows_left, step.is_last) == (2, 1, True)
    assert engine.maintenance.convert_datetimes() is None
    reader = SqliteReader(path, MANIFEST)
    assert found(reader, {"code": "1774742400Z"}) == [1, 2]
    (reply,) = engine.apply([WriteRequest(1, UpdateRow(
        "Note", row_id(1), {"code": "2026-04-01T00:00:00.000000Z"},
        AuthContext(user_id="root", is_admin=True),
    ))]).replies
    assert reply.error is None
    reader.close()
    engine.close()
    engine = open_engine(path)  # a start tries the rest again
    step = engine.maintenance.convert_datetimes()
    assert step is not None and step.is_last and not step.rows_left
    assert engine.maintenance.convert_datetimes() is None
    engine.close()


def test_the_writer_asks_rows_by_instants_before_and_after(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    make_old(path)
    engine = open_engine(path)
    transaction = engine._batches._transaction

    def has(text: str) -> bool:
        return transaction.has_row("Note", parse_where(NOTE, {"at": text}))

    for _ in range(2):
        assert has("2026-03-29T02:30:00+02:00") and not has("2026-03-29T02:31:00+02:00")
        while engine.maintenance.convert_datetimes() is not None:
            pass
    assert not transaction._unconverted
    engine.close()


def test_a_new_database_has_nothing_to_convert(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "a.db")
    assert engine.maintenance.convert_datetimes() is None
    insert(engine, 1, title="a", at="2026-03-29")
    engine.close()
    engine = open_engine(tmp_path / "a.db")
    assert engine.maintenance.convert_datetimes() is None
    engine.close()


def test_the_flusher_converts_in_rounds_and_tells_the_status(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    make_old(path)
    engine = open_engine(path)
    clock = ManualClock()
    conversion = DatetimeConversion(engine.maintenance, clock)
    ending = threading.Event()
    conversion.run_round(ending)
    assert conversion.status is None
    with apsw.Connection(str(path)) as conn:
        texts = [at for (at,) in conn.execute("SELECT at FROM Note ORDER BY id")]
    conn.close()
    assert texts[:3] == ["2026-03-29T00:30:00.000000Z"] * 3
    engine.close()
