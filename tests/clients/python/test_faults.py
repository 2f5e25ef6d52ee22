"""The Python client behind a proxy that cuts, stalls, blocks and loses answers."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from pylon_client import APIConnectionError, APITimeoutError, Pylon, SocketRefused
from pylon_client.ladders import Transport
from tests.clients.python.app import MANIFEST, Task
from tests.clients.python.both import STEP_S, Steps, both, entered, got
from tests.support.fault_proxy import FaultProxy
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until


@pytest.fixture(scope="module")
def proxies(
    processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PylonServer, FaultProxy, FaultProxy]]:
    """A server, the proxy before its HTTP port (with WebSockets), and that before its events."""
    server = PylonServer(tmp_path_factory.mktemp("f"), MANIFEST, {"PYLON_DEV_MODE": "true"})
    http = FaultProxy([("127.0.0.1", server.port)])
    events = FaultProxy([("127.0.0.1", server.port + 2)])
    server.env["PYLON_WS_URL"] = f"ws://127.0.0.1:{http.ports[0]}/api/sync/ws"
    server.env["PYLON_SSE_URL"] = f"http://127.0.0.1:{events.ports[0]}/events"
    try:
        server.start()
        yield server, http, events
    finally:
        server.close()
        http.close()
        events.close()


@pytest.fixture
def http(proxies: tuple[PylonServer, FaultProxy, FaultProxy]) -> Iterator[FaultProxy]:
    yield proxies[1]
    proxies[1].heal()


@pytest.fixture
def events(proxies: tuple[PylonServer, FaultProxy, FaultProxy]) -> Iterator[FaultProxy]:
    yield proxies[2]
    proxies[2].heal()


@pytest.fixture
def server(proxies: tuple[PylonServer, FaultProxy, FaultProxy]) -> PylonServer:
    return proxies[0]


def new_list() -> str:
    return uuid.uuid4().hex


def url_of(proxy: FaultProxy) -> str:
    return f"http://127.0.0.1:{proxy.ports[0]}"


def insert_directly(server: PylonServer, name: str, title: str) -> None:
    """Insert past the proxies."""
    with Pylon(f"http://127.0.0.1:{server.port}", ADMIN_TOKEN) as admin:
        admin["Task"].insert_many([{"title": title, "list": name, "owner": "x"}])


async def shows(window, *titles: str) -> None:
    while sorted(row.title for row in window.rows) != sorted(titles):
        await got(window.next())


@both
async def test_a_window_outlives_cut_connections(make, server, http) -> None:
    async with entered(make(url_of(http))) as app:
        await got(app.auth.guest())
        name = new_list()
        async with entered(app.rows(Task).where(list=name).live(timeout=STEP_S)) as window:
            assert await got(window.next()) == []
            for number in range(3):
                http.cut()
                insert_directly(server, name, str(number))
                await shows(window, *map(str, range(number + 1)))
            assert window.state == "live"


@both
async def test_a_window_without_websockets_follows_events_and_then_polls(
    make, server, http, events
) -> None:
    http.set(block_websocket=True)
    async with entered(make(url_of(http))) as app:
        await got(app.auth.guest())
        name = new_list()
        query = app.rows(Task).where(list=name).order("title").limit(10)
        async with entered(query.live(timeout=STEP_S)) as window:
            assert await got(window.next()) == []
            assert app._link.transport is Transport.EVENTS
            insert_directly(server, name, "a")
            await shows(window, "a")
            events.set(refuse=True)
            events.cut()
            insert_directly(server, name, "b")
            await shows(window, "a", "b")
            diffs = Steps(window.diffs())
            assert (await diffs.next()).kind == "reset"
            insert_directly(server, name, "c")
            assert (await diffs.next()).row.title == "c"
            await diffs.close()
            assert app._link.transport is Transport.POLL


@both
async def test_changes_go_on_after_cuts_and_without_websockets(make, server, http) -> None:
    async with entered(make(url_of(http), ADMIN_TOKEN)) as app:
        cursor = (await got(app.request("GET", "/api/sync/pull?since=0")))["cursor"]["last_seq"]
        stream = Steps(app.changes(since=cursor, entities=[Task]))
        name = new_list()
        for number in range(6):
            if number == 3:
                http.set(block_websocket=True)
            insert_directly(server, name, str(number))
            assert (await stream.next()).row.title == str(number)
            http.cut()
        await stream.close()


@both
async def test_a_write_whose_answer_was_lost_is_carried_out_once(make, http) -> None:
    async with entered(make(url_of(http), max_retries=0)) as app:
        await got(app.auth.guest())
        name = new_list()
        http.set(lose_answers=True)
        with pytest.raises(APIConnectionError) as lost:
            await got(app.rows(Task).insert(title="x", list=name))
        http.heal()
        key = lost.value.idempotency_key
        again = await got(app.rows(Task).insert(title="x", list=name, idempotency_key=key))
        assert [row.id for row in await got(app.rows(Task).where(list=name).all())] == [again.id]
        healing = threading.Timer(0.2, http.heal)
        http.set(lose_answers=True)
        healing.start()
        patient = app.with_options(max_retries=8)
        await got(patient.rows(Task).insert(title="y", list=name))
        healing.join()
        assert await got(app.rows(Task).where(list=name, title="y").count()) == 1


@both
async def test_a_stalled_request_ends_with_a_timeout(make, http) -> None:
    async with entered(make(url_of(http), timeout=0.3, max_retries=0)) as app:
        await got(app.with_options(timeout=30).auth.guest())
        http.set(stall=True)
        started_s = time.monotonic()
        with pytest.raises(APITimeoutError):
            await got(app.auth.me())
        assert time.monotonic() - started_s < STEP_S
        http.heal()
        assert (await got(app.with_options(timeout=30).auth.me())).user_id


@both
async def test_no_server_at_all_is_a_connection_error(make, http) -> None:
    http.set(refuse=True)
    async with entered(make(url_of(http), max_retries=1)) as app:
        with pytest.raises(APIConnectionError):
            await got(app.auth.guest())


@both
async def test_a_room_is_joined_again_after_a_cut(make, server, http) -> None:
    async with entered(make(url_of(http))) as app:
        me = await got(app.auth.guest())
        async with entered(app.room(f"open:{new_list()}", data={"n": 1})) as room:
            steps = Steps(room.events(timeout=STEP_S))
            while not room.is_live:
                await steps.next()
            http.cut(only_websockets=True)
            wait_until("the cut is noticed", lambda: http.open_connections <= 1)
            while (await steps.next()).kind != "snapshot":
                pass
            assert room.members[me.user_id].data == {"n": 1}
            await steps.close()


@both
async def test_a_window_ends_with_its_session(make, server, http) -> None:
    async with entered(make(url_of(http))) as app:
        me = await got(app.auth.guest())
        async with entered(app.rows(Task).where(list=new_list()).live(timeout=STEP_S)) as window:
            await got(window.next())
            server.request(
                "POST", "/api/admin/sessions/purge", {"user_id": me.user_id}, token=ADMIN_TOKEN
            )
            with pytest.raises(SocketRefused) as ended:
                await got(window.next())
            assert ended.value.close_code == 4401
