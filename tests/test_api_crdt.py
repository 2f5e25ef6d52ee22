"""POST /api/crdt: its errors by name (spec/realtime.md §6.4), and what it does to the row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import limits
from pylon.storage.ops import OpenDocument
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.documents import LoroClient
from tests.support.manifests import field, notes_app

pytestmark = pytest.mark.stores


def app() -> dict[str, Any]:
    manifest = notes_app()
    manifest["entities"][0]["fields"].append(field("body", "richtext", optional=True))
    return manifest


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, app()) as server:
        yield server


@pytest.fixture
def row_id(server: ApiStage) -> str:
    note = {"title": "t", "ownerId": "ada", "shared": True, "body": "hello"}
    made = server.call("POST", "/api/entities/Note", note, ADMIN_TOKEN)
    assert made.status_code == 201, made.text
    return str(made.json["id"])


def client_of(server: ApiStage, row_id: str) -> LoroClient:
    server.writer.submit(OpenDocument("Note", row_id))
    stored = server.services.data.store.point(lambda reader: reader.document("Note", row_id))
    assert stored is not None
    return LoroClient(stored.snapshot, *stored.updates)


def refused(server: ApiStage, path: str, body: Any, token: str | None) -> tuple[int, str]:
    answer = server.call("POST", path, body, token)
    return answer.status_code, answer.json["error"]["code"]


@pytest.mark.usefixtures("processes")
def test_a_push_is_merged_into_the_row(server: ApiStage, row_id: str) -> None:
    client = client_of(server, row_id)
    client.text("body").insert(5, " world")
    path, ada = f"/api/crdt/Note/{row_id}", server.user("ada")
    answer = server.call("POST", path, {"update": client.update().hex()}, ada)
    assert (answer.status_code, answer.json) == (200, {"ok": True})
    row = server.call("GET", f"/api/entities/Note/{row_id}", token=ADMIN_TOKEN)
    assert row.json["body"] == "hello world"
    assert row.headers["etag"] == f'"{answer.headers["x-pylon-change-seq"]}"'
    client.doc.get_text("body").insert(0, "elsewhere")
    answer = server.call("POST", path, {"update": client.update().hex().upper()}, ada)
    assert answer.status_code == 200 and "x-pylon-change-seq" not in answer.headers


@pytest.mark.usefixtures("processes")
def test_the_path_is_decoded(server: ApiStage, row_id: str) -> None:
    client = client_of(server, row_id)
    client.text("body").insert(0, "x")
    encoded = "".join(f"%{ord(c):02X}" for c in row_id)
    answer = server.call(
        "POST", f"/api/crdt/N%6Fte/{encoded}", {"update": client.update().hex()}, ADMIN_TOKEN
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(("path", "body", "token", "expected"), [
    ("Note/{id}", {"update": "00"}, None, (401, "AUTH_REQUIRED")),
    ("Note/{id}", b"{", ADMIN_TOKEN, (400, "INVALID_JSON")),
    ("Note/{id}", [], ADMIN_TOKEN, (400, "INVALID_JSON")),
    ("Note/{id}", {}, ADMIN_TOKEN, (400, "MISSING_UPDATE")),
    ("Note/{id}", {"update": 5}, ADMIN_TOKEN, (400, "MISSING_UPDATE")),
    ("Note/{id}", {"update": "0"}, ADMIN_TOKEN, (400, "INVALID_HEX")),
    ("Note/{id}", {"update": "0g"}, ADMIN_TOKEN, (400, "INVALID_HEX")),
    ("Note/{id}", {"update": "00 00"}, ADMIN_TOKEN, (400, "INVALID_HEX")),
    ("Note/{id}", {"update": "é0"}, ADMIN_TOKEN, (400, "INVALID_HEX")),
    ("Note/{id}", {"update": ""}, ADMIN_TOKEN, (400, "CRDT_DECODE_FAILED")),
    ("Note/{id}", {"update": "00ff"}, ADMIN_TOKEN, (400, "CRDT_DECODE_FAILED")),
    ("Note/{id}", {"update": "00" * (limits.DOCUMENT_UPDATE_BYTES + 1)}, ADMIN_TOKEN,
     (400, "LIMIT_EXCEEDED")),
    ("Tick/{id}", {"update": "00"}, ADMIN_TOKEN, (400, "NOT_SUPPORTED")),
    ("Nope/{id}", {"update": "00"}, ADMIN_TOKEN, (404, "ENTITY_NOT_FOUND")),
    ("Note/", {"update": "00"}, ADMIN_TOKEN, (400, "BAD_PATH")),
    ("Note", {"update": "00"}, ADMIN_TOKEN, (400, "BAD_PATH")),
    ("Note/a/b", {"update": "00"}, ADMIN_TOKEN, (400, "BAD_PATH")),
    ("", {"update": "00"}, ADMIN_TOKEN, (400, "BAD_PATH")),
])
@pytest.mark.usefixtures("processes")
def test_what_is_refused(
    server: ApiStage, row_id: str, path: str, body: Any, token: str | None,
    expected: tuple[int, str],
) -> None:
    assert refused(server, f"/api/crdt/{path.format(id=row_id)}", body, token) == expected
    assert server.call("GET", f"/api/entities/Note/{row_id}", token=ADMIN_TOKEN).json["body"] == (
        "hello"
    )


@pytest.mark.usefixtures("processes")
def test_who_may_not(server: ApiStage, row_id: str) -> None:
    client = client_of(server, row_id)
    client.text("body").insert(0, "x")
    body = {"update": client.update().hex()}
    path = f"/api/crdt/Note/{row_id}"
    assert refused(server, path, body, server.user("bob")) == (403, "POLICY_DENIED")
    server.call("PATCH", f"/api/entities/Note/{row_id}", {"shared": False}, ADMIN_TOKEN)
    assert refused(server, path, body, server.user("bob")) == (404, "NOT_FOUND")
    assert refused(server, "/api/crdt/Note/none", body, ADMIN_TOKEN) == (404, "NOT_FOUND")
    assert server.call("POST", path, body, server.user("ada")).status_code == 200


def test_other_methods(server: ApiStage, row_id: str) -> None:
    answer = server.call("GET", f"/api/crdt/Note/{row_id}", token=ADMIN_TOKEN)
    assert answer.status_code == 405 and "POST" in answer.headers["allow"]
