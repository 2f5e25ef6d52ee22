"""Any manifest after any other: the database is as a fresh one with the same rows, or untouched."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pylon.clock import ManualClock
from pylon.errors import SchemaRefused
from pylon.manifest.model import Default, Entity, Field, FieldType, Index, Manifest
from pylon.schema.options import NONE
from pylon.storage.sqlite.instants import convert_step
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema.apply import prepare_store
from pylon.storage.sqlite.schema.catalogue import plan_for
from pylon.storage.sqlite.schema.live import introspect
from pylon.storage.sqlite.schema.rewrite import apply_plan
from pylon.values import EntityCodec, fold_case
from tests.support.examples import count_examples
from tests.test_schema_rewrite import dump

VALUES: dict[FieldType, st.SearchStrategy[Any]] = {
    FieldType.STRING: st.sampled_from(["7", "7.5", "true", "", "x", "2026-01-01"]),
    FieldType.RICHTEXT: st.sampled_from(["7", "text"]),
    FieldType.ID: st.sampled_from(["0", "1"]),
    FieldType.DATETIME: st.sampled_from(["2026-01-01", "1700000000Z"]),
    FieldType.INT: st.integers(-2, 2),
    FieldType.FLOAT: st.sampled_from([0.0, 1.0, 1.5]),
    FieldType.BOOL: st.booleans(),
    FieldType.ENUM: st.sampled_from(["7", "x"]),
    FieldType.DATE: st.sampled_from(["2026-01-01", "2026-03-29"]),
    FieldType.DECIMAL: st.sampled_from(["7", "7.50", "-1", 1]),
    FieldType.JSON: st.sampled_from([1, "7", {"a": 1}, [True]]),
}


@st.composite
def declared_fields(draw: st.DrawFn, name: str) -> Field:
    kind, optional = draw(st.sampled_from(FieldType)), draw(st.booleans())
    unique, nocase, default = draw(st.integers(0, 3)) == 0, False, None
    if unique and kind in (FieldType.STRING, FieldType.RICHTEXT):
        nocase = draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        default = Default("constant", json.dumps(draw(VALUES[kind])))
    values = ("7", "x") if kind is FieldType.ENUM else ()
    return Field(name, kind, optional, unique, default=default, nocase=nocase, values=values)


@st.composite
def declared_indexes(draw: st.DrawFn, names: dict[str, FieldType]) -> Index:
    fields = tuple(draw(st.lists(st.sampled_from(sorted(names)), unique=True, min_size=1)))
    condition = draw(st.sampled_from([None, None, {"$ne": None}, "null"]))
    conditioned = draw(st.sampled_from(sorted(names)))
    if condition is None or names[conditioned] is FieldType.JSON:
        where = None
    else:
        where = json.dumps({conditioned: None if condition == "null" else condition})
    descending = tuple(name for name in fields if draw(st.integers(0, 3)) == 0)
    return Index(
        draw(st.sampled_from(["i", "j", "x_unique"])), fields, draw(st.integers(0, 3)) == 0,
        descending, where,
    )


@st.composite
def entities(draw: st.DrawFn, name: str) -> Entity:
    names = draw(st.lists(st.sampled_from("xyz"), unique=True, min_size=1))
    fields = tuple(draw(declared_fields(n)) for n in names)
    kinds = {field.name: field.type for field in fields}
    indexes = draw(st.lists(declared_indexes(kinds), unique_by=lambda i: i.name, max_size=2))
    return Entity(name, fields, tuple(indexes))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(st.sampled_from("AB"), unique=True, min_size=1))
    return Manifest("kit", "1", tuple(draw(entities(n)) for n in names))


def insert(conn: apsw.Connection, entity: Entity, row_id: str, body: dict[str, Any]) -> None:
    encoded = EntityCodec(entity).insert(body, row_id)
    folds = [field for field in entity.fields if field.nocase]
    names = (*entity.columns, "_json", "_seq", *(f"_fold_{field.name}" for field in folds))
    columns = ", ".join(quote(c) for c in names)
    marks = ", ".join("?" * len(names))
    conn.execute(
        f"INSERT INTO {quote(entity.name)} ({columns}) VALUES ({marks})",
        (row_id, *encoded.values, encoded.row_json.decode(), 1,
         *(fold_case(encoded.row[field.name]) for field in folds)),
    )


def stored(conn: apsw.Connection, entity: Entity) -> dict[str, str]:
    return dict(conn.execute(f"SELECT id, _json FROM {quote(entity.name)}").fetchall())


def keys(conn: apsw.Connection, manifest: Manifest) -> set[tuple[str, tuple[str, ...], bool]]:
    """What is indexed, and what is unique, however it was made so."""
    live = introspect(conn, tuple(e.name for e in manifest.entities))
    return {(t.name, i.fields, i.unique) for t in live.tables.values() for i in t.indexes}


def start(conn: apsw.Connection, manifest: Manifest) -> None:
    prepare_store(conn, manifest, ManualClock())


def apply(conn: apsw.Connection, manifest: Manifest) -> None:
    apply_plan(conn, manifest, NONE, True, ManualClock())


@settings(max_examples=count_examples(150))
@given(manifests(), manifests(), st.sampled_from([start, apply]), st.data())
def test_a_change_of_schema_is_complete_or_nothing(
    old: Manifest, new: Manifest, change: Callable[[apsw.Connection, Manifest], None],
    data: st.DataObject,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        conn = apsw.Connection(str(path))
        start(conn, old)
        for entity in old.entities:
            for number in range(data.draw(st.integers(0, 3))):
                body = {
                    f.name: data.draw(VALUES[f.type]) for f in entity.fields
                    if not f.optional or data.draw(st.booleans())
                }
                try:
                    insert(conn, entity, f"r{number}", body)
                except apsw.ConstraintError:
                    event("a row was refused")
        before = dump(path)
        rows = {e.name: stored(conn, e) for e in old.entities}
        try:
            change(conn, new)
        except SchemaRefused:
            event("refused")
            assert dump(path) == before
            return
        event("applied")
        while convert_step(conn, new) is not None:
            event("datetimes were converted")
        compare(conn, old, new, rows)


def compare(
    conn: apsw.Connection, old: Manifest, new: Manifest, rows: dict[str, dict[str, str]]
) -> None:
    """The database at `conn` is that of `new`, with the `rows` that it had under `old`."""
    again = plan_for(conn, new)
    assert (again.steps, again.rewrites, again.refusals) == ((), (), ())
    fresh = apsw.Connection(":memory:")
    start(fresh, new)
    for entity in new.entities:
        was = old.by_name.get(entity.name)
        found = stored(conn, entity)
        assert found.keys() == (rows[entity.name].keys() if was is not None else set())
        for row_id, text in found.items():
            row = json.loads(text)
            insert(fresh, entity, row_id, {k: v for k, v in row.items() if v is not None})
            before = json.loads(rows[entity.name][row_id])
            for field in entity.fields:
                same = was is not None and was.by_name.get(field.name)
                if not same and row[field.name] is not None:
                    assert field.default is not None and not field.optional
                    given_default = {field.name: json.loads(field.default.argument)}
                    filled = EntityCodec(Entity("D", (field,))).insert(given_default, "")
                    assert row[field.name] == filled.row[field.name]
                elif not same:
                    assert row[field.name] is None
                elif same.type is field.type:
                    assert row[field.name] == before[field.name]
                else:
                    assert (row[field.name] is None) == (before[field.name] is None)
        assert stored(fresh, entity) == found
    gone = {f for e in old.entities for f in e.by_name} - {
        f for e in new.entities for f in e.by_name}
    assert keys(fresh, new) <= keys(conn, new)
    extra = {k for k in keys(conn, new) - keys(fresh, new) if not gone & set(k[1])}
    assert all(_is_left_over(k, old, new) for k in extra)
    columns = conn.execute("SELECT count(*) FROM _pylon_schema_history").get
    assert columns == 2


def _is_left_over(
    key: tuple[str, tuple[str, ...], bool], old: Manifest, new: Manifest
) -> bool:
    """UNIQUE on a column that the entity no longer has in the manifest."""
    table, fields, unique = key
    return unique and fields[0] in old.by_name[table].by_name and (
        fields[0] not in new.by_name[table].by_name)
