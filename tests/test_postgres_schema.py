"""Schema on PostgreSQL: what a start makes, changes and refuses, and `schema apply`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pylon.clock import SystemClock
from pylon.errors import SchemaRefused, StartDelayed
from pylon.manifest.model import Default, Entity, Field, FieldType, Index, Manifest, Search
from pylon.schema.options import MigrationOptions
from pylon.storage.ops import InsertRow
from pylon.storage.postgres.schema.apply import prepare_store
from pylon.storage.postgres.schema.indexes import put_indexes
from pylon.storage.postgres.schema.leader import alone
from pylon.values import EntityCodec
from tests.support.schema_stage import SchemaStage

TEXT, INT = FieldType.STRING, FieldType.INT
PAGE = Entity(
    "Page",
    (
        Field("title", TEXT, False, False), Field("rank", INT, True, False),
        Field("slug", TEXT, True, True), Field("mail", TEXT, True, True, nocase=True),
        Field("open", FieldType.BOOL, True, False), Field("price", FieldType.DECIMAL, True, False),
        Field("ratio", FieldType.FLOAT, True, False), Field("extra", FieldType.JSON, True, False),
    ),
    (
        Index("by_rank", ("rank", "title"), False, ("rank",)),
        Index("one_open", ("rank",), True, where='{"open": true}'),
    ),
    search=Search(("title",), (), ("rank",)),
)
APP = Manifest("pages", "1", (PAGE,))


def app(entity: Entity = PAGE) -> Manifest:
    return replace(APP, entities=(entity,))


def with_fields(*fields: Field) -> Manifest:
    return app(replace(PAGE, fields=(*PAGE.fields, *fields)))


@pytest.fixture
def stage(postgres_url: str) -> Iterator[SchemaStage]:
    made = SchemaStage(postgres_url)
    yield made
    made.close()


@pytest.fixture
def filled(stage: SchemaStage) -> SchemaStage:
    """A database with three pages."""
    stage.start(APP)
    for number in range(1, 4):
        stage.add(
            APP, "Page", f"p{number}", title=f"Page {number}", rank=number, slug=f"s{number}",
            mail=f"M{number}@x", open=number == 1, price="1.50", ratio=0.1, extra={"n": [number]},
        )
    return stage


def test_a_start_makes_all_and_the_next_one_finds_nothing_to_do(stage: SchemaStage) -> None:
    first = stage.start(APP)
    assert first.created and not first.epoch_opened
    again = stage.start(APP)
    assert (again.created, again.lineage) == (False, first.lineage)
    assert not again.plan.steps and stage.left(APP) == []
    columns = {c.name: c.type for t in stage.manager.inspect() if t.name == "Page"
               for c in t.columns}
    assert columns == {
        "id": "TEXT", "title": "TEXT", "rank": "BIGINT", "slug": "TEXT", "mail": "TEXT",
        "open": "BOOLEAN", "price": "TEXT", "ratio": "DOUBLE PRECISION", "extra": "TEXT",
        "_fold_mail": "TEXT", "_json": "TEXT", "_seq": "BIGINT", "_words": "TSVECTOR",
    }
    names = {name for (name,) in stage.ask(
        "SELECT indexname FROM pg_indexes WHERE tablename = 'Page' "
        "AND schemaname = current_schema()"
    )}
    assert names == {
        "Page_pkey", "Page_slug_unique", "Page_mail_unique", "Page_mail_nocase", "Page_by_rank",
        "Page_one_open", "Page_sort_rank", "_pylon_words_Page",
    }
    assert len(stage.manager.history(10)) == 2


def test_new_fields_get_null_or_their_default_in_rows_and_json(filled: SchemaStage) -> None:
    versions = filled.ask("SELECT _seq FROM \"Page\"")
    wanted = with_fields(
        Field("note", TEXT, True, False),
        Field("state", TEXT, False, False, default=Default("constant", '"it\'s"')),
        Field("done", FieldType.BOOL, False, False, default=Default("constant", "true")),
    )
    filled.start(wanted)
    assert [(r["note"], r["state"], r["done"]) for r in filled.rows("Page")] == [
        (None, "it's", True)
    ] * 3
    assert [r["extra"] for r in filled.rows("Page")] == [{"n": [n]} for n in (1, 2, 3)]
    assert [r["price"] for r in filled.rows("Page")] == ["1.5"] * 3
    assert filled.ask("SELECT state, done FROM \"Page\"") == [("it's", "t")] * 3
    assert filled.ask("SELECT _seq FROM \"Page\"") != versions
    assert filled.left(wanted) == []
    assert filled.ask("SELECT key FROM _pylon_meta WHERE key ~ '^(backfill|unfinished)'") == []


def test_rows_without_a_change_log_open_an_epoch(filled: SchemaStage) -> None:
    assert filled.start(APP).epoch_opened
    assert not filled.start(APP).epoch_opened


def test_a_new_unique_field_and_one_that_becomes_unique(filled: SchemaStage) -> None:
    fields = tuple(replace(f, unique=f.unique or f.name == "title") for f in PAGE.fields)
    wanted = app(replace(PAGE, fields=(*fields, Field("code", INT, True, True))))
    assert filled.left(wanted) == [
        "add_index Page.Page_title_unique", "add_field Page.code",
        "add_index Page.Page_code_unique",
    ]
    filled.start(wanted)
    assert filled.left(wanted) == []
    with pytest.raises(Exception, match="Page_title_unique"):
        filled.add(wanted, "Page", "p9", title="Page 1")
    filled.add(APP, "Page", "p8", title="Other")
    # Back: uniqueness goes by `schema apply` only.
    assert "unique in the database" in filled.left(APP)[0]
    filled.manager.apply(APP, MigrationOptions(), allow_destructive=True)
    assert filled.left(APP) == []
    filled.add(APP, "Page", "p9", title="Page 1")
    (line,) = filled.left(wanted)
    assert "rows share 'Page 1' (2 times)" in line


def test_refusals_name_the_values(filled: SchemaStage) -> None:
    wanted = app(replace(PAGE, indexes=(Index("one", ("ratio",), True),)))
    with pytest.raises(SchemaRefused, match=r"'0\.1' \(3 times\)"):
        filled.start(wanted)
    must = with_fields(Field("must", TEXT, False, False))
    with pytest.raises(SchemaRefused, match="a new required field"):
        filled.start(must)
    filled.manager.apply(
        must, MigrationOptions(defaults={("page", "must"): "x"}), allow_destructive=True
    )
    assert [r["must"] for r in filled.rows("Page")] == ["x"] * 3 and filled.left(must) == []


def test_changed_indexes_are_replaced(filled: SchemaStage) -> None:
    wanted = app(replace(PAGE, indexes=(
        Index("by_rank", ("rank", "title"), False),
        Index("one_open", ("rank",), True, where='{"open": false, "title": {"$in": ["x", "y\'"]}}'),
    )))
    filled.start(wanted)
    assert filled.left(wanted) == []
    found = dict(filled.ask("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'Page'"))
    assert "DESC" not in str(found["Page_by_rank"])
    assert "open = false" in str(found["Page_one_open"])
    filled.start(app(replace(PAGE, indexes=())))
    assert "Page_by_rank" not in {
        name for (name,) in filled.ask("SELECT indexname FROM pg_indexes")
    }


def test_long_names_of_indexes_are_cut_and_stay_distinct(stage: SchemaStage) -> None:
    long = "x" * 60
    entity = Entity("Entity" * 8, (Field("field" * 10, TEXT, True, True, nocase=True),), (
        Index(long + "1", ("field" * 10,), False), Index(long + "2", ("field" * 10,), False),
    ))
    wanted = Manifest("long", "1", (entity,))
    stage.start(wanted)
    assert not stage.start(wanted).plan.steps and stage.left(wanted) == []
    names = [str(n) for (n,) in stage.ask(
        "SELECT indexname FROM pg_indexes WHERE tablename ~ '^Entity'"
    )]
    assert len(names) == len(set(names)) == 5
    fewer = replace(wanted, entities=(replace(entity, indexes=entity.indexes[:1]),))
    stage.start(fewer)
    assert len(stage.ask("SELECT 1 FROM pg_indexes WHERE tablename ~ '^Entity'")) == 4


def test_search_is_added_changed_and_taken_away(filled: SchemaStage) -> None:
    def words() -> list[Any]:
        return filled.ask("SELECT _words::text FROM \"Page\" ORDER BY id")

    assert words()[0] == ("'1':2 'page':1",)
    wanted = app(replace(PAGE, search=Search(("slug", "title"), (), ())))
    filled.start(wanted)
    assert words()[0] == ("'1':13 'page':12 's1':1",)
    assert [c.problems for c in filled.manager.check_search(wanted.entities)] == [()]
    without = app(replace(PAGE, search=None))
    filled.start(without)
    assert filled.ask("SELECT 1 FROM pg_indexes WHERE indexname = '_pylon_words_Page'") == []
    filled.add(without, "Page", "p9", title="A new page")
    (check,) = filled.manager.check_search(wanted.entities)
    assert check.rows == 4 and check.problems
    filled.start(wanted)
    assert [c.problems for c in filled.manager.check_search(wanted.entities)] == [()]
    filled.ask("UPDATE \"Page\" SET _words = NULL WHERE id = 'p9'")
    (check,) = filled.manager.check_search(wanted.entities)
    assert "1 rows have other words" in check.problems[0] and "p9" in check.problems[0]
    assert filled.manager.build_search(wanted.entities) == {"Page": 4}
    assert [c.problems for c in filled.manager.check_search(wanted.entities)] == [()]


def test_field_becomes_unique_without_regard_to_case(filled: SchemaStage) -> None:
    fields = tuple(replace(f, nocase=f.nocase or f.name == "slug") for f in PAGE.fields)
    wanted = app(replace(PAGE, fields=fields))
    filled.add(APP, "Page", "p4", title="t", slug="S1")
    (line,) = [text for text in filled.left(wanted) if "shared" in text or "share" in text]
    assert "'s1' (2 times)" in line
    filled.ask("DELETE FROM \"Page\" WHERE id = 'p4'")
    filled.start(wanted)
    assert filled.left(wanted) == []
    assert filled.ask("SELECT _fold_slug FROM \"Page\" ORDER BY id")[0] == ("s1",)
    with pytest.raises(Exception, match="Page_slug_nocase"):
        filled.add(wanted, "Page", "p4", title="t", slug="S1")
    filled.start(APP)
    assert filled.left(APP) == []


@pytest.mark.parametrize(("name", "kind", "expected"), [
    ("rank", FieldType.STRING, "2"), ("rank", FieldType.FLOAT, 2.0),
    ("rank", FieldType.DECIMAL, "2"), ("open", FieldType.STRING, "false"),
    ("open", FieldType.INT, 0), ("price", FieldType.STRING, "1.5"),
    ("price", FieldType.FLOAT, 1.5), ("ratio", FieldType.STRING, "0.1"),
    ("extra", FieldType.STRING, '{"n":[2]}'),
])
def test_apply_converts_types(
    filled: SchemaStage, name: str, kind: FieldType, expected: object
) -> None:
    fields = tuple(replace(f, type=kind) if f.name == name else f for f in PAGE.fields)
    wanted = app(replace(PAGE, fields=fields, indexes=()))
    with pytest.raises(SchemaRefused):
        filled.start(wanted)
    with pytest.raises(SchemaRefused, match="rewrites or removes"):
        filled.manager.apply(wanted, MigrationOptions(), allow_destructive=False)
    filled.manager.apply(wanted, MigrationOptions(), allow_destructive=True)
    assert filled.rows("Page")[1][name] == expected
    assert filled.left(wanted) == [] and filled.start(wanted).lineage


def test_a_value_that_does_not_convert_stops_the_change(filled: SchemaStage) -> None:
    fields = tuple(replace(f, type=INT) if f.name == "title" else f for f in PAGE.fields)
    wanted = app(replace(PAGE, fields=fields, search=None))
    with pytest.raises(SchemaRefused, match="row p1 has 'Page 1'"):
        filled.manager.apply(wanted, MigrationOptions(), allow_destructive=True)
    assert filled.left(APP) == [] and len(filled.rows("Page")) == 3


def test_renames_and_removals(filled: SchemaStage) -> None:
    renamed = replace(PAGE, name="Sheet", fields=(
        replace(PAGE.fields[0], name="caption"), *PAGE.fields[1:3],
        replace(PAGE.fields[3], name="address"), *PAGE.fields[4:7],
    ), indexes=(Index("by_rank", ("rank", "caption"), False),),
        search=Search(("caption",), (), ("rank",)))
    wanted = app(renamed)
    options = MigrationOptions(
        rename_entities={"page": "Sheet"},
        rename_fields={("sheet", "title"): "caption", ("sheet", "mail"): "address"},
        drop_fields=frozenset({("sheet", "extra")}),
    )
    filled.manager.apply(wanted, options, allow_destructive=True)
    assert filled.left(wanted) == [] and not filled.start(wanted).plan.steps
    row = filled.rows("Sheet")[0]
    assert (row["caption"], row["address"], row["price"]) == ("Page 1", "M1@x", "1.5")
    assert "extra" not in row and "title" not in row
    names = {str(n) for (n,) in filled.ask(
        "SELECT indexname FROM pg_indexes WHERE tablename = 'Sheet'"
    )}
    assert names == {
        "Sheet_pkey", "Sheet_slug_unique", "Sheet_address_unique", "Sheet_address_nocase",
        "Sheet_by_rank", "Sheet_sort_rank", "_pylon_words_Sheet",
    }
    assert [c.problems for c in filled.manager.check_search(wanted.entities)] == [()]
    assert filled.ask("SELECT reason FROM _pylon_epochs ORDER BY first_seq DESC LIMIT 1") == [
        ("the schema was changed",)
    ]
    gone = Manifest("pages", "1", ())
    filled.manager.apply(
        gone, MigrationOptions(drop_entities=frozenset({"sheet"})), allow_destructive=True
    )
    assert "Sheet" not in {table.name for table in filled.manager.inspect()}


def test_a_name_in_other_case_is_a_rename(filled: SchemaStage) -> None:
    fields = (replace(PAGE.fields[0], name="Title"), *PAGE.fields[1:])
    wanted = app(replace(PAGE, fields=fields, indexes=(), search=None))
    assert filled.left(wanted)[0] == "rename_field Page.Title: was title"
    filled.manager.apply(wanted, MigrationOptions(), allow_destructive=True)
    assert filled.rows("Page")[0]["Title"] == "Page 1" and filled.left(wanted) == []


def test_tables_of_the_published_server_are_refused_and_converted(stage: SchemaStage) -> None:
    stage.ask(
        'CREATE TABLE "Event" (id text PRIMARY KEY, at timestamptz NOT NULL, '
        "number integer, name text UNIQUE, flag boolean)"
    )
    stage.ask(
        "INSERT INTO \"Event\" VALUES ('b', '2026-03-29 12:00:00.25+02', 7, 'one', true), "
        "('a', '2026-01-01 00:00:00+00', NULL, NULL, NULL)"
    )
    entity = Entity("Event", (
        Field("at", FieldType.DATETIME, False, False), Field("number", INT, True, False),
        Field("name", TEXT, True, True), Field("flag", FieldType.BOOL, True, False),
    ))
    wanted = Manifest("events", "1", (entity,))
    with pytest.raises(SchemaRefused, match="TIMESTAMP WITH TIME ZONE to TEXT"):
        stage.start(wanted)
    assert [t.name for t in stage.manager.inspect()] == ["Event"]
    stage.manager.apply(wanted, MigrationOptions(), allow_destructive=True)
    assert stage.rows("Event") == [
        {"id": "a", "at": "2026-01-01T00:00:00.000000Z", "number": None, "name": None,
         "flag": None},
        {"id": "b", "at": "2026-03-29T10:00:00.250000Z", "number": 7, "name": "one", "flag": True},
    ]
    assert stage.left(wanted) == [] and not stage.start(wanted).plan.steps
    columns = {c.name: c.type for t in stage.manager.inspect() if t.name == "Event"
               for c in t.columns}
    assert columns["id"] == columns["name"] == columns["at"] == "TEXT"  # COLLATE "C", that is


def test_a_newer_schema_and_a_serving_node_are_refused(filled: SchemaStage) -> None:
    filled.ask(
        "INSERT INTO _pylon_nodes (node, incarnation, roles, version, manifest, workers, "
        "started_at, seen_at) VALUES ('n1', '', '', '', '', '', now(), now())"
    )
    wanted = app(replace(PAGE, fields=PAGE.fields[:-1]))
    drop = MigrationOptions(drop_fields=frozenset({("page", "extra")}))
    with pytest.raises(SchemaRefused, match="nodes serve from this database: n1"):
        filled.manager.apply(wanted, drop, allow_destructive=True)
    filled.ask("UPDATE _pylon_nodes SET seen_at = now() - interval '1 minute'")
    filled.manager.apply(wanted, drop, allow_destructive=True)
    filled.ask("UPDATE _pylon_meta SET value = '99' WHERE key = 'schema_format'")
    with pytest.raises(SchemaRefused, match="a newer Pylon"):
        filled.start(wanted)
    with pytest.raises(SchemaRefused, match="a newer Pylon"):
        filled.manager.refuse_unreachable(wanted)


def test_a_format_that_living_nodes_cannot_read_is_not_written(
    filled: SchemaStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that raises reads-from waits until all nodes know what it writes."""
    insert = (
        "INSERT INTO _pylon_nodes (node, incarnation, roles, version, manifest, workers, "
        "started_at, seen_at, schema_format) VALUES ($1, '', '', '', '', '', now(), now(), $2)"
    )
    filled.ask(insert, "first", None)
    filled.ask(insert, "second", 2)
    assert filled.ask(
        "SELECT key, value FROM _pylon_meta WHERE starts_with(key, 'schema_') ORDER BY key"
    ) == [("schema_format", "1"), ("schema_writes", "2")]
    monkeypatch.setattr("pylon.schema.history.READS_FROM", 2)
    with pytest.raises(SchemaRefused, match=r"could not read what this one writes: first$"):
        filled.start(APP)
    filled.ask("DELETE FROM _pylon_nodes WHERE node = 'first'")
    filled.start(APP)
    reads_from = "SELECT value FROM _pylon_meta WHERE key = 'schema_format'"
    assert filled.ask(reads_from) == [("2",)]
    monkeypatch.setattr("pylon.schema.history.READS_FROM", 1)
    filled.start(APP)  # an older build that can read format 2 does not lower it
    assert filled.ask(reads_from) == [("2",)]


