"""C4: what an API key reaches (identity.md §1.8, attack 11).

`ROUTES` is a table of its own: for each route and method the scopes of which one is enough. Each
scope meets each route. The table has every route of the app, or a test fails; and the app cannot be
made with a route whose access nobody declared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import falcon.inspect
import pytest
from falcon import testing

from pylon.api.http.route_access import OPEN, RouteAccess
from pylon.api.identity.routes import PAGES
from pylon.api.identity.routes import ROUTES as SIGN_IN_ROUTES
from pylon.api.identity.sign_in_page import RESET_LINK
from pylon.auth.api_keys import SHA256, new_api_key
from pylon.auth_context import AuthContext, Caller
from pylon.clock import SystemRandom
from pylon.storage.auth_ops import PutRecord
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api

OWNER = "d" * 40
T1, L1, L2 = "a" * 40, "b" * 40, "c" * 40
MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "keys", "version": "1.0.0",
    "entities": [
        {
            "name": "Todo", "indexes": [],
            "fields": [
                {"name": "title", "type": "string", "optional": True, "unique": False},
                {"name": "listId", "type": "id(List)", "optional": True, "unique": False},
            ],
            "relations": [{"name": "list", "target": "List", "field": "listId", "many": False}],
            "search": {"text": ["title"], "facets": [], "sortable": []},
        },
        {
            "name": "List", "indexes": [],
            "fields": [{"name": "name", "type": "string", "optional": True, "unique": False}],
            "relations": [{"name": "todos", "target": "Todo", "field": "listId", "many": True}],
        },
        {
            "name": "User", "indexes": [], "relations": [],
            "fields": [{"name": "email", "type": "string", "optional": True, "unique": False}],
        },
    ],
    "routes": [], "queries": [],
    "actions": [{"name": "close", "input": []}],
    "policies": [
        *({"name": name, "entity": name, "allow": f'auth.userId == "{OWNER}"'}
          for name in ("Todo", "List")),
        {"name": "User", "entity": "User", "allowRead": "auth.userId == data.id"},
        {"name": "close", "action": "close", "allow": "auth.userId != null"},
    ],
}
SCOPES = [
    "*", "entity:Todo:read", "entity:Todo:write", "entity:Todo:delete", "entity:Todo:*",
    "entity:List:read", "entity:List:write", "entity:List:*", "entity:*:read", "entity:*:write",
    "entity:*:delete", "entity:*:*", "fn:close", "fn:other", "fn:*", "files:read", "files:write",
    "rooms", "sync", "shards",
    "sync entity:Todo:read", "sync entity:Todo:write", "sync entity:List:read",
    "entity:Todo:read entity:List:read", "entity:List:read entity:Todo:write",
    "Entity:Todo:read", "entity:Todo", "read:todos", "",  # of another server: they give nothing
]
READS = {"*", "entity:Todo:read", "entity:Todo:*", "entity:*:read", "entity:*:*",
         "sync entity:Todo:read", "entity:Todo:read entity:List:read"}
WRITES = {"*", "entity:Todo:write", "entity:Todo:*", "entity:*:write", "entity:*:*",
          "sync entity:Todo:write", "entity:List:read entity:Todo:write"}
DELETES = {"*", "entity:Todo:delete", "entity:Todo:*", "entity:*:delete", "entity:*:*"}
READS_BOTH = {"*", "entity:*:read", "entity:*:*", "entity:Todo:read entity:List:read"}
PULLS = {"*", "sync entity:Todo:read", "sync entity:List:read"}
SYNCS = {"*", "sync", "sync entity:Todo:read", "sync entity:Todo:write", "sync entity:List:read"}
LINKS_MANY = {"*", "entity:*:*", "entity:List:read entity:Todo:write"}
UNLINKS_MANY = {"*", "entity:*:*"}
FUNCTIONS = {"*", "fn:close", "fn:*"}
ROOMS = {"*", "rooms"}
SHARDS = {"*", "shards"}
READS_FILES, WRITES_FILES = {"*", "files:read"}, {"*", "files:write"}
EVERY = set(SCOPES)
ADMIN = "admin"  # FORBIDDEN to every key
INSERT = {"op": "insert", "entity": "Todo", "data": {"title": "x"}}
ROOM = {"room": "r", "user_id": OWNER}
SIGN = "/api/files/x/sign"  # makes a link, and changes nothing

# Method, falcon's template: target, body, the scopes that are enough.
ROUTES: dict[tuple[str, str], tuple[str, Any, set[str] | str]] = {
    ("GET", "/health"): ("/health", None, EVERY),
    ("GET", "/livez"): ("/livez", None, EVERY),
    ("GET", "/readyz"): ("/readyz", None, EVERY),
    ("GET", "/metrics"): ("/metrics", None, EVERY),
    ("GET", "/api/manifest"): ("/api/manifest", None, EVERY),
    ("GET", "/api/openapi.json"): ("/api/openapi.json", None, EVERY),
    ("GET", "/api/client-config"): ("/api/client-config", None, EVERY),
    ("GET", "/api/entities/{entity}"): ("/api/entities/Todo", None, READS),
    ("POST", "/api/entities/{entity}"): ("/api/entities/Todo", {"title": "x"}, WRITES),
    ("GET", "/api/entities/{entity}/cursor"): ("/api/entities/Todo/cursor", None, READS),
    ("GET", "/api/entities/{entity}/{row_id}"): (f"/api/entities/Todo/{T1}", None, READS),
    ("PATCH", "/api/entities/{entity}/{row_id}"): (
        f"/api/entities/Todo/{T1}", {"title": "y"}, WRITES,
    ),
    ("DELETE", "/api/entities/{entity}/{row_id}"): (f"/api/entities/Todo/{T1}", None, DELETES),
    ("POST", "/api/query"): ("/api/query", {"Todo": {}}, READS),
    ("POST", "/api/query/{entity}"): ("/api/query/Todo", {}, READS),
    ("POST", "/api/aggregate/{entity}"): ("/api/aggregate/Todo", {"count": "*"}, READS),
    ("POST", "/api/search/{entity}"): ("/api/search/Todo", {"query": "x"}, READS),
    ("GET", "/api/lookup/{entity}/{field}/{value:path}"): (
        "/api/lookup/Todo/title/x", None, READS,
    ),
    ("POST", "/api/batch"): ("/api/batch", {"operations": []}, EVERY),
    ("POST", "/api/transact"): ("/api/transact", [INSERT], WRITES),
    ("POST", "/api/link"): (
        "/api/link", {"entity": "Todo", "id": T1, "relation": "list", "target_id": L1}, WRITES,
    ),
    ("POST", "/api/unlink"): (
        "/api/unlink", {"entity": "Todo", "id": T1, "relation": "list"}, WRITES,
    ),
    ("POST", "/api/actions/{name}"): ("/api/actions/close", {}, FUNCTIONS),
    ("GET", "/api/export"): ("/api/export", None, ADMIN),
    ("GET", "/api/export/{entity}"): ("/api/export/Todo", None, ADMIN),
    ("POST", "/api/import"): ("/api/import", {}, ADMIN),
    ("POST", "/api/crdt/{entity}/{row_id}"): (f"/api/crdt/Todo/{T1}", {"update": "00"}, WRITES),
    ("GET", "/api/sync/pull"): ("/api/sync/pull?since=0", None, PULLS),
    ("POST", "/api/sync/pull"): ("/api/sync/pull", {"since": 0}, PULLS),
    ("POST", "/api/sync/push"): ("/api/sync/push", {"changes": []}, SYNCS),
    ("GET", "/api/rooms"): ("/api/rooms", None, ROOMS),
    ("GET", "/api/rooms/{room:path}"): ("/api/rooms/r", None, ROOMS),
    **{
        (method, f"/api/rooms/{action}"): (
            f"/api/rooms/{action}", body if method == "POST" else None, ROOMS,
        )
        for method in ("GET", "POST")
        for action, body in (
            ("join", ROOM), ("leave", ROOM), ("presence", {**ROOM, "data": {}}),
            ("broadcast", {**ROOM, "topic": "t", "data": {}}),
        )
    },
    ("POST", "/api/pubsub/publish"): (
        "/api/pubsub/publish", {"channel": "c", "message": "m"}, ADMIN,
    ),
    ("GET", "/api/pubsub/channels"): ("/api/pubsub/channels", None, ADMIN),
    ("GET", "/api/pubsub/history/{channel:path}"): ("/api/pubsub/history/c", None, ADMIN),
    ("GET", "/api/shards"): ("/api/shards", None, ADMIN),
    ("POST", "/api/shards"): ("/api/shards", {"id": "counter:1"}, ADMIN),
    ("GET", "/api/shards/{shard_id}"): ("/api/shards/counter:1", None, SHARDS),
    ("DELETE", "/api/shards/{shard_id}"): ("/api/shards/counter:1", None, ADMIN),
    ("POST", "/api/shards/{shard_id}/input"): ("/api/shards/counter:1/input", {"input": 1}, SHARDS),
    ("POST", "/api/shards/{shard_id}/move"): ("/api/shards/counter:1/move", {"worker": "1"}, ADMIN),
    ("GET", "/api/shards/{shard_id}/connect"): ("/api/shards/counter:1/connect", None, SHARDS),
    ("GET", "/api/matchmaking"): ("/api/matchmaking", None, SHARDS),
    ("POST", "/api/matchmaking"): ("/api/matchmaking", {"criteria": {"mode": "duel"}}, SHARDS),
    ("DELETE", "/api/matchmaking"): ("/api/matchmaking", None, SHARDS),
    ("POST", "/api/matchmaking/ack"): ("/api/matchmaking/ack", None, SHARDS),
    ("GET", "/api/files"): ("/api/files", None, READS_FILES),
    ("GET", "/api/files/{file_id}"): ("/api/files/x", None, READS_FILES),
    ("PATCH", "/api/files/{file_id}"): ("/api/files/x", {}, WRITES_FILES),
    ("DELETE", "/api/files/{file_id}"): ("/api/files/x", None, WRITES_FILES),
    ("POST", "/api/files/{file_id}/sign"): (SIGN, {}, READS_FILES),
    ("POST", "/api/files/upload"): ("/api/files/upload", {}, WRITES_FILES),
    ("POST", "/api/files/init"): ("/api/files/init", {}, WRITES_FILES),
    ("POST", "/api/files/confirm"): ("/api/files/confirm", {}, WRITES_FILES),
    ("PUT", "/api/files/uploads/{file_id}"): ("/api/files/uploads/x", None, WRITES_FILES),
    ("POST", "/api/files/tus"): ("/api/files/tus", None, WRITES_FILES),
    ("GET", "/api/files/tus/{file_id}"): ("/api/files/tus/x", None, READS_FILES),
    ("PATCH", "/api/files/tus/{file_id}"): ("/api/files/tus/x", None, WRITES_FILES),
    ("DELETE", "/api/files/tus/{file_id}"): ("/api/files/tus/x", None, WRITES_FILES),
    ("GET", "/client/{path:path}"): ("/client/pylon.js", None, EVERY),
    ("GET", "/api/sync/ws"): ("/api/sync/ws", None, EVERY),
    ("POST", "/api/__test__/reset"): ("/api/__test__/reset", None, EVERY),
    ("GET", "/email-change/confirm"): ("/email-change/confirm?token=1", None, EVERY),
    ("GET", "/email-change/revert"): ("/email-change/revert?token=1", None, EVERY),
}
# Of sign-in and of administrators: a key reaches no route below these, but the public ones, which
# serve anybody who signs in.
SIGN_IN = ("/api/auth/", "/api/admin/")
PUBLIC = {
    ("GET", "/api/auth/me"), ("GET", "/api/auth/sessions"),
    *((route.method, route.path) for route in SIGN_IN_ROUTES
      if route.who in ("anyone", "user") and route.path.startswith(SIGN_IN)),
}
# More bodies and paths of the same routes.
VARIANTS: list[tuple[str, str, Any, set[str]]] = [
    ("HEAD", "/api/entities/Todo", None, READS),
    ("GET", "/api/entities/Todo?page=1", None, READS),
    ("GET", "/api/entities/Todo/t%2F1", None, READS),  # a path that the router does not know
    ("DELETE", "/api/entities/Todo/t%2F1", None, DELETES),
    ("PATCH", "/api/entities/Todo/cursor", {"title": "y"}, WRITES),
    ("POST", "/api/query", {"Todo": {"include": {"list": {}}}}, READS_BOTH),
    ("POST", "/api/query", {"List": {"include": {"todos": {}}}}, READS_BOTH),
    ("POST", "/api/transact", [{"op": "update", "entity": "Todo", "id": T1, "data": {}}], WRITES),
    ("POST", "/api/transact", [{"op": "delete", "entity": "Todo", "id": T1}], DELETES),
    ("POST", "/api/transact", [INSERT, {"op": "delete", "entity": "Todo", "id": T1}],
     WRITES & DELETES),
    ("POST", "/api/link", {"entity": "List", "id": L1, "relation": "todos", "target_id": T1},
     LINKS_MANY),
    ("POST", "/api/unlink", {"entity": "List", "id": L1, "relation": "todos", "target_id": T1},
     UNLINKS_MANY),
    ("GET", "/api/sync/pull?since=0&entities=Todo", None, {"*", "sync entity:Todo:read"}),
    ("GET", "/api/sync/pull?since=1&entities=Todo,List", None, {"*"}),
    ("POST", "/api/sync/pull", {"since": 0, "scope": {"List": {"name": "x"}}},
     {"*", "sync entity:List:read"}),
    ("GET", "/api/entities/Nothing", None, {"*", "entity:*:read", "entity:*:*"}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiStage]:
    with serve_api(tmp_path_factory.mktemp("keys"), MANIFEST) as made:
        made.call("POST", "/api/entities/User", {"id": OWNER}, ADMIN_TOKEN)
        yield made
        _KEYS.clear()


_KEYS: dict[str | None, str] = {}  # the texts of stored keys, by their scopes


def call_as(
    server: ApiStage, method: str, target: str, body: Any = None, *, scopes: str | None = None,
) -> testing.Result:
    """Send a request of the owner with a key of these scopes."""
    if scopes not in _KEYS:
        key = new_api_key(SystemRandom())
        server.writer.submit(PutRecord("api_keys", {
            "id": key.key_id, "user_id": OWNER, "name": "a key", "prefix": key.prefix,
            "hash": key.secret_hash, "alg": SHA256, "scopes": scopes, "created_at": 1,
        }))
        _KEYS[scopes] = key.text
    return server.call(method, target, body, _KEYS[scopes])


def call_readonly(
    server: ApiStage, method: str, target: str, body: Any = None, *, is_admin: bool = False,
) -> testing.Result:
    """Send a request of a caller that may only read."""
    user_id = "__admin__" if is_admin else OWNER
    auth = AuthContext(user_id=user_id, is_admin=is_admin, readonly=True)
    return server.call(method, target, body, extras={"pylon.caller": Caller(auth)})


def code_of(answer: testing.Result) -> str | None:
    if not answer.content or answer.status_code < 400:
        return None
    if answer.headers["content-type"].startswith("text/html"):  # a page for people
        return None
    found: str | None = answer.json.get("error", {}).get("code")
    return found


def verdict(answer: testing.Result) -> bool:
    """Whether a key reached the route: no error of keys, or of a HEAD no 403."""
    return code_of(answer) not in ("SCOPE_DENIED", "API_KEY_AUTH_FORBIDDEN") and not (
        answer.status_code == 403 and not answer.content
    )


def seed(server: ApiStage) -> None:
    for entity, row in (("List", {"id": L1, "name": "x"}),
                        ("Todo", {"id": T1, "title": "x", "listId": L1})):
        answer = call_as(server, "POST", f"/api/entities/{entity}", row)
        assert answer.status_code in (201, 409), answer.text


def test_every_route_and_method_is_in_the_table(server: ApiStage) -> None:
    others = (*SIGN_IN, PAGES, RESET_LINK)
    assert {each for each in served(server) if not each[1].startswith(others)} == ROUTES.keys()


def served(server: ApiStage) -> set[tuple[str, str]]:
    """The methods and templates of all routes."""
    return {
        (method.method, route.path)
        for route in falcon.inspect.inspect_routes(server.client.app)
        for method in route.methods if not method.internal and method.method != "HEAD"
    }


def test_a_key_reaches_no_route_of_sign_in_but_the_public_ones(server: ApiStage) -> None:
    routes = {each for each in served(server) if each[1].startswith(SIGN_IN)}
    assert len(routes) > 10 and routes >= PUBLIC
    for method, template in routes:
        target = re.sub(r"\{\w+\}", "x", template)
        for scopes in ("*", None, "rooms"):
            answer = call_as(server, method, target, scopes=scopes)
            refusal = "API_KEY_AUTH_FORBIDDEN"
            if template.startswith("/api/admin/"):
                refusal = "FORBIDDEN"
            if (method, template) in PUBLIC:
                assert code_of(answer) not in (refusal, "SCOPE_DENIED"), (method, template)
            else:
                assert code_of(answer) == refusal, (method, template)


def test_a_key_sends_no_form_of_the_sign_in_page(server: ApiStage) -> None:
    pages = [each for each in served(server) if each[1].startswith((PAGES, RESET_LINK))]
    assert len(pages) > 10
    for method, path in pages:
        answer = call_as(server, method, path, scopes="*")
        if method == "GET":
            assert answer.status_code == 200, path
        else:
            assert code_of(answer) == "API_KEY_AUTH_FORBIDDEN", path


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_key_reaches_a_route_by_the_scopes_of_the_table_alone(
    server: ApiStage, route: tuple[str, str]
) -> None:
    target, body, enough = ROUTES[route]
    found: dict[str, str | None] = {}
    for scopes in SCOPES:
        seed(server)
        found[scopes] = code_of(call_as(server, route[0], target, body, scopes=scopes))
    if enough is ADMIN:
        assert set(found.values()) == {"FORBIDDEN"}
    else:
        refused = ("SCOPE_DENIED", "API_KEY_AUTH_FORBIDDEN")
        assert {scopes for scopes, code in found.items() if code not in refused} == enough


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v[0]} {v[1]} {json.dumps(v[2])}")
def test_other_bodies_and_paths_of_a_route_need_the_same(
    server: ApiStage, variant: tuple[str, str, Any, set[str]]
) -> None:
    method, target, body, enough = variant
    passed = set()
    for scopes in SCOPES:
        seed(server)
        if verdict(call_as(server, method, target, body, scopes=scopes)):
            passed.add(scopes)
    assert passed == enough


def test_the_refusal_names_the_scope_and_nothing_is_written(server: ApiStage) -> None:
    seed(server)
    answer = call_as(server, "POST", "/api/entities/Todo", {"id": L2}, scopes="entity:Todo:read")
    error = answer.json["error"]
    assert (answer.status_code, error["code"], error["scope"]) == (
        403, "SCOPE_DENIED", "entity:Todo:write",
    )
    assert "entity:Todo:write" in error["message"]
    assert call_as(server, "GET", f"/api/entities/Todo/{L2}").status_code == 404
    both = [INSERT, {"op": "insert", "entity": "List", "data": {"id": L2}}]
    answer = call_as(server, "POST", "/api/transact", both, scopes="entity:List:write")
    assert answer.json["error"]["scope"] == "entity:Todo:write"
    assert call_as(server, "GET", f"/api/entities/List/{L2}").status_code == 404


def test_a_batch_and_a_push_execute_what_the_scopes_allow(server: ApiStage) -> None:
    seed(server)
    insert = {"entity": "Todo", "data": {"title": "x"}}
    delete = {"entity": "Todo", "id": T1}
    body = {"operations": [{"op": "insert", **insert}, {"op": "delete", **delete}]}
    answer = call_as(server, "POST", "/api/batch", body, scopes="entity:Todo:write").json
    assert (answer["succeeded"], answer["failed"]) == (1, 1)
    assert "entity:Todo:delete" in answer["results"][1]["error"]
    changes = [{"kind": "insert", "op_id": "a", **insert},
               {"kind": "delete", "op_id": "b", "entity": "Todo", "row_id": T1}]
    answer = call_as(
        server, "POST", "/api/sync/push", {"changes": changes}, scopes="sync entity:Todo:write"
    ).json
    assert answer["applied"] == 1
    assert answer["results"][1]["error"]["code"] == "SCOPE_DENIED"
    assert call_as(server, "GET", f"/api/entities/Todo/{T1}").status_code == 200


@pytest.mark.parametrize("since", [0, 1])
def test_a_pull_has_the_entities_of_the_scopes_alone(server: ApiStage, since: int) -> None:
    seed(server)
    call_as(server, "PATCH", f"/api/entities/List/{L1}", {"name": "again"})
    target = f"/api/sync/pull?since={since}"
    everything = {"List", "Todo"} if since else {"List", "Todo", "User"}
    for scopes, names in (("sync entity:List:read", {"List"}), ("*", everything),
                          (None, everything), ("sync entity:*:read", everything)):
        changes = call_as(server, "GET", target, scopes=scopes).json["changes"]
        assert {change["entity"] for change in changes} == names, scopes


def test_a_key_is_no_administrator_and_never_more_than_its_owner(server: ApiStage) -> None:
    stranger = AuthContext(user_id="u2", api_key_id="key_2", api_key_scopes="*")
    seed(server)
    answer = server.call(
        "GET", "/api/entities/Todo", extras={"pylon.caller": Caller(stranger)}
    )
    assert code_of(answer) == "POLICY_DENIED"


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_read_only_caller_changes_nothing_on_any_route(
    server: ApiStage, route: tuple[str, str]
) -> None:
    target, body, enough = ROUTES[route]
    reads = route[0] == "GET" or target.startswith(
        ("/api/query", "/api/aggregate", "/api/search", "/api/sync/pull", SIGN)
    )
    if enough is ADMIN:
        return
    seed(server)
    answer = call_readonly(server, route[0], target, body)
    assert (code_of(answer) == "SCOPE_DENIED") == (not reads)


def test_a_read_only_administrator_changes_nothing_either(server: ApiStage) -> None:
    for (method, _), (target, body, enough) in ROUTES.items():
        if enough is ADMIN and method != "GET":
            answer = call_readonly(server, method, target, body, is_admin=True)
            assert code_of(answer) == "SCOPE_DENIED", target
    assert call_readonly(server, "GET", "/api/export", is_admin=True).status_code == 200


def test_an_app_with_an_undeclared_method_cannot_be_made(server: ApiStage) -> None:
    class Resource:
        def on_get(self, req: falcon.Request, resp: falcon.Response) -> None: ...

        def on_post(self, req: falcon.Request, resp: falcon.Response) -> None: ...

    access = RouteAccess(server.services.requests)
    with pytest.raises(TypeError, match="POST"):
        access.declare("/api/new", Resource(), {"GET": OPEN})
