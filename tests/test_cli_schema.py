"""`pylonctl schema`: what it prints, what it refuses, and that data outlives a change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.cli import Ctl, decode_output
from tests.support.manifests import field, notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer

OLD = {
    "manifest_version": 1, "name": "app", "version": "1", "routes": [], "policies": [],
    "entities": [{"name": "Note", "fields": [field("title", "string"), field("n", "string", True)],
                  "indexes": [{"name": "by_n", "fields": ["n"], "unique": False}]}],
}


def changed(**fields: Any) -> dict[str, Any]:
    """The app with other fields, by name: (type, optional)."""
    entity = {"name": "Note", "fields": [field(n, *f) for n, f in fields.items()], "indexes": []}
    return {**OLD, "entities": [entity]}


NEW = changed(title=("string",), n=("int", True))


def write(folder: Path, manifest: Any, name: str = "pylon.manifest.json") -> None:
    (folder / name).write_text(json.dumps(manifest))


@pytest.fixture
def database(tmp_path: Path, ctl: Ctl) -> Path:
    """The old app's database with two rows, the new app's manifest beside it."""
    from pylon.clock import SystemClock
    from pylon.manifest_loader import parse_manifest
    from pylon.storage.sqlite.connect import open_writer
    from pylon.storage.sqlite.schema.apply import prepare_store

    path = tmp_path / ".pylon" / "dev.db"
    path.parent.mkdir()
    conn = open_writer(path)
    prepare_store(conn, parse_manifest(json.dumps(OLD), "old"), SystemClock())
    conn.execute("INSERT INTO Note (id, title, n) VALUES ('1', 'a', '7'), ('2', 'b', NULL)")
    conn.close()
    write(tmp_path, NEW)
    return path


def notes(path: Path) -> list[Any]:
    conn = apsw.Connection(str(path))
    try:
        return conn.execute("SELECT id, title, n FROM Note ORDER BY id").fetchall()
    finally:
        conn.close()


def test_check(ctl: Ctl, tmp_path: Path) -> None:
    done = decode_output(ctl("schema", "check", "--json"))
    assert (done["code"], done["entities"], done["diagnostics"]) == ("SCHEMA_OK", 2, [])
    bad = notes_app()
    bad["entities"][0]["fields"][0]["type"] = "text"
    write(tmp_path, bad, "bad.json")
    done = ctl("schema", "check", "bad.json", "--json")
    assert done.returncode == 1 and "bad.json:1:" in done.stderr
    body = decode_output(done)
    assert body["code"] == "SCHEMA_INVALID" and body["diagnostics"][0]["severity"] == "error"


def test_diff(ctl: Ctl, tmp_path: Path) -> None:
    new = notes_app()
    new["manifest_version"] = 1
    note = new["entities"][0]
    note["fields"][0]["optional"] = True
    note["fields"].pop(3)
    note["indexes"] = []
    new["entities"][1] = {"name": "Tock", "fields": [field("n", "int")], "indexes": []}
    new["policies"] = new["policies"][:1]
    write(tmp_path, new, "new.json")
    body = decode_output(ctl("schema", "diff", "pylon.manifest.json", "new.json", "--json"))
    assert body["changes"] == [
        {"kind": "field_changed", "entity": "Note", "name": "title",
         "detail": "from string to optional string"},
        {"kind": "field_removed", "entity": "Note", "name": "rank"},
        {"kind": "index_removed", "entity": "Note", "name": "by_owner"},
        {"kind": "entity_removed", "entity": "Tick"},
        {"kind": "entity_added", "entity": "Tock"},
        {"kind": "policy_removed", "name": "ticks"},
    ]
    assert body["summary"] == {"total": 6, "added": 1, "removed": 4, "changed": 1}
    same = ctl("schema", "diff", "new.json", "new.json")
    assert same.stdout == "no differences\n"
    missing = ctl("schema", "diff", "new.json", "--json")
    assert missing.returncode == 64 and decode_output(missing)["code"] == "DIFF_MISSING_ARGS"


def test_plan_says_what_a_start_would_do(ctl: Ctl, database: Path) -> None:
    done = ctl("schema", "plan", "--json")
    assert done.returncode == 1
    body = decode_output(done)
    assert (body["code"], body["dry_run"], body["start"]) == ("PUSH_DRY_RUN", True, "refused")
    assert body["baseline"] == "live_sqlite" and body["analysis"]["destructive"]
    assert [o["op"] for o in body["plan"]["operations"]] == ["alter_field", "remove_index"]
    assert body["analysis"]["warnings"][0]["code"] == "DESTRUCTIVE_ALTER_FIELD"
    assert "refused at" not in done.stderr and notes(database)[0] == ("1", "a", "7")
    text = ctl("schema", "plan").stdout
    assert "a start does: remove_index Note.Note_by_n" in text
    assert "only `schema apply --allow-destructive` does: alter_field Note.n" in text


def test_plan_without_a_database(ctl: Ctl) -> None:
    body = decode_output(ctl("schema", "plan", "--json"))
    assert (body["baseline"], body["start"]) == ("empty", "applies")
    assert [o["op"] for o in body["plan"]["operations"]] == [
        "create_entity", "add_index", "create_entity"]


def test_plan_and_check_config_name_the_value_that_is_in_a_unique_indexs_way(
    ctl: Ctl, database: Path, tmp_path: Path
) -> None:
    conn = apsw.Connection(str(database))
    conn.execute("INSERT INTO Note (id, title, n) VALUES ('3', 'a', '8')")
    conn.close()
    app = json.loads(json.dumps(OLD))
    app["entities"][0]["indexes"].append({"name": "one", "fields": ["title"], "unique": True})
    write(tmp_path, app)
    plan = ctl("schema", "plan", "--json")
    (refusal,) = decode_output(plan)["diagnostics"]
    assert plan.returncode == 1
    assert "Note_one" in refusal["message"] and "'a' (2 times)" in refusal["message"]
    for verb in ("check-config", "start"):
        done = ctl(verb)
        (line,) = [x for x in done.stderr.splitlines() if "warning" not in x]
        assert (done.returncode, "'a' (2 times)" in line) == (78, True), done.stderr


def test_apply_needs_to_be_told_and_makes_a_backup(
    ctl: Ctl, database: Path, tmp_path: Path
) -> None:
    blocked = ctl("schema", "apply", "--yes", "--json")
    assert blocked.returncode == 1 and decode_output(blocked)["code"] == "PUSH_BLOCKED"
    assert "--allow-destructive" in blocked.stderr and notes(database)[0] == ("1", "a", "7")
    aborted = ctl("schema", "apply", "--allow-destructive", stdin="n\n")
    assert (aborted.returncode, aborted.stdout) == (1, "Aborted.\n")
    closed = ctl("schema", "apply", "--allow-destructive", stdin="")
    assert (closed.returncode, closed.stdout) == (1, "Aborted.\n")
    assert notes(database)[0] == ("1", "a", "7")
    assert not list(tmp_path.glob(".pylon/*.before-*"))

    done = ctl("schema", "apply", "--allow-destructive", "--yes", "--json")
    body = decode_output(done)
    assert (done.returncode, body["code"], body["applied"]) == (0, "PUSH_APPLIED", True)
    assert notes(database) == [("1", "a", 7), ("2", "b", None)]
    assert ctl("backup", "verify", body["backup"]).returncode == 0
    entry = decode_output(ctl("schema", "history", "--limit", "1", "--json"))["history"][0]
    assert entry["baseline"] == "apply" and entry["plan"][0].startswith("alter_field Note.n")
    again = ctl("schema", "apply", "--yes")
    assert (again.returncode, again.stdout) == (0, "nothing to do\n")
    assert ctl("restore", body["backup"], "--yes").returncode == 0
    assert notes(database)[0] == ("1", "a", "7")


def test_apply_refuses_what_it_cannot_do_and_says_how(
    ctl: Ctl, database: Path, tmp_path: Path
) -> None:
    write(tmp_path, changed(title=("string",), n=("string",)))
    done = ctl("schema", "apply", "--allow-destructive", "--yes", "--json")
    assert done.returncode == 1
    assert "--default Note.n=VALUE" in decode_output(done)["diagnostics"][0]["message"]
    wrong = ctl("schema", "apply", "--default", "Note.x=1")
    assert wrong.returncode == 1 and "has no field Note.x" in wrong.stderr
    done = ctl("schema", "apply", "--allow-destructive", "--yes", "--default", "Note.n=none")
    assert done.returncode == 0, done.stderr
    assert notes(database)[1] == ("2", "b", "none")


def test_a_value_that_does_not_convert_stops_apply(ctl: Ctl, database: Path) -> None:
    conn = apsw.Connection(str(database))
    conn.execute("UPDATE Note SET n = 'many' WHERE id = '1'")
    conn.close()
    done = ctl("schema", "apply", "--allow-destructive", "--yes")
    assert done.returncode == 78
    assert "row 1 has 'many', which does not convert to a whole number" in done.stderr
    assert notes(database)[0] == ("1", "a", "many")


def test_inspect_and_history(ctl: Ctl, database: Path) -> None:
    tables = {t["name"]: t for t in decode_output(ctl("schema", "inspect", "--json"))["tables"]}
    assert {"name": "title", "column_type": "TEXT", "notnull": True, "primary_key": False} in (
        tables["Note"]["columns"])
    assert {"name": "Note_by_n", "columns": ["n"], "unique": False} in tables["Note"]["indexes"]
    assert "  title TEXT NOT NULL" in ctl("schema", "inspect", "--sqlite", str(database)).stdout
    entry = decode_output(ctl("schema", "history", "--json"))["history"][0]
    assert (entry["baseline"], entry["manifest_version"], entry["app_version"]) == ("start", 1, "1")
    bad = ctl("schema", "history", "--limit", "0", "--json")
    assert bad.returncode == 64 and decode_output(bad)["code"] == "HISTORY_INVALID_LIMIT"
    assert ctl("schema", "inspect", "--sqlite", "none.db").returncode == 69


def test_a_newer_database_is_refused_by_all(ctl: Ctl, database: Path) -> None:
    conn = apsw.Connection(str(database))
    conn.execute("UPDATE _pylon_meta SET value = '9' WHERE key = 'schema_format'")
    conn.close()
    for verb in (["schema", "plan"], ["schema", "apply", "--yes"], ["start"], ["export"]):
        done = ctl(*verb)
        assert done.returncode == 78, verb
        assert "written by a newer Pylon: it has schema format 9" in done.stderr
        assert "Traceback" not in done.stderr


def test_indexes_change_while_the_server_runs(make_server: Callable[..., PylonServer]) -> None:
    server = make_server().start()
    for n in (1, 2):
        server.request("POST", "/api/entities/Tick", {"n": n, "sender": "x"}, token=ADMIN_TOKEN)
    app = notes_app()
    app["entities"][0]["indexes"] = []
    app["entities"][1]["indexes"] = [{"name": "by_n", "fields": ["n"], "unique": True}]
    write(server.folder, app)
    done = server.ctl("schema", "apply", "--indexes", "--json")
    assert done.returncode == 0, done.stderr
    assert decode_output(done)["steps"] == [
        "remove_index Note.Note_by_owner", "add_index Tick.Tick_by_n"]
    row = {"n": 2, "sender": "y"}
    status, body, _ = server.request("POST", "/api/entities/Tick", row, token=ADMIN_TOKEN)
    assert (status, body["error"]["code"]) == (409, "UNIQUE_VIOLATION")
    assert server.ctl("schema", "apply", "--indexes").stdout == "nothing to do\n"

    app["entities"][1]["indexes"].append({"name": "one", "fields": ["sender"], "unique": True})
    write(server.folder, app)
    refused = server.ctl("schema", "apply", "--indexes")
    assert refused.returncode == 78 and "UNIQUE constraint failed" in refused.stderr
    app["entities"][1]["fields"].append(field("more", "int", True))
    app["entities"][1]["indexes"][1] = {"name": "one", "fields": ["more"], "unique": False}
    write(server.folder, app)
    refused = server.ctl("schema", "apply", "--indexes")
    assert refused.returncode == 78 and "restart it with the new manifest" in refused.stderr
    row = {"n": 3, "sender": "x"}
    assert server.request("POST", "/api/entities/Tick", row, token=ADMIN_TOKEN)[0] == 201
    assert server.terminate() == 0
    server.start()
    assert server.ctl("schema", "plan").stdout.startswith("nothing to do")
    assert server.ctl("schema", "inspect").stdout.count("index Tick_") == 2
    assert server.terminate() == 0
    assert server.ctl("schema", "apply", "--indexes").returncode == 69


def test_a_served_app_changes_its_schema(make_server: Callable[..., PylonServer]) -> None:
    server = make_server()
    server.start()
    ids = [
        server.request("POST", "/api/entities/Tick", {"n": n, "sender": "x"}, token=ADMIN_TOKEN)
        [1]["id"] for n in range(3)
    ]
    cursor = server.request("GET", "/api/sync/pull?since=0", token=ADMIN_TOKEN)[1]["cursor"]
    refused = server.ctl("schema", "apply", "--allow-destructive", "--yes")
    assert refused.returncode == 1 and "stop it first" in refused.stderr
    assert server.ctl("schema", "plan").stdout.startswith("nothing to do")
    assert server.terminate() == 0

    app = notes_app()
    app["entities"][1] = {
        "name": "Beat", "crdt": False, "indexes": [],
        "fields": [field("n", "string"), field("origin", "string"), field("loud", "bool")],
    }
    app["policies"][1]["entity"] = "Beat"
    write(server.folder, app)
    done = server.ctl(
        "schema", "apply", "--allow-destructive", "--yes", "--rename-entity", "Tick:Beat",
        "--rename-field", "Beat.sender:origin", "--default", "Beat.loud=false",
    )
    assert done.returncode == 0, done.stderr
    server.start()
    assert server.rows("Beat") == {
        i: {"id": i, "n": str(n), "origin": "x", "loud": False} for n, i in enumerate(ids)}
    status, body, _ = server.request(
        "GET", f"/api/sync/pull?since={cursor['last_seq']}", token=ADMIN_TOKEN)
    assert (status, body["error"]["code"]) == (410, "RESYNC_REQUIRED")
    changes = server.request("GET", "/api/sync/pull?since=0", token=ADMIN_TOKEN)[1]["changes"]
    assert {c["entity"] for c in changes} == {"Beat"} and len(changes) == 3
    assert server.request("GET", "/api/entities/Tick", token=ADMIN_TOKEN)[0] == 404
