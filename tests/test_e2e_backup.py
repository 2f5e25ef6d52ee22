"""A backup under load equals the database at one commit; a restore opens a new epoch."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import stores
from tests.support.load import Writer
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient, settle
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores


def rows_at(events: list[dict[str, Any]], seq: int, entity: str) -> dict[str, dict[str, Any]]:
    """The rows of `entity` as the change log says they were right after `seq`."""
    rows: dict[str, dict[str, Any]] = {}
    for event in sorted(events, key=lambda e: e["seq"]):
        if event["seq"] > seq or event["entity"] != entity:
            continue
        if event["kind"] == "delete":
            rows.pop(event["row_id"], None)
        else:
            rows[event["row_id"]] = event["data"]
    return rows


def rows_in_file(db: Path, entity: str) -> dict[str, dict[str, Any]]:
    """The rows as the columns of the file hold them; each must agree with its own JSON."""
    conn = sqlite3.connect(f"file:{db}?mode=ro", uri=True)
    try:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        out = {}
        for row_id, n, sender, text in conn.execute(
            f'SELECT id, n, sender, _json FROM "{entity}"'
        ):
            out[row_id] = {"id": row_id, "n": n, "sender": sender}
            assert json.loads(text) == out[row_id]
        return out
    finally:
        conn.close()


@pytest.mark.sqlite  # reads the bundle; of PostgreSQL: test_e2e_postgres_backup
def test_a_backup_under_load_equals_the_database_at_its_seq(server: PylonServer) -> None:
    with SyncClient(server, "ws", ADMIN_TOKEN) as client:
        writers = [Writer(server, f"w{n}", ADMIN_TOKEN) for n in range(4)]
        for writer in writers:
            writer.start()
        wait_until("the load runs", lambda: all(w.score.acknowledged > 100 for w in writers))
        bundles = [server.folder / "backups" / name for name in ("one", "two")]
        for bundle in bundles:
            done = server.ctl("backup", str(bundle))
            assert done.returncode == 0, done.stderr + done.stdout
        before = sum(w.score.acknowledged for w in writers)
        wait_until(
            "the load went on", lambda: sum(w.score.acknowledged for w in writers) > before + 50
        )
        for writer in writers:
            writer.halt()
        wait_until(
            "the client has the log", lambda: client.cursor >= server.status()["head_seq"]
        )
        seqs = []
        for bundle in bundles:
            assert server.ctl("backup", "verify", str(bundle)).returncode == 0
            facts = json.loads((bundle / "MANIFEST.json").read_text())
            seqs.append(facts["seq"])
            assert rows_in_file(bundle / "pylon.db", "Tick") == rows_at(
                client.received, facts["seq"], "Tick"
            )
        assert 0 < seqs[0] < seqs[1] < client.cursor


def test_a_restore_brings_the_rows_back_and_every_client_resyncs(server: PylonServer) -> None:
    token, user = server.guest()
    for n in range(5):
        server.request("POST", "/api/entities/Tick", {"n": n, "sender": user}, token=token)
    bundle = server.folder / "bundle"
    assert server.ctl("backup", str(bundle)).returncode == 0
    kept = server.rows("Tick")
    with SyncClient(server, "ws", token) as ws, SyncClient(server, "sse", token) as sse:
        for n in range(5, 9):
            server.request("POST", "/api/entities/Tick", {"n": n, "sender": user}, token=token)
        settle([ws, sse], server, ("Tick",))
        old_cursor = ws.cursor

        refused = server.ctl("restore", str(bundle), "--yes", *stores.restore_flags())
        assert refused.returncode != 0
        assert "stop it first" in refused.stderr
        assert server.terminate() == 0
        done = server.ctl("restore", str(bundle), "--yes", *stores.restore_flags())
        assert done.returncode == 0, done.stderr + done.stdout
        server.start()

        assert server.rows("Tick") == kept
        status, body, _ = server.request("GET", "/api/auth/me", token=token)
        assert (status, body["user_id"]) == (200, user)
        status, body, _ = server.request("GET", f"/api/sync/pull?since={old_cursor}", token=token)
        assert (status, body["error"]["code"]) == (410, "RESYNC_REQUIRED")
        settle([ws, sse], server, ("Tick",))
        assert ws.resyncs == sse.resyncs == 1
        server.request("POST", "/api/entities/Tick", {"n": 99, "sender": user}, token=token)
        settle([ws, sse], server, ("Tick",))
        assert ws.cursor > old_cursor + 1_000_000
    if stores.current().name == stores.SQLITE:
        replaced = list(server.db_path.parent.glob("*.replaced-*"))
        assert replaced, "the database that was replaced is kept"



def flip_a_byte(bundle: Path) -> None:
    raw = bytearray((bundle / "pylon.db").read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (bundle / "pylon.db").write_bytes(raw)


def cut_the_file(bundle: Path) -> None:
    raw = (bundle / "pylon.db").read_bytes()
    (bundle / "pylon.db").write_bytes(raw[: len(raw) // 2])


def lose_the_database(bundle: Path) -> None:
    (bundle / "pylon.db").unlink()


@pytest.mark.sqlite
@pytest.mark.parametrize("damage", [flip_a_byte, cut_the_file, lose_the_database])
def test_a_damaged_bundle_is_refused_and_nothing_is_replaced(
    server: PylonServer, damage: Callable[[Path], None]
) -> None:
    server.request("POST", "/api/entities/Tick", {"n": 1, "sender": "x"}, token=ADMIN_TOKEN)
    bundle = server.folder / "bundle"
    assert server.ctl("backup", str(bundle)).returncode == 0
    assert server.terminate() == 0
    before = server.db_path.read_bytes()
    damage(bundle)
    assert server.ctl("backup", "verify", str(bundle)).returncode == 1
    refused = server.ctl("restore", str(bundle), "--yes", *stores.restore_flags())
    assert refused.returncode == 1
    assert refused.stderr.strip()
    assert server.db_path.read_bytes() == before
