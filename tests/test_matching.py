"""A filter's verdict in Python equals what each store selects, for any filter and any row."""

from __future__ import annotations

from typing import Any

import apsw
import orjson
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.errors import InvalidColumn, InvalidQuery, InvalidValue, LimitExceeded, PylonError
from pylon.manifest.model import Entity, Field, FieldType, Index
from pylon.query.evaluate import evaluator_of
from pylon.query.matcher import matcher_of
from pylon.query.parse import parse_where
from pylon.query.predicate import Column, Compare
from pylon.storage.sql.compiler import compile_predicate
from pylon.storage.sqlite.dialect import SQLITE
from pylon.values import INT_MAX, INT_MIN
from tests.support.examples import count_examples
from tests.support.moments import MOMENTS
from tests.support.sql_tables import table_of

NAMES = ("s", "t", "d", "n", "m", "f", "b")
THING = Entity(
    "Thing",
    (
        Field("s", FieldType.STRING, True, False),
        Field("t", FieldType.RICHTEXT, True, False),
        Field("d", FieldType.DATETIME, True, False),
        Field("n", FieldType.INT, True, False),
        Field("m", FieldType.INT, True, False),
        Field("f", FieldType.FLOAT, True, False),
        Field("b", FieldType.BOOL, True, False),
    ),
    # With an index a store may compare in another way than without.
    indexes=tuple(Index(f"by_{name}", (name,), False) for name in ("s", "n", "f")),
)
pytestmark = pytest.mark.stores

TEXTS = st.one_of(
    st.sampled_from([
        "", "a", "A", "ab", "aB", "ba", "b", "Ä", "ä", "k", "\u212a", "\ufffd", "\uffff",
        "\ufffe", "\U0001f600", "\U0010ffff", "a\U0010ffff", "%", "_", "a_b", "1", "İ", "\ud7ff",
        "\ue000", "a\nb",
    ]),
    st.text("abAB%_ä\n", max_size=5),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4),
)
INTS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 2**53, 2**53 + 1, 2**62 + 1, INT_MIN, INT_MAX]),
    st.integers(INT_MIN, INT_MAX),
)
FLOATS = st.one_of(
    st.sampled_from([
        0.0, -0.0, 0.5, 1.0, 0.1, 2.0**53, 2.0**63, -(2.0**63), 1e308, 5e-324,
        1.7976931348623157e308, 2.2250738585072014e-308, 123456789.123456789,
    ]),
    st.floats(allow_nan=False, allow_infinity=False),
)
# What no row has, but a filter may compare with.
FAR_INTS = st.sampled_from([
    INT_MAX + 1, INT_MIN - 1, 2**64, -(2**64) - 1, 10**20, 10**20 + 1, 2**1023 + 1, 10**309,
    -(10**309), int(1e308), int(1.7976931348623157e308) + 1,
]) | st.integers(-(2**70), 2**70)
NUMBERS = INTS | FLOATS
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "id": TEXTS, "s": TEXTS, "t": TEXTS, "d": MOMENTS, "n": INTS, "m": INTS, "f": FLOATS,
    "b": st.booleans(),
}
OPERANDS = {
    **VALUES, "n": NUMBERS, "m": NUMBERS, "f": NUMBERS, "b": st.sampled_from([True, False, 0, 1]),
}
TEXT_FIELDS = ("id", "s", "t", "d")
ROW = st.fixed_dictionaries(
    {name: values if name == "id" else values | st.none() for name, values in VALUES.items()}
)


@st.composite
def condition(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(OPERANDS)))
    value = OPERANDS[name]
    if draw(st.booleans()):
        return {name: draw((value | FAR_INTS if name == "f" else value) | st.none())}
    choices = {
        "$not": value | st.none(), "$ne": value | st.none(), "$gt": value, "$gte": value,
        "$lt": value, "$lte": value, "$exists": st.booleans(),
        "$in": st.lists(value | st.none(), max_size=4),
        "$nin": st.lists(value | st.none(), max_size=4),
    }
    if name in ("n", "m", "f"):
        choices |= dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), value | FAR_INTS)
    if name == "f":
        choices |= dict.fromkeys(("$ne", "$not"), value | FAR_INTS)
        choices |= {
            sign: st.lists(value | FAR_INTS | st.none(), max_size=4) for sign in ("$in", "$nin")
        }
    if name in TEXT_FIELDS:
        choices |= {"$like": TEXTS | st.just("a\0"), "$startsWith": TEXTS}
    operators = draw(st.lists(st.sampled_from(sorted(choices)), min_size=1, max_size=2))
    return {name: {operator: draw(choices[operator]) for operator in operators}}


def joined(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.lists(parts, max_size=3).map(lambda p: {"$or": p}),
        st.lists(parts, max_size=3).map(lambda p: {"$and": p}),
        st.lists(parts, max_size=3).map(lambda p: {k: v for part in p for k, v in part.items()}),
    )


FILTER = st.recursive(condition(), joined, max_leaves=6)


def selected(row: dict[str, Any], body: dict[str, Any]) -> bool:
    """Whether the store selects the row."""
    table = table_of(THING)
    table.put([row])
    return bool(table.ids(parse_where(THING, body)))


