"""A database of the published server: its datetimes are converted while the server serves."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import stores
from tests.support.manifests import field
from tests.support.other_server import make_database
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.usefixtures("processes")

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "notes", "version": "0.1.0",
    "entities": [{
        "name": "Note", "fields": [field("title", "string"), field("at", "datetime")],
        "indexes": [{"name": "by_at", "fields": ["at"], "unique": False}],
    }],
    "routes": [],
}
ROWS = 4_000
# One instant in each notation, in turns.
NOTATIONS = ["2026-03-29T00:30:00Z", "2026-03-28T19:30:00-05:00", "1774744200Z", "2026-03-29 00:30"]
STORED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def count(server: PylonServer, where: dict[str, Any]) -> int:
    body = {"count": "*", "where": where}
    status, answer, _ = server.request("POST", "/api/aggregate/Note", body, token=ADMIN_TOKEN)
    assert status == 200, answer
    found: int = answer["rows"][0]["count"]
    return found


def check(server: PylonServer) -> None:
    same = {"at": {"$in": ["2026-03-29T02:30:00+02:00"]}}
    assert count(server, same) == ROWS
    assert count(server, {"at": {"$lt": "2026-03-29T00:30:00Z"}}) == 0
    assert count(server, {"at": {"$gte": "2026-03-29T00:30:00.000Z"}}) == ROWS


def unconverted(server: PylonServer) -> int:
    texts = [at for (at,) in stores.run_sql(server.db_path, 'SELECT "at" FROM "Note"')]
    return sum(STORED.fullmatch(text) is None for text in texts)


def test_a_published_database_is_converted_beside_requests_and_after_a_kill(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server(MANIFEST)
    rows = [
        {"id": f"{n:040x}", "title": f"note {n}", "at": NOTATIONS[n % len(NOTATIONS)]}
        for n in range(ROWS)
    ]
    make_database(server.db_path, MANIFEST, {"Note": rows})
    server.start()
    check(server)
    server.kill()
    assert unconverted(server) <= ROWS
    server.start()
    check(server)
    made = {"title": "new", "at": "2026-03-29T00:30:00Z"}
    status, row, _ = server.request("POST", "/api/entities/Note", made, token=ADMIN_TOKEN)
    assert status == 201
    path = f"/api/entities/Note/{row['id']}"
    assert server.request("DELETE", path, token=ADMIN_TOKEN)[0] < 300
    head = server.status()["head_seq"]
    wait_until("all rows are converted", lambda: unconverted(server) == 0, 60)
    check(server)
    wait_until("the status has no progress any more", lambda: (
        server.status()["converting_datetimes"] is None))
    assert server.status()["head_seq"] == head, "the conversion logs no change"
    assert "datetimes.converted" in server.log_path.read_text()
    changed = server.rows("Note")
    assert len(changed) == ROWS
    assert {row["at"] for row in changed.values()} == {"2026-03-29T00:30:00.000000Z"}
