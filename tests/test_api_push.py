"""Push: changes that cannot be read, rows named by `_pending_` ids, and long queues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import limits
from pylon.cli.seed import _read as read_seed
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import field

pytestmark = pytest.mark.stores

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "references": "none", "name": "push", "version": "1.0.0",
    "entities": [
        {"name": "Folder", "indexes": [], "relations": [], "fields": [field("name", "string")]},
        {"name": "Page", "indexes": [], "relations": [], "fields": [
            field("text", "string"), field("folderId", "id(Folder)", optional=True),
            field("size", "float", optional=True),
        ]},
    ],
    "routes": [], "queries": [], "actions": [],
    "policies": [{"name": name, "entity": name, "allow": "true"} for name in ("Folder", "Page")],
}
HALF = "\ud83d"  # what JavaScript's "😀".slice(0, 1) is


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


def change(kind: str, entity: str, row_id: str, data: Any = None, **more: Any) -> dict[str, Any]:
    made = {"kind": kind, "entity": entity, "row_id": row_id, "op_id": f"{kind} {row_id}", **more}
    return made if data is None else {**made, "data": data}


def push(server: ApiStage, *changes: Any) -> Any:
    body = json.dumps({"changes": changes, "client_id": "c"}).encode()
    answer = server.call("POST", "/api/sync/push", body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json["results"]) == len(changes)
    return answer.json


def rows(server: ApiStage, entity: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.call(
        "GET", f"/api/entities/{entity}", token=ADMIN_TOKEN
    ).json["data"]
    return found


# --- Texts that are no UTF-8 ---------------------------------------------------------------


@pytest.mark.parametrize("bad", [
    change("insert", "Page", "_pending_2", {"text": f"a{HALF}"}),
    change("insert", "Page", "_pending_2", {"text": "x", f"b{HALF}": 1}),
    change("insert", "Page", f"_pending_{HALF}", {"text": "x"}),
    change("insert", "Page", "_pending_2", {"text": "x"}, op_id=HALF),
    change("insert", f"Page{HALF}", "_pending_2", {"text": "x"}),
    change(f"insert{HALF}", "Page", "_pending_2", {"text": "x"}),
    change("update", "Page", HALF, {"text": "x"}),
])
def test_change_with_half_a_surrogate_pair_fails_alone(server: ApiStage, bad: Any) -> None:
    good = change("insert", "Page", "_pending_1", {"text": "whole 😀 \\ud83d"})
    answer = push(server, bad, good, HALF)
    assert answer["applied"] == 1 and len(answer["errors"]) == 2
    first, second, third = answer["results"]
    assert (first["status"], second["status"], third["status"]) == ("error", "applied", "error")
    assert "half of a surrogate pair" in first["error"]["message"]
    assert [row["text"] for row in rows(server, "Page")] == ["whole 😀 \\ud83d"]
    assert push(server, bad, good)["deduped"] == 1


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [62, 100, 400])
def test_change_that_is_nested_too_deeply_fails_alone(server: ApiStage, levels: int) -> None:
    good = change("insert", "Page", "_pending_1", {"text": "good"})
    bad = change("insert", "Page", "_pending_2", {"text": nested(levels)})
    answer = push(server, bad, good, nested(levels))
    assert [result["status"] for result in answer["results"]] == ["error", "applied", "error"]
    assert [row["text"] for row in rows(server, "Page")] == ["good"]
    assert push(server, bad, good)["deduped"] == 1


def test_push_beyond_the_depth_that_is_repaired_is_refused(server: ApiStage) -> None:
    for levels in (600, 100_000):
        body = b'{"changes":[%b%b]}' % (b"[" * levels, b"]" * levels)
        answer = server.call("POST", "/api/sync/push", body)
        assert (answer.status_code, answer.json["error"]["code"]) == (400, "INVALID_JSON")


def test_error_of_an_unreadable_change_names_its_field(server: ApiStage) -> None:
    bad = change("insert", "Page", "_pending_1", {"text": f"a{HALF}"})
    error = push(server, bad)["results"][0]["error"]
    assert error["code"] == "INVALID_VALUE"
    assert (error["field"], error["value"]) == ("text", "a\ufffd")


def test_unreadable_operation_of_a_batch_fails_alone(server: ApiStage) -> None:
    sent = [{"op": "insert", "entity": "Page", "data": {"text": text}} for text in (HALF, "good")]
    answer = server.call("POST", "/api/batch", json.dumps({"operations": sent}).encode())
    assert answer.status_code == 200, answer.text
    assert [result["ok"] for result in answer.json["results"]] == [False, True]
    assert [row["text"] for row in rows(server, "Page")] == ["good"]


def test_unreadable_row_of_an_import_fails_alone(server: ApiStage) -> None:
    sent = {"entities": {"Page": [{"text": HALF}, {"text": "good"}]}}
    answer = server.call("POST", "/api/import", json.dumps(sent).encode(), ADMIN_TOKEN)
    assert (answer.json["imported"], answer.json["failed"]) == (1, 1)
    line = b'{"entity":"Page","row":{"text":"%b"}}\n'
    answer = server.call(
        "POST", "/api/import", line % b"\\ud83d" + line % b"fine", ADMIN_TOKEN,
        {"Content-Type": "application/x-ndjson"},
    )
    assert json.loads(answer.text.splitlines()[-1])["failed"] == 1
    assert {row["text"] for row in rows(server, "Page")} == {"good", "fine"}


def test_files_with_a_byte_order_mark_are_imported_and_seeded(
    server: ApiStage, tmp_path: Path
) -> None:
    line = b'\xef\xbb\xbf{"entity":"Page","row":{"text":"line"}}\n'
    lines = {"Content-Type": "application/x-ndjson"}
    answer = server.call("POST", "/api/import", line, ADMIN_TOKEN, lines)
    assert json.loads(answer.text.splitlines()[-1])["imported"] == 1
    document = b'\xef\xbb\xbf{"entities":{"Page":[{"text":"document"}]}}'
    assert server.call("POST", "/api/import", document, ADMIN_TOKEN).json["imported"] == 1
    seed = tmp_path / "seed.json"
    seed.write_bytes(b'\xef\xbb\xbf{"Page":[{"text":"seed"}]}')
    assert read_seed(seed) == [("Page", 0, {"text": "seed"})]


@pytest.mark.parametrize("body", [
    b'{"changes":[{"a":"\\ud83d"}', b'{"changes":["\\ud83d", NaN]}', b'{"x":"\\ud83d"}',
    b'{"changes":["\\ud83d", "\xff"]}',
    b'{"changes":["\\ud83d", ' + b"[" * 600 + b"]" * 600 + b"]}",
])
def test_what_is_no_json_is_refused_as_a_whole(server: ApiStage, body: bytes) -> None:
    answer = server.call("POST", "/api/sync/push", body)
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "INVALID_JSON")


def test_number_beyond_all_bounds_is_the_fault_of_its_change(server: ApiStage) -> None:
    body = b'{"changes":[%b,%b,{"x":"\\ud83d"}]}' % tuple(
        b'{"kind":"insert","entity":"Page","row_id":"_pending_1","data":{"text":"x","size":%b}}'
        % number for number in (b"1e400", b"1" * 30)
    )
    results = server.call("POST", "/api/sync/push", body).json["results"]
    assert [result["status"] for result in results] == ["error"] * 3


# --- Rows that have no id yet ---------------------------------------------------------------


def test_pending_id_stands_for_the_row_made_earlier_in_the_push(server: ApiStage) -> None:
    sent = (
        change("insert", "Folder", "_pending_f", {"name": "new"}),
        change("insert", "Page", "_pending_p", {"text": "_pending_f", "folderId": "_pending_f"}),
        change("update", "Page", "_pending_p", {"text": "edited"}),
        change("update", "Page", "_pending_p", {"id": "_pending_p", "size": 2}, op_id="again"),
        change("insert", "Page", "_pending_q", {"text": "gone"}),
        change("delete", "Page", "_pending_q"),
    )
    answer = push(server, *sent)
    assert (answer["applied"], answer["errors"]) == (6, [])
    (folder,), (page,) = rows(server, "Folder"), rows(server, "Page")
    assert page == {"id": page["id"], "text": "edited", "folderId": folder["id"], "size": 2}
    named = [result["row_id"] for result in answer["results"]]
    assert named[:4] == [folder["id"], page["id"], page["id"], page["id"]]
    assert named[4] == named[5]
    # Sent again, as after a lost answer: nothing happens twice, and the names are the same.
    again = push(server, *sent)
    assert (again["applied"], again["deduped"]) == (6, 6)
    assert [result["row_id"] for result in again["results"]] == named
    assert rows(server, "Page") == [page]


def test_repeated_insert_names_the_row_of_its_first_time(server: ApiStage) -> None:
    first = change("insert", "Folder", "_pending_f", {"name": "new"})
    made = push(server, first)["results"][0]["row_id"]
    answer = push(
        server, first,
        change("insert", "Page", "_pending_p", {"text": "", "folderId": "_pending_f"}),
        change("update", "Folder", "_pending_f", {"name": "renamed"}),
    )
    assert [result["status"] for result in answer["results"]] == ["replayed", "applied", "applied"]
    assert rows(server, "Folder") == [{"id": made, "name": "renamed"}]
    assert rows(server, "Page")[0]["folderId"] == made


def test_change_of_a_row_whose_insert_failed_says_so(server: ApiStage) -> None:
    answer = push(
        server, change("insert", "Folder", "_pending_f", {"name": 5}),
        change("update", "Folder", "_pending_f", {"name": "x"}),
        change("insert", "Page", "_pending_p", {"text": "", "folderId": "_pending_f"}),
        change("insert", "Page", "_pending_q", {"text": "alone", "folderId": "_pending_unknown"}),
    )
    assert [result["status"] for result in answer["results"]] == ["error"] * 3 + ["applied"]
    assert "its insert, earlier in this push, failed" in answer["errors"][1]
    assert [row["text"] for row in rows(server, "Page")] == ["alone"]


def test_texts_and_later_inserts_are_no_references(server: ApiStage) -> None:
    push(
        server, change("insert", "Page", "_pending_p", {"text": "", "folderId": "_pending_f"}),
        change("insert", "Folder", "_pending_f", {"name": "_pending_f"}),
    )
    assert rows(server, "Page")[0]["folderId"] == "_pending_f"
    assert rows(server, "Folder")[0]["name"] == "_pending_f"


# --- Long queues -------------------------------------------------------------------------------


def test_queue_of_more_changes_than_one_push_takes_is_not_refused(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/limits.md: the first PUSH_CHANGES are carried out, `remaining` says how many are not."""
    monkeypatch.setattr(limits, "PUSH_CHANGES", 2)
    monkeypatch.setattr(limits, "JSON_NODES", 40)
    monkeypatch.setattr("pylon.json_text.check_bounds.__defaults__", (40, None))
    sent = [
        change("insert", "Folder", f"_pending_{number}", {"name": str(number)})
        for number in range(50)
    ]
    body = json.dumps({"changes": sent, "client_id": "c"}).encode()
    answer = server.call("POST", "/api/sync/push", body)
    assert answer.status_code == 200, answer.text
    assert (answer.json["applied"], answer.json["remaining"]) == (2, 48)
    assert {row["name"] for row in rows(server, "Folder")} == {"0", "1"}


def test_deep_body_is_invalid_json_as_the_limits_say(server: ApiStage) -> None:
    row = (Path(__file__).parent.parent / "docs/limits.md").read_text()
    assert "| `JSON_DEPTH` | 64 levels | 400 `INVALID_JSON` for bodies" in row
    body = b'{"text":' + b"[" * limits.JSON_DEPTH + b"]" * limits.JSON_DEPTH + b"}"
    answer = server.call("POST", "/api/entities/Page", body)
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "INVALID_JSON")
    answer = server.call("POST", "/api/entities/Page", body.replace(b"[[]]", b"[]"))
    assert answer.json["error"]["code"] == "INVALID_VALUE"