@settings(max_examples=count_examples(1_500))
@given(st.data(), ROW)
def test_python_passes_exactly_the_rows_that_sql_selects(
    data: st.DataObject, row: dict[str, Any]
) -> None:
    body = data.draw(FILTER)
    if data.draw(st.booleans()):  # equality with what is in the row would be rare otherwise
        name = data.draw(st.sampled_from(sorted(VALUES)))
        same = data.draw(st.sampled_from([row[name], {"$in": [row[name]]}]))
        body = data.draw(st.sampled_from([{**body, name: same}, {"$and": [{name: same}, body]}]))
    stored = orjson.loads(orjson.dumps(row))
    matcher = matcher_of(THING, body)
    passes = matcher.holds(stored)
    event(f"passes: {passes}")
    assert passes is selected(row, body), body
    if passes:
        for term in matcher.terms:
            assert stored[term.field.name] in term.values, "a term must be necessary"


@settings(max_examples=count_examples(500))
@given(TEXTS, TEXTS, TEXTS, st.text("ab%_A\n", max_size=6))
def test_like_folds_and_finds_as_the_store_does(a: str, b: str, c: str, pattern: str) -> None:
    row: dict[str, Any] = dict.fromkeys(NAMES) | {"id": "1", "s": a + b + c}
    for wanted in (b, b.swapcase(), f"{a}%{c}", pattern, f"{b}_"):
        body = {"s": {"$like": wanted}}
        assert matcher_of(THING, body).holds(row) is selected(row, body), wanted


def test_an_absent_field_is_a_null() -> None:
    passing: list[Any] = [{"s": None}, {"n": {"$exists": False}}, {"n": {"$in": [None]}}]
    failing: list[Any] = [{"s": {"$ne": "x"}}, {"n": {"$nin": [1]}}, {"n": {"$lt": 1}}]
    verdicts = [matcher_of(THING, body).holds({"id": "1"}) for body in (*passing, *failing)]
    assert verdicts == [True] * 3 + [False] * 3


@pytest.mark.sqlite
def test_text_in_a_column_of_numbers_sorts_behind_them() -> None:
    row: dict[str, Any] = dict.fromkeys(NAMES) | {"id": "1", "n": "abc"}
    for operator in ("$gt", "$gte", "$lt", "$lte", "$ne"):
        body = {"n": {operator: 5}}
        assert matcher_of(THING, body).holds(row) is selected(row, body), operator
    row |= {"n": 5, "m": "abc"}
    for sign in ("<", "<=", ">", ">=", "=", "<>"):
        for columns in (("n", "m"), ("m", "n")):
            predicate = Compare(sign, *map(Column, columns))
            clause = compile_predicate(SQLITE, THING, predicate)
            found = apsw.Connection(":memory:").execute(
                f"SELECT count(*) FROM (SELECT 5 AS n, 'abc' AS m) WHERE {clause.sql}"
            ).get
            assert evaluator_of(predicate)(row) is bool(found), (sign, columns)


@pytest.mark.parametrize(
    ("body", "terms"),
    [
        ({}, {}),
        ({"s": "x", "n": {"$gt": 1}}, {"s": {"x"}}),
        ({"$and": [{"s": "x"}, {"n": 1}]}, {"s": {"x"}, "n": {1}}),
        ({"$or": [{"s": "x"}, {"n": 1}]}, {}),
        ({"s": {"$in": ["x", None]}}, {"s": {"x", None}}),
        ({"s": {"$in": []}}, {"id": set()}),
        ({"s": {"$exists": False}}, {"s": {None}}),
        ({"s": {"$exists": True, "$ne": "x", "$nin": ["y"]}}, {}),
        ({"b": True}, {"b": {True}}),
        ({"f": 1}, {"f": {1.0}}),
    ],
)
def test_terms(body: dict[str, Any], terms: dict[str, set[object]]) -> None:
    found = {term.field.name: set(term.values) for term in matcher_of(THING, body).terms}
    assert found == terms


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ([], InvalidQuery, "JSON object"),
        ({"$order": {"s": "asc"}}, InvalidQuery, r"no \$order.*conditions on fields, \$or"),
        ({"$limit": 1}, InvalidQuery, r"no \$limit"),
        ({"$search": "x"}, InvalidQuery, r"no \$search"),
        ({"$or": [{"$and": [{"$search": "x"}]}]}, InvalidQuery, r"no \$search"),
        ({"nope": 1}, InvalidColumn, "valid columns"),
        ({"n": "1"}, InvalidValue, "whole number"),
        ({"n": {"$near": 1}}, InvalidQuery, "known operators"),
        ({"s": {"$like": "x" * (limits.LIKE_CHARS + 1)}}, LimitExceeded, "characters at most"),
        ({"$or": [{}] * limits.FILTER_TERMS}, LimitExceeded, "conditions"),
    ],
)
def test_refusals(body: Any, error: type[PylonError], says: str) -> None:
    with pytest.raises(error, match=says):
        matcher_of(THING, body)
