"""Pages behind and before a position: every backend answers what plain Python does, for any order,
with nulls, ties and mixed directions, for positions of rows and of none."""

from __future__ import annotations

from decimal import Decimal
from functools import cmp_to_key
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pylon.auth_context import ADMIN
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest
from pylon.query.conditions import and_, compare, equal, guarded
from pylon.query.graph import GraphScope, parse_graph
from pylon.query.position import (
    Order,
    Position,
    condition_of,
    judge_position,
    position_of,
    total_order,
)
from pylon.query.predicate import TRUE, Column, Literal, Predicate
from pylon.query.rows import Query
from pylon.storage.interface import Reader
from pylon.storage.ops import DeleteRow, InsertRow
from pylon.values import EntityCodec
from tests.storage_contract.backends import StoreStage, open_backend
from tests.support.examples import count_examples
from tests.support.storage import row_id
from tests.support.stores import TestStore

pytestmark = pytest.mark.stores

ENTRY = Entity(
    "Entry",
    (
        Field("room", FieldType.STRING, optional=False, unique=False),
        Field("sentAt", FieldType.STRING, optional=True, unique=False),
        Field("rank", FieldType.INT, optional=True, unique=False),
        Field("weight", FieldType.FLOAT, optional=True, unique=False),
        Field("done", FieldType.BOOL, optional=False, unique=False),
        Field("at", FieldType.DATETIME, optional=True, unique=False),
        Field("price", FieldType.DECIMAL, optional=True, unique=False),
        Field("day", FieldType.DATE, optional=True, unique=False),
    ),
    (
        Index("by_room_sent", ("room", "sentAt"), unique=False),
        Index("by_sent", ("sentAt",), unique=False),
        Index("by_done_rank", ("done", "rank"), unique=False),
        Index("by_price", ("price",), unique=False),
        Index("by_at", ("at",), unique=False),
    ),
)
MANIFEST = Manifest("positions", "1", (ENTRY,))
CODEC = EntityCodec(ENTRY)
IDS = [row_id(n) for n in range(1, 12)]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "room": st.sampled_from(["a", "b", ""]),
    "sentAt": st.sampled_from([None, "", "1", "2", "\U0001f600"]),
    "rank": st.sampled_from([None, -1, 0, 2**63 - 1, -(2**63)]),
    "weight": st.sampled_from([None, 0.1, -1.5, 2.0]),
    "done": st.booleans(),
    "at": st.sampled_from([None, "2026-03-29T00:30:00.000000Z", "2026-03-29T00:30:00.500000Z"]),
    "price": st.sampled_from([None, "9.5", "10", "-2", "0"]),
    "day": st.sampled_from([None, "2026-03-29", "2026-10-01"]),
}
ROWS = st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=len(IDS)).map(
    lambda rows: [{**row, "id": IDS[n]} for n, row in enumerate(rows)]
)
ORDERS = st.lists(
    st.tuples(st.sampled_from(ENTRY.columns), st.booleans()), max_size=4,
    unique_by=lambda pair: pair[0],
).map(tuple)
POSITIONS = st.fixed_dictionaries({**VALUES, "id": st.sampled_from([*IDS, row_id(99)])})
POLICIES: list[Predicate] = [
    TRUE, equal("done", False), equal("room", "a"),
    compare("<", Column("rank"), Literal(2)),
]
FILTERS: list[Predicate] = [
    TRUE, equal("room", "a"), equal("sentAt", None), equal("done", True),
    compare(">=", Column("sentAt"), Literal("1")),
]


@pytest.fixture(scope="module")
def stage(tested_store: TestStore, tmp_path_factory: pytest.TempPathFactory) -> StoreStage:
    backend = open_backend(tmp_path_factory.mktemp("positions"))
    return StoreStage(backend, MANIFEST)


def entry(number: int, **values: Any) -> dict[str, Any]:
    """A row with nulls but for `values`."""
    row = dict.fromkeys(ENTRY.columns)
    return {**row, "id": IDS[number], "room": "a", "done": False, **values}


def fill(stage: StoreStage, rows: list[dict[str, Any]]) -> None:
    old = [DeleteRow("Entry", row["id"], ADMIN) for row in stage.rows("Entry")]
    new = []
    for row in rows:
        encoded = CODEC.insert({k: v for k, v in row.items() if k != "id"}, row["id"])
        new.append(InsertRow("Entry", row["id"], encoded.values, encoded.row_json))
    assert not any(stage.codes(*old, *new))


