"""Constraints of fields hold on every path that writes, and leave rows from before as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import InvalidValue
from pylon.manifest.model import Constraints, Entity, Field, FieldType, Manifest
from pylon.openapi.values import entity_schemas
from pylon.storage.interface import WriteEngine
from pylon.storage.ops import InsertRow, UpdateRow, WriteRequest
from pylon.storage.sqlite.schema.broken_rows import report_broken_rows
from pylon.values import EntityCodec, fits
from pylon.values.constraints import compile_pattern
from tests.support import storage
from tests.support.storage import row_id

pytestmark = pytest.mark.stores

ADMIN = AuthContext(user_id="root", is_admin=True)


def field(kind: FieldType, **constraints: Any) -> Field:
    return Field("x", kind, True, False, constraints=Constraints(**constraints))


@pytest.mark.parametrize(
    ("kind", "constraints", "good", "bad"),
    [
        (FieldType.INT, {"minimum": 1, "maximum": 3}, [1, 3, 2.0], [0, 4]),
        (FieldType.FLOAT, {"minimum": 0, "maximum": 1.5}, [0, 1.5, -0.0], [-0.1, 1.6, 2]),
        (FieldType.DECIMAL, {"minimum": "0", "maximum": "9.99"}, ["0.00", "9.990", 9],
         ["-0.01", "10", 10]),
        (FieldType.DECIMAL, {"minimum": -1}, ["-1.0"], ["-1.1"]),
        (FieldType.DATE, {"minimum": "2026-01-01"}, ["2026-01-01"], ["2025-12-31"]),
        (FieldType.DATETIME, {"minimum": "2026-01-01", "maximum": "2026-02-01T00:00+01:00"},
         ["2026-01-01T01:00+01:00", "2026-01-31T23:00Z"],
         ["2025-12-31T23:59:59Z", "2026-01-31T23:00:00.000001Z"]),
        (FieldType.STRING, {"min_length": 2, "max_length": 3}, ["ab", "ää\U0001f600"],
         ["a", "abcd", ""]),
        (FieldType.RICHTEXT, {"max_length": 3}, ["abc"], ["abcd"]),
        (FieldType.STRING, {"pattern": "^[a-z]+$"}, ["abc"], ["", "Abc", "ab1"]),
        (FieldType.STRING, {"pattern": "b"}, ["abc"], ["ac"]),
        (FieldType.STRING, {"format": "email"}, ["a@example.org", "a.b+c@x-y.co.uk"],
         ["a", "a@b", "@b.de", "a@b..de", "a b@c.de", "a@-b.de", "a@b.de\n", "a" * 65 + "@b.de"]),
        (FieldType.STRING, {"format": "url"},
         ["https://example.org", "http://[::1]:8080/a?b#c", "https://ä.example/pfad"],
         ["example.org", "ftp://a.b", "https://", "https://a b", "javascript:alert(1)",
          "https://u:p@h", "https://a.b/" + "x" * 2_048]),
        (FieldType.STRING, {"format": "file"}, ["file_" + "0" * 40 + "_cat_png", "file_17_r.pdf"],
         ["", "file_", "cat.png", "file_a/b", "file_a b", "https://a.b/file_a", "file_a\n"]),
    ],
)
def test_a_constraint_takes_and_refuses(
    kind: FieldType, constraints: dict[str, Any], good: list[Any], bad: list[Any]
) -> None:
    one = field(kind, **constraints)
    codec = EntityCodec(Entity("Thing", (one,)))
    for value in good:
        assert fits(one, value), value
        codec.insert({"x": value}, row_id(1))
        codec.patch({"x": value}, row_id(1))
    for value in bad:
        assert not fits(one, value), value
        for write in (codec.insert, codec.patch):
            with pytest.raises(InvalidValue) as caught:
                write({"x": value}, row_id(1))
            assert caught.value.details["field"] == "x"
            assert caught.value.message.startswith("Thing.x must be ")
            assert str(next(iter(constraints.values()))) in caught.value.message or (
                "format" in constraints
            )
    assert codec.insert({"x": None}, row_id(1)).row["x"] is None


@given(st.text(max_size=30))
def test_any_text_gets_a_verdict_of_a_pattern(text: str) -> None:
    matches = compile_pattern(r"^\pL+$")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return  # no text that JSON can carry
    assert isinstance(matches(encoded.decode()), bool)


def test_a_pattern_takes_linear_time() -> None:
    matches = compile_pattern(r"^(a+)+$")
    assert not matches("a" * 100_000 + "b")


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)", "a{1001}", "(?:a{1000}){1000}"])
def test_a_pattern_that_is_none_of_re2_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        compile_pattern(pattern)


def open_engine(path: Path, *fields: Field) -> WriteEngine:
    manifest = Manifest("t", "1", (Entity("Thing", fields),))
    return storage.open_engine(path, manifest=manifest)


def insert(engine: WriteEngine, fields: tuple[Field, ...], number: int, **body: Any) -> None:
    encoded = EntityCodec(Entity("Thing", fields)).insert(body, row_id(number))
    (reply,) = engine.apply([WriteRequest(
        1, InsertRow("Thing", row_id(number), encoded.values, encoded.row_json)
    )]).replies
    assert reply.error is None


@pytest.mark.sqlite  # it counts on the connection of the writer
def test_rows_from_before_a_constraint_stay_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    other = Field("y", FieldType.INT, True, False)
    old = (Field("x", FieldType.STRING, True, False), other)
    engine = open_engine(path, *old)
    for number, text in enumerate(["a", "bb", "c", None], 1):
        insert(engine, old, number, x=text)
    engine.close()

    new = (field(FieldType.STRING, min_length=2), other)
    entity = Entity("Thing", new)
    engine = open_engine(path, *new)
    counted = report_broken_rows(engine.maintenance._conn, Manifest("t", "1", (entity,)))
    assert counted == {("Thing", "x"): 2}, "a start looks again while rows are broken"
    codec = EntityCodec(entity)
    for patch, is_good in (({"y": 1}, True), ({"x": "cc"}, True), ({"x": "d"}, False)):
        if not is_good:
            with pytest.raises(InvalidValue):
                codec.patch(patch, row_id(1))
            continue
        (reply,) = engine.apply([WriteRequest(1, UpdateRow(
            "Thing", row_id(1), codec.patch(patch, row_id(1)), ADMIN
        ))]).replies
        assert reply.error is None
    conn = engine.maintenance._conn
    manifest = Manifest("t", "1", (entity,))
    monkeypatch.setattr(limits, "BROKEN_ROWS_SCANNED", 2)
    assert report_broken_rows(conn, manifest) == {}, "only the first rows are looked at"
    monkeypatch.undo()
    assert report_broken_rows(conn, manifest) == {}, "a look without broken rows is the last"
    engine.close()


@pytest.mark.sqlite  # as above
def test_an_enum_that_loses_a_value_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    wide = (Field("x", FieldType.ENUM, True, False, values=("a", "b")),)
    engine = open_engine(path, *wide)
    insert(engine, wide, 1, x="b")
    engine.close()
    narrow = Entity("Thing", (Field("x", FieldType.ENUM, True, False, values=("a",)),))
    engine = open_engine(path, *narrow.fields)
    counted = report_broken_rows(engine.maintenance._conn, Manifest("t", "1", (narrow,)))
    assert counted == {("Thing", "x"): 1}
    engine.close()


def test_the_schema_of_a_body_says_the_constraints() -> None:
    fields = (
        Field("e", FieldType.ENUM, False, False, values=("a", "b")),
        Field("n", FieldType.INT, False, False, constraints=Constraints(minimum=1, maximum=9)),
        Field("s", FieldType.STRING, False, False, constraints=Constraints(
            min_length=2, max_length=5, pattern="^a", format="email"
        )),
        Field("c", FieldType.DECIMAL, False, False, constraints=Constraints(minimum="0")),
        Field("j", FieldType.JSON, False, False),
    )
    body = entity_schemas(Entity("Thing", fields))["ThingInsert"]["properties"]
    assert body["e"] == {"enum": ["a", "b"]}
    assert (body["n"]["minimum"], body["n"]["maximum"]) == (1, 9)
    assert (body["s"]["minLength"], body["s"]["maxLength"]) == (2, 5)
    assert (body["s"]["format"], body["s"]["allOf"]) == ("email", [{"pattern": "^a"}])
    assert "at least 0" in body["c"]["description"]
    assert "anyOf" in body["c"] and "type" not in body["j"]
    assert orjson.dumps(body)
