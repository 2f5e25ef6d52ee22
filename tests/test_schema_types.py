"""Changes of fields to and from the types whose column has another text than the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apsw
import pytest

from pylon.clock import ManualClock
from pylon.errors import SchemaRefused
from pylon.manifest.model import Default, Entity, Field, FieldType, Manifest
from pylon.schema.options import NONE, read_options
from pylon.storage.sqlite.connect import open_writer
from pylon.storage.sqlite.schema.apply import prepare_store
from pylon.storage.sqlite.schema.rewrite import apply_plan
from pylon.values import EntityCodec

S, INT, FLOAT, BOOL = FieldType.STRING, FieldType.INT, FieldType.FLOAT, FieldType.BOOL
DATETIME, DATE, ENUM = FieldType.DATETIME, FieldType.DATE, FieldType.ENUM
DECIMAL, JSON = FieldType.DECIMAL, FieldType.JSON


def note(kind: FieldType, **more: Any) -> Manifest:
    values = ("a", "7") if kind is ENUM else ()
    one = Field("x", kind, True, False, values=values, **more)
    return Manifest("kit", "1", (Entity("Note", (one,)),))


def prepare(path: Path, manifest: Manifest) -> None:
    conn = open_writer(path)
    prepare_store(conn, manifest, ManualClock())
    conn.close()


def change(path: Path, manifest: Manifest) -> list[str]:
    conn = open_writer(path)
    try:
        plan, _ = apply_plan(conn, manifest, NONE, True, ManualClock())
    finally:
        conn.close()
    return [step.kind for step in plan.rewrites]


def fill(path: Path, manifest: Manifest, value: Any) -> None:
    prepare(path, manifest)
    encoded = EntityCodec(manifest.entities[0]).insert({"x": value}, "r1")
    conn = apsw.Connection(str(path))
    conn.execute(
        "INSERT INTO Note (id, x, _json, _seq) VALUES ('r1', ?, ?, 1)",
        (*encoded.values, encoded.row_json.decode()),
    )
    conn.close()


def stored(path: Path) -> tuple[Any, Any]:
    """The column and the value of the row's JSON."""
    conn = apsw.Connection(str(path))
    ((column, text),) = conn.execute("SELECT x, _json FROM Note").fetchall()
    conn.close()
    return column, json.loads(text)["x"]


@pytest.mark.parametrize(
    ("old", "new", "before", "after"),
    [
        (S, DECIMAL, "07.50", "7.5"), (INT, DECIMAL, -7, "-7"), (FLOAT, DECIMAL, 0.1, "0.1"),
        (FLOAT, DECIMAL, 1e-7, "0.0000001"), (DECIMAL, S, "7.50", "7.5"),
        (DECIMAL, INT, "7", 7), (DECIMAL, FLOAT, "-7.5", -7.5), (DECIMAL, JSON, "7.5", 7.5),
        (S, JSON, '{"b":1,"a":[]}', {"a": [], "b": 1}), (INT, JSON, 7, 7), (BOOL, JSON, True, True),
        (JSON, S, {"a": 1}, '{"a":1}'), (JSON, INT, 7, 7),
        (DATETIME, DATE, "2026-03-29", "2026-03-29"), (INT, ENUM, 7, "7"),
        (ENUM, DECIMAL, "7", "7"),
    ],
)
def test_a_change_writes_the_columns_anew(
    tmp_path: Path, old: FieldType, new: FieldType, before: Any, after: Any
) -> None:
    path = tmp_path / "a.db"
    fill(path, note(old), before)
    with pytest.raises(SchemaRefused, match=r"Note\.x: the type changes"):
        prepare(path, note(new))
    assert change(path, note(new)) == ["alter_field"]
    column, value = stored(path)
    assert value == after and type(value) is type(after)
    codec = EntityCodec(note(new).entities[0])
    assert codec.row_from_sql(("r1", column)) == {"id": "r1", "x": after}
    prepare(path, note(new))
    assert change(path, note(new)) == []


@pytest.mark.parametrize(
    ("old", "new", "value"), [(S, ENUM, "a"), (S, DATE, "2026-03-29"), (ENUM, S, "a"),
                              (DATE, S, "2026-03-29"), (DATE, DATETIME, "2026-03-29")],
)
def test_texts_that_fit_change_their_type_at_a_start(
    tmp_path: Path, old: FieldType, new: FieldType, value: str
) -> None:
    path = tmp_path / "a.db"
    fill(path, note(old), value)
    prepare(path, note(new))
    assert stored(path) == (value, value)


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        (S, ENUM, "b"), (S, DATE, "29.3.2026"), (S, DATE, "2026-03-29T00:00:00Z"),
        (S, DECIMAL, "1e3"), (FLOAT, DECIMAL, 1e30), (S, JSON, "no json"), (DECIMAL, INT, "7.5"),
        (DATETIME, DATE, "2026-03-29T01:00:00Z"), (JSON, DECIMAL, [1]), (DATE, ENUM, "2026-03-29"),
    ],
)
def test_a_value_that_does_not_fit_stops_the_change(
    tmp_path: Path, old: FieldType, new: FieldType, value: Any
) -> None:
    path = tmp_path / "a.db"
    fill(path, note(old), value)
    before = stored(path)
    with pytest.raises(SchemaRefused, match=r"Note\.x: row r1 has .* does not convert"):
        change(path, note(new))
    assert stored(path) == before


@pytest.mark.parametrize(("kind", "value"), [(DECIMAL, "7.5"), (JSON, {"a": 1})])
def test_a_renamed_field_keeps_its_values(tmp_path: Path, kind: FieldType, value: Any) -> None:
    path = tmp_path / "a.db"
    fill(path, note(kind), value)
    manifest = Manifest("kit", "1", (Entity("Note", (Field("y", kind, True, False),)),))
    conn = open_writer(path)
    options = read_options(manifest, rename_fields=("Note.x:y",))
    plan, _ = apply_plan(conn, manifest, options, True, ManualClock())
    assert [step.kind for step in plan.rewrites] == ["rename_field"]
    assert json.loads(conn.execute("SELECT _json FROM Note").get)["y"] == value
    conn.close()


def test_json_changes_its_form_on_the_wire_without_a_rewrite(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, note(JSON), {"b": 1, "a": 2})
    prepare(path, note(JSON, is_json_text=True))
    assert stored(path) == ('{"a":2,"b":1}', '{"a":2,"b":1}')
    prepare(path, note(JSON))
    assert stored(path) == ('{"a":2,"b":1}', {"a": 2, "b": 1})


@pytest.mark.parametrize(
    ("kind", "default", "value"),
    [(DECIMAL, '"1.50"', "1.5"), (JSON, '{"tags": []}', {"tags": []}), (ENUM, '"a"', "a"),
     (DATE, '"2026-03-29"', "2026-03-29"), (DATETIME, '"1774744200Z"',
                                            "2026-03-29T00:30:00.000000Z")],
)
def test_a_new_required_field_fills_present_rows(
    tmp_path: Path, kind: FieldType, default: str, value: Any
) -> None:
    path = tmp_path / "a.db"
    fill(path, note(S), "text")
    fields = note(S).entities[0].fields
    values = ("a",) if kind is ENUM else ()
    added = Field("y", kind, False, False, default=Default("constant", default), values=values)
    prepare(path, Manifest("kit", "1", (Entity("Note", (*fields, added)),)))
    conn = apsw.Connection(str(path))
    assert json.loads(conn.execute("SELECT _json FROM Note").get)["y"] == value
    conn.close()
