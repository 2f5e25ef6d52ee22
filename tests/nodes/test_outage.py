"""A database that is away: reads are refused, writes wait, sockets stay for a while; all recovers.

The test has a server of its own, since it stops it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import websocket

from tests.nodes.fleet import Node
from tests.nodes.roamer import open_admitted
from tests.nodes.test_two_nodes import connect, insert, read_until
from tests.support import stores
from tests.support.manifests import notes_app
from tests.support.postgres import PostgresServer, find_programs
from tests.support.wait import WAIT_S, wait_until

pytestmark = [pytest.mark.usefixtures("processes", "postgres_server"), pytest.mark.slow]

PASSWORD = "geheim-4711"


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    found = find_programs()
    version = stores.wanted_version(found)
    assert version is not None  # else `postgres_server` has skipped the test
    server = PostgresServer(found[version])
    yield server
    server.close()


def make_node(database: PostgresServer, folder: Any, **env: str) -> Node:
    return Node(folder, notes_app(), {
        "DATABASE_URL": database.url.replace("pylon@", f"pylon:{PASSWORD}@"),
        "PYLON_HTTP_WORKERS": "1", "PYLON_SSE_WORKERS": "0",
        "PYLON_SHARD_WORKERS": "0", **env,
    })


@pytest.fixture(scope="module")
def node(
    processes: None, database: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    made = make_node(database, tmp_path_factory.mktemp("node"), PYLON_DATABASE_OUTAGE_S="6")
    made.start()
    yield made
    shown = made.ctl("status").stdout + made.ctl("config", "--json").stdout
    made.close()
    assert PASSWORD not in shown + made.log_path.read_text(errors="replace")


def checks(node: Node) -> dict[str, Any]:
    _, body, _ = node.request("GET", "/readyz")
    return {name: check["ok"] for name, check in body["checks"].items()}


def test_a_short_outage_refuses_reads_and_delays_writes(
    node: Node, database: PostgresServer
) -> None:
    token, user_id = node.guest()
    with closing(connect(node, token)) as ws:
        first = insert(node, token, user_id, "first")
        assert read_until(ws, lambda m: m.get("row_id") == first)
        database.stop()
        status, body, headers = node.request("GET", f"/api/entities/Note/{first}", token=token)
        assert (status, body["error"]["code"]) == (503, "STORE_UNAVAILABLE")
        assert headers["retry-after"] == "1" and "socket" not in body["error"]["message"]
        done: list[str] = []
        writing = threading.Thread(
            target=lambda: done.append(insert(node, token, user_id, "during the outage"))
        )
        writing.start()
        wait_until("not ready", lambda: not checks(node)["database"])
        assert not done
        database.start()
        writing.join(WAIT_S)
        assert len(done) == 1
        assert read_until(ws, lambda m: m.get("row_id") == done[0])
        node.wait_ready()
        assert all(checks(node).values())
        assert node.rows("Note", token).keys() >= {first, done[0]}


def test_a_long_outage_closes_sockets_until_the_database_answers(
    node: Node, database: PostgresServer
) -> None:
    token, user_id = node.guest()
    # A socket that is not admitted yet would be closed at once: it needs the database.
    sockets = [open_admitted(node, token, WAIT_S) for _ in range(5)]
    for ws in sockets:
        ws.settimeout(WAIT_S)
    database.stop("fast")
    try:
        for ws in sockets:
            opcode, data = 0, b""
            while opcode != websocket.ABNF.OPCODE_CLOSE:
                opcode, data = ws.recv_data(control_frame=True)
            assert int.from_bytes(data[:2], "big") == 1013
            ws.close(timeout=0)
        with pytest.raises(websocket.WebSocketBadStatusException, match="503"):
            connect(node, token)
        assert not checks(node)["database"] and not checks(node)["relay"]
    finally:
        database.start()
    node.wait_ready()

    def connects() -> bool:
        try:
            connect(node, token).close()
        except (websocket.WebSocketException, OSError):
            return False
        return True

    wait_until("sockets are admitted again", connects)
    assert insert(node, token, user_id, "afterwards")


def test_a_frozen_database_holds_nobody_for_long(node: Node, database: PostgresServer) -> None:
    token, user_id = node.guest()
    row_id = insert(node, token, user_id, "before the frost")
    with database.frozen():
        status, body, _ = node.request(
            "GET", f"/api/entities/Note/{row_id}", token=token, timeout_s=30.0
        )
        assert status == 503, body
        assert node.request("GET", "/livez")[0] == 200
    node.wait_ready()
    assert row_id in node.rows("Note", token)


def test_a_start_waits_for_the_database_and_then_ends_with_75(
    database: PostgresServer, tmp_path: Any
) -> None:
    late = make_node(database, tmp_path / "late", PYLON_DATABASE_WAIT_S="1")
    database.stop("fast")
    try:
        late.start(ready=False)
        assert late.process is not None and late.process.wait(WAIT_S) == 75
        assert "did not answer within 1 s" in late.log() and PASSWORD not in late.log()
        late.env["PYLON_DATABASE_WAIT_S"] = "60"
        late.start(ready=False)
        assert late.process is not None
    finally:
        database.start()
    try:
        late.wait_ready()
    finally:
        late.close()
