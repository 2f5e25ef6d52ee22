"""Shards of a node on PostgreSQL: they run while the node has a lease."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import stores
from tests.support.document_stage import DocumentStage
from tests.support.postgres import PostgresServer
from tests.support.stage import Worker, node_report
from tests.support.websocket_client import WebSocketClient
from workers.hub.close_codes import SERVICE_RESTART, TRY_AGAIN_LATER
from workers.ws import frames

APP = str(Path(__file__).parent / "support" / "shards_app.py")


@pytest.fixture
def stage(
    processes: None, postgres_server: PostgresServer, tmp_path: Path
) -> Iterator[DocumentStage]:
    with stores.use(stores.TestStore(stores.POSTGRES, postgres_server.url, postgres_server)):
        made = DocumentStage(tmp_path)  # its workers can write
        try:
            yield made
        finally:
            made.close()


def give_lease(stage: DocumentStage, seconds: float, lease: str = "stage.1") -> None:
    """What the supervisor reports: the node has this lease for so long."""
    until_s = time.monotonic() + seconds if seconds else 0.0
    stage.tell(node_report(lease=lease, until_s=until_s))


def join(worker: Worker, token: str) -> WebSocketClient:
    """Connect to the shard until the worker admits the client."""
    while True:
        client = WebSocketClient(worker.port, path="/?shard=counter:1&sid=ada", token=token)
        opcode, data = client.read_frame_except()
        if opcode != frames.CLOSE:
            return client
        assert int.from_bytes(data[:2], "big") == TRY_AGAIN_LATER, data
        time.sleep(0.05)


def add(client: WebSocketClient, by: int) -> None:
    client.send_frame(frames.TEXT, json.dumps({"input": {"by": by}}).encode())


def until_sum(client: WebSocketClient, wanted: int) -> Any:
    while True:
        opcode, data = client.read_frame_except()
        if opcode == frames.TEXT:  # a place that is kept
            continue
        assert opcode == frames.BINARY, data
        body = json.loads(data[8:])
        if body["sum"] == wanted:
            return body


def close_code(client: WebSocketClient) -> int:
    while True:
        opcode, data = client.read_frame_except()
        if opcode == frames.CLOSE:
            return int.from_bytes(data[:2], "big")


def test_shards_end_with_the_lease_and_go_on_under_the_next(stage: DocumentStage) -> None:
    worker = stage.start("shards", PYLON_APP=APP)
    token, _ = stage.login("ada")
    give_lease(stage, math.inf)
    client = join(worker, token)
    add(client, 5)
    until_sum(client, 5)
    give_lease(stage, 0)
    assert close_code(client) == SERVICE_RESTART
    refused = WebSocketClient(worker.port, path="/?shard=counter:1&sid=ada", token=token)
    code, reason = refused.read_close()
    assert (code, "lease" in reason) == (TRY_AGAIN_LATER, True)
    give_lease(stage, math.inf, "stage.2")
    # Nobody has claimed the shard meanwhile, so its last state was stored.
    until_sum(join(worker, token), 5)


def test_another_lease_ends_the_shards_of_the_one_before(stage: DocumentStage) -> None:
    worker = stage.start("shards", PYLON_APP=APP)
    token, _ = stage.login("ada")
    give_lease(stage, math.inf)
    client = join(worker, token)
    give_lease(stage, math.inf, "stage.2")
    assert close_code(client) == SERVICE_RESTART


def test_a_lease_that_nobody_renews_ends_by_itself(stage: DocumentStage) -> None:
    worker = stage.start("shards", PYLON_APP=APP)
    token, _ = stage.login("ada")
    give_lease(stage, 3.0)
    client = join(worker, token)
    add(client, 1)
    until_sum(client, 1)
    assert close_code(client) == SERVICE_RESTART
