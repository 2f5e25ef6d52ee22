"""A6: pushes to documents are limited for each identity, and for all guests of an address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon import rates
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.documents import LoroClient
from tests.support.manifests import notes_app


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, notes_app()) as made:
        yield made


@pytest.mark.usefixtures("processes")
def test_one_identity_pushes_so_often_and_another_is_not_refused(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_user, by_address = rates.DOCUMENT_PUSHES_BY_USER, rates.DOCUMENT_PUSHES_BY_ADDRESS
    assert by_user.limit / by_user.window_s >= 10, "people type"
    assert by_address.limit / by_address.window_s >= 200, "an office of guests does"
    documents = "pylon.api.sync.documents"
    monkeypatch.setattr(f"{documents}.DOCUMENT_PUSHES_BY_USER", rates.Rate("user", 5, 60.0))
    monkeypatch.setattr(f"{documents}.DOCUMENT_PUSHES_BY_ADDRESS", rates.Rate("ip", 7, 60.0))
    note = {"title": "t", "ownerId": "ada", "shared": True}
    row_id = server.call("POST", "/api/entities/Note", note, ADMIN_TOKEN).json["id"]
    client = LoroClient()
    client.doc.get_map("row").insert("title", "x")
    body = {"update": client.update().hex()}

    def pushes(token: str, count: int = 8) -> list[int]:
        path = f"/api/crdt/Note/{row_id}"
        return [server.call("POST", path, body, token).status_code for _ in range(count)]

    assert pushes(server.user("ada")) == [200] * 5 + [429] * 3
    assert pushes(server.user("ada")) == [429] * 8, "another session of hers"
    assert pushes(server.user("bob"), 5) == [403] * 5
    assert pushes(ADMIN_TOKEN) == [200] * 8
    guests = [server.guest() for _ in range(2)]
    assert pushes(guests[0], 6) == [403] * 5 + [429]
    assert pushes(guests[1], 4) == [403] * 2 + [429] * 2, "guests are made by anybody"
    server.clock.advance(60)
    assert pushes(server.user("ada"), 1) == [200]
