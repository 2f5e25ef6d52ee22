"""Renames, removals and other types: the data is kept or the change refused, whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from pylon.clock import ManualClock
from pylon.errors import InvalidData, SchemaRefused
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest
from pylon.schema.options import read_options
from pylon.storage.sqlite.connect import open_writer
from pylon.storage.sqlite.reader import SqliteReader
from pylon.storage.sqlite.schema.apply import prepare_store
from pylon.storage.sqlite.schema.catalogue import plan_for
from pylon.storage.sqlite.schema.rewrite import apply_plan
from tests.support.storage import MANIFEST, TASK, apply, open_engine, row_id, task

S, INT, FLOAT, BOOL = FieldType.STRING, FieldType.INT, FieldType.FLOAT, FieldType.BOOL
DATETIME = FieldType.DATETIME


def field(name: str, kind: FieldType = S, optional: bool = True, unique: bool = False) -> Field:
    return Field(name, kind, optional, unique)


def app(*entities: Entity) -> Manifest:
    return Manifest("kit", "1", entities)


def prepare(path: Path, manifest: Manifest) -> None:
    conn = open_writer(path)
    prepare_store(conn, manifest, ManualClock())
    conn.close()


def change(path: Path, manifest: Manifest, allow: bool = True, **flags: tuple[str, ...]) -> Any:
    conn = open_writer(path)
    try:
        options = read_options(manifest, **flags)
        return apply_plan(conn, manifest, options, allow, ManualClock())
    finally:
        conn.close()


def run(path: Path, sql: str, *values: Any) -> list[Any]:
    conn = apsw.Connection(str(path))
    try:
        return conn.execute(sql, values).fetchall()
    finally:
        conn.close()


def rows(path: Path, entity: str) -> dict[str, dict[str, Any]]:
    """The rows as their JSON has them, by id."""
    return {i: json.loads(text) for i, text in run(path, f'SELECT id, _json FROM "{entity}"')}


def dump(path: Path) -> list[Any]:
    """Everything: schema and all rows of all tables."""
    conn = apsw.Connection(str(path))
    found = conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
    for kind, name, _, _ in list(found):
        if kind == "table" and not name.startswith("sqlite_"):
            found += conn.execute(f'SELECT * FROM "{name}"').fetchall()
    conn.close()
    return found


def note(*fields: Field, indexes: tuple[Index, ...] = (), name: str = "Note") -> Manifest:
    return app(Entity(name, fields, indexes))


def fill(path: Path, manifest: Manifest, *values: Any) -> None:
    """A row per value in the first field of the first entity, as a start leaves them."""
    prepare(path, manifest)
    entity = manifest.entities[0]
    for number, value in enumerate(values):
        run(path, f'INSERT INTO "{entity.name}" (id, "{entity.fields[0].name}") VALUES (?, ?)',
            f"r{number}", value)
    run(path, "DELETE FROM _pylon_meta WHERE key LIKE 'shape:%'")
    prepare(path, manifest)


@pytest.mark.parametrize(
    ("old", "new", "before", "after"),
    [
        (S, INT, "7", 7), (S, FLOAT, "7.5", 7.5), (S, BOOL, "True", True), (S, BOOL, "0", False),
        (INT, S, 7, "7"), (BOOL, S, 1, "true"), (INT, FLOAT, 7, 7.0), (FLOAT, INT, 7.0, 7),
        (FLOAT, S, 7.5, "7.5"), (INT, DATETIME, 1700000000, "2023-11-14T22:13:20.000000Z"),
        (FLOAT, BOOL, 1.0, True), (BOOL, FLOAT, 1, 1.0), (S, INT, None, None),
    ],
)
def test_values_keep_their_meaning_in_another_type(
    tmp_path: Path, old: FieldType, new: FieldType, before: Any, after: Any
) -> None:
    path = tmp_path / "a.db"
    fill(path, note(field("a", old)), before)
    manifest = note(field("a", new))
    with pytest.raises(SchemaRefused, match=r"Note\.a: the type changes"):
        prepare(path, manifest)
    plan, _ = change(path, manifest)
    assert [s.kind for s in plan.rewrites] == ["alter_field"]
    assert rows(path, "Note") == {"r0": {"id": "r0", "a": after}}
    assert type(rows(path, "Note")["r0"]["a"]) is type(after)
    prepare(path, manifest)


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [(S, INT, "7.5"), (S, INT, "x"), (S, FLOAT, "nan"), (S, BOOL, "yes"), (FLOAT, INT, 7.5),
     (FLOAT, INT, 1e30), (FLOAT, DATETIME, 1.5), (FLOAT, BOOL, 2.0)],
)
def test_a_value_that_would_be_lost_stops_everything(
    tmp_path: Path, old: FieldType, new: FieldType, value: Any
) -> None:
    path = tmp_path / "a.db"
    fill(path, note(field("a", old)), value)
    before = dump(path)
    with pytest.raises(SchemaRefused, match=r"Note\.a: row r0 has .* does not convert"):
        change(path, note(field("a", new)))
    assert dump(path) == before


def test_destructive_steps_need_to_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, note(field("a")), "7")
    before = dump(path)
    with pytest.raises(SchemaRefused, match="rewrites or removes data: alter_field") as caught:
        change(path, note(field("a", INT)), allow=False)
    assert "--allow-destructive" in str(caught.value.hint)
    assert dump(path) == before


def test_null_gets_the_default_or_stops_the_change(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, note(field("a"), field("n", INT)), "x", None)
    manifest = note(field("a", optional=False), field("n", INT), field("b", INT, optional=False))
    with pytest.raises(SchemaRefused) as caught:
        change(path, manifest)
    assert "--default Note.a=VALUE" in caught.value.message
    assert "--default Note.b=VALUE" in caught.value.message
    with pytest.raises(SchemaRefused, match=r"--default Note\.b=x: expected a whole number"):
        change(path, manifest, defaults=("Note.a=", "Note.b=x"))
    change(path, manifest, defaults=("Note.a=none=yet", "Note.b=3"))
    assert rows(path, "Note") == {
        "r0": {"id": "r0", "a": "x", "n": None, "b": 3},
        "r1": {"id": "r1", "a": "none=yet", "n": None, "b": 3},
    }
    with pytest.raises(apsw.ConstraintError, match="NOT NULL"):
        run(path, "UPDATE Note SET b = NULL")


def test_nullability_and_uniqueness_are_taken_away_and_given(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    prepare(path, note(field("a", optional=False, unique=True)))
    run(path, "INSERT INTO Note (id, a) VALUES ('1', 'x'), ('2', 'y')")
    loose = note(field("a"))
    with pytest.raises(SchemaRefused, match="required in the database"):
        prepare(path, loose)
    change(path, loose)
    run(path, "UPDATE Note SET a = NULL")
    run(path, "UPDATE Note SET a = 'x'")
    strict = note(field("a", unique=True))
    with pytest.raises(SchemaRefused, match=r"rows share 'x' \(2 times\)"):
        change(path, strict)
    run(path, "UPDATE Note SET a = id")
    change(path, strict)
    with pytest.raises(apsw.ConstraintError, match="UNIQUE"):
        run(path, "UPDATE Note SET a = 'x'")


def test_an_entity_is_renamed_with_its_data_and_indexes(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine = open_engine(path)
    apply(engine, *(task(n, slug=f"s{n}") for n in (1, 2)))
    head = engine.head
    engine.close()
    renamed = replace(TASK, name="Job")
    manifest = replace(MANIFEST, entities=(renamed, *MANIFEST.entities[1:]), policies=())
    plan, _ = change(path, manifest, allow=False, rename_entities=("Task:Job",))
    assert [s.render() for s in plan.rewrites] == ["rename_entity Job: was Task"]
    assert set(rows(path, "Job")) == {row_id(1), row_id(2)}
    names = {n for (n,) in run(path, "SELECT name FROM sqlite_schema WHERE tbl_name = 'Job'")}
    assert {"Job_by_owner_rank", "Job_by_title"} <= names
    assert not any(n.startswith("Task") for n in names)
    reader = SqliteReader(path, manifest)
    assert reader.void_ranges()[-1][0] == 0 and reader.head_seq() > head
    assert run(path, "SELECT count(*) FROM sqlite_schema WHERE name = 'Task'") == [(0,)]
    prepare(path, manifest)


def test_a_field_is_renamed_and_stays_unique(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    prepare(path, note(field("a")))
    prepare(path, note(field("a"), field("done", BOOL), field("code", unique=True)))
    run(path, "INSERT INTO Note (id, a, done, code) VALUES ('1', 'x', 1, 'c'), ('2', 'y', 0, 'd')")
    run(path, "CREATE VIEW codes AS SELECT code FROM Note")
    manifest = note(field("a"), field("over", S), field("key", unique=True))
    change(path, manifest, rename_fields=("Note.code:key", "Note.done:over"))
    found = rows(path, "Note")
    assert found["1"] == {"id": "1", "a": "x", "over": "true", "key": "c"}
    assert sorted(run(path, "SELECT * FROM codes")) == [("c",), ("d",)]
    loose = note(field("a"), field("over"), field("key"))
    change(path, loose)
    run(path, "UPDATE Note SET key = 'same'")


def test_what_the_manifest_does_not_name_is_kept_until_told(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    prepare(path, note(field("a"), field("old", optional=False)))
    run(path, "INSERT INTO Note (id, a, old) VALUES ('1', '5', 'keep')")
    run(path, "CREATE INDEX mine ON Note (old); CREATE INDEX also ON Note (a);"
              "CREATE TABLE log (t); CREATE TRIGGER watch AFTER UPDATE ON Note "
              "BEGIN INSERT INTO log VALUES (new.a); END")
    manifest = note(field("a", INT))
    change(path, manifest)
    assert run(path, "SELECT old, a FROM Note") == [("keep", 5)]
    names = {n for (n,) in run(path, "SELECT name FROM sqlite_schema WHERE tbl_name = 'Note'")}
    assert {"mine", "also", "watch"} <= names
    run(path, "UPDATE Note SET a = 6")
    assert run(path, "SELECT t FROM log")[-1] == (6,)
    with pytest.raises(SchemaRefused, match=r"remove_field Note\.old"):
        change(path, manifest, allow=False, drop_fields=("Note.old",))
    change(path, manifest, drop_fields=("Note.old",), drop_indexes=("also",))
    columns = [c for (c,) in run(path, "SELECT name FROM pragma_table_info('Note')")]
    assert columns == ["id", "a", "_json", "_seq"]
    names = {n for (n,) in run(path, "SELECT name FROM sqlite_schema WHERE tbl_name = 'Note'")}
    assert not {"mine", "also"} & names
    assert rows(path, "Note") == {"1": {"id": "1", "a": 6}}


def test_an_entity_goes_by_explicit_wish_only(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    prepare(path, app(Entity("A", (field("x"),)), Entity("B", (field("x"),))))
    run(path, "INSERT INTO B (id) VALUES ('1')")
    manifest = app(Entity("A", (field("x"),)))
    prepare(path, manifest)
    assert run(path, "SELECT id FROM B") == [("1",)]
    plan, _ = change(path, manifest, drop_entities=("b",))
    assert [s.render() for s in plan.rewrites] == ["remove_entity B: 1 rows are removed"]
    assert run(path, "SELECT 1 FROM sqlite_schema WHERE name = 'B'") == []


def test_references_survive_a_rebuild(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, note(field("a")), "7")
    run(path, "CREATE TABLE child (note TEXT REFERENCES Note (id) ON DELETE CASCADE);"
              "INSERT INTO child VALUES ('r0')")
    change(path, note(field("a", INT)))
    assert run(path, "SELECT note FROM child") == [("r0",)]
    assert run(path, "PRAGMA foreign_key_check") == []


def test_rows_get_a_version_and_their_json_and_clients_resync(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, note(field("a")), "7")
    change(path, note(field("a", INT)))
    ((text, seq),) = run(path, "SELECT _json, _seq FROM Note")
    reader = SqliteReader(path, note(field("a", INT)))
    assert json.loads(text) == {"id": "r0", "a": 7} and seq == reader.head_seq()
    void_from, first_seq = reader.void_ranges()[-1]
    assert void_from == 0 and first_seq <= seq


def test_the_history_tells(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, note(field("a")), "7")
    change(path, note(field("a", INT), field("b")))
    ((baseline, count, plan),) = run(
        path, "SELECT baseline, operation_count, plan_json FROM _pylon_schema_history "
              "ORDER BY id DESC LIMIT 1")
    assert (baseline, count) == ("apply", 1)
    assert json.loads(plan)[0].startswith("alter_field Note.a: the type changes")
    assert len(json.loads(plan)) == 1, "the rebuilt table has the new field already"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"rename_entities": ("Old",)}, "expected OLD:NEW"),
        ({"rename_entities": ("Old:New",)}, "has no entity New"),
        ({"rename_entities": ("Note:Note",)}, "still has an entity Note"),
        ({"rename_fields": ("Note.x:y",)}, "has no field Note.y"),
        ({"rename_fields": ("Note.a:a",)}, r"still has Note\.a"),
        ({"rename_fields": ("x:a",)}, "expected Entity.OLD:NEW"),
        ({"drop_entities": ("Note",)}, "still has it"),
        ({"drop_entities": ("_pylon_meta",)}, "not an entity's"),
        ({"drop_fields": ("Note.a",)}, "still has it"),
        ({"drop_fields": ("Note._json",)}, "still has it"),
        ({"defaults": ("Note.x=1",)}, "has no field Note.x"),
        ({"defaults": ("Nope.x=1",)}, "has no entity Nope"),
        ({"defaults": ("Note.a",)}, "expected Entity.field=value"),
    ],
)
def test_wishes_that_contradict_the_manifest(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidData, match=says):
        read_options(note(field("a")), **flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"rename_entities": ("Gone:Note",)}, "no table gone"),
        ({"rename_fields": ("Note.gone:a",)}, "no such column"),
        ({"rename_fields": ("Note.b:a",)}, "a exists already"),
        ({"drop_entities": ("Gone",)}, "no such table"),
        ({"drop_fields": ("Note.gone",)}, "no such column"),
        ({"drop_indexes": ("gone",)}, "no such index"),
    ],
)
def test_wishes_that_the_database_cannot_fulfil(
    tmp_path: Path, flags: dict[str, Any], says: str
) -> None:
    path = tmp_path / "a.db"
    prepare(path, note(field("a"), field("b")))
    before = dump(path)
    with pytest.raises(SchemaRefused, match=says):
        change(path, note(field("a")), **flags)
    assert dump(path) == before


def test_a_plan_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, note(field("a"), field("b")), "7")
    before = dump(path)
    manifest = note(field("a", INT), field("c"), name="Memo")
    options = read_options(manifest, rename_entities=("Note:Memo",), rename_fields=("Memo.b:c",))
    conn = apsw.Connection(str(path))
    plan = plan_for(conn, manifest, options)
    conn.close()
    assert [s.render() for s in plan.rewrites] == [
        "rename_entity Memo: was Note", "rename_field Memo.c: was b",
        "alter_field Memo.a: the type changes from TEXT to INTEGER"]
    assert plan.refusals == () and plan.steps == () and plan.destructive
    assert dump(path) == before
    change(path, manifest, rename_entities=("Note:Memo",), rename_fields=("Memo.b:c",))
    assert rows(path, "Memo") == {"r0": {"id": "r0", "a": 7, "c": None}}
