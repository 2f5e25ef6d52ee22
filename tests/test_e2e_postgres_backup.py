"""`pylonctl backup` and `restore` beside a real server on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.load import Writer
from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until


@pytest.fixture
def on_postgres(
    tmp_path: Path, processes: None, postgres_url: str
) -> Iterator[PylonServer]:
    """A server on PostgreSQL."""
    made = PylonServer(tmp_path / "app", notes_app(), {"DATABASE_URL": postgres_url})
    made.start()
    yield made
    made.close()
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        schema = postgres_url.rpartition("%3D")[2]
        for (name,) in conn.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE %s", (f"{schema}_replaced_%",)
        ).fetchall():
            conn.execute(f"DROP SCHEMA {name} CASCADE")


def pull(server: PylonServer, since: int) -> tuple[int, Any]:
    status, body, _ = server.request("GET", f"/api/sync/pull?since={since}", token=ADMIN_TOKEN)
    return status, body


def rows_at(server: PylonServer, seq: int) -> set[str]:
    """The ids of Tick as the change log says they were right after `seq`."""
    ids: set[str] = set()
    with psycopg.connect(server.env["DATABASE_URL"]) as conn:
        for entity, row_id, kind in conn.execute(
            "SELECT entity, row_id, kind FROM _pylon_change_log WHERE seq <= %s ORDER BY seq",
            (seq,),
        ):
            if entity == "Tick":
                (ids.discard if kind == "delete" else ids.add)(row_id)
    return ids


def test_backup_under_load_is_restored_and_newer_cursors_resync(
    on_postgres: PylonServer, tmp_path: Path
) -> None:
    server, bundle = on_postgres, tmp_path / "bundle"
    writers = [Writer(server, f"w{n}", ADMIN_TOKEN) for n in range(3)]
    for writer in writers:
        writer.start()
    wait_until("the load runs", lambda: all(w.score.acknowledged > 50 for w in writers))
    done = server.ctl("backup", str(bundle), "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    before = sum(w.score.acknowledged for w in writers)
    wait_until("the load goes on", lambda: sum(w.score.acknowledged for w in writers) > before + 20)
    for writer in writers:
        assert not writer.halt().bad
    deep = server.ctl("backup", "verify", str(bundle), "--deep")
    assert deep.returncode == 0, deep.stderr
    status = server.status()
    assert status["head_seq"] > report["seq"]
    metrics = server.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"}
    )[1]
    assert "pylon_backup_last_success_timestamp_seconds 1" in metrics
    wanted = rows_at(server, report["seq"])
    refused = server.ctl("restore", str(bundle), "--yes", "--replace")
    assert refused.returncode == 1 and "stop it first" in refused.stderr
    head = status["head_seq"]
    assert server.terminate() == 0
    refused = server.ctl("restore", str(bundle), "--yes")
    assert refused.returncode == 1 and "--replace" in refused.stderr
    restored = server.ctl("restore", str(bundle), "--yes", "--replace")
    assert restored.returncode == 0, restored.stderr
    assert "_replaced_" in restored.stdout
    server.start()
    assert set(server.rows("Tick")) == wanted
    assert pull(server, head)[0] == 410, "a cursor of the lost history"
    assert pull(server, report["seq"])[0] == 200, "a cursor that the bundle has"
