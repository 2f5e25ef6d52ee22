"""The database is brought to the manifest: what is added, what is refused, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest

from pylon import limits
from pylon.clock import ManualClock
from pylon.errors import SchemaRefused, StartRefused
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest
from pylon.storage.sqlite.reader import SqliteReader
from pylon.storage.sqlite.schema.apply import prepare_store
from tests.support.storage import (
    MANIFEST,
    NOTE,
    TASK,
    USER,
    apply,
    insert,
    open_engine,
    row_id,
    task,
    versions,
)


def connect(path: Path) -> apsw.Connection:
    return apsw.Connection(str(path))


def prepare(path: Path, *entities: Entity) -> Any:
    conn = connect(path)
    try:
        return prepare_store(conn, Manifest("kit", "1", entities), ManualClock())
    finally:
        conn.close()


def with_fields(entity: Entity, *fields: Field) -> Entity:
    return Entity(entity.name, fields, entity.indexes)


def some(name: str, kind: FieldType = FieldType.STRING, **more: bool) -> Field:
    return Field(name, kind, more.get("optional", True), more.get("unique", False))


def test_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    prepared = prepare(path, TASK, USER)
    assert prepared.created and not prepared.epoch_opened
    assert [s.kind for s in prepared.plan.steps] == [
        "create_entity", "add_index", "add_index", "create_entity",
    ]
    conn = connect(path)
    sql = conn.execute("SELECT sql FROM sqlite_schema WHERE name = 'Task'").get
    assert '"title" TEXT NOT NULL' in sql and "WITHOUT ROWID" in sql
    names = {n for (n,) in conn.execute("SELECT name FROM sqlite_schema")}
    assert {"Task_by_owner_rank", "_pylon_change_log", "_pylon_epochs", "_pylon_meta"} <= names


def test_an_unchanged_start_changes_nothing_but_the_history(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    first = prepare(path, TASK)
    again = prepare(path, TASK)
    assert again.plan.steps == () and not again.created and not again.epoch_opened
    assert again.lineage == first.lineage
    history = connect(path).execute(
        "SELECT id, operation_count, baseline FROM _pylon_schema_history").fetchall()
    assert history == [(1, 3, "start"), (2, 0, "start")]


def test_an_optional_field_is_added_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine = open_engine(path)
    apply(engine, insert("Note", 1, {"text": "hi"}))
    engine.close()
    more = with_fields(NOTE, *NOTE.fields, some("tag", unique=True), some("ok", FieldType.BOOL))
    manifest = replace(MANIFEST, entities=(TASK, USER, more))
    engine = open_engine(path, manifest=manifest)
    reader = SqliteReader(path, manifest)
    assert reader.get("Note", row_id(1)) == (
        b'{"id":"%s","ok":null,"tag":null,"text":"hi"}' % row_id(1).encode())
    assert not reader.void_ranges()
    with pytest.raises(apsw.ConstraintError):
        connect(path).execute(
            "UPDATE Note SET tag = 'x'; INSERT INTO Note (id, tag) VALUES ('2', 'x')")


def test_a_database_without_versions_gets_them_at_start(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine = open_engine(path)
    apply(engine, insert("Note", 1, {"text": "a"}), insert("Note", 2, {"text": "b"}))
    engine.close()
    conn = connect(path)
    for table in ("Note", "Task", "User"):
        conn.execute(f"ALTER TABLE {table} DROP COLUMN _seq")  # as earlier versions made them
    conn.close()
    engine = open_engine(path)
    assert engine.head == 2
    assert versions(path, "Note") == {row_id(1): 2, row_id(2): 2}
    columns = connect(path).execute("SELECT name FROM pragma_table_info('Task')").fetchall()
    assert columns[-1] == ("_seq",)


def test_rows_whose_json_changes_get_a_version_that_no_event_has(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine = open_engine(path)
    apply(engine, insert("Note", 1, {"text": "a"}), insert("User", 2, {"email": "b"}))
    engine.close()
    before = versions(path, "User")
    more = with_fields(NOTE, *NOTE.fields, some("tag"))
    engine = open_engine(path, manifest=replace(MANIFEST, entities=(TASK, USER, more)))
    assert versions(path, "Note") == {row_id(1): 3} and versions(path, "User") == before
    assert engine.head == 3 and apply(engine, task(4))[0].seq == 4


def test_a_required_field_is_added_to_an_empty_table_only(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    prepare(path, NOTE)
    required = some("tag", optional=False)
    assert prepare(path, with_fields(NOTE, *NOTE.fields, required)).plan.steps[0].name == "tag"
    connect(path).execute("INSERT INTO Note (id, tag) VALUES ('1', 'x')")
    with pytest.raises(SchemaRefused, match=r"Note\.other: a new required field"):
        prepare(path, with_fields(NOTE, *NOTE.fields, required, some("other", optional=False)))


@pytest.mark.parametrize(
    ("field", "says"),
    [
        (some("text", FieldType.INT), "type changes from TEXT to INTEGER"),
        (some("text", unique=True), "unique in the manifest"),
        (some("text", optional=False), "rows have null"),
        (some("_json"), "name is taken"),
        (some("_seq"), "name is taken"),
        (some("ID"), "name is taken"),
    ],
)
def test_destructive_changes_are_refused_whole(tmp_path: Path, field: Field, says: str) -> None:
    path = tmp_path / "a.db"
    prepare(path, NOTE)
    connect(path).execute("INSERT INTO Note (id, text) VALUES ('1', NULL)")
    before = connect(path).execute("SELECT name FROM sqlite_schema").fetchall()
    with pytest.raises(SchemaRefused, match=says) as caught:
        prepare(path, with_fields(NOTE, field), USER)
    assert "create_entity User" in caught.value.message
    assert connect(path).execute("SELECT name FROM sqlite_schema").fetchall() == before


def test_uniqueness_and_nullability_are_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    prepare(path, USER)
    with pytest.raises(SchemaRefused, match="unique in the database"):
        prepare(path, with_fields(USER, some("email", optional=False)))
    with pytest.raises(SchemaRefused, match="required in the database"):
        prepare(path, with_fields(USER, some("email", unique=True)))


def test_clashing_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaRefused, match="other case"):
        prepare(tmp_path / "a.db", NOTE, with_fields(Entity("note", ()), some("a")))
    with pytest.raises(SchemaRefused, match="reserved"):
        prepare(tmp_path / "a.db", Entity("_pylon_meta", (some("a"),)))


def test_indexes(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    prepare(path, NOTE)
    conn = connect(path)
    conn.execute("INSERT INTO Note (id, text) VALUES ('1', 'x'), ('2', 'x')")
    indexed = Entity("Note", NOTE.fields, (Index("by_text", ("text",), unique=False),))
    assert [s.render() for s in prepare(path, indexed).plan.steps] == [
        "add_index Note.Note_by_text"]
    unique = Entity("Note", NOTE.fields, (Index("by_text", ("text",), unique=True),))
    with pytest.raises(SchemaRefused, match="UNIQUE constraint failed"):
        prepare(path, unique)
    conn.execute("UPDATE Note SET text = id")
    assert [s.kind for s in prepare(path, unique).plan.steps] == ["remove_index", "add_index"]
    with pytest.raises(apsw.ConstraintError):
        conn.execute("UPDATE Note SET text = 'x'")


@pytest.mark.parametrize(("fields", "rows", "words"), [
    (("s",), "('1', 'x', 1), ('2', 'x', 2), ('3', 'y', 3)", "'x' (2 times)"),
    (("s", "n"), "('1', 'x', 1), ('2', 'x', 1), ('3', 'x', 2)", "'x' and '1' (2 times)"),
    (("s", "n"), "('1', 'x', NULL), ('2', 'x', NULL)", ""),
    (("id", "s"), "('1', 'x', 1), ('2', 'x', 2)", ""),
    (("s", "later"), "('1', 'x', 1), ('2', 'x', 2)", ""),
])
def test_a_unique_index_over_rows_that_share_values_is_refused_with_the_values(
    tmp_path: Path, fields: tuple[str, ...], rows: str, words: str
) -> None:
    path = tmp_path / "a.db"
    columns = (some("s"), some("n", FieldType.INT))
    prepare(path, Entity("A", columns))
    connect(path).execute(f"INSERT INTO A (id, s, n) VALUES {rows}")
    columns += (some("later"),) if "later" in fields else ()
    indexed = Entity("A", columns, (Index("one", fields, unique=True),))
    if not words:
        assert prepare(path, indexed).plan.steps[-1].name == "A_one"
        return
    with pytest.raises(SchemaRefused) as refused:
        prepare(path, indexed)
    assert "A_one: a unique index over" in refused.value.message
    assert words in refused.value.message and "\n" not in refused.value.message


def test_as_many_fields_as_a_table_has_columns_for(tmp_path: Path) -> None:
    """999 was the most: SQLite calls a function with 1,000 values at most."""
    path = tmp_path / "a.db"
    fields = tuple(some(f"f{number}") for number in range(limits.ENTITY_FIELDS))
    prepare(path, with_fields(NOTE, *fields))
    conn = connect(path)
    conn.execute("INSERT INTO Note (id, f0, f1000, f1996) VALUES ('1', 'a', 'b', 'c')")
    conn.execute("DELETE FROM _pylon_meta WHERE key = 'shape:Note'")  # so that rows are made anew
    conn.close()
    prepare(path, with_fields(NOTE, *fields))
    text = connect(path).execute("SELECT _json FROM Note").get
    row = orjson.loads(text)
    assert (row["f0"], row["f1000"], row["f1996"], len(row)) == ("a", "b", "c", 1_998)


def test_columns_that_stay_count_in_what_a_table_takes(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    prepare(path, with_fields(NOTE, *(some(f"old{number}") for number in range(1_000))))
    more = tuple(some(f"new{number}") for number in range(1_000))
    with pytest.raises(SchemaRefused, match=r"2,003 columns.*--drop-field Note\.old0"):
        prepare(path, with_fields(NOTE, *more))
    prepare(path, with_fields(NOTE, *more[:-3]))


def index_names(path: Path) -> set[str]:
    found = connect(path).execute(
        "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL "
        "AND name NOT LIKE '_pylon%'").fetchall()
    return {name for (name,) in found}


def test_an_index_leaves_with_the_manifest_if_it_was_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    indexed = Entity("Note", NOTE.fields, (Index("by_text", ("text",), unique=False),))
    prepare(path, indexed)
    connect(path).execute("CREATE INDEX mine ON Note (text)")
    connect(path).execute("CREATE INDEX Note_other ON Note (text)")
    assert index_names(path) == {"Note_by_text", "mine", "Note_other"}
    assert [s.render() for s in prepare(path, NOTE).plan.steps] == [
        "remove_index Note.Note_by_text"]
    assert index_names(path) == {"mine", "Note_other"}
    theirs = Entity("Note", NOTE.fields, (Index("other", ("text",), unique=True),))
    with pytest.raises(SchemaRefused, match="is another one"):
        prepare(path, theirs)


def test_indexes_of_an_earlier_version_are_known_by_the_history(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    indexed = Entity("Note", (some("text", unique=True),), (Index("by_text", ("text",), False),))
    prepare(path, indexed)
    conn = connect(path)
    conn.execute("DELETE FROM _pylon_meta WHERE key IN ('indexes', 'schema_format')")
    conn.close()
    plain = Entity("Note", indexed.fields)
    assert [s.name for s in prepare(path, plain).plan.steps] == ["Note_by_text"]
    assert index_names(path) == set()


def test_a_unique_index_named_like_a_fields_own_is_the_manifests(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    indexed = Entity("Note", NOTE.fields, (Index("text_unique", ("text",), unique=True),))
    prepare(path, indexed)
    assert prepare(path, indexed).plan.steps == ()
    assert [s.kind for s in prepare(path, NOTE).plan.steps] == ["remove_index"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE _pylon_meta SET value = '3' WHERE key = 'schema_format'", "schema format 3"),
        ("UPDATE _pylon_meta SET value = 'x' WHERE key = 'schema_format'", "schema format x"),
        ("UPDATE _pylon_schema_history SET manifest_version = 2", "manifest version 2"),
    ],
)
def test_a_newer_database_is_refused(tmp_path: Path, change: str, says: str) -> None:
    path = tmp_path / "a.db"
    prepare(path, NOTE)
    connect(path).execute(change)
    before = connect(path).execute("SELECT * FROM _pylon_schema_history").fetchall()
    with pytest.raises(SchemaRefused, match=f"newer Pylon: it has {says}"):
        prepare(path, NOTE)
    assert connect(path).execute("SELECT * FROM _pylon_schema_history").fetchall() == before


def test_a_removed_required_field_does_not_stop_inserts(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine = open_engine(path)
    engine.close()
    less = Entity("Task", tuple(f for f in TASK.fields if f.name not in ("title", "done")))
    manifest = replace(MANIFEST, entities=(less, USER, NOTE), policies=())
    engine = open_engine(path, manifest=manifest)
    from pylon.storage.ops import InsertRow
    from pylon.values import EntityCodec

    encoded = EntityCodec(less).insert({"rank": 1}, row_id(1))
    (reply,) = apply(engine, InsertRow("Task", row_id(1), encoded.values, encoded.row_json))
    assert reply.error is None
    assert connect(path).execute("SELECT title, done FROM Task").get == ("", 0)
    engine.close()
    less = with_fields(USER, some("name"))
    with pytest.raises(SchemaRefused, match="no two rows"):
        open_engine(path, manifest=replace(MANIFEST, entities=(less,), policies=()))


def test_a_field_that_leaves_the_manifest_leaves_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    tagged = with_fields(NOTE, *NOTE.fields, some("tag"))
    of_bool = with_fields(NOTE, *NOTE.fields, some("n", FieldType.BOOL))
    of_int = with_fields(NOTE, *NOTE.fields, some("n", FieldType.INT))

    def row_with(entity: Entity) -> bytes | None:
        manifest = replace(MANIFEST, entities=(entity,), policies=())
        open_engine(path, manifest=manifest).close()
        reader = SqliteReader(path, manifest)
        try:
            return reader.get("Note", "1")
        finally:
            reader.close()

    row_with(tagged)
    connect(path).execute("""INSERT INTO Note (id, text, tag, _json)
        VALUES ('1', 'x', 'secret', '{"id":"1","tag":"secret","text":"x"}')""")
    assert row_with(NOTE) == b'{"id":"1","text":"x"}'
    assert row_with(tagged) == b'{"id":"1","tag":"secret","text":"x"}'
    row_with(of_bool)
    connect(path).execute("UPDATE Note SET n = 1")
    assert row_with(of_int) == b'{"id":"1","n":1,"text":"x"}'
    assert row_with(of_bool) == b'{"id":"1","n":true,"text":"x"}'


def test_a_history_that_wants_ids_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    connect(path).execute("""CREATE TABLE _pylon_schema_history (id TEXT PRIMARY KEY NOT NULL,
        manifest_version, app_version, applied_at, operation_count, baseline, plan_json)""")
    prepare(path, NOTE)
    prepare(path, NOTE)
    assert connect(path).execute("SELECT count(DISTINCT id) FROM _pylon_schema_history").get == 2


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"this is not a database, but long enough to be looked at" * 50)
    with pytest.raises(StartRefused, match=r"a\.db cannot be used"):
        open_engine(path)
    with pytest.raises(StartRefused):
        open_engine(tmp_path / "no" / "folder.db")
