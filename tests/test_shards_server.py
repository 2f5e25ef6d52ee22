"""The shards worker, as a process: it answers every shard with a close that says why."""

from __future__ import annotations

import signal

import pytest

from tests.support.stage import Stage, Worker, drain
from tests.support.websocket_client import WebSocketClient
from workers.ws import frames

pytestmark = pytest.mark.stores


@pytest.fixture
def shards(stage: Stage) -> Worker:
    return stage.start("shards")


def test_unknown_and_missing_shards_are_named(stage: Stage, shards: Worker) -> None:
    token, _ = stage.login("ada")
    for path, expected in (
        ("/?shard=arena%201&sid=ada", (4404, 'no such shard "arena 1"')),
        ("/any/path?shard=x", (4404, 'no such shard "x"')),
        ("/?sid=ada", (4400, "the parameter shard is missing")),
        ("/?shard=", (4400, "the parameter shard is missing")),
    ):
        client = WebSocketClient(
            shards.port, path=path, headers={"Sec-WebSocket-Protocol": f"bearer.{token}"}
        )
        assert client.headers["sec-websocket-protocol"] == f"bearer.{token}"
        assert client.read_close() == expected
        client.send_frame(frames.CLOSE, expected[0].to_bytes(2, "big"))
        assert client.read_rest() == b""


def test_drain_exits_0(stage: Stage, shards: Worker) -> None:
    shards.signal(signal.SIGUSR1)
    assert drain(shards) == 0
