"""Queries that no index serves: named once in the log, counted, and explained by pylonctl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest

from pylon import limits, metrics
from pylon.auth_context import AuthContext
from pylon.clock import ManualClock
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.query.graph import GraphScope, parse_graph
from pylon.query.index_advice import advise_index
from pylon.query.predicate import TRUE, Predicate
from pylon.query.rows import parse_filter
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.pool import ReaderPool
from tests.support.api import ApiStage, serve_api
from tests.support.cli import Ctl
from tests.support.measured import total

MANIFEST: dict[str, Any] = {
    "name": "plans",
    "entities": [{"name": "Message", "crdt": False, "fields": [
        {"name": "roomId", "type": "string", "optional": True},
        {"name": "sentAt", "type": "int", "optional": True},
        {"name": "text", "type": "string", "optional": True},
        {"name": "ownerId", "type": "string", "optional": True},
    ], "indexes": [{"name": "by_room", "fields": ["roomId", "sentAt"]}]}],
    "policies": [{
        "name": "own", "entity": "Message", "allowRead": "data.ownerId == auth.userId",
        "allowWrite": "true",
    }],
}
APP = parse_manifest(orjson.dumps(MANIFEST).decode(), "manifest.json")
MESSAGE = APP.by_name["Message"]
OWN = compile_rules(APP).for_entity("Message").readable_by(AuthContext(user_id="u1"))


@pytest.mark.parametrize(("body", "allowed", "index"), [
    ({"text": "x"}, TRUE, ("text",)),
    ({"text": {"$in": ["x"]}, "$order": {"sentAt": "desc"}}, TRUE, ("text", "-sentAt")),
    ({"$order": {"text": "asc", "id": "desc", "sentAt": "asc"}}, TRUE, ("text",)),
    ({"sentAt": {"$gt": 4}}, TRUE, ("sentAt",)),
    ({"text": {"$startsWith": "a"}, "ownerId": None}, TRUE, ("ownerId", "text")),
    ({"$order": {"sentAt": "asc"}}, OWN, ("ownerId", "sentAt")),
    ({"text": {"$like": "a"}}, TRUE, ()),
    ({"text": {"$ne": "a"}}, TRUE, ()),
    ({"id": "x", "text": "a"}, TRUE, ()),
])
def test_an_index_begins_with_what_is_equal_and_goes_on_in_the_order(
    body: dict[str, Any], allowed: Predicate, index: tuple[str, ...]
) -> None:
    query = parse_filter(MESSAGE, body, 10, allowed)
    assert advise_index(query.where, query.order) == index


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReaderPool]:
    """Readers of a table that counts as large, whose reads all run in threads."""
    path = tmp_path / "a.db"
    SqliteEngine.open(path, APP, compile_rules(APP), ManualClock(), "normal").close()
    writer = apsw.Connection(str(path))
    writer.execute(
        "INSERT INTO Message (id, roomId, sentAt, text, ownerId, _json, _seq) "
        "SELECT printf('%040x', value), 'r' || (value % 3), value, 't', 'u1', '{}', 1 "
        "FROM (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 300) "
        "SELECT value FROM n)"
    )
    writer.close()
    monkeypatch.setattr(limits, "UNINDEXED_ROWS", 200)
    made = ReaderPool(path, APP)
    yield made
    made.close()


def ask(pool: ReaderPool, body: dict[str, Any]) -> None:
    query = parse_filter(MESSAGE, body, 10)
    pool.scan(lambda reader: reader.page("Message", query), inline=False)


def test_a_query_without_an_index_is_logged_once_and_counted(
    pool: ReaderPool, capfd: pytest.CaptureFixture[str]
) -> None:
    before = total(metrics.UNINDEXED_QUERIES, index="text")
    for text in ("a", "b", "c"):
        ask(pool, {"text": text})
    ask(pool, {"$order": {"ownerId": "asc"}})
    served: list[dict[str, Any]] = [
        {"roomId": "r1", "$order": {"sentAt": "desc"}}, {}, {"id": "x"},
        {"$after": {"id": "x"}}, {"roomId": "r1", "$order": {"sentAt": "desc"},
                                  "$before": {"sentAt": 9, "id": "x"}},
    ]
    for body in served:
        ask(pool, body)
    assert total(metrics.UNINDEXED_QUERIES, index="text") == before + 3
    logged = [line for line in capfd.readouterr().err.splitlines() if "query.unindexed" in line]
    assert len(logged) == 2
    assert ('"fields": [' in logged[0] and "'text'" in logged[0]) or "text" in logged[0]
    assert '"a"' not in logged[0]  # no value of the client


def test_sorts_of_ids_that_an_index_has_are_no_finding(pool: ReaderPool) -> None:
    before = total(metrics.UNINDEXED_QUERIES)
    rooms = {"roomId": {"$in": ["r1", "r2"]}}
    for order in ({"sentAt": "desc"}, {"sentAt": "asc", "id": "desc"}, {"id": "desc"}):
        ask(pool, {**rooms, "$order": order})
        ask(pool, {**rooms, "$order": order, "$after": {"sentAt": 4, "id": "x"}}
            if "sentAt" in order else {**rooms, "$order": order, "$after": {"id": "x"}})
    assert total(metrics.UNINDEXED_QUERIES) == before
    ask(pool, {**rooms, "$order": {"text": "asc"}})
    assert total(metrics.UNINDEXED_QUERIES) == before + 1


def test_graphs_and_aggregates_are_judged_too(pool: ReaderPool) -> None:
    before = total(metrics.UNINDEXED_QUERIES, index="ownerId")
    scope = GraphScope(lambda _: MESSAGE, {"Message": MESSAGE}, lambda _: TRUE, 100)
    nodes = parse_graph(scope, {"Message": {"where": {"ownerId": "x"}}})
    pool.scan(lambda reader: reader.graph(nodes), inline=False)
    assert total(metrics.UNINDEXED_QUERIES, index="ownerId") == before + 1


def test_small_tables_and_further_shapes_are_left_alone(
    pool: ReaderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = total(metrics.UNINDEXED_QUERIES)
    monkeypatch.setattr(limits, "UNINDEXED_ROWS", 10_000)
    ask(pool, {"text": "small"})
    monkeypatch.setattr(limits, "UNINDEXED_ROWS", 200)
    monkeypatch.setattr(limits, "PLANS_WATCHED", 1)
    ask(pool, {"ownerId": "x"})
    assert total(metrics.UNINDEXED_QUERIES) == before


def test_explain_query_prints_the_plan_and_the_index(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(MANIFEST))
    path = tmp_path / "app.db"
    SqliteEngine.open(path, APP, compile_rules(APP), ManualClock(), "normal").close()
    served = ctl(
        "explain-query", "Message", "--filter", '{"roomId": "r"}', "--order",
        '{"sentAt": "desc"}', "--after", '{"sentAt": 4, "id": "x"}', PYLON_DB_PATH=str(path),
    )
    assert served.returncode == 0, served.stderr
    assert "SEARCH Message USING INDEX Message_by_room (roomId=?" in served.stdout
    assert "an index serves" in served.stdout
    unserved = ctl("explain-query", "Message", "--order", '{"sentAt": "desc"}', "--user", "u1",
                   "--json", PYLON_DB_PATH=str(path))
    found = json.loads(unserved.stdout)
    assert not found["indexed"]
    assert found["index"] == {"name": "by_ownerId_sentAt", "fields": ["ownerId", "-sentAt"]}
    for arguments in (["Mesage"], ["Message", "--filter", "x"], ["Message", "--order", "[]"]):
        assert ctl("explain-query", *arguments, PYLON_DB_PATH=str(path)).returncode != 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiStage]:
    with serve_api(tmp_path_factory.mktemp("numbered"), MANIFEST) as made:
        yield made


def test_pages_by_number_have_the_total(server: ApiStage) -> None:
    token = server.guest()
    user = server.call("GET", "/api/auth/me", token=token).json["user_id"]
    for n in range(5):
        body = {"sentAt": n, "ownerId": user}
        server.call("POST", "/api/entities/Message", body, token)
    server.call("POST", "/api/entities/Message", {"ownerId": "another"}, token)
    pages = [
        server.call("GET", f"/api/entities/Message?page={n}&per_page=2", token=token).json
        for n in (1, 2, 3, 4)
    ]
    assert [len(page["data"]) for page in pages] == [2, 2, 1, 0]
    assert [row["sentAt"] for page in pages for row in page["data"]] == [0, 1, 2, 3, 4]
    assert pages[1].keys() == {"data", "page", "per_page", "total"}
    assert (pages[1]["page"], pages[1]["per_page"], pages[1]["total"]) == (2, 2, 5)
    default = server.call("GET", "/api/entities/Message?page=1", token=token).json
    assert default["per_page"] == limits.NUMBERED_PAGE_ROWS
    for query, code in [
        ("page=0", "INVALID_QUERY"), ("page=x", "INVALID_QUERY"), ("per_page=0", "INVALID_QUERY"),
        ("page=1&limit=2", "INVALID_QUERY"), ("per_page=100000", "LIMIT_EXCEEDED"),
    ]:
        answer = server.call("GET", f"/api/entities/Message?{query}", token=token)
        assert answer.json["error"]["code"] == code, query


def test_pages_at_a_position_over_http(server: ApiStage) -> None:
    token = server.user("pages")
    made = [
        server.call(
            "POST", "/api/entities/Message", {"sentAt": n // 2, "ownerId": "pages"}, token
        ).json["id"]
        for n in range(6)
    ]
    found: list[str] = []
    body: dict[str, Any] = {"$order": {"sentAt": "desc"}, "$limit": 2}
    while page := server.call("POST", "/api/query/Message", body, token).json:
        found += [row["id"] for row in page]
        last = page[-1]
        body["$after"] = {"sentAt": last["sentAt"], "id": last["id"]}
    assert found == [made[n] for n in (4, 5, 2, 3, 0, 1)]
    before = {**body, "$before": body["$after"]}
    del before["$after"]
    page = server.call("POST", "/api/query/Message", before, token).json
    assert [row["id"] for row in page] == [made[3], made[0]]
    graph = {"Message": {
        "order": {"sentAt": "desc"}, "after": {"sentAt": 1, "id": made[2]}, "limit": 2,
    }}
    answer = server.call("POST", "/api/query", graph, token).json
    assert [row["id"] for row in answer["Message"]] == [made[3], made[0]]
    refused = server.call("POST", "/api/query/Message", {**body, "$after": {"id": "x"}}, token)
    assert refused.status_code == 400
    assert "$after has no sentAt" in refused.json["error"]["message"]