def test_seed_rows_are_tried_beside_the_database(stage: SchemaStage) -> None:
    def insert(row_id: str, **fields: Any) -> InsertRow:
        encoded = EntityCodec(PAGE).insert(fields, row_id)
        return InsertRow("Page", row_id, encoded.values, encoded.row_json)

    good = [insert("a", title="x", slug="s", mail="A@x"), insert("b", title="y", open=True)]
    assert stage.manager.find_conflict(APP, good) is None
    found = stage.manager.find_conflict(APP, [*good, insert("c", title="z", mail="a@X")])
    assert found is not None and found[0].row_id == "c" and found[1].code == "UNIQUE_VIOLATION"
    assert stage.manager.inspect() == []


def test_another_session_that_changes_the_schema_is_waited_for(filled: SchemaStage) -> None:
    other, mine = filled.open(), filled.open()
    with alone(other), pytest.raises(StartDelayed, match="another node"):
        prepare_store(mine, APP, SystemClock(), wait_s=0.2)
    prepare_store(mine, APP, SystemClock(), wait_s=0.2)
    assert mine.execute("SHOW lock_timeout").get_value(0, 0) == b"5s"
    other.close()
    mine.close()


def test_indexes_are_put_while_the_nodes_serve(filled: SchemaStage) -> None:
    session = filled.open()

    def put(*indexes: Index) -> int:
        wanted = [
            ("Page", i.name, i.fields, i.unique, i.descending, i.where) for i in indexes
        ]
        return put_indexes(session, APP, wanted, SystemClock())

    assert put(*PAGE.indexes) == 0
    assert put(*PAGE.indexes, Index("by_title", ("title",), False)) == 1
    assert put(Index("by_rank", ("rank",), False)) == 4  # replaced, and two are gone
    names = {str(n) for (n,) in filled.ask(
        "SELECT indexname FROM pg_indexes WHERE tablename = 'Page' AND indexname ~ 'by_|one_'"
    )}
    assert names == {"Page_by_rank"}
    with pytest.raises(SchemaRefused, match="rows share"):
        put(Index("by_rank", ("rank",), False), Index("one", ("ratio",), True))
    with pytest.raises(SchemaRefused, match="does not know Page"):
        put(Index("by_rank", ("nope",), False))
    assert filled.manager.history(1)[0]["baseline"] == "indexes"
    filled.start(APP)
    assert filled.left(APP) == []
    session.close()


def test_names_that_postgresql_would_cut_and_too_many_columns_are_refused(
    stage: SchemaStage,
) -> None:
    long, folded = "f" * 64, "g" * 58
    entity = Entity("E" * 64, (
        Field(long, TEXT, True, False), Field(folded, TEXT, True, True, nocase=True),
        Field("h" * 63, TEXT, True, True),
    ))
    wide = Entity("Wide", tuple(Field(f"f{n}", INT, True, False) for n in range(1_598)))
    with pytest.raises(SchemaRefused) as caught:
        stage.start(Manifest("long", "1", (entity, wide)))
    lines = caught.value.details["refusals"]
    assert len(lines) == 4 and f"_fold_{folded} has 64 bytes" in lines[2]
    assert lines[3] == "Wide: 1,601 columns; PostgreSQL takes 1,600"
    assert stage.manager.inspect() == []