def is_sooner(order: Order, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `one` comes before `other`."""
    for field, desc in total_order(order):
        first, second = one[field], other[field]
        if field == "price":  # a text on the wire
            first, second = (None if value is None else Decimal(value) for value in (first, second))
        if first != second:
            is_less = first is None or (second is not None and first < second)
            return is_less is not desc
    return False


def in_order(order: Order, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=cmp_to_key(
        lambda one, other: is_sooner(order, other, one) - is_sooner(order, one, other)
    ))


def page_of(
    order: Order, rows: list[dict[str, Any]], place: dict[str, Any], is_before: bool, limit: int
) -> list[dict[str, Any]]:
    """The page by plain comparison."""
    if is_before:
        found = [row for row in in_order(order, rows) if is_sooner(order, row, place)]
        return found[-limit:] if limit else []
    return [row for row in in_order(order, rows) if is_sooner(order, place, row)][:limit]


@settings(
    max_examples=count_examples(400),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    ROWS, ORDERS, POSITIONS, st.booleans(), st.integers(0, 6), st.sampled_from(POLICIES),
    st.sampled_from(FILTERS),
)
def test_a_page_at_a_position_has_the_rows_that_python_finds(
    stage: StoreStage, rows: list[dict[str, Any]], order: Order, place: dict[str, Any],
    is_before: bool, limit: int, allowed: Predicate, wanted: Predicate,
) -> None:
    fill(stage, rows)
    position = position_of(ENTRY, order, place, is_before)
    where = guarded(allowed, wanted)
    seen = stage.rows("Entry", where)
    expected = page_of(order, seen, place, is_before, limit)
    event(f"rows: {len(expected)}, fields: {len(position.order)}")
    assert stage.rows(
        "Entry", where, limit=limit, order=order, position=position, allowed=allowed
    ) == expected
    judge = judge_position(ENTRY, position)
    behind = page_of(order, seen, place, is_before, len(rows))
    assert sorted(row["id"] for row in seen if judge(row)) == sorted(r["id"] for r in behind)
    by_condition = stage.rows("Entry", and_(where, condition_of(ENTRY, position)))
    assert sorted(r["id"] for r in by_condition) == sorted(r["id"] for r in behind)


@settings(
    max_examples=count_examples(100),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ROWS, ORDERS, st.integers(1, 4), st.booleans())
def test_pages_one_after_the_other_have_every_row_once(
    stage: StoreStage, rows: list[dict[str, Any]], order: Order, size: int, is_before: bool
) -> None:
    fill(stage, rows)
    found: list[dict[str, Any]] = []
    page = in_order(order, rows)[-1:] if is_before else in_order(order, rows)[:1]
    while page:
        found = [*page, *found] if is_before else [*found, *page]
        edge = page[0] if is_before else page[-1]
        position = position_of(ENTRY, order, edge, is_before)
        page = stage.rows("Entry", limit=size, order=order, position=position)
    assert found == in_order(order, rows)


def test_a_graph_query_takes_a_position(stage: StoreStage) -> None:
    fill(stage, [
        entry(n, sentAt=str(n))
        for n in range(6)
    ])
    scope = GraphScope(lambda _: ENTRY, {"Entry": ENTRY}, lambda _: TRUE, 100)

    def ids(**place: Any) -> list[str]:
        body = {"Entry": {"order": {"sentAt": "desc"}, "limit": 2, **place}}
        answer = orjson.loads(reader.graph(parse_graph(scope, body)))
        return [row["id"] for row in answer["Entry"]]

    reader: Reader = stage.reader
    assert ids(after={"sentAt": "4", "id": IDS[4]}) == [IDS[3], IDS[2]]
    assert ids(before={"sentAt": "2", "id": IDS[2]}) == [IDS[4], IDS[3]]
    assert ids(before={"sentAt": "5", "id": IDS[5]}) == []


def test_a_page_is_bounded_and_counted_like_every_other(stage: StoreStage) -> None:
    fill(stage, [
        entry(n, rank=n)
        for n in range(6)
    ])
    order: Order = (("rank", True),)
    position = Position(total_order(order), (4, IDS[4]))
    query = Query(equal("room", "a"), 3, order=order, position=position)
    count, text = stage.reader.page("Entry", query)
    assert count == 3 and text.count(b'"id"') == 3
    rows, has_more = stage.reader.rows_within("Entry", query, 10_000)
    assert (len(rows), has_more) == (3, True)
