"""Roles switched off or with several processes; the in-memory server; the shards port."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import websocket

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient, settle
from tests.support.wait import WAIT_S, wait_until

pytestmark = pytest.mark.stores


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_roles_can_be_switched_off(make_server: Callable[..., PylonServer]) -> None:
    server = make_server(
        PYLON_HTTP_WORKERS="1", PYLON_WS_WORKERS="0", PYLON_SHARD_WORKERS="0",
        PYLON_IDENTITY_WORKERS="0",
    ).start()
    assert [listens(server.port + n) for n in range(4)] == [True, False, True, False]
    status, body, _ = server.request("GET", "/api/client-config")
    assert status == 200
    assert body["urls"]["ws"] is None
    assert body["urls"]["sse"].endswith("/events")
    assert set(server.status()["roles"]) == {"http", "sse"}
    assert server.terminate() == 0


def test_several_processes_of_a_role_serve_the_same_changes(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server(
        PYLON_HTTP_WORKERS="3", PYLON_WS_WORKERS="3", PYLON_SSE_WORKERS="2"
    ).start()
    token, _ = server.guest()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(SyncClient(server, transport, token))
            for transport in ("ws", "sse") * 6
        ]
        for n in range(40):
            status, _, _ = server.request(
                "POST", "/api/entities/Tick", {"n": n, "sender": "x"}, token=token
            )
            assert status == 201
        settle(clients, server, ("Tick",))
        wait_until(  # heartbeats bring the numbers once a second
            "status counts the sockets",
            lambda: sum(server.status()["roles"][r]["connections"] for r in ("ws", "sse")) == 12,
        )
    assert len(set(server.pids("ws"))) == 3


def test_the_urls_that_clients_are_told_can_be_set(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server(
        PYLON_PUBLIC_URL="https://api.example.com", PYLON_WS_URL="wss://api.example.com/ws",
        PYLON_SSE_URL="https://api.example.com/events",
        PYLON_SHARD_URL="wss://api.example.com/shards",
    ).start()
    _, body, _ = server.request("GET", "/api/client-config")
    assert body["urls"] == {
        "http": "https://api.example.com", "ws": "wss://api.example.com/ws",
        "sse": "https://api.example.com/events", "shards": "wss://api.example.com/shards",
    }


@pytest.mark.sqlite
def test_an_in_memory_server_can_be_reset_and_forgets(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server(PYLON_DEV_MODE="true", PYLON_IN_MEMORY="true").start()
    token, _ = server.guest()
    with SyncClient(server, "ws", token) as client:
        server.request("POST", "/api/entities/Tick", {"n": 1, "sender": "x"}, token=token)
        wait_until("the row", lambda: client.snapshot().get("Tick"))
        assert server.request("POST", "/api/__test__/reset")[:2] == (200, {"reset": True})
        wait_until("it is gone", lambda: not client.snapshot().get("Tick"))
        settle([client], server, ("Tick",))
    server.request("POST", "/api/entities/Tick", {"n": 2, "sender": "x"}, token=token)
    assert server.terminate() == 0
    assert not server.db_path.exists()
    server.start()
    assert server.rows("Tick") == {}


def test_reset_is_refused_for_a_database_on_disk(server: PylonServer) -> None:
    status, body, _ = server.request("POST", "/api/__test__/reset", token=ADMIN_TOKEN)
    assert (status, body["error"]["code"]) == (403, "RESET_REFUSED")


def test_the_shards_port_says_that_there_is_no_such_shard(server: PylonServer) -> None:
    token, _ = server.guest()
    ws = websocket.create_connection(
        f"ws://127.0.0.1:{server.port + 3}/?shard=arena:1&sid=me", timeout=WAIT_S,
        subprotocols=[f"bearer.{token}"],
    )
    assert ws.getsubprotocol() == f"bearer.{token}"
    opcode, data = ws.recv_data()
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    assert b'no such shard "arena:1"' in data


def test_a_revoked_session_loses_its_sockets(server: PylonServer) -> None:
    token, _ = server.guest()
    other, _ = server.guest()
    with SyncClient(server, "ws", token) as gone, SyncClient(server, "ws", other) as stays:
        assert server.request("DELETE", "/api/auth/session", token=token)[0] == 200
        wait_until("closed with 4401", lambda: gone.close_codes[:1] == [4401], 2)
        assert stays.close_codes == []
