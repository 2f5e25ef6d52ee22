"""Rooms and channels over HTTP: limits and time. The wire itself is in corpora/http/rooms.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon import limits
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import notes_app

pytestmark = pytest.mark.stores


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, notes_app()) as server:
        yield server


def join(api: ApiStage, room: str, user_id: str, data: object = None) -> int:
    body = {"room": room, "user_id": user_id, "data": data}
    answer = api.call("POST", "/api/rooms/join", body, ADMIN_TOKEN)
    if answer.status_code != 200:
        assert answer.status_code in (400, 429), answer.text
    status: int = answer.status_code
    return status


def code(api: ApiStage, room: str, user_id: str, data: object = None) -> str:
    body = {"room": room, "user_id": user_id, "data": data}
    answer = api.call("POST", "/api/rooms/join", body, ADMIN_TOKEN)
    found: str = answer.json.get("error", {}).get("code", "")
    return found


def members(api: ApiStage, room: str, token: str = ADMIN_TOKEN) -> list[str]:
    answer = api.call("GET", f"/api/rooms/{room}", token=token)
    return [member["user_id"] for member in answer.json["members"]]


def test_a_member_who_polls_stays_and_one_who_is_silent_leaves(api: ApiStage) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    for token in (ann, bob):
        api.call("POST", "/api/rooms/join", {"room": "r"}, token)
    for _ in range(30):
        api.clock.advance(5)
        api.call("GET", "/api/rooms/r", token=ann)
    api.services.realtime.rooms.service.expire()  # type: ignore[attr-defined]
    assert members(api, "r") == ["ann"]


@pytest.mark.parametrize(
    "path", ["/api/rooms/presence", "/api/rooms/broadcast", "/api/rooms/join"]
)
def test_what_a_member_does_is_a_sign_of_life(api: ApiStage, path: str) -> None:
    ann = api.user("ann")
    api.call("POST", "/api/rooms/join", {"room": "r"}, ann)
    for _ in range(3):
        api.clock.advance(limits.ROOM_IDLE_S - 1)
        api.call("POST", path, {"room": "r", "topic": "t"}, ann)
        api.services.realtime.rooms.service.expire()  # type: ignore[attr-defined]
    assert members(api, "r") == ["ann"]


def test_rooms_are_limited(api: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.ROOMS == 10_000
    monkeypatch.setattr(limits, "ROOMS", 2)
    assert [join(api, room, "ann") for room in ("a", "b", "b")] == [200, 200, 200]
    answer = api.call("POST", "/api/rooms/join", {"room": "c"}, ADMIN_TOKEN)
    assert answer.status_code == 429
    assert answer.json["error"]["code"] == "ROOM_LIMIT_REACHED"
    assert answer.headers["retry-after"] == "1"
    assert join(api, "a", "bob") == 200, "rooms that there are take new members"
    api.call("POST", "/api/rooms/leave", {"room": "b", "user_id": "ann"}, ADMIN_TOKEN)
    assert join(api, "c", "ann") == 200


def test_members_and_bytes_are_limited(api: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROOM_MEMBERS", 2)
    monkeypatch.setattr(limits, "ROOMS_OF_USER", 3)
    assert [code(api, "a", user) for user in ("x", "y", "z")] == ["", "", "ROOM_FULL"]
    assert code(api, "a", "x", "again") == ""
    assert [code(api, room, "x") for room in ("b", "c", "d")] == ["", "", "ROOM_LIMIT_REACHED"]
    big = "v" * (limits.ROOM_DATA_BYTES - 2)
    assert code(api, "a", "x", big + "w") == "LIMIT_EXCEEDED"
    assert code(api, "n" * (limits.ROOM_NAME_CHARS + 1), "y") == "LIMIT_EXCEEDED"
    monkeypatch.setattr(limits, "ROOM_BYTES", limits.ROOM_DATA_BYTES + 200)
    assert code(api, "a", "x", big) == ""
    assert code(api, "a", "y", big) == "ROOM_FULL"
    monkeypatch.setattr(limits, "ROOMS_BYTES", limits.ROOM_DATA_BYTES + 400)
    assert code(api, "e", "y", big) == "ROOM_LIMIT_REACHED"
    assert code(api, "a", "x", 0) == "", "who takes less may always"
    assert code(api, "e", "y", big) == ""


def test_channels_that_nobody_publishes_to_are_forgotten(api: ApiStage) -> None:
    def publish(channel: str) -> None:
        body = {"channel": channel, "message": "m"}
        assert api.call("POST", "/api/pubsub/publish", body, ADMIN_TOKEN).status_code == 200

    def channels() -> list[str]:
        api.services.realtime.rooms.service.expire()  # type: ignore[attr-defined]
        answer = api.call("GET", "/api/pubsub/channels", token=ADMIN_TOKEN)
        return [channel["channel"] for channel in answer.json["result"]]

    publish("a")
    publish("b")
    api.clock.advance(limits.CHANNEL_IDLE_S - 1)
    publish("a")
    assert channels() == ["b", "a"]
    api.clock.advance(1)
    assert channels() == ["a"]
    api.clock.advance(limits.CHANNEL_IDLE_S)
    assert channels() == []
    service = api.services.realtime.rooms.service  # type: ignore[attr-defined]
    assert service._channels._size_bytes == 0


def test_channels_keep_the_newest(api: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish(channel: str, message: str) -> None:
        body = {"channel": channel, "message": message}
        assert api.call("POST", "/api/pubsub/publish", body, ADMIN_TOKEN).status_code == 200

    def history(channel: str, query: str = "?limit=5000") -> list[str]:
        answer = api.call("GET", f"/api/pubsub/history/{channel}{query}", token=ADMIN_TOKEN)
        return [entry["message"] for entry in answer.json["result"]]

    for n in range(limits.CHANNEL_MESSAGES + 5):
        publish("a", str(n))
    assert history("a") == [str(n) for n in range(5, limits.CHANNEL_MESSAGES + 5)]
    assert len(history("a", "")) == limits.CHANNEL_MESSAGES_DEFAULT
    assert history("a", "?limit=0") == []
    monkeypatch.setattr(limits, "CHANNELS", 2)
    publish("b", "")
    publish("a", "newest")
    publish("c", "")
    assert (history("b"), history("a")[-1]) == ([], "newest")
    monkeypatch.setattr(limits, "CHANNELS_BYTES", 1_000)
    publish("d", "x" * 500)
    publish("e", "x" * 500)
    assert [len(history(channel)) for channel in "acde"] == [0, 0, 0, 1]
    answer = api.call(
        "POST", "/api/pubsub/publish",
        {"channel": "a", "message": "ü" * (limits.CHANNEL_MESSAGE_BYTES // 2 + 1)}, ADMIN_TOKEN,
    )
    assert answer.json["error"]["code"] == "LIMIT_EXCEEDED"
