"""Schema changes while nodes have two manifests: what is completed, kept, and mended when the
older ones have gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from pylon.manifest.model import Entity, Field, FieldType, Manifest
from pylon.storage.postgres.schema import fill as fill_module
from pylon.storage.postgres.schema import online
from pylon.storage.postgres.schema.pending import finish_pending
from tests.support.schema_apps import (
    APP_BEFORE,
    TEXT,
    WANTED,
    WIDER,
    check_keys,
    check_rows,
    fill,
    register,
)
from tests.support.schema_stage import SchemaStage


@pytest.fixture
def stage(postgres_url: str) -> Iterator[SchemaStage]:
    made = SchemaStage(postgres_url)
    yield made
    made.close()


def write_as_old(stage: SchemaStage) -> None:
    """Change a row and insert one as a node with `APP` knows them, with their events."""
    stage.ask("UPDATE \"Item\" SET title = 'Zoë', _seq = 5000, "
              "_json = '{\"id\":\"00000001\",\"rank\":1,\"title\":\"Zoë\"}' WHERE id = '00000001'")
    stage.ask("INSERT INTO \"Item\" (id, title, _json, _seq) VALUES ('new', 'Blue tea', "
              "'{\"id\":\"new\",\"rank\":null,\"title\":\"Blue tea\"}', 5001)")
    stage.ask(
        "INSERT INTO _pylon_change_log (seq, entity, row_id, kind, data, prev_data, timestamp) "
        "SELECT _seq, 'Item', id, 'update', json_build_object('id', id, 'title', title)::text, "
        "NULL, 1 FROM \"Item\" WHERE _seq BETWEEN 5000 AND 5001 ORDER BY _seq"
    )
    stage.ask("SELECT setval('_pylon_seq', 5001)")


def test_rows_of_nodes_with_the_manifest_before_are_mended_when_they_have_gone(
    stage: SchemaStage,
) -> None:
    fill(stage, 100)
    register(stage, "old", APP_BEFORE)
    stage.start(WANTED)
    stage.ask("UPDATE \"Item\" SET note = 'kept' WHERE id = '00000001'")
    write_as_old(stage)
    stage.add(WANTED, "Item", "third", title="Third", state="old")
    stage.ask("UPDATE \"Item\" SET _seq = 5002 WHERE id = 'third'")
    # Readers and followers of the log find complete rows at once.
    changed = {row["id"]: row for row in stage.rows("Item") if row["id"] in ("00000001", "new")}
    assert changed["00000001"] == {
        "id": "00000001", "note": "kept", "rank": 1, "state": "new", "title": "Zoë",
    }
    assert changed["new"] == {
        "id": "new", "note": None, "rank": None, "state": "new", "title": "Blue tea",
    }
    images = [orjson.loads(str(data)) for (data,) in stage.ask(
        "SELECT data FROM _pylon_change_log ORDER BY seq"
    )]
    assert [(image["note"], image["state"]) for image in images] == [
        ("kept", "new"), (None, "new"),
    ]
    session = stage.open()
    assert finish_pending(session, WANTED) == 1, "the old node lives"
    stage.ask("DELETE FROM _pylon_nodes")
    assert finish_pending(session, WANTED) == 0
    check_rows(stage, 102)
    versions = dict(stage.ask("SELECT id, _seq FROM \"Item\" WHERE _seq > 4000"))
    assert versions["third"] == "5002", "what was right stays"
    assert stage.ask("SELECT _fold_title FROM \"Item\" WHERE id = '00000001'") == [("zoë",)]
    # Clients of the old node have not seen the note and the state of the rows that it wrote.
    told = stage.ask("SELECT row_id, data, seq FROM _pylon_change_log WHERE seq > 5001 "
                     "ORDER BY seq")
    assert [row_id for row_id, _, _ in told] == ["00000001", "new"]
    assert orjson.loads(str(told[0][1]))["note"] == "kept"
    assert [versions[str(row_id)] for row_id, _, _ in told] == [seq for _, _, seq in told]
    assert stage.ask("SELECT tgname FROM pg_trigger WHERE tgname = '_pylon_fill'") == []
    assert stage.ask("SELECT proname FROM pg_proc WHERE starts_with(proname, '_pylon_fill')") == []
    assert finish_pending(session, WANTED) == 0
    session.close()
    assert len(stage.ask("SELECT 1 FROM _pylon_change_log")) == 4, "they are told once"


def test_a_node_with_the_manifest_before_takes_nothing_away_from_newer_ones(
    stage: SchemaStage,
) -> None:
    fill(stage, 50)
    stage.start(WIDER)
    register(stage, "new", WIDER)
    before = stage.ask('SELECT id, _json, _seq FROM "Item" ORDER BY id')
    statement = "SELECT indexname FROM pg_indexes WHERE tablename = 'Item' ORDER BY 1"
    indexes = stage.ask(statement)
    stage.start(APP_BEFORE)
    assert stage.ask('SELECT id, _json, _seq FROM "Item" ORDER BY id') == before
    assert stage.ask(statement) == indexes
    register(stage, "old", APP_BEFORE)
    write_as_old(stage)
    check_keys(stage, 51, ("id", "note", "rank", "state", "title"))
    session = stage.open()
    # The newer ones leave: what they alone needed goes, but for the columns.
    stage.ask("DELETE FROM _pylon_nodes WHERE node = 'new'")
    assert finish_pending(session, APP_BEFORE) == 0
    check_keys(stage, 51, ("id", "rank", "title"))
    assert stage.ask("SELECT 1 FROM pg_indexes WHERE indexname = 'Item_by_rank'") == []
    assert stage.left(APP_BEFORE) == []
    session.close()


def test_a_start_that_writes_all_rows_as_before_is_made_good_by_a_newer_node(
    stage: SchemaStage,
) -> None:
    """A build that does not look who else lives writes all rows with its own fields."""
    fill(stage, 20)
    stage.start(WIDER)
    stage.ask("UPDATE \"Item\" SET note = 'kept' WHERE id = '00000001'")
    stage.start(APP_BEFORE)
    register(stage, "old", APP_BEFORE)
    check_keys(stage, 20, ("id", "rank", "title"))
    session = stage.open()
    for _ in range(2):
        finish_pending(session, WIDER)
        check_keys(stage, 20, ("id", "note", "rank", "state", "title"))
    assert stage.rows("Item")[0]["note"] == "kept"
    versions = stage.ask('SELECT max(_seq) FROM "Item"')
    stage.start(WIDER)
    assert stage.ask('SELECT max(_seq) FROM "Item"') == versions, "nothing is written twice"
    session.close()


KINDS = Entity("Kind", (
    Field("text", TEXT, True, False), Field("whole", FieldType.INT, True, False),
    Field("real", FieldType.FLOAT, True, False), Field("flag", FieldType.BOOL, True, False),
    Field("price", FieldType.DECIMAL, True, False), Field("data", FieldType.JSON, True, False),
    Field("at", FieldType.DATETIME, True, False),
))


@pytest.mark.parametrize("values", [
    {"text": 'a "quoted" \\ é\n', "whole": -(2**63), "real": 0.1, "flag": True, "price": "-12.5",
     "data": {"b": [1, None], "a": "x"}, "at": "2026-01-02T03:04:05.000000Z"},
    {"text": "", "whole": 0, "real": 1e300, "flag": False, "price": "0", "data": [], "at": None},
    {"price": "9999999999999999999.0000000000000000001", "data": "text", "real": -3.0},
])
def test_triggers_write_the_json_that_the_codec_writes(
    stage: SchemaStage, values: dict[str, Any]
) -> None:
    app = Manifest("kinds", "1", (KINDS,))
    stage.start(app)
    stage.add(app, "Kind", "a", **values)
    ((wanted,),) = stage.ask('SELECT _json FROM "Kind"')
    fill_module.add_fill(
        stage.session, "Kind", {field.name: field.type.value for field in KINDS.fields},
        online.OnlineSteps(stage.session),
    )
    stage.ask("UPDATE \"Kind\" SET _json = '{\"id\":\"a\"}'")
    ((found,),) = stage.ask('SELECT _json FROM "Kind"')
    assert orjson.loads(str(found)) == orjson.loads(str(wanted))
    assert list(orjson.loads(str(found))) == list(orjson.loads(str(wanted)))


