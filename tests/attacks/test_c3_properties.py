"""C3: properties that nobody may read or write (identity.md §2.3, attack 13).

The policies of this app allow everything to everybody, which is the worst case. The matrices ask
each role, on each path, for each hidden field, and try to write each field that only the server
writes. Each secret has a text of its own, so a leak is found in any answer, header or log line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from pylon.storage.ops import InsertRow, OpenDocument
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.documents import LoroClient
from tests.support.server import ADMIN_TOKEN as SERVER_ADMIN
from tests.support.server import PylonServer
from tests.support.stage import ADMIN_TOKEN as STAGE_ADMIN
from tests.support.stage import Stage
from tests.support.stores import TestStore
from tests.support.websocket_client import WebSocketClient
from tests.test_sse_server import Stream
from workers.ws import frames

pytestmark = pytest.mark.stores

HIDDEN: Final = {
    "User": ["passwordHash", "totpSecret", "totpBackupCodes", "salary"],
    "OrgInvite": ["tokenHash"],
    "Note": ["moderation"],
}
MANAGED: Final = [
    "emailVerified", "phone", "phoneVerified", "walletAddress", "isAnonymous", "scimId", "role",
]
ROLES: Final = ("anonymous", "guest", "owner", "other", "admin")
MARK: Final = "SECRET-"


def text(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "string", "optional": True, **more}


def manifest() -> dict[str, Any]:
    return {
        "manifest_version": 1, "name": "Hub", "version": "1",
        "entities": [
            {"name": "User", "fields": [
                text("name"), text("email"), *(text(name) for name in MANAGED),
                *(text(name) for name in HIDDEN["User"][:-1]),
                {"name": "salary", "type": "string", "optional": True, "unique": True,
                 "serverOnly": True},
            ], "relations": [
                {"name": "notes", "target": "Note", "field": "ownerId", "many": True},
            ], "indexes": [{"name": "by_totp", "fields": ["totpSecret"]}]},
            {"name": "OrgInvite", "fields": [text("email"), text("tokenHash")]},
            {"name": "Note", "fields": [
                {"name": "title", "type": "string"}, text("text"),
                {"name": "rank", "type": "int", "optional": True},
                {"name": "ownerId", "type": "id(User)", "optional": True},
                text("moderation", serverOnly=True),
            ], "relations": [{"name": "owner", "target": "User", "field": "ownerId"}],
             "indexes": [{"name": "by_text_rank", "fields": ["text", "rank"]}],
             "search": {"text": ["title"], "facets": ["title"], "sortable": ["rank"]}},
        ],
        "policies": [
            {"name": f"all{name}", "entity": name, "allow": "true"}
            for name in ("User", "OrgInvite", "Note")
        ],
        "auth": {"user": {"admin_field": "role"}},
    }


def secrets(entity: str) -> dict[str, str]:
    return {name: f"{MARK}{entity}-{name}" for name in HIDDEN[entity]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, manifest()) as made:
        yield made


class Filled:
    """A server with a row of each entity, and a token of each role."""

    def __init__(self, server: ApiStage) -> None:
        self.server = server
        self.ids = {
            "User": self.made("User", {"name": "ada", "email": "ada@example.com"}),
        }
        self.ids["OrgInvite"] = self.made("OrgInvite", {"email": "bob@example.com"})
        self.ids["Note"] = self.made(
            "Note", {"title": "hello", "rank": 1, "ownerId": self.ids["User"]}
        )
        self.tokens = {
            "anonymous": None, "guest": server.guest(), "owner": server.user(self.ids["User"]),
            "other": server.user("other"), "admin": ADMIN_TOKEN,
        }

    def made(self, entity: str, body: dict[str, Any]) -> str:
        answer = self.server.call(
            "POST", f"/api/entities/{entity}", {**body, **secrets(entity)}, ADMIN_TOKEN
        )
        assert answer.status_code == 201, answer.text
        assert MARK not in answer.text
        return str(answer.json["id"])


@pytest.fixture
def filled(server: ApiStage) -> Filled:
    return Filled(server)


# --- Reads ---------------------------------------------------------------------------------


def reads(filled: Filled) -> Iterator[tuple[str, str, Any]]:
    """Every request that answers with rows."""
    for entity, row_id in filled.ids.items():
        yield "GET", f"/api/entities/{entity}", None
        yield "GET", f"/api/entities/{entity}?page=1&per_page=5", None
        yield "GET", f"/api/entities/{entity}?count=true&limit=5", None
        yield "GET", f"/api/entities/{entity}/cursor", None
        yield "GET", f"/api/entities/{entity}/{row_id}", None
        yield "GET", f"/api/lookup/{entity}/id/{row_id}", None
        yield "POST", f"/api/query/{entity}", {}
        yield "POST", f"/api/query/{entity}", {"$limit": 5, "$order": {"id": "desc"}}
        yield "POST", "/api/query", {entity: {}}
        yield "POST", f"/api/aggregate/{entity}", {"count": "*", "groupBy": ["id"]}
    yield "GET", "/api/lookup/User/name/ada", None
    yield "POST", "/api/query", {"User": {"include": {"notes": {"include": {"owner": {}}}}}}
    yield "POST", "/api/query", {"Note": {"include": {"owner": {"include": {"notes": {}}}}}}
    yield "POST", "/api/search/Note", {"query": "hello", "facets": ["title"]}
    yield "GET", "/api/sync/pull?since=0", None
    yield "GET", "/api/sync/pull?since=1", None
    yield "GET", "/api/auth/session", None
    yield "GET", "/api/auth/me", None
    yield "GET", "/api/manifest?full=1", None
    yield "GET", "/api/openapi.json", None


@pytest.mark.parametrize("role", ROLES)
def test_no_role_reads_a_hidden_field_on_any_path(
    filled: Filled, role: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answered = 0
    for method, target, body in reads(filled):
        answer = filled.server.call(method, target, body, filled.tokens[role])
        assert MARK not in answer.text, (role, method, target)
        assert MARK not in str(answer.headers), (role, method, target)
        answered += answer.status_code == 200 and "hello" in answer.text
        if answer.status_code == 200 and target.endswith("since=0"):
            rows = {c["entity"]: c["data"] for c in answer.json["changes"]}
            for entity, hidden in HIDDEN.items():
                assert rows[entity]["id"] == filled.ids[entity]
                assert not set(hidden) & set(rows[entity])
    assert answered >= 9  # the paths do answer with the rows
    found = capfd.readouterr()
    assert MARK not in found.out + found.err


def test_events_of_the_log_have_no_hidden_field(filled: Filled) -> None:
    server = filled.server
    since = server.call("GET", "/api/sync/pull?since=0").json["cursor"]["last_seq"]
    for entity, row_id in filled.ids.items():
        name = HIDDEN[entity][0]
        for body in ({name: f"{MARK}new"}, {"email": "x@example.com"}, {"title": "hello again"}):
            server.call("PATCH", f"/api/entities/{entity}/{row_id}", body, ADMIN_TOKEN)
    for entity, row_id in reversed(filled.ids.items()):
        assert server.call(
            "DELETE", f"/api/entities/{entity}/{row_id}", token=ADMIN_TOKEN
        ).status_code == 200
    for role in ROLES:
        answer = server.call("GET", f"/api/sync/pull?since={since}", token=filled.tokens[role])
        assert answer.status_code == 200
        assert MARK not in answer.text, role


def test_an_export_is_for_administrators_and_has_all(filled: Filled) -> None:
    server = filled.server
    for role in ROLES[:-1]:
        for target in ("/api/export", "/api/export/User"):
            answer = server.call("GET", target, token=filled.tokens[role])
            assert answer.status_code == 403
            assert MARK not in answer.text
    answer = server.call("GET", "/api/export", token=ADMIN_TOKEN)
    for entity in HIDDEN:
        for secret in secrets(entity).values():
            assert secret in answer.text


# --- Conditions that would tell a value ----------------------------------------------------


def conditions() -> Iterator[tuple[str, str, Any]]:
    for entity, hidden in HIDDEN.items():
        for name in hidden:
            secret = secrets(entity)[name]
            for where in (
                {name: secret}, {name: {"$gt": "S"}}, {name: {"$in": [secret]}}, {name: None},
                {name: {"$like": "S%"}}, {"$or": [{"id": "x"}, {name: secret}]},
                {"$not": {name: secret}},
            ):
                yield "POST", f"/api/query/{entity}", where
                yield "POST", "/api/query", {entity: {"where": where}}
                yield "POST", f"/api/aggregate/{entity}", {"count": "*", "where": where}
            yield "POST", f"/api/query/{entity}", {"$order": {name: "asc"}}
            yield "POST", "/api/query", {entity: {"order": {name: "desc"}}}
            yield "GET", f"/api/lookup/{entity}/{name}/{secret}", None
            for figure in ("min", "max", "countDistinct", "groupBy", "sum", "avg"):
                yield "POST", f"/api/aggregate/{entity}", {figure: [name]}
            yield "POST", f"/api/aggregate/{entity}", {"count": name}
    yield "POST", "/api/query", {"User": {"include": {"notes": {"where": {"moderation": "x"}}}}}
    yield "POST", "/api/search/Note", {"query": "hello", "filters": {"moderation": "x"}}
    yield "POST", "/api/search/Note", {"query": "hello", "facets": ["moderation"]}
    yield "POST", "/api/search/Note", {"query": "hello", "sort": ["moderation", "asc"]}


@pytest.mark.parametrize("role", ["anonymous", "owner", "admin"])
def test_no_condition_order_or_figure_may_name_a_hidden_field(filled: Filled, role: str) -> None:
    for method, target, body in conditions():
        answer = filled.server.call(method, target, body, filled.tokens[role])
        assert answer.status_code == 400, (target, body, answer.text)
        listed = answer.json["error"].get("hint", "") + answer.json["error"]["message"]
        assert "valid columns: " not in listed or not set(HIDDEN["User"]) & set(
            listed.partition("valid columns: ")[2].split(", ")
        )


@pytest.mark.parametrize("rule", [
    "data.passwordHash == auth.userId", "data.salary == 'x'",
    "exists(User, id == auth.userId, salary == 'x')", "existing.totpSecret == null",
])
def test_no_rule_may_name_a_hidden_field(tmp_path: Path, rule: str) -> None:
    app = manifest()
    app["policies"][0]["allow"] = rule
    with pytest.raises(Exception, match=r"unknown attribute|is none"), serve_api(tmp_path, app):
        pass


# --- Writes --------------------------------------------------------------------------------


def writes(filled: Filled, entity: str, name: str, value: str) -> Iterator[tuple[str, str, Any]]:
    """Every request by which a client may write a field of a row."""
    row_id, body = filled.ids[entity], {name: value}
    new = {**body, **({"title": "new"} if entity == "Note" else {})}
    yield "POST", f"/api/entities/{entity}", new
    yield "PATCH", f"/api/entities/{entity}/{row_id}", body
    for op in (
        {"op": "insert", "entity": entity, "data": new},
        {"op": "update", "entity": entity, "id": row_id, "data": body},
    ):
        yield "POST", "/api/batch", {"operations": [op]}
        yield "POST", "/api/transact", [op]
    for kind, key, data in (("insert", "f" * 40, new), ("update", row_id, body)):
        change = {"kind": kind, "entity": entity, "row_id": key, "op_id": f"{kind}{name}",
                  "data": data}
        yield "POST", "/api/sync/push", {"changes": [change], "client_id": "c"}


@pytest.mark.parametrize("role", ROLES[:-1])
@pytest.mark.parametrize("value", ["forged", None])
def test_no_client_writes_a_read_only_field_on_any_path(
    filled: Filled, role: str, value: str | None
) -> None:
    server = filled.server
    fields = [("User", name) for name in MANAGED]
    fields += [(entity, name) for entity, hidden in HIDDEN.items() for name in hidden]
    before = server.call("GET", "/api/export", token=ADMIN_TOKEN).json["entities"]
    for entity, name in fields:
        for method, target, body in writes(filled, entity, name, value or ""):
            if value is None:
                body = json.loads(json.dumps(body).replace('""', "null"))
            answer = server.call(method, target, body, filled.tokens[role])
            refused = f"{entity}.{name} is read-only"  # batches answer with messages alone
            assert refused in answer.text, (role, target, answer.text)
            if target.startswith("/api/entities"):
                assert answer.status_code == 403
                assert answer.json["error"]["code"] == "READONLY_FIELD"
    after = server.call("GET", "/api/export", token=ADMIN_TOKEN).json["entities"]
    assert after == before


def test_a_wrong_type_does_not_hide_that_the_field_is_read_only(filled: Filled) -> None:
    target = f"/api/entities/User/{filled.ids['User']}"
    for value in (7, True, [], {}, "x"):
        answer = filled.server.call("PATCH", target, {"phone": value}, filled.tokens["owner"])
        assert (answer.status_code, answer.json["error"]["code"]) == (403, "READONLY_FIELD")


def test_an_administrator_writes_them_and_a_client_the_others(filled: Filled) -> None:
    server, target = filled.server, f"/api/entities/User/{filled.ids['User']}"
    for name in (*MANAGED, *HIDDEN["User"]):
        assert server.call("PATCH", target, {name: "y"}, ADMIN_TOKEN).status_code == 200
    found = server.call("GET", target, token=ADMIN_TOKEN).json
    assert [found[name] for name in MANAGED] == ["y"] * len(MANAGED)
    mine = {"name": "ada b", "email": "free@example.com"}  # it has no identity
    assert server.call("PATCH", target, mine, filled.tokens["owner"]).status_code == 200
    assert server.call("GET", "/api/export/User", token=ADMIN_TOKEN).text.count('"y"') == 11


# --- Documents -----------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
def test_an_entity_with_hidden_fields_has_no_documents(filled: Filled) -> None:
    for entity, row_id in filled.ids.items():
        for role in ("guest", "owner", "admin"):
            answer = filled.server.call(
                "POST", f"/api/crdt/{entity}/{row_id}", {"update": "00"}, filled.tokens[role]
            )
            assert answer.json["error"]["code"] == "NOT_SUPPORTED"


@pytest.mark.usefixtures("processes")
def test_a_document_cannot_write_a_managed_field(tmp_path: Path) -> None:
    app = manifest()
    app["entities"] = [{"name": "User", "fields": [text("name"), text("phone")]}]
    app["policies"] = app["policies"][:1]
    with serve_api(tmp_path, app) as server:
        made = server.call("POST", "/api/entities/User", {"name": "a"}, ADMIN_TOKEN).json["id"]
        server.writer.submit(OpenDocument("User", made))
        stored = server.services.data.store.point(lambda reader: reader.document("User", made))
        assert stored is not None
        for name, token, status in (
            ("phone", server.user(made), 403), ("name", server.user(made), 200),
            ("phone", ADMIN_TOKEN, 200),
        ):
            client = LoroClient(stored.snapshot, *stored.updates)
            client.doc.get_map("row").insert(name, "forged")
            answer = server.call(
                "POST", f"/api/crdt/User/{made}", {"update": client.update().hex()}, token
            )
            assert answer.status_code == status, answer.text
            if status == 403:
                assert answer.json["error"]["code"] == "READONLY_FIELD"
        row = server.call("GET", f"/api/entities/User/{made}", token=ADMIN_TOKEN).json
        assert (row["name"], row["phone"]) == ("forged", "forged")


# --- Sockets -------------------------------------------------------------------------------


@pytest.fixture
def stage(
    tested_store: TestStore, processes: None, tmp_path: Path
) -> Iterator[Stage]:
    made = Stage(tmp_path, manifest())
    yield made
    made.close()


def test_no_socket_stream_or_live_query_carries_a_hidden_field(stage: Stage) -> None:
    ws, sse = stage.start("ws"), stage.start("sse")
    first = stage.insert("Note", title="one", text="t", rank=1, moderation=f"{MARK}1")
    encoded = stage.app.codecs["User"].insert({"name": "ada", **secrets("User")}, "e" * 40)
    user = InsertRow("User", "e" * 40, encoded.values, encoded.row_json)
    cursor = stage.write(first, user).events[0].seq - 1
    admin = WebSocketClient(ws.port, token=STAGE_ADMIN, path=f"/?since={cursor}")
    live = WebSocketClient(ws.port, path="/?changes=0")
    clients = [admin, WebSocketClient(ws.port, path=f"/?since={cursor}"), live,
               WebSocketClient(ws.port, path=f"/?since={cursor}&entities=Note")]
    streams = [Stream(sse.port, f"/events?since={cursor}"),
               Stream(sse.port, "/events", Last_Event_ID=str(cursor))]
    for sub_id, body in (
        ("all", {}), ("window", {"text": "t", "$order": {"rank": "desc"}, "$limit": 5}),
    ):
        live.send_frame(frames.TEXT, json.dumps(
            {"type": "subscribe", "sub_id": sub_id, "entity": "Note", "filter": body}
        ).encode())
    for message in (
        {"type": "subscribe", "sub_id": "bad", "entity": "Note", "filter": {"moderation": "x"}},
        {"type": "subscribe", "sub_id": "order", "entity": "Note",
         "filter": {"text": "t", "$order": {"moderation": "desc"}, "$limit": 5}},
        {"type": "crdt-subscribe", "entity": "Note", "rowId": first.row_id},
    ):
        live.send_frame(frames.TEXT, json.dumps(message).encode())
    heard = [live.read_json() for _ in range(4)]  # two subscriptions, two refusals
    assert MARK not in json.dumps(heard)
    codes = sorted(str(m.get("code", m["type"])) for m in heard)
    assert codes == ["INVALID_COLUMN", "INVALID_COLUMN", "subscribed", "subscribed"]
    second = stage.insert("Note", title="two", text="t", rank=2, moderation=f"{MARK}2")
    stage.write(second)
    stage.write(stage.update("Note", first.row_id, moderation=f"{MARK}3", title="changed"))
    stage.write(stage.update("Note", second.row_id, rank=9))
    stage.write(stage.delete("Note", first.row_id))
    stage.write(stage.insert("Note", title="the end", text="t", rank=0, moderation=f"{MARK}4"))
    for stream in streams:
        seen = stream.read_until(b'"the end"')
        assert b'"changed"' in seen and b'"ada"' in seen
        assert MARK.encode() not in seen
    for client in clients:
        found = ""
        while "the end" not in found:
            found += json.dumps(client.read_json())
        assert '"changed"' in found
        assert MARK not in found


def test_a_whole_server_publishes_no_hidden_field(
    tested_store: TestStore, processes: None, tmp_path: Path
) -> None:
    """The supervisor's own writer or relay publishes, and no stage stands in for it."""
    with closing(PylonServer(tmp_path, manifest())) as server:
        server.start()
        ws = WebSocketClient(server.port + 1, token=SERVER_ADMIN)
        sse = Stream(server.port + 2, "/events")
        for title in ("one", "the end"):
            status, body, _ = server.request(
                "POST", "/api/entities/Note", {"title": title, **secrets("Note")},
                token=SERVER_ADMIN,
            )
            assert status == 201, body
        found = ""
        while "the end" not in found:
            found += json.dumps(ws.read_json())
        assert '"one"' in found and MARK not in found
        assert MARK.encode() not in sse.read_until(b'"the end"')
        assert MARK not in server.log()
