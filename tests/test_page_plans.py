"""SQLite finds the rows of each page at a position by an index: for every direction, null and
policy. The plan has no SCAN of the table, and sorts at most the ties of one value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest

from pylon.errors import InvalidColumn, InvalidQuery, InvalidValue, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest
from pylon.query.conditions import compare, equal
from pylon.query.position import Position, runs_of
from pylon.query.predicate import TRUE, Column, CompareTuple, Literal, Predicate
from pylon.query.rows import parse_filter
from pylon.storage.sql.compiler import CompiledCache
from pylon.storage.sqlite.reads import EntityReads, selection
from tests.support.storage import open_engine, row_id

MESSAGE = Entity(
    "Message",
    (
        Field("roomId", FieldType.ID, optional=False, unique=False, target="Room"),
        Field("sentAt", FieldType.STRING, optional=True, unique=False),
        Field("number", FieldType.INT, optional=False, unique=False),
        Field("at", FieldType.DATETIME, optional=True, unique=False),
        Field("authorId", FieldType.STRING, optional=True, unique=False),
        Field("token", FieldType.STRING, optional=True, unique=True),
        Field("text", FieldType.RICHTEXT, optional=True, unique=False),
    ),
    (
        Index("by_room_sent", ("roomId", "sentAt"), unique=False),
        Index("by_room_number", ("roomId", "number"), unique=False),
        Index("by_sent", ("sentAt",), unique=False),
        Index("by_room_at", ("roomId", "at"), unique=False),
        Index("by_at", ("at",), unique=False),
        Index("by_number", ("number",), unique=False),
    ),
)
MANIFEST = Manifest("plans", "1", (Entity("Room", ()), MESSAGE))
PLACE = {"sentAt": "2026-11-27", "id": row_id(7)}
OWN: Predicate = equal("authorId", "u1")


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> apsw.Connection:
    path: Path = tmp_path_factory.mktemp("plans") / "a.db"
    open_engine(path, manifest=MANIFEST).close()
    return apsw.Connection(str(path))


def plan_of(
    connection: apsw.Connection, body: dict[str, Any], allowed: Predicate = TRUE
) -> list[str]:
    """The lines of the plan that concern the table or a sort."""
    query = parse_filter(MESSAGE, body, 100, allowed)
    select = selection(EntityReads(MESSAGE, CompiledCache()), query)
    lines = [
        line for (_, _, _, line) in connection.execute(
            f"EXPLAIN QUERY PLAN {select.sql}", select.params
        )
    ]
    return [line for line in lines if "Message" in line or "TEMP B-TREE" in line]


@pytest.mark.parametrize("allowed", [TRUE, OWN], ids=["all", "own"])
@pytest.mark.parametrize("room", [{"roomId": "r1"}, {}], ids=["room", "table"])
@pytest.mark.parametrize("key", ["$after", "$before"])
@pytest.mark.parametrize(("order", "place"), [
    ({"sentAt": "asc"}, PLACE),
    ({"sentAt": "desc"}, PLACE),
    ({"sentAt": "asc", "id": "desc"}, PLACE),
    ({"sentAt": "desc", "id": "desc"}, PLACE),
    ({"sentAt": "asc"}, {**PLACE, "sentAt": None}),
    ({"sentAt": "desc"}, {**PLACE, "sentAt": None}),
    ({"number": "desc"}, {"number": 4, "id": row_id(7)}),
    ({"number": "desc", "id": "desc"}, {"number": 4, "id": row_id(7)}),
    ({"at": "asc"}, {"at": "2026-11-27T00:00:00Z", "id": row_id(7)}),
    ({"at": "desc"}, {"at": "2026-11-27", "id": row_id(7)}),
])
def test_each_run_of_a_page_is_a_search(
    connection: apsw.Connection, order: dict[str, str], place: dict[str, Any], key: str,
    room: dict[str, str], allowed: Predicate,
) -> None:
    lines = plan_of(connection, {**room, "$order": order, key: place}, allowed)
    field = next(iter(order))
    tables = [line for line in lines if "Message" in line]
    assert tables
    for line in tables:
        assert line.startswith("SEARCH Message USING INDEX")
        assert f"{field}>" in line or f"{field}<" in line or f"{field}=" in line or (
            f"({field},id)" in line
        ), line
        assert ("roomId=?" in line) is bool(room)
    sorts = [line for line in lines if line not in tables]
    whole = ["USE TEMP B-TREE FOR ORDER BY"] if key == "$before" else []  # the page itself
    assert set(sorts) <= {"USE TEMP B-TREE FOR LAST TERM OF ORDER BY", *whole}


def test_an_order_of_one_direction_is_one_row_value_comparison(
    connection: apsw.Connection,
) -> None:
    body = {"roomId": "r1", "$order": {"sentAt": "asc"}, "$after": PLACE}
    assert plan_of(connection, body) == [
        "SEARCH Message USING INDEX Message_by_room_sent (roomId=? AND (sentAt,id)>(?,?))"
    ]
    ordered = parse_filter(MESSAGE, body, 100)
    assert ordered.position is not None
    (run,) = runs_of(MESSAGE, ordered.position)
    values = ("2026-11-27", row_id(7))
    assert run.condition == CompareTuple(("sentAt", "id"), False, values, ("", ""))


def test_a_policy_guards_a_position_in_a_unique_index(connection: apsw.Connection) -> None:
    """A page must not tell where the token of a hidden row lies."""
    body = {"$order": {"token": "asc"}, "$after": {"token": "x", "id": row_id(1)}}
    guarded_lines = plan_of(connection, body, compare("<>", Column("text"), Literal("secret")))
    assert not any("token" in line and ">" in line for line in guarded_lines)
    assert any("token,id)>" in line for line in plan_of(connection, body))


def test_a_position_needs_the_values_of_the_order_and_an_id() -> None:
    order = {"$order": {"number": "desc"}}
    for place, error, text in [
        ([], InvalidQuery, r"\$after takes an object with the fields of the order and id"),
        ({"number": 1}, InvalidQuery, r"\$after has no id"),
        ({"id": "x"}, InvalidQuery, r"\$after has no number"),
        ({"number": 1, "id": "x", "sentAt": "y"}, InvalidQuery, "sentAt, which is not in the"),
        ({"number": 1, "id": "x", "nope": "y"}, InvalidColumn, "nope"),
        ({"number": "1", "id": "x"}, InvalidValue, "number"),
        ({"number": 2**64, "id": "x"}, InvalidValue, "number"),
        ({"number": 1, "id": None}, InvalidValue, "id"),
    ]:
        with pytest.raises(error, match=text):
            parse_filter(MESSAGE, {**order, "$after": place}, 100)
    place = {"number": 1, "id": "x"}
    with pytest.raises(InvalidQuery, match="not both"):
        parse_filter(MESSAGE, {**order, "$after": place, "$before": place}, 100)
    with pytest.raises(InvalidQuery, match="remove one"):
        parse_filter(MESSAGE, {**order, "$after": place, "$offset": 1}, 100)
    with pytest.raises(InvalidQuery, match="outermost"):
        parse_filter(MESSAGE, {"$or": [{"$after": place}]}, 100)
    many = dict.fromkeys(("roomId", "sentAt", "number", "authorId", "token", "text"), "asc")
    found = parse_filter(
        MESSAGE, {"$order": many, "$before": {**dict.fromkeys(many), "id": "x"}}, 100
    )
    assert found.position is not None and found.position.is_before


def test_a_position_has_a_bound_of_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylon.limits.POSITION_FIELDS", 1)
    place = {"number": 1, "id": "x"}
    with pytest.raises(LimitExceeded, match="1 fields at most"):
        parse_filter(MESSAGE, {"$order": {"number": "desc"}, "$after": place}, 100)


def test_a_position_without_an_order_is_an_id() -> None:
    found = parse_filter(MESSAGE, {"$after": {"id": "x"}, "$search": "words"}, 100)
    assert found.position == Position((("id", False),), ("x",))
    assert found.relevance is None
