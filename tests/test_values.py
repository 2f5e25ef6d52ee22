"""Rows are checked and encoded: every type's good and bad values, and the JSON's shape."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon import limits
from pylon.errors import (
    InvalidColumn,
    InvalidData,
    InvalidId,
    InvalidJson,
    InvalidValue,
    MissingField,
    NullNotAllowed,
)
from pylon.manifest.model import Entity, Field, FieldType
from pylon.values import EntityCodec, decode_body, decode_query, is_datetime
from pylon.values.datetimes import instant_key, instant_of
from tests.support.moments import MOMENTS, instant, stored_moment
from tests.support.storage import CODECS, row_id

TASK = CODECS["Task"]
ID = row_id(1)
GOOD = {"title": "a", "done": False}


def test_a_row_has_every_column_sorted_and_typed() -> None:
    row = TASK.insert({**GOOD, "done": True, "rank": 3.0, "weight": 2}, ID)
    assert row.row_json == (
        b'{"done":true,"dueAt":null,"id":"%s","ownerId":null,"rank":3,"slug":null,'
        b'"title":"a","weight":2.0}' % ID.encode()
    )
    assert list(row.values) == ["a", 1, 3, 2.0, None, None, None]
    assert row.values[1] is True  # bound as 1
    assert orjson.loads(row.row_json) == row.row


@pytest.mark.parametrize(
    "text",
    ["-9223372036854775809", "-9223372036854776832", "9223372036854775808",
     "18446744073709551616"],
)
def test_an_integer_beyond_64_bits_is_refused_on_both_sides(text: str) -> None:
    body = decode_body(b'{"title":"a","done":false,"rank":%s}' % text.encode())
    with pytest.raises(InvalidValue, match="whole number of 64 bits"):
        TASK.insert(body, ID)
    with pytest.raises(InvalidValue, match="whole number of 64 bits"):
        TASK.patch({"rank": body["rank"]}, ID)
    assert decode_query(b"[%s]" % text.encode()) == [int(text)]


def test_the_smallest_and_the_largest_integer_are_taken() -> None:
    for number in (-(2**63), 2**63 - 1):
        body = decode_body(b'{"title":"a","done":false,"rank":%d}' % number)
        assert TASK.insert(body, ID).row["rank"] == number


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", 1), ("title", True), ("title", ["a"]), ("title", "a\0b"),
        ("done", 0), ("done", "true"),
        ("rank", "1"), ("rank", 1.5), ("rank", True), ("rank", 2**63), ("rank", 1e300),
        ("weight", "1"), ("weight", False), ("weight", float("inf")), ("weight", 10**400),
        ("dueAt", "yesterday"), ("dueAt", "2026-02-30"), ("dueAt", 5),
        ("dueAt", "2026-01-01T25:00Z"),
        ("ownerId", 7), ("ownerId", {"id": 1}),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        TASK.insert({**GOOD, field: value}, ID)
    assert caught.value.details["entity"] == "Task"
    assert caught.value.details["field"] == field
    assert caught.value.details["expected"]
    with pytest.raises(InvalidValue):
        TASK.patch({field: value}, ID)


@pytest.mark.parametrize(
    "text",
    ["2026-01-31", "2024-02-29T10:00", "2026-01-01T00:00:00Z", "2026-01-01 23:59:59.123456+02:00",
     "1700000000Z", "-5Z"],
)
def test_datetimes_that_are_taken(text: str) -> None:
    assert is_datetime(text)
    assert TASK.insert({**GOOD, "dueAt": text}, ID).row["dueAt"] == stored_moment(text)
    assert TASK.patch({"dueAt": text}, ID)["dueAt"] == stored_moment(text)


@pytest.mark.parametrize(
    "text", ["", "Z", "2026-1-1", "2026-13-01", "20260101", "0000-01-01", "१२Z"]
)
def test_datetimes_that_are_not(text: str) -> None:
    assert not is_datetime(text)


@pytest.mark.parametrize(
    "text",
    ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:00-00:01", "-62135596801Z", "253402300800Z",
     "2026-W01-1T00:00:00.000Z", "2026-01-01T24:00:00.000Z", "2026-02-30T00:00:00.000Z",
     "2026-01-01T00:00:00.000000z0", "２026-01-01T00:00:00.000Z"],
)
def test_no_text_is_an_instant_beyond_the_years_or_in_a_notation_of_its_own(text: str) -> None:
    assert instant_of(text) is None
    assert instant_key(text) == text


@given(MOMENTS, MOMENTS)
def test_stored_datetimes_order_as_their_instants(first: str, second: str) -> None:
    left, right = instant_of(first), instant_of(second)
    assert left is not None and right is not None
    assert left == stored_moment(first) == instant_key(first) == instant_of(left)
    assert len(left) == 27
    assert (left < right, left == right) == (
        instant(first) < instant(second), instant(first) == instant(second)
    )


@given(st.datetimes(timezones=st.none()), st.integers(-1439, 1439), st.sampled_from("Tt "))
def test_every_offset_of_an_instant_has_one_stored_notation(
    moment: datetime, ahead_minutes: int, mark: str
) -> None:
    sign = "-" if ahead_minutes < 0 else "+"
    hours, minutes = divmod(abs(ahead_minutes), 60)
    text = f"{moment:%H:%M:%S.%f}{sign}{hours:02}:{minutes:02}"
    text = f"{moment.year:04}-{moment:%m-%d}{mark}{text}"
    try:
        utc = moment - timedelta(minutes=ahead_minutes)
    except OverflowError:
        assert instant_of(text) is None
        return
    wanted = utc.isoformat(timespec="microseconds") + "Z"
    assert instant_of(text) == instant_of(wanted) == wanted
    assert instant_of(wanted[:23] + "Z") == wanted[:23] + "000Z"


def test_refusals_name_the_field() -> None:
    with pytest.raises(InvalidData, match="Insert data must be a JSON object"):
        TASK.insert([], ID)
    with pytest.raises(InvalidData):
        TASK.patch(None, ID)
    with pytest.raises(InvalidColumn) as caught:
        TASK.insert({**GOOD, "nope": 1}, ID)
    assert caught.value.message == (
        'Unknown column "nope" -- valid columns: '
        "id, title, done, rank, weight, dueAt, ownerId, slug"
    )
    with pytest.raises(MissingField) as missing:
        TASK.insert({"title": "a"}, ID)
    assert missing.value.details["field"] == "done"
    for write in (TASK.insert, TASK.patch):
        with pytest.raises(NullNotAllowed):
            write({"title": None, "done": True}, ID)


def test_a_long_value_is_shortened_in_the_error() -> None:
    with pytest.raises(InvalidValue) as caught:
        TASK.insert({**GOOD, "rank": "9" * 5_000}, ID)
    assert len(caught.value.details["value"]) == 103


def test_client_ids() -> None:
    assert TASK.client_id(GOOD) is None
    assert TASK.client_id({"id": None}) is None
    assert TASK.client_id([]) is None
    assert TASK.client_id({"id": ID}) == ID
    with pytest.raises(InvalidId) as caught:
        TASK.client_id({"id": "my-own-id"})
    assert caught.value.message == (
        "client-provided `id` must be a 40-char lowercase hex string "
        '(use generateId() from @pylonsync/sync). Got: "my-own-id"'
    )
    with pytest.raises(InvalidId):
        TASK.client_id({"id": 7})


def test_a_patch_may_repeat_the_id_but_not_change_it() -> None:
    assert TASK.patch({"id": ID, "rank": None}, ID) == {"rank": None}
    with pytest.raises(InvalidId):
        TASK.patch({"id": row_id(2)}, ID)


def test_merge_keeps_what_the_patch_leaves_out() -> None:
    before = TASK.insert({**GOOD, "rank": 1, "weight": 0.5}, ID).row
    row, row_json = TASK.merge(before, TASK.patch({"rank": 2, "done": True}, ID))
    assert row == {**before, "rank": 2, "done": True}
    assert row_json == TASK.insert(row, ID).row_json
    row, row_json = TASK.merge({"id": ID, "title": "x"}, {"rank": 1})  # fields came later
    assert row == orjson.loads(row_json) and row["slug"] is None and row["rank"] == 1


@pytest.mark.parametrize("body", [
    {**GOOD, "rank": 3.0}, {**GOOD, "title": "\\u0000"}, {**GOOD, "id": 5}, {**GOOD, "weight": 2},
    {**GOOD, "dueAt": None}, {**GOOD, "rank": -(2**63), "weight": 2**70},
])
def test_the_quick_way_gives_what_the_checks_give(body: dict[str, Any]) -> None:
    quick, checked = TASK.insert(body, ID), TASK._insert_checked(body, ID)
    assert (quick.row, quick.row_json) == (checked.row, checked.row_json)
    assert list(quick.values) == list(checked.values)


def test_a_field_may_be_called_as_python_pleases() -> None:
    names = ("class", "f0", "self", "None", "__init__")
    fields = tuple(Field(name, FieldType.STRING, optional=False, unique=False) for name in names)
    codec = EntityCodec(Entity("Odd", fields))
    body = {name: name for name in names}
    assert orjson.loads(codec.insert(body, ID).row_json) == {"id": ID, **body}
    one = EntityCodec(Entity("One", fields[:1]))
    assert list(one.insert({"class": "x"}, ID).values) == ["x"]
    assert list(EntityCodec(Entity("None", ())).insert({}, ID).values) == []


def test_rows_from_columns_become_the_same_json() -> None:
    encoded = TASK.insert({**GOOD, "done": True, "weight": 0.1}, ID)
    row = TASK.row_from_sql([ID, *encoded.values])
    assert TASK.encode(row) == encoded.row_json
    odd = TASK.row_from_sql([ID, b"\xff", "text", None, 1, None, None, None])
    assert odd["title"] == "/w==" and odd["done"] == "text"


@given(
    st.fixed_dictionaries(
        {"title": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
         "done": st.booleans()},
        optional={
            "rank": st.none() | st.integers(-(2**63), 2**63 - 1),
            "weight": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        },
    )
)
def test_what_is_accepted_comes_back(body: dict[str, Any]) -> None:
    encoded = TASK.insert(decode_body(orjson.dumps(body)), ID)
    back = orjson.loads(encoded.row_json)
    assert {k: back[k] for k in body} == body
    assert TASK.encode(TASK.row_from_sql([ID, *encoded.values])) == encoded.row_json


def test_bodies() -> None:
    assert decode_body(b'{"a": [1]}') == {"a": [1]}
    for raw in (b"", b"{", b"\xff", b'{"a":NaN}', b'"\\ud800"'):
        with pytest.raises(InvalidJson, match="Invalid request body"):
            decode_body(raw)
    depth = limits.JSON_DEPTH
    assert decode_body(b"[" * depth + b"]" * depth)
    assert decode_body(b"[" + b"[]," * 500 + b"[]]")
    with pytest.raises(InvalidJson, match="deeper than 64 levels"):
        decode_body(b"[" * (depth + 1) + b"]" * (depth + 1))
