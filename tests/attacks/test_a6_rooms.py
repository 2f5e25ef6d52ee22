"""A6: no client takes all rooms, live queries or room messages; an office has enough of them.

Clients are told apart by X-Forwarded-For, as behind one trusted proxy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from pylon import limits, rates
from pylon.api.realtime import rooms
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.bus.rooms_messages import JoinRoom
from pylon.manifest_loader import parse_manifest
from pylon.rates import Rate
from tests.support.api import ADMIN_TOKEN, ApiStage, DirectRooms, serve_api
from tests.support.live import LiveClient, LiveStage
from tests.support.manifests import notes_app
from tests.support.rooms import RoomServer
from tests.support.stage import MANIFEST, Stage
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient

PROXIED: Final = {"PYLON_TRUST_PROXY_HOPS": "1"}
ATTACKER: Final = "198.51.100.66"
OFFICE: Final = "203.0.113.9"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits and rates that are reached soon; their parts are as those of the product."""
    for name, value in (
        ("ROOMS", 100), ("ROOMS_OF_ADDRESS", 10), ("ROOMS_OF_USER", 4),
        ("ROOMS_BYTES", 640 * 1_024), ("ROOMS_BYTES_OF_ADDRESS", 80 * 1_024),
    ):
        monkeypatch.setattr(limits, name, value)
    for name, limit in (
        ("ROOM_JOINS_BY_USER", 20), ("ROOM_JOINS_BY_ADDRESS", 200),
        ("ROOM_MESSAGES_BY_USER", 20), ("ROOM_MESSAGES_BY_ADDRESS", 200),
        ("ROOM_READS_BY_USER", 20), ("ROOM_READS_BY_ADDRESS", 200),
    ):
        rate = Rate(getattr(rates, name).name, limit, 60.0)
        monkeypatch.setattr(rooms, name, rate)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, notes_app(), PROXIED) as server:
        yield server


def ask(api: ApiStage, verb: str, token: str, address: str, **body: Any) -> str:
    """Do something in a room; the error's code, or nothing."""
    answer = api.call(
        "POST", f"/api/rooms/{verb}", body, token, headers={"X-Forwarded-For": address}
    )
    if answer.status_code == 200:
        return ""
    error = answer.json["error"]
    if error["code"] == "RATE_LIMITED":
        assert answer.headers["Retry-After"] == str(error["retry_after_secs"])
    return str(error["code"])


def room_count(api: ApiStage) -> int:
    return len(api.call("GET", "/api/rooms", token=ADMIN_TOKEN).json)


def expire(api: ApiStage) -> None:
    rooms = api.services.realtime.rooms
    assert isinstance(rooms, DirectRooms)
    rooms.service.expire()


# --- Rooms -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_one_address_cannot_take_all_rooms(api: ApiStage) -> None:
    codes = Counter[str]()
    for number in range(20):  # guests of one client, each with all rooms that it may have
        token = api.guest()
        for room in range(limits.ROOMS_OF_USER + 1):
            codes[ask(api, "join", token, ATTACKER, room=f"{number}/{room}")] += 1
    assert codes[""] == room_count(api) == limits.ROOMS_OF_ADDRESS
    assert codes.keys() == {"", "ROOM_LIMIT_REACHED"}
    assert ask(api, "join", api.guest(), OFFICE, room="ours") == "", "there is room for others"
    assert ask(api, "join", api.guest(), ATTACKER, room="ours") == "", "in rooms that there are too"
    api.clock.advance(limits.ROOM_IDLE_S + 1)
    expire(api)
    assert room_count(api) == 0, "what nobody uses is collected"
    assert ask(api, "join", api.guest(), ATTACKER, room="again") == ""


@pytest.mark.usefixtures("small")
def test_one_address_cannot_take_all_memory_of_rooms(api: ApiStage) -> None:
    data = "x" * (limits.ROOM_DATA_BYTES - 2)
    codes = Counter[str]()
    for number in range(20):
        token = api.guest()
        codes[ask(api, "join", token, ATTACKER, room=f"{number % 3}", data=data)] += 1
        codes[ask(api, "presence", token, ATTACKER, room=f"{number % 3}", data=data)] += 1
    assert codes["ROOM_LIMIT_REACHED"]
    held = limits.ROOMS_BYTES_OF_ADDRESS // limits.ROOM_DATA_BYTES - 1
    assert codes[""] == 20 + held, "presence of nobody is no error"
    assert ask(api, "join", api.guest(), OFFICE, room="ours", data=data) == ""
    token = api.guest()
    assert ask(api, "join", token, ATTACKER, room="ours", data=1) == ""
    assert ask(api, "presence", token, ATTACKER, room="ours", data=data) == "ROOM_LIMIT_REACHED"


