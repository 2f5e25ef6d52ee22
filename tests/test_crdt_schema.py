"""Documents through schema changes, and in a database of the other server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
from loro import LoroDoc, LoroText

from pylon.auth_context import ADMIN
from pylon.clock import ManualClock
from pylon.manifest.model import Entity, Manifest, Policy
from pylon.manifest_loader import parse_manifest
from pylon.schema.options import read_options
from pylon.storage.ops import OpenDocument, PushDocument
from pylon.storage.sqlite.connect import open_writer
from pylon.storage.sqlite.documents import stored_document
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.schema.rewrite import apply_plan
from tests.support import storage as kit
from tests.support.documents import LoroClient
from tests.support.manifests import field, notes_app
from tests.support.other_server import make_database
from tests.support.storage import apply, insert, row_id

ID = row_id(1)


def manifest_of(entity: Entity) -> Manifest:
    policy = Policy("open", entity=entity.name, allow="true")
    return Manifest("kit", "1", (entity,), policies=(policy,))


def changed(path: Path, manifest: Manifest, **flags: tuple[str, ...]) -> None:
    conn = open_writer(path)
    apply_plan(conn, manifest, read_options(manifest, **flags), True, ManualClock())
    conn.close()


def opened(path: Path, manifest: Manifest, entity: str) -> tuple[SqliteEngine, LoroClient]:
    """The database with a document that was asked for, and a client that has it."""
    engine = kit.open_engine(path, manifest=manifest)
    (reply,) = apply(engine, OpenDocument(entity, ID))
    assert reply.error is None, reply.error
    return engine, copy_of(engine, entity)


def copy_of(engine: SqliteEngine, entity: str) -> LoroClient:
    stored = stored_document(engine._conn, entity, ID)
    assert stored is not None
    return LoroClient(stored.snapshot, *stored.updates)


def with_document(path: Path) -> LoroClient:
    """A note with a document that has an update, in a database that is closed again."""
    engine = kit.open_engine(path, manifest=manifest_of(kit.NOTE))
    apply(engine, insert("Note", 1, {"text": "hello"}), OpenDocument("Note", ID))
    client = copy_of(engine, "Note")
    client.text("text").insert(5, "!")
    apply(engine, PushDocument("Note", ID, client.update(), ADMIN))
    engine.close()
    return client


def test_documents_follow_a_renamed_entity(tmp_path: Path) -> None:
    client = with_document(tmp_path / "a.db")
    manifest = manifest_of(replace(kit.NOTE, name="Memo"))
    changed(tmp_path / "a.db", manifest, rename_entities=("Note:Memo",))
    engine, copy = opened(tmp_path / "a.db", manifest, "Memo")
    assert copy.doc.oplog_vv == client.doc.oplog_vv, "it is the same document"
    client.text("text").insert(0, "> ")
    (reply,) = apply(engine, PushDocument("Memo", ID, client.update(), ADMIN))
    assert reply.error is None and copy_of(engine, "Memo").row() == {"text": "> hello!"}
    engine.close()


def test_documents_go_with_a_removed_entity(tmp_path: Path) -> None:
    with_document(tmp_path / "a.db")
    changed(tmp_path / "a.db", manifest_of(kit.USER), drop_entities=("Note",))
    conn = apsw.Connection(str(tmp_path / "a.db"))
    for table in ("_pylon_crdt_snapshots", "_pylon_crdt_updates"):
        assert conn.execute(f"SELECT count(*) FROM {table}").get == 0
    conn.close()


def test_a_renamed_field_is_in_the_document_when_it_is_asked_for(tmp_path: Path) -> None:
    client = with_document(tmp_path / "a.db")
    (text,) = kit.NOTE.fields
    manifest = manifest_of(replace(kit.NOTE, fields=(replace(text, name="body"),)))
    changed(tmp_path / "a.db", manifest, rename_fields=("Note.text:body",))
    engine, copy = opened(tmp_path / "a.db", manifest, "Note")
    assert copy.text("body").to_string() == "hello!"
    client.text("text").insert(0, "old name ")
    (reply,) = apply(engine, PushDocument("Note", ID, client.update(), ADMIN))
    assert reply.error is None, "who still has the old field harms nothing"
    assert copy_of(engine, "Note").text("body").to_string() == "hello!"
    engine.close()


def test_the_other_servers_snapshots_are_used(tmp_path: Path) -> None:
    source = notes_app()
    source["entities"][0]["fields"].append(field("body", "richtext", optional=True))
    row: dict[str, Any] = {"id": ID, "title": "t", "ownerId": "ada", "shared": True, "rank": 3,
                           "slug": None, "body": "hello"}
    make_database(tmp_path / "a.db", source, {"Note": [row]})
    theirs = LoroClient()
    theirs.doc = LoroDoc()
    held = theirs.doc.get_map("row")
    for name, value in {"title": "t", "ownerId": "ada", "shared": True, "rank": 3.0}.items():
        held.insert(name, value)
    held.insert_container("body", LoroText()).insert(0, "hello")
    conn = apsw.Connection(str(tmp_path / "a.db"))
    conn.execute("REPLACE INTO _pylon_crdt_snapshots VALUES ('Note', ?, ?, '2026-01-01T00:00:00Z')",
                 (ID, theirs.everything()))
    conn.close()
    engine, copy = opened(
        tmp_path / "a.db", parse_manifest(json.dumps(source), "test.json"), "Note"
    )
    assert copy.doc.oplog_vv == theirs.doc.oplog_vv, "nothing had to be changed"
    theirs.update()
    theirs.text("body").insert(5, " world")
    (reply,) = apply(engine, PushDocument("Note", ID, theirs.update(), ADMIN))
    assert reply.error is None, reply.error
    found = engine._conn.execute("SELECT body, rank FROM Note").fetchall()
    assert found == [("hello world", 3)]
    engine.close()
