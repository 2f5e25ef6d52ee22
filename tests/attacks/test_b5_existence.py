"""B5: refusals reveal hidden rows as little as the wire allows, and each one spends a rate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from falcon import testing

from pylon import metrics
from pylon.api.data.conflicts import ConflictWatch
from pylon.rates import HIDDEN_CONFLICTS_BY_USER, UNDONE_VALUES_BY_USER
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import field
from tests.support.measured import total

BUDGET = int(HIDDEN_CONFLICTS_BY_USER.limit)
PROXIED = {"PYLON_TRUST_PROXY_HOPS": "1"}
MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "accounts", "version": "1", "routes": [],
    "entities": [
        {"name": "Account", "indexes": [
            {"name": "pair", "fields": ["ownerId", "label"], "unique": True}],
         "fields": [field("email", "string", True, True), field("ownerId", "string", True),
                    field("label", "string", True)]},
        {"name": "Plain", "indexes": [], "fields": [field("text", "string", True)]},
        {"name": "Report", "indexes": [], "fields": [field("accountId", "id(Account)", True)]},
        {"name": "Bare", "indexes": [], "fields": [field("text", "string", True)]},
    ],
    "policies": [
        {"name": "own", "entity": "Account", "allowRead": "data.ownerId == auth.userId",
         "allowInsert": "true", "allowUpdate": "data.ownerId == auth.userId",
         "allowDelete": "data.ownerId == auth.userId"},
        {"name": "plain", "entity": "Plain", "allow": "true"},
    ],
}
ACCOUNTS = "/api/entities/Account"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST, PROXIED) as made:
        for number in range(200):
            row = {"email": f"{number}@x.example", "ownerId": "somebody"}
            assert made.call("POST", ACCOUNTS, row, ADMIN_TOKEN).status_code == 201
        yield made


class Stranger:
    """A guest at an address."""

    def __init__(self, server: ApiStage, address: str = "192.0.2.1") -> None:
        self.server = server
        self.headers = {"X-Forwarded-For": address}
        made = server.call("POST", "/api/auth/guest", headers=self.headers).json
        self.token, self.user_id = made["token"], made["user_id"]

    def post(self, path: str, body: Any) -> testing.Result:
        return self.server.call("POST", path, body, self.token, self.headers)

    def insert(self, email: str, **more: Any) -> int:
        row = {"email": email, "ownerId": self.user_id, **more}
        status: int = self.post(ACCOUNTS, row).status_code
        return status


def counted(kind: str) -> float:
    return total(metrics.HIDDEN_CONFLICTS, kind=kind)


def taken(number: int) -> str:
    return f"{number}@x.example"


def test_values_of_hidden_rows_are_probed_no_more_than_the_rate_allows(server: ApiStage) -> None:
    eve = Stranger(server)
    before = counted("unique")
    answers = [eve.insert(taken(number)) for number in range(100)]
    assert answers.count(409) == BUDGET and answers.count(429) == 100 - BUDGET
    assert counted("unique") == before + BUDGET
    # Whether a value is taken or free is not told apart any more.
    assert eve.insert("free@x.example") == 429
    assert eve.post("/api/entities/Plain", {"text": "a"}).status_code == 201
    refused = eve.post(ACCOUNTS, {"email": "free@x.example"})
    assert refused.json["error"]["code"] == "RATE_LIMITED" and refused.headers["Retry-After"]
    server.clock.advance(61)
    assert eve.insert("free@x.example") == 201


def test_others_are_not_refused_meanwhile(server: ApiStage) -> None:
    eve, ada = Stranger(server), Stranger(server, "192.0.2.2")
    for number in range(100):
        eve.insert(taken(number))
    assert ada.insert("ada@x.example") == 201
    assert server.call("POST", ACCOUNTS, {"email": "n@x.example"}, ADMIN_TOKEN).status_code == 201


def test_writes_that_can_meet_no_other_value_go_on(server: ApiStage) -> None:
    eve = Stranger(server)
    own = eve.post(ACCOUNTS, {"email": "own@x.example", "ownerId": eve.user_id}).json["id"]
    for number in range(100):
        eve.insert(taken(number))
    assert eve.post(ACCOUNTS, {"ownerId": eve.user_id}).status_code == 201
    assert eve.post(ACCOUNTS, {"label": "x", "email": None}).status_code == 201
    assert eve.post(ACCOUNTS, {"label": "x", "ownerId": eve.user_id}).status_code == 429
    for patch, status in (
        ({"email": None}, 200), ({"label": None}, 200), ({"label": "x"}, 429),
        ({"email": "free@x.example"}, 429),
    ):
        answer = server.call("PATCH", f"{ACCOUNTS}/{own}", patch, eve.token, eve.headers)
        assert answer.status_code == status, patch


def test_new_identities_of_one_address_do_not_begin_anew_for_ever(server: ApiStage) -> None:
    answers = [Stranger(server).insert(taken(number % 200)) for number in range(400)]
    assert 300 <= answers.count(409) <= 305  # a unit comes back every 0.2 s


def test_conflicts_with_rows_that_the_caller_may_read_cost_nothing(server: ApiStage) -> None:
    ada = Stranger(server)
    assert ada.insert("ada@x.example", label="l") == 201
    for _ in range(3 * BUDGET):
        assert ada.insert("ada@x.example") == 409
        assert ada.insert("new@x.example", label="l") == 409  # the pair of owner and label
    row = {"id": "f" * 40, "text": "mine"}
    assert ada.post("/api/entities/Plain", row).status_code == 201
    for _ in range(3 * BUDGET):
        assert ada.post("/api/entities/Plain", row).status_code == 409
    assert ada.insert("free@x.example") == 201


def test_ids_of_hidden_rows_are_probed_no_more_than_the_rate_allows(server: ApiStage) -> None:
    eve = Stranger(server)
    listed = server.call("GET", f"{ACCOUNTS}?limit=100", token=ADMIN_TOKEN).json["data"]
    before = counted("id")
    answers = [eve.post(ACCOUNTS, {"id": row["id"]}).status_code for row in listed]
    assert (answers.count(409), answers.count(429)) == (BUDGET, 100 - BUDGET)
    assert counted("id") == before + BUDGET


def test_updates_and_links_of_own_rows_are_counted_as_well(server: ApiStage) -> None:
    eve = Stranger(server)
    row_id = eve.post(ACCOUNTS, {"email": "eve@x.example", "ownerId": eve.user_id}).json["id"]
    answers = [
        server.call("PATCH", f"{ACCOUNTS}/{row_id}", {"email": taken(number)}, eve.token,
                    eve.headers).status_code
        for number in range(100)
    ]
    assert (answers.count(409), answers.count(429)) == (BUDGET, 100 - BUDGET)
    paired = server.call("PATCH", f"{ACCOUNTS}/{row_id}", {"label": "a"}, eve.token, eve.headers)
    assert paired.status_code == 429  # label is in a unique index
    assert server.call("DELETE", f"{ACCOUNTS}/{row_id}", None, eve.token,
                       eve.headers).status_code == 200


def test_a_long_batch_and_a_long_push_pay_for_all_that_they_were_told(server: ApiStage) -> None:
    eve, mallory = Stranger(server), Stranger(server, "192.0.2.9")
    operations = [
        {"op": "insert", "entity": "Account", "data": {"email": taken(number)}}
        for number in range(200)
    ]
    told = eve.post("/api/batch", {"operations": operations}).json
    assert told["failed"] == 200
    changes = [
        {"op_id": str(number), "entity": "Account", "row_id": "", "kind": "insert",
         "data": {"email": taken(number)}}
        for number in range(200)
    ]
    body = {"client_id": "m", "changes": changes}
    assert mallory.post("/api/sync/push", body).status_code == 200
    server.clock.advance(120)  # the budget of two windows is owed still
    assert eve.insert("free@x.example") == 429
    assert mallory.post("/api/sync/push", body).status_code == 429
    server.clock.advance(600)
    assert eve.insert("free@x.example") == 201


def test_a_transaction_that_is_undone_leaves_no_trace_but_a_charge(server: ApiStage) -> None:
    eve = Stranger(server)
    before = counted("undone")

    def probe(count: int) -> testing.Result:
        steps: list[dict[str, Any]] = [
            {"op": "insert", "entity": "Account", "data": {"email": f"try{n}@y.example"}}
            for n in range(count)
        ]
        return eve.post("/api/transact", [*steps, {"op": "delete", "entity": "Plain", "id": "0"}])

    statuses = [probe(500).status_code for _ in range(20)]
    assert set(statuses) == {400, 429}
    tried = counted("undone") - before
    burst = UNDONE_VALUES_BY_USER.burst or 0
    assert burst <= tried <= burst + 500
    rows = server.call("GET", f"{ACCOUNTS}?count=true&limit=1", token=ADMIN_TOKEN).json
    assert rows["total"] == 200


def test_honest_transactions_that_fail_now_and_then_go_on(server: ApiStage) -> None:
    ada = Stranger(server)
    for number in range(200):
        steps = [{"op": "insert", "entity": "Account", "data": {"email": f"{number}@z.example"}},
                 {"op": "delete", "entity": "Plain", "id": "0"}]
        assert ada.post("/api/transact", steps).status_code == 400
        server.clock.advance(0.2)
    assert ada.insert("ada@x.example") == 201


def test_a_refusal_reads_the_same_whoever_may_read_the_other_row(server: ApiStage) -> None:
    ada = Stranger(server)
    assert ada.insert("ada@x.example") == 201
    own = ada.post(ACCOUNTS, {"email": "ada@x.example"}).json["error"]
    hidden = ada.post(ACCOUNTS, {"email": taken(1)}).json["error"]
    assert {**own, "value": ""} == {**hidden, "value": ""}


@pytest.mark.parametrize(("method", "path", "body"), [
    ("GET", "", None), ("POST", "", {"text": "a"}),
])
def test_an_entity_without_a_policy_is_refused_like_one_that_does_not_exist(
    server: ApiStage, tmp_path: Path, method: str, path: str, body: Any
) -> None:
    eve = Stranger(server)
    answers = [
        server.call(method, f"/api/entities/{name}{path}", body, eve.token, eve.headers)
        for name in ("Bare", "NoSuchEntity")
    ]
    assert [a.status_code for a in answers] == [403, 403]
    assert answers[0].json == answers[1].json
    dev = {"PYLON_DEV_MODE": "true"}
    (tmp_path / "dev").mkdir()
    with serve_api(tmp_path / "dev", MANIFEST, dev) as developer:
        told = developer.call(method, f"/api/entities/Bare{path}", body)
        assert "No policy allows" in told.json["error"]["hint"]


def test_while_nobody_is_charged_a_write_spends_nothing(server: ApiStage) -> None:
    ada = Stranger(server)
    assert server.services.data.conflicts.until_s == ConflictWatch().until_s == 0.0
    for number in range(50):
        assert ada.insert(f"ok{number}@x.example") == 201
    assert server.services.data.conflicts.until_s == 0.0


def test_dev_mode_counts_nobody(tmp_path: Path) -> None:
    with serve_api(tmp_path, MANIFEST, {"PYLON_DEV_MODE": "true", **PROXIED}) as server:
        server.call("POST", ACCOUNTS, {"email": taken(0), "ownerId": "s"}, ADMIN_TOKEN)
        eve = Stranger(server)
        assert {eve.insert(taken(0)) for _ in range(3 * BUDGET)} == {409}


@pytest.mark.parametrize("path", ["row", "transact"])
def test_a_refused_delete_counts_no_rows_that_the_caller_may_not_read(
    server: ApiStage, path: str
) -> None:
    stranger = Stranger(server)
    row = {"email": "mine@x.example", "ownerId": stranger.user_id}
    account = stranger.post(ACCOUNTS, row).json["id"]
    for _ in range(3):
        made = server.call("POST", "/api/entities/Report", {"accountId": account}, ADMIN_TOKEN)
        assert made.status_code == 201
    target = f"{ACCOUNTS}/{account}"
    if path == "row":
        refused = server.call("DELETE", target, None, stranger.token, stranger.headers)
        assert refused.json["error"]["code"] == "REFERENCE_IN_USE"
    else:
        steps = [{"op": "delete", "entity": "Account", "id": account}]
        refused = stranger.post("/api/transact", steps)
        assert "Report" in refused.text
    assert '"count"' not in refused.text and "3 rows" not in refused.text
    assert server.call("DELETE", target, token=ADMIN_TOKEN).json["error"]["count"] == 3
