"""`pylonctl seed`, `export` and `import` with a server that runs, and export without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import ADMIN_TOKEN, PylonServer

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.stores]
ID = "a" * 40


def write_seed(server: PylonServer, rows: Any, name: str = "seed.json") -> None:
    (server.folder / name).write_text(json.dumps(rows))


def tick(n: Any, **more: Any) -> dict[str, Any]:
    return {"n": n, "sender": "seed", **more}


def test_seed_is_sown_once_where_rows_have_ids(server: PylonServer) -> None:
    write_seed(server, {"Tick": [tick(1, id=ID), tick(2)], "Note": [
        {"title": "t", "ownerId": "o", "shared": True, "id": "b" * 40}]})
    first = server.ctl("seed", "--json")
    assert first.returncode == 0, first.stderr
    body = json.loads(first.stdout)
    assert (body["code"], body["seeded"], body["total"]) == ("SEED_OK", {"Tick": 2, "Note": 1}, 3)
    again = json.loads(server.ctl("seed", "--json").stdout)
    assert (again["code"], again["total"], again["present"]) == (
        "SEED_OK", 1, {"Tick": 1, "Note": 1})
    write_seed(server, {"Tick": [tick(9, id=ID)]})
    assert server.ctl("seed").stdout == "0 rows inserted, 1 were there\n"
    rows = server.rows("Tick")
    assert len(rows) == 3 and rows[ID]["n"] == 1


def test_seed_names_the_rows_that_are_refused(server: PylonServer) -> None:
    write_seed(server, {"Tick": [tick("x"), tick(2)], "Nope": [{}]}, "more.json")
    done = server.ctl("seed", "--file", "more.json", "--json")
    body = json.loads(done.stdout)
    assert (done.returncode, body["code"], body["total"], body["failed"]) == (
        1, "SEED_PARTIAL", 1, 2)
    assert [(d["code"], d["cause"]) for d in body["diagnostics"]] == [
        ("SEED_INSERT_FAILED", "INVALID_VALUE"), ("SEED_INSERT_FAILED", "ENTITY_NOT_FOUND")]
    assert "Tick[0]: Tick.n must be" in done.stderr
    (server.folder / "bad.json").write_text('{"Tick": [}')
    bad = server.ctl("seed", "--file", "bad.json", "--json")
    assert (bad.returncode, json.loads(bad.stdout)["code"]) == (1, "SEED_INVALID_JSON")
    assert "bad.json:1:" in bad.stderr
    none = server.ctl("seed", "--file", "none.json", "--json")
    assert (none.returncode, json.loads(none.stdout)["code"]) == (1, "SEED_FILE_READ")
    wrong = server.ctl("seed", "--file", "more.json", "--token", "x" * 40, "--json")
    assert wrong.returncode == 1 and json.loads(wrong.stdout)["total"] <= 1


def test_what_is_exported_is_imported(
    server: PylonServer, make_server: Callable[..., PylonServer]
) -> None:
    rows = [tick(n) for n in range(300)]
    status, _, _ = server.request("POST", "/api/import", {"entities": {"Tick": rows}},
                                  token=ADMIN_TOKEN)
    assert status == 200
    write_seed(server, {"Note": [{"title": 'say "hi"\n', "ownerId": "o", "shared": False}]})
    assert server.ctl("seed").returncode == 0
    done = server.ctl("export", "--out", "all.jsonl", "--json")
    assert json.loads(done.stdout) == {
        "code": "EXPORT_OK", "ok": True, "rows": 301, "file": "all.jsonl"}
    served = (server.folder / "all.jsonl").read_bytes()
    only = server.ctl("export", "--entity", "Note").stdout
    assert json.loads(only)["row"]["title"] == 'say "hi"\n'
    assert server.terminate() == 0

    offline = server.ctl("export", "--out", "file.jsonl")
    assert offline.returncode == 0, offline.stderr
    assert sorted((server.folder / "file.jsonl").read_bytes().splitlines()) == sorted(
        served.splitlines())
    refused = server.ctl("import", "all.jsonl")
    assert refused.returncode == 69 and "pylonctl start, then import" in refused.stderr

    other = make_server(name="other").start()
    lines = served.splitlines()
    lines[7:7] = [b"", b"{nonsense", b'{"entity": "Tick", "row": {"n": "x", "sender": "s"}}']
    (other.folder / "in.jsonl").write_bytes(b"\n".join(lines))
    done = other.ctl("import", "in.jsonl", "--json")
    body = json.loads(done.stdout)
    assert (done.returncode, body["code"], body["imported"], body["failed"]) == (
        1, "IMPORT_PARTIAL", 301, 2)
    assert [(e["row"], e["code"]) for e in body["errors"]] == [
        (9, "INVALID_JSON"), (10, "INVALID_VALUE")]
    assert "301 rows imported, 2 refused" in done.stderr
    wanted = {}
    for line in served.splitlines():
        entry = json.loads(line)
        wanted.setdefault(entry["entity"], {})[entry["row"]["id"]] = entry["row"]
    assert other.rows("Tick") == wanted["Tick"] and other.rows("Note") == wanted["Note"]

    (other.folder / "again.jsonl").write_bytes(served)
    again = other.ctl("import", "again.jsonl")
    assert again.returncode == 1 and again.stdout == "0 rows imported, 301 refused\n"
    new = other.ctl("import", "again.jsonl", "--new-ids")
    assert new.returncode == 0 and len(other.rows("Tick")) == 600


def test_portions_keep_the_numbers_of_lines(tmp_path: Path) -> None:
    from pylon.cli.import_ import _batches

    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(b"%d" % n if n % 3 else b" " for n in range(1, 16_001)))
    with path.open("rb") as lines:
        portions = list(_batches(lines))
    assert [len(numbers) for numbers, _ in portions] == [5_000, 5_000, 667]
    for numbers, body in portions:
        assert [int(line) for line in body.split(b"\n")] == numbers


def test_data_verbs_read_and_write_rows(server: PylonServer) -> None:
    def data(*args: str) -> str:
        done = server.ctl("data", *args)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    row_id = data("insert", "Tick", json.dumps(tick(1)))
    data("insert", "Tick", json.dumps(tick(2)))
    assert json.loads(data("get", "Tick", row_id))["n"] == 1
    assert data("update", "Tick", row_id, '{"n": 7}') == f"Tick {row_id} is updated"
    found = data("list", "Tick", "--filter", '{"n": {"$gt": 1}}', "--order", '{"n": "desc"}')
    assert [json.loads(line)["n"] for line in found.splitlines()] == [7, 2]
    assert data("delete", "Tick", row_id) == f"Tick {row_id} is deleted"
    gone = server.ctl("data", "get", "Tick", row_id, "--json")
    assert (gone.returncode, json.loads(gone.stdout)["error"]["code"]) == (1, "NOT_FOUND")
    wrong = server.ctl("data", "list", "Tick", "--filter", "[]")
    assert (wrong.returncode, "--filter must be a JSON object" in wrong.stderr) == (1, True)
    watched = data("watch", "Tick", "--since", "1", "--count", "2")
    assert [json.loads(line)["kind"] for line in watched.splitlines()] == ["insert", "update"]
