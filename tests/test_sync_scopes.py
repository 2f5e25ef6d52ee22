"""Pulls of a scope: a replica that holds a part equals the query of that part, after every commit,
for any policy and any transition of a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import ADMIN, AuthContext
from pylon.changelog.scope import parse_scope
from pylon.changelog.snapshot_plan import plan_snapshot
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.storage.sql.compiler import CompiledCache
from pylon.storage.sqlite.reads import EntityReads, selection
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.examples import count_examples
from tests.support.storage import open_engine, row_id
from tests.support.stores import TestStore

pytestmark = pytest.mark.stores

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "scopes", "version": "1.0.0",
    "entities": [
        {"name": "Room", "fields": [
            {"name": "name", "type": "string", "optional": False, "unique": False},
        ]},
        {"name": "Message", "crdt": False, "indexes": [
            {"name": "by_room", "fields": ["roomId", "sentAt"], "unique": False},
        ], "fields": [
            {"name": "roomId", "type": "string", "optional": True, "unique": False},
            {"name": "sentAt", "type": "int", "optional": True, "unique": False},
            {"name": "ownerId", "type": "string", "optional": True, "unique": False},
        ]},
        {"name": "Draft", "fields": [
            {"name": "text", "type": "string", "optional": True, "unique": False},
            {"name": "ownerId", "type": "string", "optional": True, "unique": False},
        ]},
    ],
    "policies": [
        {"name": "rooms", "entity": "Room", "allow": "true"},
        {"name": "messages", "entity": "Message",
         "allowRead": "data.ownerId == null || data.ownerId == auth.userId", "allowWrite": "true"},
        {"name": "drafts", "entity": "Draft", "allowRead": "data.ownerId == auth.userId",
         "allowWrite": "true"},
    ],
}
APP = parse_manifest(orjson.dumps(MANIFEST).decode(), "manifest.json")
RULES = compile_rules(APP)


class Scoped:
    """A replica of a scope, as a client holds it."""

    def __init__(
        self, server: ApiStage, token: str | None, entities: list[str] | None,
        filters: dict[str, Any] | None,
    ) -> None:
        self._server = server
        self._token = token
        self._body = {"entities": entities, "scope": filters}
        self.names = entities or sorted(APP.by_name)
        self.filters = filters or {}
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.cursor = 0

    def pull(self) -> None:
        """Pull until nothing more is there."""
        while True:
            body = {**self._body, "since": self.cursor}
            answer = self._server.call("POST", "/api/sync/pull", body, self._token)
            assert answer.status_code == 200, answer.text
            seq = self.cursor
            for change in answer.json["changes"]:
                assert change["seq"] >= seq, "out of order"
                key = change["entity"], change["row_id"]
                if change["kind"] == "delete":
                    assert "data" not in change
                    self.rows.pop(key, None)
                else:
                    self.rows[key] = change["data"]
            self.cursor = answer.json["cursor"]["last_seq"]
            if not answer.json["has_more"]:
                return

    def wanted(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the rows of the scope, as queries answer them."""
        found = {}
        for name in self.names:
            answer = self._server.call(
                "POST", f"/api/query/{name}", self.filters.get(name, {}), self._token
            )
            assert answer.status_code == 200, answer.text
            found.update({(name, row["id"]): row for row in answer.json})
        return found


@pytest.fixture(scope="module")
def server(tested_store: TestStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiStage]:
    with serve_api(tmp_path_factory.mktemp("scopes"), MANIFEST) as made:
        yield made


IDS = [row_id(n) for n in range(1, 7)]
FILTERS = st.fixed_dictionaries({}, optional={
    "Message": st.sampled_from([
        {"roomId": "a"}, {"roomId": {"$in": ["a", "b", None]}}, {"sentAt": {"$gte": 2}},
        {"$or": [{"roomId": "b"}, {"sentAt": 1}]}, {"roomId": {"$ne": "a"}}, {},
        {"roomId": {"$in": []}}, {"roomId": {"$in": ["a", "b"]}, "sentAt": {"$exists": True}},
    ]),
})
WRITES = st.lists(
    st.tuples(
        st.sampled_from(["Message", "Message", "Room", "Draft"]), st.sampled_from(IDS),
        st.sampled_from(["put", "put", "put", "delete"]),
        st.fixed_dictionaries({
            "roomId": st.sampled_from(["a", "b", "c", None]),
            "sentAt": st.sampled_from([1, 2, 3, None]), "ownerId": st.sampled_from([None, "u1"]),
        }),
        st.booleans(),
    ),
    min_size=1, max_size=8,
)


