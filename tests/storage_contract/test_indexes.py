"""Indexes: partial, descending; uniqueness over several fields, and without regard to case."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylon.auth_context import ADMIN, ANONYMOUS
from pylon.errors import InvalidColumn, SchemaRefused
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy
from pylon.query.conditions import guarded
from pylon.query.evaluate import evaluator_of
from pylon.query.parse import parse_where
from pylon.schema.options import MigrationOptions
from pylon.storage.backend import Backend
from pylon.storage.ops import InsertRow, ResetRows, UpdateRow
from pylon.values import EntityCodec, fold_case
from tests.storage_contract.backends import StoreStage
from tests.support.examples import count_examples
from tests.support.storage import row_id

pytestmark = pytest.mark.stores

PLACE = Entity(
    "Place",
    (
        Field("room", FieldType.STRING, True, False),
        Field("holder", FieldType.STRING, True, False),
        Field("open", FieldType.BOOL, True, False), Field("rank", FieldType.INT, True, False),
        Field("mail", FieldType.STRING, True, True, nocase=True),
    ),
    (
        Index("one_open", ("room", "holder"), True, where='{"open": true}'),
        Index("by_rank", ("room", "rank"), False, ("rank",)),
        Index("ranked", ("rank",), False, where='{"rank": {"$gte": 3}, "holder": {"$ne": null}}'),
        Index("few", ("holder",), False, ("holder",), '{"room": {"$in": ["a", "b"]}}'),
    ),
)
MANIFEST = Manifest("places", "1", (PLACE,), policies=(
    Policy("p", entity="Place", allow_read="data.rank != 4", allow_write="true"),
))


def add(number: int, **fields: Any) -> InsertRow:
    encoded = EntityCodec(PLACE).insert(fields, row_id(number))
    return InsertRow("Place", row_id(number), encoded.values, encoded.row_json)


@pytest.fixture
def stage(backend: Backend) -> Iterator[StoreStage]:
    made = StoreStage(backend, MANIFEST)
    yield made
    made.close()


# --- Partial indexes -------------------------------------------------------------------------


def test_partial_unique_index_counts_its_rows_only_and_names_all_fields(stage: StoreStage) -> None:
    assert stage.codes(
        add(1, room="a", holder="x", open=True), add(2, room="a", holder="x", open=False),
        add(3, room="a", holder="x"), add(4, room="a", holder="y", open=True),
    ) == [None] * 4
    (reply,) = stage.apply(UpdateRow("Place", row_id(2), {"open": True}, ADMIN))
    assert reply.error is not None and reply.error.details == {
        "entity": "Place", "fields": ["room", "holder"], "value": ["a", "x"],
    }
    assert stage.codes(
        UpdateRow("Place", row_id(1), {"open": False}, ADMIN),
        UpdateRow("Place", row_id(2), {"open": True}, ADMIN),
    ) == [None, None]


@pytest.mark.parametrize("indexes", [
    (Index("one_open", ("room", "holder"), True, where='{"open": false}'),),
    (Index("one_open", ("room", "holder"), False, where='{"open": true}'),),
    (Index("one_open", ("room", "holder"), True, ("holder",), '{"open": true}'),),
    (Index("by_rank", ("room", "rank"), False),), (Index("ranked", ("rank",), False),), (),
], ids=range(6))
def test_changed_indexes_are_made_again_by_a_start(
    stage: StoreStage, indexes: tuple[Index, ...]
) -> None:
    stage.apply(add(1, room="a", holder="x", open=True))
    assert not stage.backend.schema.plan(MANIFEST, MigrationOptions()).steps
    changed = replace(MANIFEST, entities=(replace(PLACE, indexes=indexes),))
    steps = stage.backend.schema.plan(changed, MigrationOptions()).steps
    assert {step.kind for step in steps} <= {"add_index", "remove_index"} and steps
    stage.restart(changed)
    assert not stage.backend.schema.plan(changed, MigrationOptions()).steps
    stage.restart(MANIFEST)
    assert not stage.backend.schema.plan(MANIFEST, MigrationOptions()).steps


def test_partial_unique_index_over_rows_that_break_it_is_refused(backend: Backend) -> None:
    without = replace(MANIFEST, entities=(replace(PLACE, indexes=()),))
    stage = StoreStage(backend, without)
    stage.apply(*(add(n, room="a", holder="x", open=n < 3) for n in range(1, 5)))
    refusals = backend.schema.plan(MANIFEST, MigrationOptions()).refusals
    assert len(refusals) == 1 and "(2 times)" in refusals[0]
    stage.apply(UpdateRow("Place", row_id(1), {"open": None}, ADMIN))
    stage.restart(MANIFEST)
    stage.close()


VALUES = st.sampled_from(["a", "b", "c", None])
ROWS = st.lists(
    st.fixed_dictionaries({
        "room": VALUES, "holder": VALUES, "open": st.sampled_from([True, False, None]),
        "rank": st.integers(1, 5) | st.none(),
    }), max_size=8,
)
CONDITIONS = st.lists(st.sampled_from([
    {"open": True}, {"open": False}, {"open": None}, {"room": "a"}, {"holder": "b"},
    {"rank": {"$gte": 3}}, {"rank": {"$gte": 2}}, {"rank": 3}, {"holder": {"$ne": None}},
    {"room": {"$in": ["a", "b"]}}, {"room": {"$in": ["a"]}}, {"rank": {"$lt": 4}},
    {"$or": [{"open": True}, {"rank": {"$gte": 3}}]},
]), max_size=4)


@settings(
    max_examples=count_examples(150), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(ROWS, CONDITIONS, st.booleans())
def test_partial_indexes_change_no_answer(
    stage: StoreStage, rows: list[dict[str, Any]], conditions: list[dict[str, Any]],
    is_guarded: bool,
) -> None:
    stage.apply(ResetRows())
    stage.apply(*(add(n, **row) for n, row in enumerate(rows, 1)))  # some are refused
    stored = stage.rows("Place")
    where = parse_where(PLACE, {"$and": conditions} if conditions else {})
    if is_guarded:
        rules = stage.rules.for_entity("Place")
        where = guarded(rules.readable_by(ANONYMOUS), where)
    judge = evaluator_of(where)
    expected = [row["id"] for row in stored if judge(row)]
    assert [row["id"] for row in stage.rows("Place", where)] == expected
    assert stage.reader.count("Place", where) == len(expected)


def test_descending_index_serves_an_order(stage: StoreStage) -> None:
    stage.apply(*(add(n, room="a", rank=n % 7) for n in range(1, 20)))
    where = parse_where(PLACE, {"room": "a"})
    found = stage.rows("Place", where, order=(("rank", True),))
    ranks = [row["rank"] for row in found]
    assert ranks == sorted(ranks, reverse=True)


# --- Without regard to case ------------------------------------------------------------------


def test_values_that_differ_in_case_only_are_equal(stage: StoreStage) -> None:
    stage.apply(add(1, mail="Straße@Example.COM"), add(2, mail="zoë@x"), add(3), add(4))
    taken, composed, free = stage.apply(
        add(5, mail="STRASSE@example.com"), add(6, mail="ZOE\u0308@X"), add(7, mail="other"),
    )
    assert free.error is None
    for reply, value in ((taken, "STRASSE@example.com"), (composed, "ZOE\u0308@X")):
        assert reply.error is not None and reply.error.code == "UNIQUE_VIOLATION"
        assert reply.error.details == {"entity": "Place", "field": "mail", "value": value}
    assert stage.codes(
        UpdateRow("Place", row_id(7), {"mail": "ZOË@x"}, ADMIN),
        UpdateRow("Place", row_id(2), {"mail": None}, ADMIN),
        UpdateRow("Place", row_id(7), {"mail": "ZOË@x"}, ADMIN),
        UpdateRow("Place", row_id(7), {"mail": "zoë@x", "rank": 1}, ADMIN),
    ) == ["UNIQUE_VIOLATION", None, None, None]


def test_lookup_finds_the_value_in_any_case_and_filters_stay_exact(stage: StoreStage) -> None:
    stage.apply(add(1, mail="Ada@X", rank=1), add(2, mail="eve@x", rank=4))
    rules = stage.rules.for_entity("Place")
    allowed = rules.readable_by(ANONYMOUS)

    def found(value: str, **more: Any) -> str | None:
        row = stage.reader.lookup("Place", "mail", value, **more)
        return None if row is None else json.loads(row)["mail"]

    assert (found("ADA@x"), found("ada@x", allowed=allowed)) == ("Ada@X", "Ada@X")
    assert (found("EVE@X"), found("EVE@X", allowed=allowed)) == ("eve@x", None)
    assert found("nobody") is None
    assert stage.rows("Place", parse_where(PLACE, {"mail": "ada@x"})) == []
    assert len(stage.rows("Place", parse_where(PLACE, {"mail": "Ada@X"}))) == 1
    with pytest.raises(InvalidColumn):
        stage.reader.lookup("Place", "_fold_mail", "ada@x")


def test_field_becomes_unique_without_regard_to_case_over_rows(backend: Backend) -> None:
    exact = replace(PLACE, fields=(*PLACE.fields[:4], replace(PLACE.fields[4], nocase=False)))
    before = replace(MANIFEST, entities=(exact,))
    stage = StoreStage(backend, before)
    stage.apply(add(1, mail="Ada"), add(2, mail="ADA"))
    (refusal,) = backend.schema.plan(MANIFEST, MigrationOptions()).refusals
    assert "without regard to case" in refusal and "'ada' (2 times)" in refusal
    stage.close()
    with pytest.raises(SchemaRefused):
        StoreStage(backend, MANIFEST)
    stage = StoreStage(backend, before)
    stage.apply(UpdateRow("Place", row_id(2), {"mail": "Bob"}, ADMIN))
    stage.close()
    backend.schema.refuse_unreachable(MANIFEST)
    stage = StoreStage(backend, MANIFEST)
    assert stage.codes(add(3, mail="BOB")) == ["UNIQUE_VIOLATION"]
    assert not backend.schema.plan(MANIFEST, MigrationOptions()).steps
    stage.restart(before)
    assert not backend.schema.plan(before, MigrationOptions()).steps
    assert stage.codes(add(3, mail="BOB")) == [None]
    stage.close()


def test_rename_and_rewrite_keep_uniqueness_without_regard_to_case(stage: StoreStage) -> None:
    stage.apply(add(1, mail="Ada", rank=3))
    stage.close()
    fields = (
        *PLACE.fields[:3], replace(PLACE.fields[3], type=FieldType.STRING),
        replace(PLACE.fields[4], name="address"),
    )
    changed = replace(MANIFEST, policies=(), entities=(replace(PLACE, fields=fields, indexes=()),))
    options = MigrationOptions(rename_fields={("place", "mail"): "address"})
    stage.backend.schema.apply(changed, options, allow_destructive=True)
    again = StoreStage(stage.backend, changed)
    assert not stage.backend.schema.plan(changed, MigrationOptions()).steps
    body = EntityCodec(changed.entities[0]).insert({"address": "ADA"}, row_id(2))
    assert again.codes(InsertRow("Place", row_id(2), body.values, body.row_json)) == [
        "UNIQUE_VIOLATION",
    ]
    again.close()


@given(st.text(), st.text())
def test_folding_has_no_case(left: str, right: str) -> None:
    folded = fold_case(left)
    assert folded == fold_case(left.swapcase().swapcase()) or left != left.swapcase().swapcase()
    assert folded is not None and fold_case(folded) == folded
    if left.casefold() == right.casefold():
        assert folded == fold_case(right)
