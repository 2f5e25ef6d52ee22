"""Conditions on writes, keys of idempotency, and export and import as streams, over the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.examples import count_examples

pytestmark = pytest.mark.stores

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "writes", "version": "1", "routes": [], "queries": [],
    "actions": [],
    "entities": [
        {"name": "Note", "indexes": [], "relations": [], "fields": [
            {"name": "text", "type": "string", "optional": True, "unique": False},
            {"name": "rank", "type": "int", "optional": True, "unique": True},
        ]},
    ],
    "policies": [{"name": "n", "entity": "Note", "allow": "true"}],
}
NOTES = "/api/entities/Note"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


def add(server: ApiStage, **row: Any) -> str:
    answer = server.call("POST", NOTES, row, ADMIN_TOKEN)
    assert answer.status_code == 201
    row_id: str = answer.json["id"]
    return row_id


def tag(server: ApiStage, row_id: str) -> str:
    return str(server.call("GET", f"{NOTES}/{row_id}").headers["etag"])


def test_a_row_has_the_etag_of_its_last_change(server: ApiStage) -> None:
    made = server.call("POST", NOTES, {"text": "a"}, ADMIN_TOKEN)
    path = f"{NOTES}/{made.json['id']}"
    assert made.headers["etag"] == f'"{made.headers["x-pylon-change-seq"]}"'
    assert tag(server, made.json["id"]) == made.headers["etag"]
    changed = server.call("PATCH", path, {"text": "b"})
    assert changed.headers["etag"] not in (None, made.headers["etag"])
    assert tag(server, made.json["id"]) == changed.headers["etag"]
    assert server.call("HEAD", path).headers["etag"] == changed.headers["etag"]


@pytest.mark.parametrize(("header", "status"), [
    ('"1"', 304), ('W/"1"', 304), ('"0", "1"', 304), ("*", 304), ('"2"', 200), ("1", 200),
    ('"x", W/"7"', 200), ("", 200), ('"x",W/"1" ,"7"', 304), (',"1",', 304),
    ('"a,1"', 200), ('"1', 200), ('"", "1"', 304), ('"1-gzip"', 200), ('" 1"', 200),
])
def test_if_none_match(server: ApiStage, header: str, status: int) -> None:
    path = f"{NOTES}/{add(server, text='a')}"
    answer = server.call("GET", path, headers={"If-None-Match": header})
    assert (answer.status_code, answer.headers["etag"]) == (status, '"1"')
    assert bool(answer.content) == (status == 200)
    gone = server.call("GET", f"{NOTES}/none", headers={"If-None-Match": header})
    assert gone.status_code == 404


@pytest.mark.parametrize(("header", "code"), [
    ('"1"', None), ("*", None), ('"2"', "PRECONDITION_FAILED"), ('W/"1"', "PRECONDITION_FAILED"),
    ('"x"', "PRECONDITION_FAILED"), ("1", "INVALID_DATA"),
    ('"1", "2"', None), ('"x", "1"', None), ('"a,b" ,\t"1",', None), (',, "1"', None),
    ('W/"2", "1"', None), ('"2", "3"', "PRECONDITION_FAILED"), ('"01"', "PRECONDITION_FAILED"),
    ('W/"1", "x"', "PRECONDITION_FAILED"),
    ('"1", *', "INVALID_DATA"), ('"1" "2"', "INVALID_DATA"), (", ,", "INVALID_DATA"),
    ('"", "1"', None), ('"1-gzip"', "PRECONDITION_FAILED"), ('"1', "INVALID_DATA"),
    ("'1'", "INVALID_DATA"), ('*, "1"', "INVALID_DATA"),
    ('"1", 2', "INVALID_DATA"), ('w/"1"', "INVALID_DATA"), ("", "INVALID_DATA"),
])
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_if_match(server: ApiStage, method: str, header: str, code: str | None) -> None:
    path = f"{NOTES}/{add(server, text='a')}"
    body = {"text": "b"} if method == "PATCH" else None
    answer = server.call(method, path, body, headers={"If-Match": header})
    if code is None:
        assert answer.status_code == 200
        return
    assert answer.status_code == {"PRECONDITION_FAILED": 412, "INVALID_DATA": 400}[code]
    assert answer.json["error"]["code"] == code
    assert server.call("GET", path).json["text"] == "a"
    missing = server.call(method, f"{NOTES}/none", body, headers={"If-Match": '"1"'})
    assert missing.status_code == 404


def test_one_of_two_who_saw_the_same_version_wins(server: ApiStage) -> None:
    path = f"{NOTES}/{add(server, text='a')}"
    seen = {"If-Match": '"1"'}
    answers = [server.call("PATCH", path, {"text": t}, headers=seen) for t in ("b", "c")]
    assert [a.status_code for a in answers] == [200, 412]
    assert "version is 2" in answers[1].json["error"]["message"]
    assert server.call("GET", path).json["text"] == "b"


def test_a_key_makes_an_insert_happen_once(server: ApiStage) -> None:
    user = server.user("ada")
    sent = {"Idempotency-Key": "k-1"}
    first = server.call("POST", NOTES, {"text": "a"}, user, sent)
    again = server.call("POST", NOTES, {"text": "a"}, user, sent)
    assert first.status_code == again.status_code == 201
    assert first.json == again.json and first.headers["etag"] == again.headers["etag"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other = server.call("POST", NOTES, {"text": "a"}, server.user("bob"), sent)
    assert other.json["id"] != first.json["id"]
    for target, body in ((NOTES, {"text": "b"}), ("/api/transact", [])):
        reused = server.call("POST", target, body, user, sent)
        assert reused.status_code == 422
        assert reused.json["error"]["code"] == "IDEMPOTENCY_KEY_REUSED"
    assert server.call("GET", NOTES).json["count"] == 2


def test_a_key_on_update_and_delete(server: ApiStage) -> None:
    user = server.user("ada")
    path = f"{NOTES}/{add(server, text='a')}"
    for method, body in (("PATCH", {"text": "b"}), ("DELETE", None)):
        sent = {"Idempotency-Key": method}
        first = server.call(method, path, body, user, sent)
        again = server.call(method, path, body, user, sent)
        assert first.status_code == again.status_code == 200
        assert again.headers["idempotency-replayed"] == "true"
        assert first.headers["x-pylon-change-seq"] == again.headers["x-pylon-change-seq"]
    assert server.call("DELETE", path, token=user).status_code == 404


def test_a_failure_is_not_remembered(server: ApiStage) -> None:
    row_id = add(server, rank=1)
    sent = {"Idempotency-Key": "k"}
    assert server.call("POST", NOTES, {"rank": 1}, ADMIN_TOKEN, sent).status_code == 409
    assert server.call("DELETE", f"{NOTES}/{row_id}").status_code == 200
    made = server.call("POST", NOTES, {"rank": 1}, ADMIN_TOKEN, sent)
    assert made.status_code == 201 and "idempotency-replayed" not in made.headers


@pytest.mark.parametrize("key", ["", "a b", "x" * (limits.OP_ID_CHARS + 1), "\u00e9"])
def test_a_bad_key_is_refused(server: ApiStage, key: str) -> None:
    answer = server.call("POST", NOTES, {}, ADMIN_TOKEN, {"Idempotency-Key": key})
    assert answer.status_code == 400 and "Idempotency-Key" in answer.json["error"]["message"]


def test_a_key_on_transact_and_batch(server: ApiStage) -> None:
    operations = [{"op": "insert", "entity": "Note", "data": {"rank": n}} for n in (1, 2)]
    operations.append({"op": "delete", "entity": "Note", "id": "$ref:1"})
    sent = {"Idempotency-Key": "t"}
    first = server.call("POST", "/api/transact", operations, ADMIN_TOKEN, sent)
    again = server.call("POST", "/api/transact", operations, ADMIN_TOKEN, sent)
    assert first.status_code == 200 and first.json == again.json
    assert again.headers["idempotency-replayed"] == "true"
    sent = {"Idempotency-Key": "b"}
    body = {"operations": [{"op": "insert", "entity": "Note", "data": {"rank": n}}
                           for n in (7, 1, 8)]}
    first = server.call("POST", "/api/batch", body, ADMIN_TOKEN, sent)
    again = server.call("POST", "/api/batch", body, ADMIN_TOKEN, sent)
    assert first.json["succeeded"] == 2 and first.json == again.json
    assert again.headers["idempotency-replayed"] == "true"
    longer = {"operations": [*body["operations"], {"op": "insert", "entity": "Note", "data": {}}]}
    assert server.call("POST", "/api/batch", longer, ADMIN_TOKEN, sent).status_code == 422
    assert server.call("GET", NOTES).json["count"] == 3


@pytest.mark.parametrize(("target", "wrap", "name", "most"), [
    ("/api/batch", lambda ops: {"operations": ops}, "BATCH_OPS", limits.BATCH_OPS),
    ("/api/transact", lambda ops: ops, "TRANSACT_OPS", limits.TRANSACT_OPS),
])
def test_limits_of_operations(
    server: ApiStage, target: str, wrap: Any, name: str, most: int
) -> None:
    operations = [{"op": "insert", "entity": "Note", "data": {}}] * (most + 1)
    answer = server.call("POST", target, wrap(operations), ADMIN_TOKEN)
    assert answer.status_code == 400 and name in answer.json["error"]["message"]
    assert server.call("GET", NOTES).json["count"] == 0
    assert server.call("POST", target, wrap(operations[:most]), ADMIN_TOKEN).status_code == 200
    seqs = server.call("GET", "/api/sync/pull?since=1").json["changes"]
    assert len(seqs) == most - 1


def lines(text: bytes) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_go_out_and_come_back(server: ApiStage, tmp_path: Path) -> None:
    count = limits.SNAPSHOT_PAGE_ROWS + 5
    rows = [{"text": f"note {n} \u00e9\n\"", "rank": n} for n in range(count)]
    ids = {add(server, **row): row for row in rows}
    sent = {"Accept": "application/x-ndjson"}
    out = server.call("GET", "/api/export", token=ADMIN_TOKEN, headers=sent)
    assert out.headers["content-type"] == "application/x-ndjson"
    assert {entry["row"].pop("id"): entry["row"] for entry in lines(out.content)} == ids
    (tmp_path / "two").mkdir()
    typed = {"Content-Type": "application/x-ndjson"}
    with serve_api(tmp_path / "two", MANIFEST) as other:
        answer = other.call("POST", "/api/import", out.content, ADMIN_TOKEN, typed)
        *progress, last = lines(answer.content)
        assert [p["imported"] for p in progress] == [256, 512, 768]
        assert last == {
            "done": True, "imported": len(rows), "failed": 0,
            "by_entity": [{"entity": "Note", "inserted": len(rows), "failed": 0}],
        }
        back = other.call("GET", "/api/export", token=ADMIN_TOKEN, headers=sent)
        assert back.content == out.content
        assert len(other.call("GET", "/api/sync/pull?since=1").json["changes"]) == 1_000
        again = lines(other.call("POST", "/api/import", out.content, ADMIN_TOKEN, typed).content)
        assert (again[-1]["imported"], again[-1]["failed"]) == (0, len(rows))
        assert len(again[-1]["errors"]) == limits.IMPORT_ERRORS
        # Both the id and a unique value are taken; which is told is the store's choice.
        assert again[-1]["errors"][0]["code"] in ("UNIQUE_VIOLATION", "OPTIMISTIC_ID_CONFLICT")


def test_bad_lines_are_told_of(server: ApiStage) -> None:
    body = b'{"entity":"Note","row":{"rank":1}}\n\nnot json\n[1]\n{"entity":"Note"}\n' \
           b'{"row":{}}\n{"entity":"Note","row":{"nope":1}}\n{"entity":"Note","row":{"id":5}}'
    answer = server.call("POST", "/api/import", body, ADMIN_TOKEN,
                         {"Content-Type": "application/x-ndjson"})
    last = lines(answer.content)[-1]
    assert (last["done"], last["imported"], last["failed"]) == (True, 1, 6)
    assert [(e["row"], e["code"]) for e in last["errors"]] == [
        (2, "INVALID_JSON"), (3, "INVALID_DATA"), (4, "INVALID_DATA"), (5, "ENTITY_NOT_FOUND"),
        (6, "INVALID_COLUMN"), (7, "INVALID_ID"),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.sampled_from(
        ["insert", "update", "delete", "Note", "$ref:0", "$ref:1", "text", "rank", "id"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["op", "entity", "id", "data", "text", "rank", "operations", "entities",
                         "relation", "target_id", "Note"]), inner, max_size=4),
    max_leaves=12,
)
OPERATION = st.fixed_dictionaries(
    {"op": st.sampled_from(["insert", "update", "delete", "x"]), "entity": st.just("Note")},
    optional={"id": st.sampled_from(["a", "$ref:0", "$ref:9", "$ref:"]) | JSON,
              "data": st.fixed_dictionaries({}, optional={"rank": st.integers(0, 3), "text": JSON})
              | JSON},
)


def test_no_body_is_a_defect_and_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    with serve_api(tmp_path, MANIFEST) as server:

        def rows() -> list[Any]:
            found: list[Any] = server.call("GET", NOTES).json["data"]
            return found

        @settings(max_examples=count_examples(150))
        @given(st.lists(OPERATION, max_size=4))
        def transact(operations: list[Any]) -> None:
            before = rows()
            answer = server.call("POST", "/api/transact", operations, ADMIN_TOKEN)
            assert answer.status_code in (200, 400)
            failed = [r for r in answer.json["results"] if "error" in r]
            assert answer.json["committed"] == (answer.status_code == 200) == (not failed)
            if failed:
                assert rows() == before and answer.json["results"][-1:] == failed
            else:
                assert len(answer.json["results"]) == len(operations)

        @settings(max_examples=count_examples(100))
        @given(st.sampled_from(["batch", "transact", "link", "unlink", "import", "actions/a"]),
               JSON)
        def anything(route: str, body: Any) -> None:
            answer = server.call("POST", f"/api/{route}", json.dumps(body).encode(), ADMIN_TOKEN)
            assert answer.status_code < 500

        transact()
        anything()


def test_a_key_makes_a_push_happen_once(server: ApiStage) -> None:
    insert = {"kind": "insert", "entity": "Note", "data": {"text": "a"}}
    wrong = {"kind": "insert", "entity": "Note", "data": {"nope": 1}}
    own = {**insert, "op_id": "op-1"}
    sent = {"Idempotency-Key": "p-1"}
    changes = {"changes": [insert, wrong, own]}
    first = server.call("POST", "/api/sync/push", changes, ADMIN_TOKEN, sent)
    again = server.call("POST", "/api/sync/push", changes, ADMIN_TOKEN, sent)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert [r["status"] for r in first.json["results"]] == ["applied", "error", "applied"]
    assert [r["status"] for r in again.json["results"]] == ["replayed", "error", "replayed"]
    for before, after in zip(first.json["results"], again.json["results"], strict=True):
        assert (before["row_id"], before["seq"]) == (after["row_id"], after["seq"])
    other = server.call("POST", "/api/sync/push", {"changes": [insert]}, ADMIN_TOKEN, sent)
    assert (other.status_code, other.json["error"]["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert server.call("GET", NOTES, token=ADMIN_TOKEN).json["count"] == 2
