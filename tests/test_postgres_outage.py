"""Socket workers while their PostgreSQL is away or hangs: pings, rooms and the closing of sockets
go on, what needs the database is refused at once, and all of it comes back by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pylon.bus.messages import SessionRevoked
from pylon.bus.rooms_messages import JoinRoom
from pylon.errors import PylonError
from pylon.storage.events import ChangeBatch
from tests.support import stores
from tests.support.postgres import PostgresServer
from tests.support.rooms import RoomServer
from tests.support.stage import Stage, Worker, connect_at_head
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient
from workers.hub.close_codes import TRY_AGAIN_LATER
from workers.hub.sessions import SESSION_ENDED
from workers.ws import frames

ESTABLISHED = "01"  # in /proc/net/tcp
SWEEPS_S = 1.5  # two looks at the sessions (`workers.hub.sessions`)
PONG_S = 2.0  # a worker whose loop stands still takes longer; PostgreSQL's limits are above it


@pytest.fixture
def stage(
    processes: None, postgres_server: PostgresServer, tmp_path: Path
) -> Iterator[Stage]:
    with stores.use(stores.TestStore(stores.POSTGRES, postgres_server.url, postgres_server)):
        made = Stage(tmp_path)
        try:
            yield made
        finally:
            made.close()


def ping(client: WebSocketClient) -> float:
    """Return how long the pong took, in seconds."""
    began_s = time.monotonic()
    client.send_frame(frames.PING, b"there?")
    while client.read_frame() != (frames.PONG, b"there?"):
        pass
    return time.monotonic() - began_s


def say(client: WebSocketClient, **message: object) -> None:
    client.send_frame(frames.TEXT, json.dumps(message).encode())


def written(stage: Stage) -> ChangeBatch:
    """Write a row as soon as the writer has connected again, and publish it."""
    made: list[ChangeBatch] = []

    def try_write() -> bool:
        with suppress(PylonError):
            made.append(stage.write(stage.insert("Public", text="after")))
        return bool(made)

    wait_until("the writer writes again", try_write)
    return made[0]


def wait_admitted(worker: Worker, token: str) -> WebSocketClient:
    """Connect until the worker admits the client."""

    def try_connect() -> WebSocketClient | None:
        client = WebSocketClient(worker.port, token=token)
        client.send_frame(frames.PING, b"in?")
        opcode, data = client.read_control()
        if opcode != frames.CLOSE:
            return client
        assert int.from_bytes(data[:2], "big") == TRY_AGAIN_LATER
        client.close()
        return None

    client = wait_until("the worker admits the client", try_connect)
    assert client is not None
    return client


def count_connections(port: int) -> int:
    """Return how many connections the listener of a port has, accepted or not."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(
        fields[1].endswith(f":{port:04X}") and fields[3] == ESTABLISHED
        for fields in map(str.split, lines)
    )


def test_sockets_outlive_an_outage_of_the_database(
    stage: Stage, postgres_server: PostgresServer, room_server: RoomServer
) -> None:
    worker = stage.start("ws", PYLON_SOCKETS_PER_IP="0")
    token, _ = stage.login("ada")
    ended_token, ended_id = stage.login("bob")
    ada, bob = (WebSocketClient(worker.port, token=each) for each in (token, ended_token))
    for client in (ada, bob):
        ping(client)
    room_server.ask(JoinRoom("r", "ada", b"null"))
    say(ada, type="room-subscribe", room="r")
    assert ada.read_json()["type"] == "room-snapshot"
    batch = stage.write(stage.insert("Public", text="before"))
    assert ada.read_json()["seq"] == batch.events[-1].seq
    assert bob.read_json()["seq"] == batch.events[-1].seq

    postgres_server.stop("immediate")
    try:
        assert ping(ada) < PONG_S
        room_server.ask(JoinRoom("r", "carl", b"1"))
        room_server.publish()
        assert ada.read_json()["member"]["user_id"] == "carl"
        stage.tell(SessionRevoked(ended_id))
        assert bob.read_close()[0] == SESSION_ENDED
        # A token that the worker must look up; no caller is taken for a stranger.
        began_s = time.monotonic()
        stranger = WebSocketClient(worker.port, token="x" + token[1:])
        assert stranger.read_close() == (TRY_AGAIN_LATER, "STORE_UNAVAILABLE")
        assert time.monotonic() - began_s < PONG_S
        until_s = time.monotonic() + SWEEPS_S
        while time.monotonic() < until_s:  # also while the worker looks for ended sessions
            assert ping(ada) < PONG_S
    finally:
        postgres_server.start()
    newcomer = wait_admitted(worker, token)
    after = written(stage)
    while newcomer.read_json().get("seq") != after.events[-1].seq:
        pass
    assert ada.read_json()["seq"] == after.events[-1].seq
    assert worker.process.poll() is None


def test_a_database_that_hangs_stops_no_socket(
    stage: Stage, postgres_server: PostgresServer
) -> None:
    worker = stage.start("ws", PYLON_SOCKETS_PER_IP="0")
    tokens = [stage.login(f"user{number}")[0] for number in range(100)]
    watcher = connect_at_head(stage, worker)
    with ThreadPoolExecutor(len(tokens)) as threads, postgres_server.frozen():
        jobs = [
            threads.submit(WebSocketClient, worker.port, token=token) for token in tokens
        ]
        wait_until(
            "all have connected", lambda: count_connections(worker.port) == len(tokens) + 1
        )
        for _ in range(6):
            assert ping(watcher) < PONG_S
        assert not any(job.done() for job in jobs)
    clients = [job.result(60) for job in jobs]
    for client in clients:
        ping(client)
    batch = stage.write(stage.insert("Public", text="after"))
    for client in clients:
        while client.read_json().get("seq") != batch.events[-1].seq:
            pass
    assert watcher.read_json()["seq"] == batch.events[-1].seq
