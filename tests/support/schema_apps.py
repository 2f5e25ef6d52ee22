"""An app before and after a change of its manifest, and its rows: for tests of schema changes."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from pylon.manifest.model import Default, Entity, Field, FieldType, Index, Manifest, Search
from tests.support.schema_stage import SchemaStage

TEXT = FieldType.STRING
ITEM = Entity("Item", (
    Field("title", TEXT, False, False), Field("rank", FieldType.INT, True, False),
))
APP = Manifest("items", "1", (ITEM,))
APP_BEFORE = replace(APP, text="before")  # with another digest than the manifests below
# Everything that a start can add to a table that has rows.
WANTED = replace(APP, entities=(replace(
    ITEM,
    fields=(
        Field("title", TEXT, False, True, nocase=True), Field("rank", FieldType.INT, True, False),
        Field("note", TEXT, True, False),
        Field("state", TEXT, False, False, default=Default("constant", '"new"')),
    ),
    indexes=(Index("by_rank", ("rank", "title"), False, ("rank",)),),
    search=Search(("title",), (), ("rank",)),
),))
# The same without what the older manifest would refuse: a field that is unique in the database.
WIDER = replace(WANTED, entities=(replace(
    WANTED.entities[0], fields=(ITEM.fields[0], *WANTED.entities[0].fields[1:]),
),))


def fill(stage: SchemaStage, rows: int) -> None:
    stage.start(APP)
    stage.ask(
        "INSERT INTO \"Item\" (id, title, rank, _json, _seq) SELECT id, title, n, "
        "json_build_object('id', id, 'rank', n, 'title', title)::text, 1 "
        f"FROM (SELECT n, lpad(n::text, 8, '0') AS id, 'Item ' || n AS title "
        f"FROM generate_series(1, {rows}) AS n) AS made"
    )
    stage.ask('ANALYZE "Item"')


def check_rows(stage: SchemaStage, rows: int) -> None:
    found = stage.rows("Item")
    assert len(found) == rows
    assert {tuple(sorted(row)) for row in found} == {("id", "note", "rank", "state", "title")}
    (check,) = stage.manager.check_search(WANTED.entities)
    assert (check.rows, check.problems) == (rows, ())
    assert stage.ask('SELECT 1 FROM "Item" WHERE _fold_title IS DISTINCT FROM lower(title)') == []


def register(stage: SchemaStage, node: str, manifest: Manifest) -> None:
    """Have a node with a manifest live for the next 10 s."""
    stage.ask(
        "INSERT INTO _pylon_nodes (node, incarnation, roles, version, manifest, workers, "
        "started_at, seen_at) VALUES ($1, '', '', '', $2, '', now(), now())",
        node, sha256(manifest.text.encode()).hexdigest(),
    )


def check_keys(stage: SchemaStage, rows: int, keys: tuple[str, ...]) -> None:
    found = stage.rows("Item")
    assert len(found) == rows and {tuple(sorted(row)) for row in found} == {keys}
