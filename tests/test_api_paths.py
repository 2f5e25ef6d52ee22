"""Ids with a slash, a space, ? or # in paths, percent-encoded as encodeURIComponent does (B47)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pylon.storage.ops import OpenDocument
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.documents import LoroClient
from tests.support.wsgi import Lines, ask
from tests.test_api_crdt import app

pytestmark = pytest.mark.stores

ADMIN = ("Authorization", f"Bearer {ADMIN_TOKEN}")
IDS = ["a/b c?d#e", "/", "a/", "/a", "a//b", "a%2Fb", "ü/😀", "..", "a/../b", "a;b=c", "cursor/x"]
NOTE = {"title": "t", "ownerId": "ada", "shared": True, "body": "hello"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, app()) as made:
        yield made


def put(server: ApiStage, *row_ids: str) -> None:
    rows = [{"id": row_id, **NOTE} for row_id in row_ids]
    answer = server.call("POST", "/api/import", {"entities": {"Note": rows}}, ADMIN_TOKEN)
    assert answer.status_code == 200, answer.text


def asked(server: ApiStage, method: str, path: str, body: object = None) -> Lines:
    raw = b"" if body is None else json.dumps(body).encode()
    return ask(server, method, path, raw, [ADMIN])


@pytest.mark.parametrize("row_id", IDS)
def test_a_row_is_addressed_by_its_encoded_id(server: ApiStage, row_id: str) -> None:
    put(server, row_id, "other")
    path = f"/api/entities/Note/{quote(row_id, safe='')}"
    got = asked(server, "GET", path)
    assert (got.status, json.loads(got.body)["id"]) == (200, row_id)
    assert asked(server, "HEAD", path).status == 200
    assert asked(server, "PATCH", path, {"title": "changed"}).status == 200
    assert json.loads(asked(server, "GET", path).body)["title"] == "changed"
    assert json.loads(asked(server, "GET", "/api/entities/Note/other").body)["title"] == "t"
    assert asked(server, "DELETE", path).status == 200
    assert asked(server, "GET", path).status == 404


def test_a_row_with_the_id_of_the_page_route_is_changed_and_deleted(server: ApiStage) -> None:
    put(server, "cursor")
    path = "/api/entities/Note/cursor"
    assert asked(server, "PATCH", path, {"title": "changed"}).status == 200
    assert json.loads(asked(server, "GET", path).body)["data"][0]["title"] == "changed"
    assert asked(server, "DELETE", path).status == 200
    assert asked(server, "GET", "/api/lookup/Note/id/cursor").status == 404
    assert asked(server, "DELETE", path).status == 404


def test_small_letters_in_the_escape_mean_the_same(server: ApiStage) -> None:
    put(server, "a/b")
    assert asked(server, "GET", "/api/entities/Note/a%2fb").status == 200


def test_a_slash_that_is_not_encoded_is_another_path(server: ApiStage) -> None:
    put(server, "a/b")
    assert asked(server, "GET", "/api/entities/Note/a/b").status == 404
    # An encoded slash parts no segments: these are no entities.
    assert asked(server, "GET", "/api/entities/Note%2Fa%2Fb").status == 404
    assert asked(server, "GET", "/api%2Fentities%2FNote%2Fother").status == 404


@pytest.mark.usefixtures("processes")
def test_documents_and_lookups_take_such_ids_too(server: ApiStage) -> None:
    put(server, "a/b")
    server.writer.submit(OpenDocument("Note", "a/b"))
    stored = server.services.data.store.point(lambda reader: reader.document("Note", "a/b"))
    assert stored is not None
    client = LoroClient(stored.snapshot, *stored.updates)
    client.text("body").insert(5, " world")
    pushed = asked(server, "POST", "/api/crdt/Note/a%2Fb", {"update": client.update().hex()})
    assert pushed.status == 200
    row = json.loads(asked(server, "GET", "/api/entities/Note/a%2Fb").body)
    assert row["body"] == "hello world"
    for path in ("/api/lookup/Note/id/a%2Fb", "/api/lookup/Note/id/a/b"):
        assert asked(server, "GET", path).status == 200


def test_rooms_and_shards_take_such_ids_too(server: ApiStage) -> None:
    joined = asked(server, "POST", "/api/rooms/join", {"room": "a/b"})
    assert joined.status in (200, 201), joined.body
    assert asked(server, "GET", "/api/rooms/a%2Fb").status == 200
    missing = asked(server, "GET", "/api/shards/a%2Fb")
    assert missing.status == 404
    assert b"SHARD_NOT_FOUND" in missing.body
