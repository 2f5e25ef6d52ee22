"""`pylonctl search`: beside a live server, without one, and across backup and restore."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.support import stores
from tests.support.search import pages_app
from tests.support.server import ADMIN_TOKEN, PylonServer

pytestmark = pytest.mark.stores

ADMIN = {"token": ADMIN_TOKEN}


@pytest.fixture
def server(make_server: Callable[..., PylonServer]) -> PylonServer:
    return make_server(pages_app())


def add(server: PylonServer, title: str) -> None:
    body = {"title": title, "open": True, "ownerId": "ada"}
    assert server.request("POST", "/api/entities/Page", body, **ADMIN)[0] == 201


def titles(server: PylonServer, query: str) -> list[str]:
    status, body, _ = server.request("POST", "/api/search/Page", {"query": query}, **ADMIN)
    assert status == 200, body
    assert body["total"] == len(body["hits"])
    return sorted(hit["title"] for hit in body["hits"])


def said(done: CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


def damage(server: PylonServer) -> None:
    if stores.current().name == stores.SQLITE:
        statement = "DELETE FROM _fts_Page WHERE rowid = 1"
    else:
        statement = 'UPDATE "Page" SET _words = \'\' WHERE id = (SELECT min(id) FROM "Page")'
    stores.run_sql(server.db_path, statement)


def test_a_live_server_is_checked_and_rebuilt(server: PylonServer) -> None:
    server.start()
    add(server, "red pump")
    add(server, "blue pump")
    current = server.ctl("search", "check", "--json")
    assert (current.returncode, said(current)) == (0, {
        "ok": True, "entities": [{"entity": "Page", "rows": 2, "problems": []}]
    })
    damage(server)
    assert server.ctl("search", "check").returncode == 1
    assert titles(server, "pump") == ["blue pump"]
    rebuilt = server.ctl("search", "rebuild", "--json")
    assert (rebuilt.returncode, said(rebuilt)) == (
        0, {"ok": True, "entities": [{"entity": "Page", "rows": 2}]}
    )
    assert server.ctl("search", "check").returncode == 0
    add(server, "green pump")
    assert titles(server, "pump") == ["blue pump", "green pump", "red pump"]


def test_a_damaged_index_is_found_rebuilt_and_survives_a_restore(
    server: PylonServer, tmp_path: Path
) -> None:
    server.start()
    add(server, "red pump")
    add(server, "blue pump")
    backup = server.ctl("backup", str(tmp_path / "bundle"))
    assert backup.returncode == 0, backup.stderr
    assert server.terminate() == 0

    damage(server)
    damaged = server.ctl("search", "check")
    assert damaged.returncode == 1
    found, remedy = damaged.stdout.splitlines()
    is_file = stores.current().name == stores.SQLITE
    assert found.startswith(
        "Page: 1 rows are not in the index" if is_file else "Page: 1 rows have other words in the "
    )
    assert found.endswith(" (2 rows)")
    assert remedy == "build the index anew: pylonctl search rebuild"
    rebuilt = server.ctl("search", "rebuild", "--entity", "Page")
    assert (rebuilt.returncode, rebuilt.stdout) == (0, "Page: built from 2 rows\n")
    assert server.ctl("search", "check").stdout == "Page: current (2 rows)\n"
    server.start()
    assert titles(server, "pump") == ["blue pump", "red pump"]
    add(server, "green pump")
    assert server.terminate() == 0

    replaces = () if is_file else ("--replace",)
    restored = server.ctl("restore", str(tmp_path / "bundle"), "--yes", *replaces)
    assert restored.returncode == 0, restored.stderr
    assert server.ctl("search", "check").stdout == "Page: current (2 rows)\n"
    server.start()
    assert titles(server, "pump") == ["blue pump", "red pump"]


def test_what_cannot_be_done_is_said(server: PylonServer) -> None:
    none = server.ctl("search", "check")
    assert (none.returncode, "there is no database" in none.stderr) == (69, True)
    path = Path(server.env["PYLON_DB_PATH"])
    path.parent.mkdir(exist_ok=True)
    stores.run_sql(path, "CREATE TABLE Other (id TEXT)")
    # A schema of PostgreSQL without our tables is no database of ours.
    is_file = stores.current().name == stores.SQLITE
    wanted = (78, "schema apply") if is_file else (69, "there is no database")
    for verb in ("check", "rebuild"):
        foreign = server.ctl("search", verb)
        assert (foreign.returncode, wanted[1] in foreign.stderr) == (wanted[0], True)
        unknown = server.ctl("search", verb, "--entity", "Nope")
        assert (unknown.returncode, "Page, Plain" in unknown.stderr) == (1, True)
        plain = server.ctl("search", verb, "--entity", "Plain", "--json")
        assert said(plain)["error"]["code"] == "SEARCH_NOT_CONFIGURED"
