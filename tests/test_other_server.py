"""A database of the other server opens as it is: it is read, written, pulled and restarted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import apsw

from tests.support.manifests import notes_app
from tests.support.other_server import FIRST_SEQ, make_database
from tests.support.server import ADMIN_TOKEN, PylonServer


def note(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"{number:040x}", "title": f'note "{number}"', "ownerId": "ada",
            "shared": number % 2 == 0, "rank": number, "slug": None, **more}


NOTES = [note(n) for n in range(1, 6)]
TICKS = [{"id": f"{n:040x}", "n": n, "sender": "them"} for n in range(1, 4)]


def run(server: PylonServer, sql: str) -> list[Any]:
    conn = apsw.Connection(str(server.db_path))
    try:
        return conn.execute(sql).fetchall()
    finally:
        conn.close()


def ask(server: PylonServer, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    status, answer, _ = server.request(method, path, body, token=ADMIN_TOKEN)
    return status, answer


def make(make_server: Callable[..., PylonServer], **more: Any) -> PylonServer:
    server = make_server()
    make_database(server.db_path, notes_app(), {"Note": NOTES, "Tick": TICKS}, **more)
    return server


def test_it_is_read_written_pulled_and_started_again(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make(make_server).start()
    assert server.rows("Note") == {r["id"]: r for r in NOTES}
    assert server.rows("Tick") == {r["id"]: r for r in TICKS}
    assert ask(server, "POST", "/api/query/Note", {"shared": True, "$order": {"rank": "asc"}}) == (
        200, [r for r in NOTES if r["shared"]])

    last = FIRST_SEQ + len(NOTES) + len(TICKS) - 1
    status, pulled = ask(server, "GET", f"/api/sync/pull?since={last - 2}")
    assert status == 200 and pulled["cursor"]["last_seq"] == last
    assert [(c["seq"], c["row_id"], c["timestamp"]) for c in pulled["changes"]] == [
        (last - 1, TICKS[1]["id"], f"{1714700000 + last - 1}Z"),
        (last, TICKS[2]["id"], f"{1714700000 + last}Z")]
    assert ask(server, "GET", f"/api/sync/pull?since={last + 5}")[0] == 410
    snapshot = ask(server, "GET", "/api/sync/pull?since=0")[1]
    assert len(snapshot["changes"]) == len(NOTES) + len(TICKS)

    # Rows that its text search knows, and rows that it does not.
    for row in (NOTES[0], NOTES[-1]):
        path = f"/api/entities/Note/{row['id']}"
        assert ask(server, "PATCH", path, {"title": "changed"})[0] == 200
        assert ask(server, "GET", path) == (200, {**row, "title": "changed"})
    assert ask(server, "DELETE", f"/api/entities/Note/{NOTES[1]['id']}")[0] == 200
    new = note(9)
    assert ask(server, "POST", "/api/entities/Note", new)[0] == 201
    taken = ask(server, "POST", "/api/entities/Note", note(10, slug="s"))
    assert taken[0] == 201
    assert ask(server, "POST", "/api/entities/Note", note(11, slug="s"))[0] == 409
    changes = ask(server, "GET", f"/api/sync/pull?since={last}")[1]["changes"]
    assert [(c["kind"], c["seq"]) for c in changes] == [
        (kind, last + n) for n, kind in
        enumerate(("update", "update", "delete", "insert", "insert"), 1)]
    before = server.rows("Note")
    assert server.terminate() == 0

    server.start()
    assert server.rows("Note") == before and len(before) == len(NOTES) + 1
    assert ask(server, "GET", f"/api/sync/pull?since={last + 5}")[1]["changes"] == []
    assert server.terminate() == 0
    assert run(server, "PRAGMA integrity_check") == [("ok",)]


def test_its_text_search_goes_and_the_history_says_so(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make(make_server)
    plan = json.loads(server.ctl("schema", "plan", "--json").stdout)
    assert plan["start"] == "applies", plan
    removed = [o for o in plan["plan"]["operations"] if o["op"] == "remove_search_index"]
    assert {o["name"] for o in removed} == {
        f"{e}_fts{end}" for e in ("Note", "Tick") for end in ("", "_ai", "_ad", "_au")}
    assert server.ctl("export", "--entity", "Note").stdout.count("\n") == len(NOTES)
    server.start()
    history = json.loads(server.ctl("schema", "history", "--json").stdout)["history"]
    assert [h["baseline"] for h in history] == ["start", "dev"]
    assert any("another server's text search" in line for line in history[0]["plan"])
    left = {n for (n,) in run(server, "SELECT name FROM sqlite_schema")}
    assert not any("_fts" in n for n in left if n.startswith(("Note", "Tick")))
    assert {"by_owner", "Note_by_owner", "_facet_bitmap", "_pylon_crdt_snapshots"} <= left
    assert run(server, "SELECT count(*) FROM _pylon_crdt_snapshots")[0] == (8,)


def test_without_a_change_log_clients_resync(make_server: Callable[..., PylonServer]) -> None:
    server = make(make_server, change_log=False).start()
    assert ask(server, "GET", "/api/sync/pull?since=3")[0] == 410
    snapshot = ask(server, "GET", "/api/sync/pull?since=0")[1]
    assert {c["row_id"] for c in snapshot["changes"]} == {r["id"] for r in (*NOTES, *TICKS)}
    cursor = snapshot["cursor"]["last_seq"]
    path = f"/api/entities/Tick/{TICKS[0]['id']}"
    assert ask(server, "PATCH", path, {"n": 100})[0] == 200
    changes = ask(server, "GET", f"/api/sync/pull?since={cursor}")[1]["changes"]
    assert [c["data"]["n"] for c in changes] == [100]


def test_a_destructive_change_makes_its_tables_ours(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make(make_server)
    app = notes_app()
    app["entities"][0]["fields"][3] = {**app["entities"][0]["fields"][3], "type": "string"}
    server.manifest_path.write_text(json.dumps(app))
    refused = server.ctl("start")
    assert refused.returncode == 78 and "Note.rank: the type changes" in refused.stderr
    assert run(server, "SELECT count(*) FROM sqlite_schema WHERE name = 'Note_fts_ai'") == [(1,)]
    done = server.ctl("schema", "apply", "--allow-destructive", "--yes")
    assert done.returncode == 0, done.stderr
    server.start()
    assert server.rows("Note") == {r["id"]: {**r, "rank": str(r["rank"])} for r in NOTES}
    ((sql,),) = run(server, "SELECT sql FROM sqlite_schema WHERE name = 'Note'")
    assert sql.endswith("WITHOUT ROWID")
