"""`pylonctl migrate` beside a real server: offline, online under load, and refusals."""

from __future__ import annotations

import http.client
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pylon.control import ControlClient
from pylon.data_dir import KEY_FILE
from pylon.errors import Unavailable
from tests.support.cli import decode_output
from tests.support.load import Writer
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until


def rows_in_file(db: Path, entity: str) -> list[tuple[Any, ...]]:
    conn = sqlite3.connect(f"file:{db}?mode=ro", uri=True)
    try:
        return conn.execute(f'SELECT id, _json, _seq FROM "{entity}" ORDER BY id').fetchall()
    finally:
        conn.close()


def rows_in_schema(url: str, entity: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        statement: Any = f'SELECT id, _json, _seq FROM "{entity}" ORDER BY id'
        return conn.execute(statement).fetchall()


def insert(server: PylonServer, n: int) -> None:
    status, body, _ = server.request(
        "POST", "/api/entities/Tick", {"n": n, "sender": "a"}, token=ADMIN_TOKEN
    )
    assert status in (200, 201), body


class Probe(threading.Thread):
    """Writes and reads again and again, until the server refuses connections."""

    def __init__(self, server: PylonServer) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._ending = threading.Event()
        self.writes: list[tuple[int, str | None]] = []  # status, Retry-After
        self.reads: list[int] = []

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                status, _, headers = self._server.request(
                    "POST", "/api/entities/Tick", {"n": 0, "sender": "probe"}, token=ADMIN_TOKEN
                )
                self.writes.append((status, headers.get("retry-after")))
                status, _, _ = self._server.request(
                    "GET", "/api/entities/Tick?limit=1", token=ADMIN_TOKEN
                )
                self.reads.append(status)
            except (OSError, http.client.HTTPException):
                return  # the server has ended

    def halt(self) -> None:
        self._ending.set()
        self.join(20)


def test_online_move_takes_over_what_is_written_meanwhile(
    server: PylonServer, postgres_url: str
) -> None:
    writers = [Writer(server, f"w{n}", ADMIN_TOKEN) for n in range(4)]
    for writer in writers:
        writer.start()
    probe = Probe(server)
    probe.start()
    wait_until("the load runs", lambda: all(w.score.acknowledged > 200 for w in writers))
    done = server.ctl("migrate", "sqlite-to-postgres", "--online", "--to", postgres_url, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    body = decode_output(done)
    scores = [writer.halt() for writer in writers]
    probe.halt()
    # Until the end of the server, a write was accepted or refused with 503, and reads went on.
    refused = [retry_after for status, retry_after in probe.writes if status == 503]
    assert refused and set(refused) == {"1"}, probe.writes[-5:]
    assert {status for status, _ in probe.writes} == {201, 503}
    assert set(probe.reads) == {200}
    found = rows_in_schema(postgres_url, "Tick")
    assert found == rows_in_file(server.db_path, "Tick")
    ids = {row_id for row_id, _, _ in found}
    for score in scores:
        assert score.present.keys() - score.unknown <= ids, "an acknowledged row is missing"
        assert not score.deleted & ids
    with psycopg.connect(postgres_url) as conn:
        head = conn.execute("SELECT max(seq) FROM _pylon_change_log").fetchone()
    assert head == (body["head_seq"],)
    assert body["refused_writes_s"] > 0
    assert not list(server.db_path.parent.glob("*migrat*"))
    print(f"{len(found)} rows, {body['refused_writes_s']} s without writes")


def test_a_move_beside_a_running_server_needs_the_option_for_it(
    server: PylonServer, postgres_url: str
) -> None:
    done = server.ctl("migrate", "sqlite-to-postgres", "--to", postgres_url)
    assert done.returncode == 1
    assert "pylonctl stop" in done.stderr and "--online" in done.stderr
    with psycopg.connect(postgres_url) as conn:
        assert conn.execute(
            "SELECT 1 FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
        ).fetchall() == []
    dry = server.ctl("migrate", "sqlite-to-postgres", "--dry-run", "--to", postgres_url, "--json")
    assert dry.returncode == 0, dry.stderr
    assert decode_output(dry)["tables"]["Tick"] == 0


def test_there_and_back_without_a_server(
    server: PylonServer, tmp_path: Path, postgres_url: str
) -> None:
    for n in range(20):
        insert(server, n)
    assert server.terminate() == 0
    before = rows_in_file(server.db_path, "Tick")
    assert len(before) == 20
    out = server.ctl("migrate", "sqlite-to-postgres", "--to", postgres_url)
    assert out.returncode == 0, out.stderr
    assert "Tick: 20 rows, sha256 " in out.stdout
    assert "copy Tick: 20 of 20 rows, " in out.stderr and " rows/s" in out.stderr
    assert "start the server with DATABASE_URL set to postgresql://" in out.stdout
    assert "secret.key" in out.stdout
    assert rows_in_schema(postgres_url, "Tick") == before
    again = server.ctl("migrate", "sqlite-to-postgres", "--to", postgres_url)
    assert again.returncode == 1 and "has data already" in again.stderr
    back = tmp_path / "back.db"
    done = server.ctl(
        "migrate", "postgres-to-sqlite", "--from", postgres_url, "--to", str(back)
    )
    assert done.returncode == 0, done.stderr
    assert rows_in_file(back, "Tick") == before


def test_what_does_not_fit_is_printed_and_the_exit_code_is_1(
    server: PylonServer, postgres_url: str
) -> None:
    insert(server, 1)
    assert server.terminate() == 0
    conn = sqlite3.connect(server.db_path)
    conn.execute("UPDATE Tick SET sender = 'a' || char(0), _json = replace(_json, '\"a\"', ?)",
                 ('"a\\u0000"',))
    conn.commit()
    conn.close()
    done = server.ctl("migrate", "sqlite-to-postgres", "--to", postgres_url, "--json")
    assert done.returncode == 1
    body = json.loads(done.stdout)
    assert body["error"]["code"] == "MIGRATION_REFUSED"
    (problem,) = body["problems"]
    assert problem.startswith("Tick.sender: 1 row") and "U+0000" in problem
    assert problem in done.stderr


def test_export_reads_the_rows_that_were_moved(
    server: PylonServer, postgres_url: str
) -> None:
    for n in range(3):
        insert(server, n)
    assert server.terminate() == 0
    wanted = server.ctl("export", "--entity", "Tick").stdout
    assert server.ctl("migrate", "sqlite-to-postgres", "--to", postgres_url).returncode == 0
    server.env["DATABASE_URL"] = postgres_url
    done = server.ctl("export", "--entity", "Tick")
    assert done.returncode == 0, done.stderr
    assert done.stdout == wanted != ""


def test_clients_go_on_at_their_cursor_on_the_other_store(
    server: PylonServer, postgres_url: str
) -> None:
    """Sessions, cursors and op_ids of before are good; nobody has to resync, there and back."""
    token, _ = server.guest()
    for n in range(5):
        insert(server, n)
    status, before, _ = server.request("GET", "/api/sync/pull?since=0", token=token)
    assert status == 200
    op = {"op_id": "op-1", "entity": "Tick", "row_id": "a" * 40, "kind": "insert",
          "data": {"n": 100, "sender": "b"}}
    status, pushed, _ = server.request("POST", "/api/sync/push", {"changes": [op]}, token=token)
    assert status == 200, pushed
    assert server.terminate() == 0
    assert server.ctl("migrate", "sqlite-to-postgres", "--to", postgres_url).returncode == 0
    server.env["DATABASE_URL"] = postgres_url
    server.env["PYLON_SECRET_KEY"] = server.db_path.with_name(KEY_FILE).read_text().strip()
    cursor = serve_on(server, token, before, op, n=200)
    moved = server.folder / "data" / "back.db"
    done = server.ctl(
        "migrate", "postgres-to-sqlite", "--from", postgres_url, "--to", str(moved)
    )
    assert done.returncode == 0, done.stderr
    del server.env["DATABASE_URL"]
    server.env["PYLON_DB_PATH"] = str(moved)
    serve_on(server, token, cursor, op, n=300)


def serve_on(
    server: PylonServer, token: str, before: Any, op: dict[str, Any], n: int
) -> Any:
    """Start the server, and let the client of before go on; its next cursor."""
    server.start()
    insert(server, n)
    since = before["cursor"]["last_seq"]
    status, body, _ = server.request("GET", f"/api/sync/pull?since={since}", token=token)
    assert status == 200, body
    assert [c["data"]["n"] for c in body["changes"]][-1] == n
    assert {c["data"]["n"] for c in body["changes"]} <= {100, n}, "only what came after the cursor"
    status, again, _ = server.request("POST", "/api/sync/push", {"changes": [op]}, token=token)
    assert status == 200, again
    rows = server.rows("Tick", token)
    assert sorted(row["n"] for row in rows.values()).count(100) == 1, "the op was applied once"
    assert server.terminate() == 0
    return body


def test_online_move_back_refuses_writes_until_the_server_has_ended(
    server: PylonServer, tmp_path: Path, postgres_url: str
) -> None:
    assert server.terminate() == 0
    server.env["DATABASE_URL"] = postgres_url
    server.start()
    writers = [Writer(server, f"w{n}", ADMIN_TOKEN) for n in range(3)]
    for writer in writers:
        writer.start()
    wait_until("the load runs", lambda: all(w.score.acknowledged > 100 for w in writers))
    refused = server.ctl("migrate", "postgres-to-sqlite", "--to", str(tmp_path / "no.db"))
    assert refused.returncode == 1 and "--online" in refused.stderr
    back = tmp_path / "back.db"
    done = server.ctl("migrate", "postgres-to-sqlite", "--online", "--to", str(back), "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "stop the servers" in done.stderr
    scores = [writer.halt() for writer in writers]
    assert server.process is not None and server.process.wait(30) in (0, 75)
    found = rows_in_file(back, "Tick")
    assert found == rows_in_schema(postgres_url, "Tick")
    ids = {row_id for row_id, _, _ in found}
    for score in scores:
        assert score.present.keys() - score.unknown <= ids, "an acknowledged row is missing"
    print(f"{len(found)} rows, {decode_output(done)['refused_writes_s']} s until all was moved")


def test_a_server_accepts_writes_again_if_the_move_is_given_up(server: PylonServer) -> None:
    pidfile = json.loads((server.db_path.parent / f"{server.db_path.name}.pid").read_bytes())
    client = ControlClient(Path(pidfile["runtime_dir"]) / "control.sock", 20)
    with client.open_dialogue("move") as dialogue:
        assert dialogue.receive_line() == {"held": True}
        status, body, headers = server.request(
            "POST", "/api/entities/Tick", {"n": 1, "sender": "a"}, token=ADMIN_TOKEN
        )
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "UNAVAILABLE", "1")
        wait_until("it is not ready", lambda: server.request("GET", "/readyz")[0] == 503)
        assert server.request("GET", "/api/entities/Tick", token=ADMIN_TOKEN)[0] == 200
        with pytest.raises(Unavailable), client.open_dialogue("move") as second:
            second.receive_line()
    wait_until("writes are accepted", lambda: server.request(
        "POST", "/api/entities/Tick", {"n": 1, "sender": "a"}, token=ADMIN_TOKEN
    )[0] == 201)
    server.wait_ready()
