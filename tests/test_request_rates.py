"""Rates of requests: for an address, a user, and what the app's manifest limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import field

APP = {
    "manifest_version": 1, "name": "notes", "version": "0.1.0", "routes": [],
    "entities": [{"name": "Note", "fields": [field("title", "string")], "indexes": []}],
    "policies": [{"name": "all", "entity": "Note", "allow": "true"}],
}
TEN_A_MINUTE = {
    "PYLON_TRUST_PROXY_HOPS": "1", "PYLON_RATE_LIMIT_MAX": "10",
    "PYLON_RATE_LIMIT_MAX_AUTHED": "20", "PYLON_RATE_LIMIT_HEADERS": "low",
}
FIRST, SECOND = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, APP, TEN_A_MINUTE) as made:
        yield made


def statuses(server: ApiStage, count: int, path: str = "/api/manifest", **more: Any) -> list[int]:
    return [server.call("GET", path, **more).status_code for _ in range(count)]


# --- Addresses and users --------------------------------------------------------------------


def test_an_address_has_its_limit_and_another_is_not_refused(server: ApiStage) -> None:
    assert statuses(server, 12, headers=FIRST) == [200] * 10 + [429] * 2
    assert statuses(server, 1, headers=SECOND) == [200]
    server.clock.advance(6)  # restores one
    assert statuses(server, 2, headers=FIRST) == [200, 429]


def test_what_is_not_found_or_malformed_counts(server: ApiStage) -> None:
    assert statuses(server, 9, "/api/nowhere", headers=FIRST) == [404] * 9
    assert server.call("POST", "/api/sync/push", b"{", headers=FIRST).status_code == 400
    assert statuses(server, 1, "/api/nowhere", headers=FIRST) == [429]


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/metrics"])
def test_probes_do_not_count_and_are_not_refused(server: ApiStage, path: str) -> None:
    statuses(server, 11, headers=FIRST)
    assert 429 not in statuses(server, 30, path, headers=FIRST)


def test_preflights_do_not_count(server: ApiStage) -> None:
    for _ in range(30):
        server.call("OPTIONS", "/api/manifest", headers=FIRST)
    assert statuses(server, 1, headers=FIRST) == [200]


def test_an_administrator_does_not_count_by_the_header_only(server: ApiStage) -> None:
    assert statuses(server, 30, headers=FIRST, token=ADMIN_TOKEN) == [200] * 30
    cookie = {**FIRST, "Cookie": f"notes_session={ADMIN_TOKEN}"}
    assert statuses(server, 11, headers=cookie)[-1] == 429
    assert statuses(server, 1, headers=SECOND, token="x" + ADMIN_TOKEN) == [200]
    assert statuses(server, 10, headers=SECOND, token="x" + ADMIN_TOKEN)[-1] == 429


def test_a_user_has_one_limit_for_all_addresses(server: ApiStage) -> None:
    token = server.user("u1")
    found = [
        statuses(server, 1, "/api/auth/me", headers={"X-Forwarded-For": f"192.0.2.{n}"},
                 token=token)[0]
        for n in range(25)
    ]
    assert found == [200] * 20 + [429] * 5
    assert statuses(server, 1, "/api/auth/me", headers=SECOND, token=server.user("u2")) == [200]


def test_the_addresses_of_an_ipv6_site_have_four_times_the_limit(server: ApiStage) -> None:
    found = [
        statuses(server, 1, headers={"X-Forwarded-For": f"2001:db8:0:{n:x}::1"})[0]
        for n in range(50)
    ]
    assert found == [200] * 40 + [429] * 10
    assert statuses(server, 1, headers={"X-Forwarded-For": "2001:db8:1::1"}) == [200]


def test_a_refusal_says_when_and_what_and_has_no_effect(server: ApiStage) -> None:
    statuses(server, 10, headers=FIRST)
    answer = server.call("POST", "/api/entities/Note", {"title": "t"}, headers=FIRST)
    assert answer.status_code == 429
    assert answer.json["error"]["code"] == "RATE_LIMITED"
    assert answer.json["error"]["hint"] == f"Try again in {answer.headers['Retry-After']}s"
    assert answer.headers["RateLimit-Policy"] == '"ip";q=10;w=60'
    assert answer.headers["RateLimit"] == '"ip";r=0;t=60'
    assert server.writer.seen == []


# --- Headers --------------------------------------------------------------------------------


def headers_of(server: ApiStage, count: int) -> list[str | None]:
    return [
        server.call("GET", "/api/manifest", headers=FIRST).headers.get("RateLimit")
        for _ in range(count)
    ]


def test_the_headers_come_when_less_than_half_is_left(server: ApiStage) -> None:
    found = headers_of(server, 10)
    assert found[:4] == [None] * 4
    assert [str(value).split(";t")[0] for value in found[6:]] == [
        f'"ip";r={left}' for left in (3, 2, 1, 0)
    ]
    exposed = server.call("GET", "/api/manifest", headers=SECOND).headers
    assert "RateLimit" in exposed["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(("mode", "is_told"), [("always", True), ("never", False)])
def test_the_headers_come_always_or_never(tmp_path: Path, mode: str, is_told: bool) -> None:
    values = {**TEN_A_MINUTE, "PYLON_RATE_LIMIT_HEADERS": mode}
    with serve_api(tmp_path, APP, values) as server:
        found = headers_of(server, 11)
        assert all((value is not None) == is_told for value in found[:10])
        assert found[10] is not None, "a refusal has them always"


def test_without_trusted_proxies_the_header_of_a_client_changes_nothing(tmp_path: Path) -> None:
    values = {**TEN_A_MINUTE, "PYLON_TRUST_PROXY_HOPS": "0"}
    with serve_api(tmp_path, APP, values) as server:
        found = [
            statuses(server, 1, headers={"X-Forwarded-For": f"192.0.2.{n}"})[0] for n in range(12)
        ]
        assert found == [200] * 10 + [429] * 2


def test_a_proxy_that_is_not_trusted_is_reported_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = {**TEN_A_MINUTE, "PYLON_TRUST_PROXY_HOPS": "0"}
    with serve_api(tmp_path, APP, values) as server:
        for _ in range(2):
            statuses(server, 1, headers=FIRST, remote_addr="8.8.8.8")
        assert "rates.proxy_not_trusted" not in capfd.readouterr().err
        for _ in range(3):
            statuses(server, 1, headers=FIRST, remote_addr="10.0.0.1")
    assert capfd.readouterr().err.count("rates.proxy_not_trusted") == 1


# --- Rates of the app -----------------------------------------------------------------------


def app_with(tmp_path: Path, *rules: dict[str, Any]) -> AbstractContextManager[ApiStage]:
    return serve_api(tmp_path, {**APP, "rateLimits": list(rules)})


def posts(**more: Any) -> dict[str, Any]:
    rule = {"name": "posts", "match": "entity:Note:insert", "limit": 3, "window": "1m"}
    return {**rule, **more}


def insert(server: ApiStage, token: str) -> int:
    return server.call("POST", "/api/entities/Note", {"title": "t"}, token).status_code


def test_inserts_count_on_every_path(tmp_path: Path) -> None:
    change = {"kind": "insert", "entity": "Note", "data": {"title": "t"}}
    operation = {"op": "insert", "entity": "Note", "data": {"title": "t"}}
    requests: list[tuple[str, Any]] = [
        ("/api/entities/Note", {"title": "t"}),
        ("/api/transact", [operation]),
        ("/api/sync/push", {"changes": [change]}),
    ]
    with app_with(tmp_path, posts(limit=1)) as server:
        for number, (path, body) in enumerate(requests):
            token = server.user(f"u{number}")
            assert server.call("POST", path, body, token).status_code < 300, path
            for other, other_body in requests:
                assert server.call("POST", other, other_body, token).status_code == 429, other
        token = server.user("batch")
        batch = server.call("POST", "/api/batch", {"operations": [operation] * 3}, token).json
        assert (batch["succeeded"], batch["failed"]) == (1, 2)
        assert "app.posts" in batch["results"][1]["error"]


def test_other_writes_readers_and_administrators_do_not_count(tmp_path: Path) -> None:
    with app_with(tmp_path, posts(limit=1)) as server:
        token = server.user("u1")
        made = server.call("POST", "/api/entities/Note", {"title": "t"}, token).json
        path = f"/api/entities/Note/{made['id']}"
        for _ in range(3):
            assert server.call("PATCH", path, {"title": "u"}, token).status_code == 200
            assert server.call("GET", path, token=token).status_code == 200
            assert insert(server, ADMIN_TOKEN) == 201
        assert server.call("DELETE", path, token=token).status_code == 200


@pytest.mark.parametrize(
    ("per", "second_user", "second_address"),
    [("user", 201, 429), ("ip", 429, 201), ("global", 429, 429)],
)
def test_a_rule_counts_per_what_it_says(
    tmp_path: Path, per: str, second_user: int, second_address: int
) -> None:
    rule = posts(limit=1, per=per)
    manifest = {**APP, "rateLimits": [rule]}
    with serve_api(tmp_path, manifest, {"PYLON_TRUST_PROXY_HOPS": "1"}) as server:
        def post(user: str, address: dict[str, str]) -> int:
            answer = server.call(
                "POST", "/api/entities/Note", {"title": "t"}, server.user(user), address
            )
            return answer.status_code

        assert post("u1", FIRST) == 201
        assert post("u2", FIRST) == second_user
        assert post("u1", SECOND) == second_address


def test_a_push_does_what_is_allowed_and_says_how_much_remains(tmp_path: Path) -> None:
    changes = [
        {"kind": "insert", "entity": "Note", "data": {"title": f"t{n}"}, "op_id": f"op{n}"}
        for n in range(5)
    ]
    with app_with(tmp_path, posts()) as server:
        token = server.user("u1")
        first = server.call("POST", "/api/sync/push", {"changes": changes}, token)
        assert (first.status_code, first.json["applied"], first.json["remaining"]) == (200, 3, 2)
        again = server.call("POST", "/api/sync/push", {"changes": changes[3:]}, token)
        assert again.status_code == 429
        server.clock.advance(60)
        rest = server.call("POST", "/api/sync/push", {"changes": changes[3:]}, token)
        assert rest.json["applied"] == 2 and "remaining" not in rest.json
        titles = {row["title"] for row in server.call("GET", "/api/entities/Note").json["data"]}
        assert titles == {f"t{n}" for n in range(5)}


def test_a_transaction_is_refused_as_a_whole(tmp_path: Path) -> None:
    operation = {"op": "insert", "entity": "Note", "data": {"title": "t"}}
    with app_with(tmp_path, posts()) as server:
        token = server.user("u1")
        assert server.call("POST", "/api/transact", [operation] * 2, token).status_code == 200
        assert server.call("POST", "/api/transact", [operation] * 2, token).status_code == 429
        assert insert(server, token) == 201, "a refused transaction costs nothing"
        never = server.call("POST", "/api/transact", [operation] * 4, token)
        assert (never.status_code, never.json["error"]["code"]) == (400, "LIMIT_EXCEEDED")


@pytest.mark.parametrize("is_tight_first", [True, False])
def test_a_write_that_one_rule_refuses_spends_no_unit_of_another(
    tmp_path: Path, is_tight_first: bool
) -> None:
    rules = [posts(limit=3, window="10s", name="tight", per="global"), posts(limit=5, window="1d")]
    change = {"kind": "insert", "entity": "Note", "data": {"title": "t"}}
    requests: list[tuple[str, Any]] = [
        ("/api/entities/Note", {"title": "t"}),
        ("/api/transact", [{"op": "insert", "entity": "Note", "data": {"title": "t"}}]),
        ("/api/sync/push", {"changes": [change]}),
    ]
    with app_with(tmp_path, *(rules if is_tight_first else reversed(rules))) as server:
        token = server.user("u1")
        assert [insert(server, token) for _ in range(3)] == [201] * 3
        for path, body in requests * 3:
            answer = server.call("POST", path, body, token)
            assert (answer.status_code, "app.tight" in answer.text) == (429, True)
        server.clock.advance(10)
        assert [insert(server, token) for _ in range(2)] == [201] * 2, "of five in a day"
        assert insert(server, token) == 429


def test_all_writes_of_a_transaction_count_for_one_rule_of_an_entity(tmp_path: Path) -> None:
    with app_with(tmp_path, posts(match="entity:Note:write")) as server:
        token = server.user("u1")
        made = server.call("POST", "/api/entities/Note", {"title": "t"}, ADMIN_TOKEN).json
        ops = [
            {"op": "insert", "entity": "Note", "data": {"title": "t"}},
            {"op": "update", "entity": "Note", "id": made["id"], "data": {"title": "u"}},
        ]
        never = server.call("POST", "/api/transact", ops * 2, token)
        assert (never.status_code, never.json["error"]["code"]) == (400, "LIMIT_EXCEEDED")
        assert server.call("POST", "/api/transact", ops, token).status_code == 200
        assert server.call("POST", "/api/transact", ops, token).status_code == 429
        assert insert(server, token) == 201


def test_a_request_that_one_rule_of_its_path_refuses_spends_no_unit_of_another(
    tmp_path: Path,
) -> None:
    rules = [
        {"name": "tight", "match": "route:/api/entities", "per": "ip", "limit": 2, "window": "10s"},
        {"name": "wide", "match": "route:/api/entities", "per": "ip", "limit": 3, "window": "1d"},
    ]
    with app_with(tmp_path, *reversed(rules)) as server:
        assert statuses(server, 5, "/api/entities/Note") == [200] * 2 + [429] * 3
        server.clock.advance(10)
        assert statuses(server, 2, "/api/entities/Note") == [200, 429]


def test_a_rule_for_a_path_counts_what_lies_below_it(tmp_path: Path) -> None:
    rule = {"name": "reads", "match": "route:/api/entities", "per": "ip", "limit": 2,
            "window": "10s", "burst": 4}
    with app_with(tmp_path, rule) as server:
        assert statuses(server, 5, "/api/entities/Note") == [200] * 4 + [429]
        assert statuses(server, 1, "/api/entities/Note/x") == [429]
        assert statuses(server, 1, "/api/entitiesx") == [404]
        assert statuses(server, 1, "/api/manifest") == [200]
        server.clock.advance(5)
        assert statuses(server, 2, "/api/entities/Note") == [200, 429]


def test_what_a_client_writes_before_its_address_is_not_kept(server: ApiStage) -> None:
    for number in range(8):
        forged = {"X-Forwarded-For": f"{'x' * 1_000}{number}, 192.0.2.1"}
        assert statuses(server, 1, headers=forged) == [200]
    assert list(server.services.requests.rates._keys_by_address) == ["192.0.2.1"]
