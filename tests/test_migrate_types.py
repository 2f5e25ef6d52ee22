"""Migration of every type, search index and kind of index, and of rows of earlier versions."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest

from pylon.auth_context import ADMIN
from pylon.clock import ManualClock
from pylon.manifest.model import Manifest
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.query.predicate import TRUE
from pylon.query.rows import Query
from pylon.query.words import parse_match
from pylon.storage.interface import Reader, WriteEngine
from pylon.storage.ops import InsertRow, UpdateRow, WriteReply, WriteRequest
from pylon.storage.postgres.backend import PostgresBackend
from pylon.storage.postgres.transfer.manager import PostgresTransfer
from pylon.storage.sqlite.backend import SqliteBackend
from pylon.storage.sqlite.transfer.manager import SqliteTransfer
from pylon.values import EntityCodec
from tests.support import moved_store as kit
from tests.support.manifests import field
from tests.support.storage import row_id

_ids = itertools.count(1)


def every_type() -> Manifest:
    """Return a manifest with every type of field and kind of index."""
    kind = {**field("kind", "enum", optional=True), "values": ["a", "b"]}
    nick = {**field("nick", "string", optional=True), "unique": "nocase"}
    text = {
        "manifest_version": 1, "name": "types", "version": "1.0.0", "routes": [],
        "entities": [{
            "name": "Thing", "crdt": False,
            "fields": [
                field("title", "string"), field("body", "richtext", optional=True),
                field("count", "int"), field("weight", "float", optional=True),
                field("open", "bool"), field("at", "datetime", optional=True),
                field("day", "date", optional=True), field("price", "decimal", optional=True),
                field("extra", "json", optional=True),
                field("parent", "id(Thing)", optional=True), kind, nick,
            ],
            "indexes": [
                {"name": "by_count", "fields": ["-count", "day"], "unique": False},
                {"name": "open_only", "fields": ["title"], "unique": False,
                 "where": {"open": True}},
            ],
            "search": {"text": ["title", "body"], "facets": ["kind"], "sortable": ["price"]},
        }],
        "policies": [{"name": "all", "entity": "Thing", "allow": "true"}],
    }
    return parse_manifest(orjson.dumps(text).decode(), "types.json")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return every_type()


def body(number: int) -> dict[str, Any]:
    return {
        "title": f"Thing {number} façade", "body": "Grüße an die Welt" if number % 2 else None,
        "count": number - 2**53, "weight": number / 3 if number % 3 else None,
        "open": number % 2 == 0, "at": f"2026-02-{number % 28 + 1:02d}T10:00:00+02:00",
        "day": f"2026-03-{number % 28 + 1:02d}", "price": f"{number - 10}.50",
        "extra": {"n": [number, None, "x"]}, "kind": "ab"[number % 2], "nick": f"Nick{number}",
        "parent": row_id(number - 1) if number else None,
    }


def insert(manifest: Manifest, number: int, **more: Any) -> InsertRow:
    encoded = EntityCodec(manifest.by_name["Thing"]).insert(
        body(number) | more, row_id(number)
    )
    return InsertRow("Thing", row_id(number), encoded.values, encoded.row_json)


def apply(engine: WriteEngine, *ops: Any) -> list[WriteReply]:
    return engine.apply([WriteRequest(next(_ids), op) for op in ops]).replies


def found(reader: Reader, manifest: Manifest, text: str) -> list[str]:
    """The ids that a search finds."""
    match = parse_match(manifest.by_name["Thing"], text)
    assert match is not None
    rows = reader.rows("Thing", Query(match, 100))
    return sorted(orjson.loads(row)["id"] for row in rows)


def all_json(reader: Reader) -> list[bytes]:
    return reader.rows("Thing", Query(TRUE, 1_000))




def test_every_type_index_and_search_works_at_the_other_end_and_back(
    manifest: Manifest, tmp_path: Path, postgres_url: str
) -> None:
    rules, clock = compile_rules(manifest), ManualClock()
    first, second = SqliteBackend(tmp_path / "a.db"), SqliteBackend(tmp_path / "b.db")
    with closing(first.open_writer(manifest, rules, clock)) as engine, \
            closing(first.open_reader(manifest)) as reader:
        for number in range(30):
            (reply,) = apply(engine, insert(manifest, number))
            assert reply.error is None, reply.error
        apply(engine, UpdateRow("Thing", row_id(3), {"body": "ganz anders"}, ADMIN))
        rows = all_json(reader)
        searches = {
            text: found(reader, manifest, text) for text in ("facade", "welt", "and", "thing 7")
        }
    assert len(rows) == 30 and len(searches["facade"]) == 30 and len(searches["welt"]) == 14
    kit.move(SqliteTransfer(tmp_path / "a.db"), PostgresTransfer(postgres_url), manifest=manifest)
    postgres = PostgresBackend(postgres_url, is_dev=True)
    check_store(postgres, manifest, rows, searches)
    kit.move(PostgresTransfer(postgres_url), SqliteTransfer(tmp_path / "b.db"), manifest=manifest)
    with closing(postgres.open_reader(manifest)) as reader:
        rows = all_json(reader)
    check_store(second, manifest, rows, searches, more=1)


def check_store(
    backend: Any, manifest: Manifest, rows: list[bytes], searches: dict[str, list[str]],
    more: int = 0,
) -> None:
    """Check rows, searches and unique fields, and write a row."""
    rules, clock = compile_rules(manifest), ManualClock()
    with closing(backend.open_writer(manifest, rules, clock)) as engine, \
            closing(backend.open_reader(manifest)) as reader:
        assert all_json(reader) == rows
        for text, wanted in searches.items():
            assert [row for row in found(reader, manifest, text) if row < row_id(90)] == wanted
        (clash,) = apply(engine, insert(manifest, 99, nick="nICK7", parent=None))
        assert clash.error is not None and clash.error.code == "UNIQUE_VIOLATION"
        (made,) = apply(engine, insert(manifest, 90 + more, body="Welten", parent=row_id(0)))
        assert made.error is None, made.error
        assert row_id(90 + more) in found(reader, manifest, "welten")
        (gone,) = apply(engine, insert(manifest, 98, parent=row_id(77)))
        assert gone.error is not None, "references are checked as before"


def test_datetimes_of_an_earlier_version_arrive_in_the_stored_notation(
    manifest: Manifest, tmp_path: Path, postgres_url: str
) -> None:
    backend = SqliteBackend(tmp_path / "a.db")
    rules, clock = compile_rules(manifest), ManualClock()
    with closing(backend.open_writer(manifest, rules, clock)) as engine:
        apply(engine, *(insert(manifest, number, parent=None) for number in range(3)))
    conn = apsw.Connection(str(tmp_path / "a.db"))
    old = "2026-02-01T08:00:00Z"
    conn.execute(
        'UPDATE "Thing" SET at = ?, _json = json_set(_json, \'$.at\', ?) WHERE id = ?',
        (old, old, row_id(1)),
    )
    conn.execute("UPDATE _pylon_meta SET value = json_set(value, '$.after', '') "
                 "WHERE key = 'instants:Thing'")
    conn.close()
    kit.move(SqliteTransfer(tmp_path / "a.db"), PostgresTransfer(postgres_url), manifest=manifest)
    rows = kit.all_rows(PostgresTransfer(postgres_url), manifest)["Thing"]
    row = orjson.loads(rows[1][-2])
    assert row["at"] == rows[1][6] == "2026-02-01T08:00:00.000000Z"
    assert all(len(orjson.loads(found[-2])["at"]) == len(row["at"]) for found in rows)