def test_members_of_one_address_are_bounded(
    api: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROOM_MEMBERS_OF_ADDRESS", 5)
    codes = [ask(api, "join", api.guest(), ATTACKER, room="r") for _ in range(8)]
    assert codes == [""] * 5 + ["ROOM_LIMIT_REACHED"] * 3
    token = api.guest()
    assert ask(api, "join", token, OFFICE, room="r") == ""
    assert ask(api, "join", token, ATTACKER, room="r") == "ROOM_LIMIT_REACHED", "a rejoin moves it"
    assert ask(api, "leave", token, OFFICE, room="r") == ""


@pytest.mark.usefixtures("small")
def test_joins_are_limited_for_an_identity_and_an_address(api: ApiStage) -> None:
    token = api.guest()
    codes = [ask(api, "join", token, OFFICE, room="r") for _ in range(30)]
    assert codes == [""] * 20 + ["RATE_LIMITED"] * 10
    assert ask(api, "join", token, "192.0.2.7", room="r") == "RATE_LIMITED", "an identity is one"
    assert ask(api, "leave", token, OFFICE, room="r") == "", "one may always leave"
    assert ask(api, "join", api.guest(), OFFICE, room="r") == ""
    for _ in range(9):
        other = api.guest()
        for _ in range(20):
            ask(api, "join", other, OFFICE, room="r")
    assert ask(api, "join", api.guest(), OFFICE, room="r") == "RATE_LIMITED"
    assert ask(api, "join", api.guest(), ATTACKER, room="r") == ""
    api.clock.advance(10)
    assert ask(api, "join", token, OFFICE, room="r") == ""


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("verb", ["presence", "broadcast"])
def test_messages_are_limited_for_an_identity(api: ApiStage, verb: str) -> None:
    token, other = api.guest(), api.guest()
    for each in (token, other):
        ask(api, "join", each, OFFICE, room="r")
    codes = Counter(ask(api, verb, token, OFFICE, room="r", topic="t") for _ in range(25))
    assert codes == {"": 20, "RATE_LIMITED": 5}
    assert ask(api, verb, other, OFFICE, room="r", topic="t") == ""


@pytest.mark.usefixtures("small")
def test_looking_at_rooms_is_limited_for_an_identity(api: ApiStage) -> None:
    token, other = api.guest(), api.guest()
    codes = Counter(
        api.call("GET", path, token=token).status_code
        for path in ("/api/rooms", "/api/rooms/r") * 15
    )
    assert codes == {200: 20, 429: 10}
    assert api.call("GET", "/api/rooms", token=other).status_code == 200
    assert room_count(api) == 0, "an admin may look"


def test_two_hundred_guests_behind_one_router_in_two_hundred_rooms_pass(api: ApiStage) -> None:
    tokens = [api.guest() for _ in range(200)]
    for number, token in enumerate(tokens):
        for room in range(2):  # the own one, and a neighbour's
            assert ask(api, "join", token, OFFICE, room=f"{(number + room) % 200}", data="x") == ""
    assert room_count(api) == 200
    for number, token in enumerate(tokens):
        assert ask(api, "presence", token, OFFICE, room=str(number), data={"x": 1}) == ""
        assert ask(api, "broadcast", token, OFFICE, room=str(number), topic="t") == ""


@pytest.mark.usefixtures("small")
def test_an_admin_who_acts_for_others_is_not_counted(api: ApiStage) -> None:
    count = 30
    for number in range(count):
        body = {"room": f"r{number}", "user_id": f"user{number}"}
        assert ask(api, "join", ADMIN_TOKEN, OFFICE, **body) == ""
    assert room_count(api) == count


@pytest.mark.usefixtures("processes")
def test_relayed_messages_are_limited_for_an_identity_over_its_sockets(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    room_server = RoomServer(stage)
    try:
        worker = stage.start("ws", PYLON_SOCKETS_PER_IP="0")
        token, _ = stage.login("eve")
        room_server.ask(JoinRoom("r", "eve", b"null"))
        sockets = [WebSocketClient(worker.port, token=token) for _ in range(2)]
        say = json.dumps({"type": "topic", "topic": "t", "data": 1, "room": "r"}).encode()
        burst = int(rates.ROOM_MESSAGES_BY_USER.burst or 0)
        for _ in range(burst):
            for client in sockets:
                client.send_frame(1, say)
        errors = [client.read_json() for client in sockets]
        assert {(error["code"], error["for"]) for error in errors} == {("RATE_LIMITED", "topic")}
        wait_until("the burst is relayed", lambda: sum(room_server.relays) >= burst)
        subscribe = json.dumps({"type": "room-subscribe", "room": "r"}).encode()
        count = int(rates.ROOM_SUBSCRIPTIONS_BY_USER.limit)
        asked = count + 400
        watcher = WebSocketClient(worker.port, token=token)
        for _ in range(asked):
            watcher.send_frame(1, subscribe)
        messages = [watcher.read_json() for _ in range(asked)]
        heard = Counter(message.get("code", message["type"]) for message in messages)
        assert heard["RATE_LIMITED"]
        assert count <= heard["room-snapshot"] < asked
    finally:
        room_server.close()
        stage.close()


# --- Live queries ----------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LiveStage]:
    made = LiveStage(tmp_path, parse_manifest(json.dumps(MANIFEST), "manifest.json"))
    yield made
    made.close()


EVE: Final = AuthContext(user_id="eve")


def client(world: LiveStage, address: str, auth: AuthContext = EVE) -> LiveClient:
    made = LiveClient(world, auth)
    made.connection.address = address
    return made


def indexed(number: int) -> Any:
    return {"ownerId": f"user{number}"}


def scanned(number: int) -> Any:
    return {"text": {"$gt": f"{number}"}}


@pytest.mark.parametrize(
    ("of_user", "of_address", "made"),
    [("LIVE_QUERIES_OF_USER", "LIVE_QUERIES_OF_ADDRESS", indexed),
     ("LIVE_SCANNED_OF_USER", "LIVE_SCANNED_OF_ADDRESS", scanned)],
)
def test_live_queries_are_counted_over_all_sockets(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch, of_user: str, of_address: str,
    made: Callable[[int], Any],
) -> None:
    monkeypatch.setattr(limits, of_user, 6)
    monkeypatch.setattr(limits, of_address, 10)
    first, second = client(world, ATTACKER), client(world, ATTACKER)
    for number in range(4):
        first.subscribe(str(number), "Public", made(number))
        second.subscribe(str(number), "Public", made(10 + number))
    errors = first.errors + second.errors
    assert [error["code"] for error in errors] == ["LIMIT_EXCEEDED"] * 2
    assert "You have 6 live queries" in errors[0]["message"]
    many = [client(world, ATTACKER, AuthContext(user_id=f"guest{n}")) for n in range(6)]
    for number, each in enumerate(many):
        each.subscribe("s", "Public", made(20 + number))
    assert [error["code"] for each in many for error in each.errors] == ["LIMIT_EXCEEDED"] * 2
    other = client(world, OFFICE, ANONYMOUS)
    other.subscribe("s", "Public", made(40))
    assert other.errors == []
    first.say(type="unsubscribe", sub_id="0")
    again = client(world, ATTACKER)
    again.subscribe("s", "Public", made(50))
    assert again.errors == [], "what is ended is not counted"
    for connection in world.hub.connections:
        connection.abort()
    assert len(world.live._holdings) == 0


def test_the_memory_of_live_queries_is_counted_over_all_sockets(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVE_BYTES_OF_USER", 10_000)
    monkeypatch.setattr(limits, "LIVE_BYTES_OF_ADDRESS", 15_000)
    eves = [client(world, ATTACKER) for _ in range(10)]
    for number, each in enumerate(eves):
        each.subscribe("s", "Public", indexed(number))
    taken = sum(not each.errors for each in eves)
    assert 0 < taken * 1_500 <= 10_000
    others = [client(world, ATTACKER, AuthContext(user_id=f"guest{n}")) for n in range(10)]
    for number, each in enumerate(others):
        each.subscribe("s", "Public", indexed(number))
    assert 0 < sum(not each.errors for each in others) < 10 - taken
    office = client(world, OFFICE, ANONYMOUS)
    office.subscribe("s", "Public", indexed(99))
    assert office.errors == []


def test_equal_scanned_live_queries_of_an_office_count_once(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVE_SCANNED_OF_USER", 1)
    monkeypatch.setattr(limits, "LIVE_SCANNED_OF_ADDRESS", 2)
    office = [client(world, OFFICE, AuthContext(user_id=f"user{n}")) for n in range(20)]
    for each in office:
        each.subscribe("s", "Public", {})
    assert all(not each.errors for each in office)
    for each in office[:19]:
        each.say(type="unsubscribe", sub_id="s")
    admin = client(world, OFFICE, ADMIN)
    for number in range(5):
        admin.subscribe(str(number), "Public", scanned(number))
    assert admin.errors == []


def test_the_parts_are_parts() -> None:
    """One client never reaches what all may have together, and many people fit into a part."""
    assert 5 * 200 <= limits.ROOMS_OF_ADDRESS <= limits.ROOMS // 10
    assert limits.ROOMS_BYTES_OF_ADDRESS <= limits.ROOMS_BYTES // 8
    assert limits.ROOM_MEMBERS < limits.ROOM_MEMBERS_OF_ADDRESS
    assert rates.ROOM_JOINS_BY_ADDRESS.limit >= 10 * rates.ROOM_JOINS_BY_USER.limit
    # A phone in 50 rooms may come back 20 times in a minute.
    assert rates.ROOM_JOINS_BY_USER.limit >= 20 * 50
    assert rates.ROOM_SUBSCRIPTIONS_BY_USER.limit >= 20 * 50
    assert limits.LIVE_QUERIES_OF_ADDRESS <= limits.LIVE_QUERIES_TOTAL // 5
    assert limits.LIVE_BYTES_OF_ADDRESS <= limits.LIVE_BYTES_TOTAL // 4
    assert limits.LIVE_SCANNED_OF_ADDRESS <= limits.LIVE_SCANNED // 2
    assert limits.LIVE_QUERIES <= limits.LIVE_QUERIES_OF_USER < limits.LIVE_QUERIES_OF_ADDRESS