def write(server: ApiStage, token: str, user: str, change: Any) -> None:
    entity, row, kind, values, _ = change
    path = f"/api/entities/{entity}/{row}"
    if kind == "delete":
        server.call("DELETE", path, None, token)
        return
    body = {name: values.get(name) for name in APP.by_name[entity].by_name if name in values}
    if body.get("ownerId") is not None:
        body["ownerId"] = user
    if entity == "Room":
        body = {"name": str(values["roomId"])}
    if server.call("PATCH", path, body, token).status_code == 404:
        made = server.call("POST", f"/api/entities/{entity}", {**body, "id": row}, token)
        assert made.status_code == 201, made.text


@settings(
    max_examples=count_examples(60), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.none() | st.just(["Message"]) | st.just(["Room", "Message"]), FILTERS, WRITES,
    st.sampled_from(["guest", "admin"]), st.integers(2, 4),
)
def test_a_scoped_replica_equals_the_scoped_query_after_each_commit(
    server: ApiStage, entities: list[str] | None, filters: dict[str, Any], writes: Any, who: str,
    page_rows: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SNAPSHOT_PAGE_ROWS", page_rows)
        token = ADMIN_TOKEN if who == "admin" else server.guest()
        user = server.call("GET", "/api/auth/me", token=token).json["user_id"]
        replica = Scoped(server, token, entities, filters)
        replica.pull()
        assert replica.rows == replica.wanted()
        for change in writes:
            write(server, ADMIN_TOKEN, user, change)
            if change[-1]:
                replica.pull()
                assert replica.rows == replica.wanted()
        replica.pull()
        assert replica.rows == replica.wanted()
        event(f"rows: {len(replica.rows)}")


def test_an_entity_joins_later_by_a_snapshot_of_its_own(server: ApiStage) -> None:
    made = server.call("POST", "/api/entities/Room", {"name": "r"}, ADMIN_TOKEN).json["id"]
    server.call("POST", "/api/entities/Message", {"roomId": "a"}, ADMIN_TOKEN)
    messages = server.call("GET", "/api/sync/pull?since=0&entities=Message").json
    assert {change["entity"] for change in messages["changes"]} == {"Message"}
    rooms = server.call("GET", "/api/sync/pull?since=0&entities=Room").json
    assert made in [change["row_id"] for change in rooms["changes"]]
    assert rooms["cursor"] == messages["cursor"]
    server.call("PATCH", f"/api/entities/Room/{made}", {"name": "s"}, ADMIN_TOKEN)
    since = messages["cursor"]["last_seq"]
    delta = server.call("GET", f"/api/sync/pull?since={since}&entities=Message").json
    assert delta["changes"] == []
    assert delta["cursor"]["last_seq"] == since + 1  # it advances over changes outside the scope
    both = server.call("GET", f"/api/sync/pull?since={since}&entities=Message,Room").json
    assert [change["row_id"] for change in both["changes"]] == [made]


@pytest.mark.parametrize("body", [
    {"since": -1}, {"since": "1"}, {"since": True}, {"entities": "Room"}, {"scope": []},
    {"entities": ["Rom"]}, {"scope": {"Room": {"nope": 1}}}, {"scope": {"Room": {"$limit": 1}}},
    {"filters": {}}, [],
])
def test_a_pull_that_means_nothing_is_refused(server: ApiStage, body: Any) -> None:
    answer = server.call("POST", "/api/sync/pull", body)
    assert answer.status_code == 400, answer.text


def test_an_unknown_entity_is_named_with_the_nearest(server: ApiStage) -> None:
    answer = server.call("GET", "/api/sync/pull?entities=Mesage")
    assert answer.status_code == 400
    assert 'did you mean "Message"' in answer.json["error"]["message"]


@pytest.mark.sqlite  # its plans
@pytest.mark.parametrize("auth", [ADMIN, AuthContext(user_id="u1")], ids=["admin", "user"])
def test_each_page_of_a_room_is_one_search_of_its_index(tmp_path: Path, auth: AuthContext) -> None:
    open_engine(tmp_path / "a.db", manifest=APP).close()
    connection = apsw.Connection(str(tmp_path / "a.db"))
    scope = parse_scope(RULES, APP, ["Message"], {"Message": {"roomId": {"$in": ["a", "b"]}}})
    parts = plan_snapshot(APP, RULES, auth, scope)
    assert len(parts) == 2
    for part in parts:
        for last_row in (None, b'{"id": "x", "roomId": "a", "sentAt": 3}'):
            reads = EntityReads(part.entity, CompiledCache())
            select = selection(reads, part.query(100, last_row))
            lines = [
                line for (_, _, _, line) in connection.execute(
                    f"EXPLAIN QUERY PLAN {select.sql}", select.params
                )
            ]
            assert [line for line in lines if "SCAN" in line or "B-TREE" in line] == []
            assert "SEARCH Message USING INDEX Message_by_room (roomId=?" in lines[0]
