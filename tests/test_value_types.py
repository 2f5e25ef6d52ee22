"""Enums, dates, decimals and JSON values: one verdict in Python and SQL, on every way of a row."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.bench.rows import value_maker
from pylon.errors import InvalidValue
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy
from pylon.policy.rules import compile_rules
from pylon.query.evaluate import evaluator_of
from pylon.query.matcher import matcher_of
from pylon.query.position import judge_position
from pylon.query.rows import parse_filter
from pylon.storage.ops import InsertRow, ResetRows, UpdateRow, WriteRequest
from pylon.values import EntityCodec, fits
from pylon.values.decimals import decimal_of, decimal_of_sort_text, sort_text_of
from tests.support import stores
from tests.support.examples import count_examples
from tests.support.storage import open_engine, row_id
from tests.support.stores import TestStore

pytestmark = pytest.mark.stores

THING = Entity(
    "Thing",
    (
        Field("e", FieldType.ENUM, True, False, values=("a", "B", "ä")),
        Field("y", FieldType.DATE, True, False),
        Field("c", FieldType.DECIMAL, True, False),
        Field("j", FieldType.JSON, True, False),
        Field("x", FieldType.JSON, True, False, is_json_text=True),
        Field("o", FieldType.DECIMAL, True, True),
    ),
    indexes=(Index("by_c", ("c",), False), Index("by_e_y", ("e", "y"), False)),
)
MANIFEST = Manifest("things", "1", (THING,))
ADMIN = AuthContext(user_id="root", is_admin=True)

DECIMALS = st.one_of(
    st.sampled_from([
        "0", "-0", "1", "1.0", "-1", "10", "9", "-10", "-9.5", "0.1", "-0.1",
        "0.0000000000000000001",
        "9999999999999999999.9999999999999999999", "-9999999999999999999.9999999999999999999",
        "00012.500", 7, -7,
    ]),
    st.decimals(
        min_value=-(10**19) + 1, max_value=10**19 - 1, places=3, allow_nan=False
    ).map(lambda d: f"{d:f}"),
)
DATES = st.dates().map(lambda d: f"{d.year:04}-{d:%m-%d}") | st.sampled_from(
    ["2026-03-29", "2026-03-30", "0001-01-01"]
)
SCALARS = st.one_of(
    st.sampled_from(["", "a", "1", "ä", "\U0001f600", 0, 1, -1, 1.0, 0.5, True, False, 2**53 + 1,
                     2.0**53, 2**63 - 1, -(2**63)]),
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3),
)
NAMES = st.sampled_from(["a", "b", "a b", "ä"])
JSON = st.recursive(
    SCALARS | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
ROW = st.fixed_dictionaries({
    "e": st.sampled_from(["a", "B", "ä"]) | st.none(), "y": DATES | st.none(),
    "c": DECIMALS | st.none(), "j": JSON, "x": JSON.map(lambda v: orjson.dumps(v).decode()),
})
OPERANDS: dict[str, st.SearchStrategy[Any]] = {
    "e": st.sampled_from(["a", "B", "ä"]), "y": DATES, "c": DECIMALS, "j": SCALARS, "x": SCALARS,
}
COMPARISONS = ("$gt", "$gte", "$lt", "$lte")


@st.composite
def condition(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(OPERANDS)))
    value = OPERANDS[name]
    choices = {
        **dict.fromkeys(COMPARISONS, value), "$ne": value | st.none(), "$not": value | st.none(),
        "$in": st.lists(value | st.none(), max_size=4),
        "$nin": st.lists(value | st.none(), max_size=4), "$exists": st.booleans(),
    }
    if name in ("e", "y"):
        choices |= dict.fromkeys(("$like", "$startsWith"), st.sampled_from(["a", "2", "202", "_"]))
    key = name
    if name in ("j", "x"):
        choices["$contains"] = value
        key = ".".join((name, *draw(st.lists(NAMES, max_size=2))))
    if draw(st.booleans()):
        return {key: draw(value | st.none())}
    operators = draw(st.lists(st.sampled_from(sorted(choices)), min_size=1, max_size=2))
    return {key: {operator: draw(choices[operator]) for operator in operators}}


FILTER = st.recursive(
    condition(),
    lambda parts: st.lists(parts, max_size=3).map(lambda p: {"$or": p})
    | st.lists(parts, max_size=3).map(lambda p: {"$and": p}),
    max_leaves=4,
)


class Stage:
    """A store with the rows of one example."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = open_engine(path, manifest=MANIFEST)
        self.reader = stores.backend_at(path).open_reader(MANIFEST)
        self.codec = EntityCodec(THING)

    def write(self, *ops: Any) -> list[Any]:
        result = self.engine.apply([WriteRequest(n, op) for n, op in enumerate(ops, 1)])
        return [reply.error for reply in result.replies]

    def fill(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Store the rows alone. Return them as they are read."""
        inserts = []
        for number, body in enumerate(rows, 1):
            encoded = self.codec.insert(body, row_id(number))
            inserts.append(
                InsertRow("Thing", row_id(number), encoded.values, encoded.row_json)
            )
        assert not any(self.write(ResetRows(), *inserts))
        return [orjson.loads(self.reader.get("Thing", row_id(n)) or b"") for n in
                range(1, len(rows) + 1)]

    def found(self, body: dict[str, Any]) -> list[int]:
        rows = self.reader.rows("Thing", parse_filter(THING, body, 100))
        return [int(orjson.loads(row)["id"], 16) for row in rows]


@pytest.fixture(scope="module")
def stage(tested_store: TestStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("types") / "a.db")
    yield made
    made.reader.close()
    made.engine.close()


@settings(max_examples=count_examples(600))
@given(st.lists(ROW, min_size=1, max_size=4), st.lists(FILTER, min_size=1, max_size=4))
def test_python_passes_exactly_the_rows_that_sql_selects(
    stage: Stage, rows: list[dict[str, Any]], filters: list[dict[str, Any]]
) -> None:
    stored = stage.fill(rows)
    for body in filters:
        holds = matcher_of(THING, body).holds
        wanted = [n for n, row in enumerate(stored, 1) if holds(row)]
        event(f"some pass: {bool(wanted)}")
        assert stage.found(body) == wanted, body


@settings(max_examples=count_examples(200))
@given(st.lists(ROW, min_size=2, max_size=4), st.sampled_from(["asc", "desc"]),
       st.sampled_from(["c", "y", "e"]))
def test_orders_and_positions_are_those_of_the_values(
    stage: Stage, rows: list[dict[str, Any]], direction: str, name: str
) -> None:
    stored = stage.fill(rows)
    key: Any = Decimal if name == "c" else str
    order = sorted(
        range(1, len(rows) + 1), reverse=direction == "desc",
        key=lambda n: (stored[n - 1][name] is not None, key(stored[n - 1][name] or 0)),
    )
    found = stage.found({"$order": {name: direction}})
    assert [stored[n - 1][name] for n in found] == [stored[n - 1][name] for n in order]
    for place, number in enumerate(found):
        row = stored[number - 1]
        after = {name: row[name], "id": row["id"]}
        body = {"$order": {name: direction}, "$after": after}
        assert stage.found(body) == found[place + 1:]
        position = parse_filter(THING, body, 100).position
        assert position is not None
        behind = judge_position(THING, position)
        assert {n for n in found if behind(stored[n - 1])} == set(found[place + 1:])


@given(st.decimals(min_value=-(10**19) + 1, max_value=10**19 - 1, places=19, allow_nan=False),
       st.decimals(min_value=-(10**19) + 1, max_value=10**19 - 1, places=2, allow_nan=False))
def test_sort_texts_order_as_the_numbers(first: Decimal, second: Decimal) -> None:
    left, right = decimal_of(f"{first:f}"), decimal_of(f"{second:f}")
    assert left is not None and right is not None
    assert Decimal(left) == first
    one, two = sort_text_of(left), sort_text_of(right)
    assert (one < two, one == two) == (first < second, first == second)
    assert (decimal_of_sort_text(one), decimal_of_sort_text(two)) == (left, right)


@pytest.mark.parametrize("policy", [
    "data.c >= 0.5 && data.c < '10'", "data.y > '2026-03-29'", "data.e in ['a', 'B']",
    "data.c == data.o || data.j == null", "!(data.c != 1)", "data.y != null && data.e != 'ä'",
])
@settings(max_examples=count_examples(40))
@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_policies_have_one_verdict(stage: Stage, policy: str, rows: list[dict[str, Any]]) -> None:
    stored = stage.fill(rows)
    manifest = Manifest("t", "1", (THING,), policies=(Policy("p", "Thing", allow_read=policy),))
    rules = compile_rules(manifest).for_entity("Thing")
    caller = AuthContext(user_id="u1")
    allowed = rules.readable_by(caller)
    found = stage.reader.rows("Thing", parse_filter(THING, {}, 100, allowed))
    wanted = [row["id"] for row in stored if rules.may_read(caller, row)]
    assert [orjson.loads(row)["id"] for row in found] == wanted
    judge = evaluator_of(allowed)
    assert [row["id"] for row in stored if judge(row)] == wanted


def test_a_row_has_the_normal_form_of_each_value(stage: Stage) -> None:
    (row,) = stage.fill([{
        "e": "B", "y": "2026-03-29", "c": "0012.50", "o": -3,
        "j": {"b": [1, 1.0, None], "a": "x"}, "x": ' {"b": 2, "a": 1} ',
    }])
    assert row == {
        "id": row_id(1), "e": "B", "y": "2026-03-29", "c": "12.5", "o": "-3",
        "j": {"a": "x", "b": [1, 1.0, None]}, "x": '{"a":1,"b":2}',
    }
    patch = stage.codec.patch({"c": "-0.0", "j": [True], "x": "5"}, row_id(1))
    assert stage.write(UpdateRow("Thing", row_id(1), patch, ADMIN)) == [None]
    after = orjson.loads(stage.reader.get("Thing", row_id(1)) or b"")
    assert (after["c"], after["j"], after["x"]) == ("0", [True], "5")
    assert stage.found({"c": "0", "j": {"$contains": True}, "x": 5}) == [1]
    columns = stores.run_sql(stage.path, 'SELECT e, y, c, j, x, o FROM "Thing"')
    assert columns == [("B", "2026-03-29", "1" + "0" * 38, "[true]", "5", sort_text_of("-3"))]
    whole = stores.run_sql(stage.path, 'SELECT id, e, y, c, j, x, o FROM "Thing"')
    assert stage.codec.row_from_sql(whole[0]) == after


def test_equal_decimals_are_one_value_of_a_unique_field(stage: Stage) -> None:
    stage.fill([{"o": "1.50"}])
    encoded = stage.codec.insert({"o": "1.5"}, row_id(2))
    (error,) = stage.write(InsertRow("Thing", row_id(2), encoded.values, encoded.row_json))
    assert (error.code, error.details["value"]) == ("UNIQUE_VIOLATION", "1.5")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("e", "A", "one of a, B, ä"), ("e", 1, "one of"), ("e", ["a"], "one of"),
        ("y", "2026-02-30", "a date such as"), ("y", "2026-03-29T00:00:00Z", "a date"),
        ("y", "2026-3-29", "a date"), ("y", 20260329, "a date"), ("y", "0000-01-01", "a date"),
        ("c", 1.5, "a decimal as text"), ("c", "1e3", "a decimal"), ("c", "", "a decimal"),
        ("c", "1." + "0" * 20, "a decimal"), ("c", "1" + "0" * 19, "a decimal"),
        ("c", 10**19, "a decimal"), ("c", True, "a decimal"), ("c", "NaN", "a decimal"),
        ("c", "१", "a decimal"), ("c", "1.", "a decimal"), ("c", ".5", "a decimal"),
        ("j", {"a": "\0"}, "a JSON value"), ("j", {"\0": 1}, "a JSON value"),
        ("j", 2**63, "a JSON value"), ("j", "x" * limits.JSON_VALUE_BYTES, "a JSON value"),
        ("x", {"a": 1}, "a text of JSON"), ("x", "{", "a text of JSON"), ("x", "", "a text of"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(
    stage: Stage, field: str, value: Any, expected: str
) -> None:
    for check in (stage.codec.insert, stage.codec.patch):
        with pytest.raises(InvalidValue) as caught:
            check({field: value}, row_id(1))
        details = caught.value.details
        assert (details["entity"], details["field"]) == ("Thing", field)
        assert str(details["expected"]).startswith(expected)


@pytest.mark.parametrize("distinct", [True, False])
def test_the_benchmark_makes_values_of_every_type(stage: Stage, distinct: bool) -> None:
    for field in THING.fields:
        make = value_maker(field, distinct)
        assert all(fits(field, make(number)) for number in (0, 1, 99, 10_000_000))


def test_json_has_bounds_of_depth(stage: Stage) -> None:
    value: Any = 1
    for _ in range(limits.JSON_VALUE_DEPTH):
        value = [value]
    assert stage.codec.insert({"j": value}, row_id(1)).row["j"] == value
    with pytest.raises(InvalidValue):
        stage.codec.insert({"j": [value]}, row_id(1))
