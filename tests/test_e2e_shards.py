"""Shards in real processes: joining, inputs, faults, seats, moves, saves, streams, matches."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import websocket

from tests.support import stores
from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.shard_client import Player, user
from tests.support.stores import TestStore
from tests.support.wait import WAIT_S, wait_until

pytestmark = pytest.mark.stores

APP = str(Path(__file__).parent / "support" / "shards_app.py")


ENVIRON = {
    "PYLON_APP": APP, "PYLON_SHARD_WORKERS": "2", "PYLON_HTTP_WORKERS": "1",
    "PYLON_NODE": "one",  # where a shard lives depends on it
}


@pytest.fixture(scope="module")
def server(
    tested_store: TestStore, processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PylonServer]:
    """Two shards workers, so that half of all connections land where their shard is not."""
    made = PylonServer(tmp_path_factory.mktemp("shards"), notes_app(), ENVIRON).start()
    yield made
    made.close()


@pytest.fixture
def own_server(make_server: Callable[..., PylonServer]) -> PylonServer:
    """The same for a test that ends it."""
    return make_server(**ENVIRON).start()


def shards(server: PylonServer) -> dict[str, dict[str, Any]]:
    status, body, _ = server.request("GET", "/api/shards", token=ADMIN_TOKEN)
    assert status == 200, body
    return {shard["id"]: shard for shard in body}


def worker_of(server: PylonServer, shard_id: str) -> str:
    """The number of the worker that has a shard; where nodes share a store its node comes first."""
    return str(shards(server)[shard_id]["worker"]).rpartition("/")[2]


# Of these some live in each of two workers.
BOTH = [f"counter:both{number}" for number in range(6)]


def test_players_meet_wherever_they_land(server: PylonServer) -> None:
    ada, bob = user(server, "ada"), user(server, "bob")
    players = []  # a player whom nobody holds leaves when Python collects it
    for number, shard_id in enumerate(BOTH):
        main = number % 2 == 0
        first = Player(server, shard_id, token=ada, sid="ada", main_port=main)
        second = Player(server, shard_id, token=bob, sid="bob")
        players += [first, second]
        first.say({"by": 2})
        second.say({"by": 3})
        for player in (first, second):
            seen = player.until(lambda body: body["sum"] == 5)
            assert seen["here"] == ["ada", "bob"]
    listed = shards(server)
    assert {worker_of(server, shard_id) for shard_id in BOTH} == {"1", "2"}
    assert all(listed[shard_id]["subscribers"] == 2 for shard_id in BOTH)


def test_ticks_go_up_by_one_and_acks_and_rejections_come(server: PylonServer) -> None:
    player = Player(server, "counter:a", token=user(server, "ada"), sid="ada", ack="1")
    ticks = [player.frame()[0] for _ in range(5)]
    assert ticks == list(range(ticks[0], ticks[0] + 5))
    player.say({"by": 13}, 1)
    player.say({"by": "x"}, 2)
    player.socket.send("no json")
    player.say({"by": 4}, 4)
    body = player.until(lambda body: body["snapshot"]["sum"] == 4)
    assert body["ack"]["client_seq"] == 4
    seat, *told = player.texts
    assert seat["type"] == "seat"
    rejected = {message["client_seq"]: message["reason"] for message in told}
    assert {message["type"] for message in told} == {"input-rejected"}
    assert rejected[1] == "13 brings bad luck"
    assert "Expected `int`" in rejected[2]
    assert "invalid message" in rejected[None]


def test_deltas_and_messagepack_say_the_same(server: PylonServer) -> None:
    ada, bob = user(server, "ada"), user(server, "bob")
    plain = Player(server, "counter:d", token=ada, sid="ada", format="msgpack")
    delta = Player(server, "counter:d", token=bob, sid="bob", delta="1", format="msgpack")
    _, first = delta.frame()
    assert first["here"] == ["ada", "bob"]
    plain.socket.send(msgspec.msgpack.encode({"input": {"by": 5}}), websocket.ABNF.OPCODE_BINARY)
    assert plain.until(lambda body: body["sum"] == 5)
    tick, changed = delta.frame()
    while "delta" not in changed:
        tick, changed = delta.frame()
    assert changed == {"delta": {"sum": 5}, "tick": tick}


@pytest.mark.parametrize(
    ("shard", "options", "code", "reason"),
    [
        ("", {}, 4400, "the parameter shard is missing"),
        ("nothing:1", {}, 4404, 'no such shard "nothing:1"'),
        ("made:1", {}, 4404, 'no such shard "made:1"'),
        ("counter:r", {"sid": "bob"}, 1008, "unauthorized: subscriber id"),
        ("counter:r", {"sid": "x" * 300}, 1008, "unauthorized: sid is longer"),
    ],
)
def test_who_is_not_let_in_is_told_why(
    server: PylonServer, shard: str, options: dict[str, str], code: int, reason: str
) -> None:
    got, said = Player(server, shard, token=user(server, "ada"), **options).closed()
    assert got == code
    assert said.startswith(reason)


def test_a_full_shard_says_come_again(server: PylonServer) -> None:
    here = [Player(server, "counter:f", token=ADMIN_TOKEN, sid=f"u{n}") for n in range(3)]
    here[-1].frame()
    fourth = Player(server, "counter:f", token=ADMIN_TOKEN, sid="u4")
    assert fourth.closed() == (1013, "shard is at max subscribers")


def test_one_bad_shard_harms_no_other(server: PylonServer) -> None:
    good = Player(server, "counter:good", token=ADMIN_TOKEN, sid="a")
    good.frame()
    for name, by, error in (("hasty:bad", 77, "TickOverrun"), ("hasty:ill", 88, "SystemExit")):
        bad = Player(server, name, token=ADMIN_TOKEN, sid="b")
        bad.frame()
        bad.say({"by": by})
        assert bad.closed() == (1011, f"the simulation failed: {error}")
        listed = shards(server)[name]
        assert not listed["running"]
        assert error in listed["traceback"]
        assert "apply_input" in listed["traceback"]
        again = Player(server, name, token=ADMIN_TOKEN, sid="b")
        assert again.closed() == (1013, "shard is stopped")
        status, body, _ = server.request("GET", f"/api/shards/{name}")
        assert (status, body["running"]) == (200, False)
        assert "traceback" not in body
    good.say({"by": 1})
    assert good.until(lambda body: body["sum"] == 1)


def test_an_input_that_fails_is_refused_and_nothing_else(server: PylonServer) -> None:
    player = Player(server, "counter:fails", token=ADMIN_TOKEN, sid="a")
    player.frame()
    player.say({"by": 99}, 5)
    assert player.text()["type"] == "seat"
    refusal = {"type": "input-rejected", "client_seq": 5, "reason": "the input failed"}
    assert player.text() == refusal
    player.say({"by": 1})
    assert player.until(lambda body: body["sum"] == 1)


def test_a_seat_is_found_again_by_its_token(server: PylonServer) -> None:
    session = user(server, "ada")
    ada = Player(server, "counter:s", token=session, sid="ada")
    seat = ada.text()
    assert (seat["type"], seat["sid"], seat["expires_in_s"]) == ("seat", "ada", 30)
    watcher = Player(server, "counter:s", token=ADMIN_TOKEN, sid="admin")
    ada.socket.close()
    assert watcher.until(lambda body: body["here"] == ["ada", "admin"])
    back = Player(server, "counter:s", token=session, seat=seat["token"])
    assert back.frame()[1]["here"] == ["ada", "admin"]
    assert back.text()["token"] != seat["token"]
    # Seat tokens are of one shard.
    other = Player(server, "counter:other", token=session, seat=seat["token"])
    assert other.closed()[0] == 1008


def test_inputs_over_http_and_nobody_speaks_for_another(server: PylonServer) -> None:
    ada, bob = user(server, "ada"), user(server, "bob")
    player = Player(server, "counter:h", token=ada, sid="ada")
    player.frame()
    path = "/api/shards/counter%3Ah/input"
    status, body, _ = server.request("POST", path, {"input": {"by": 8}}, token=ada)
    assert (status, body) == (200, {"accepted": True, "seq": 1})
    assert player.until(lambda body: body["sum"] == 8)
    for token, sent, expected in (
        (bob, {"input": {"by": 1}}, (403, "UNAUTHORIZED")),
        (bob, {"input": {"by": 1}, "subscriber_id": "ada"}, (403, "UNAUTHORIZED")),
        (None, {"input": {"by": 1}}, (403, "UNAUTHORIZED")),
        (ada, {"input": {"by": "x"}}, (400, "INPUT_REJECTED")),
        (ada, {}, (400, "INVALID_DATA")),
        (ada, {"input": {"by": 1}, "client_seq": "x"}, (400, "INVALID_DATA")),
    ):
        status, body, _ = server.request("POST", path, sent, token=token)
        assert (status, body["error"]["code"]) == expected, body
    status, body, _ = server.request(
        "POST", path, {"input": {"by": 2}, "subscriber_id": "ada"}, token=ADMIN_TOKEN
    )
    assert status == 200
    assert player.until(lambda body: body["sum"] == 10)
    status, body, _ = server.request("POST", "/api/shards/none/input", {"input": 1}, token=ada)
    assert (status, body["error"]["code"]) == (404, "SHARD_NOT_FOUND")


def stream(server: PylonServer, shard: str, token: str | None, **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection.request("GET", f"/api/shards/{shard}/connect", headers=headers)
    return connection.getresponse()


def next_event(answer: Any) -> tuple[int, Any]:
    tick = None
    while True:
        line = answer.readline().decode().strip()
        if line.startswith("id: "):
            tick = int(line[4:])
        if line.startswith("data: ") and tick is not None:
            return tick, json.loads(line[6:])


def test_snapshots_as_an_event_stream(server: PylonServer) -> None:
    ada = user(server, "ada")
    for shard_id in ("counter:s1", "counter:s2", "counter:s3"):
        answer = stream(server, shard_id, ada)
        assert answer.status == 200
        assert answer.getheader("content-type") == "text/event-stream"
        tick, body = next_event(answer)
        assert body["here"] == ["ada"]
        assert next_event(answer)[0] == tick + 1
        later = stream(server, shard_id, ada, **{"Last-Event-ID": str(tick)})
        assert next_event(later)[0] > tick
        # Of a shard that was here before this one: its ticks say nothing.
        fresh = stream(server, shard_id, ada, **{"Last-Event-ID": "1000000"})
        assert next_event(fresh)[0] < 1_000_000
    for shard, token, expected in (
        ("counter:s1", None, (401, "AUTH_REQUIRED")),
        ("nothing", ada, (404, "SHARD_NOT_FOUND")),
        ("counter:s1", user(server, "bob"), (200, None)),
    ):
        answer = stream(server, shard, token)
        assert answer.status == expected[0]
        if expected[1] is not None:
            assert json.loads(answer.read())["error"]["code"] == expected[1]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    connection.request(
        "GET", "/api/shards/counter:s1/connect?sid=eve", headers={"Authorization": f"Bearer {ada}"}
    )
    refused = connection.getresponse()
    assert (refused.status, json.loads(refused.read())["error"]["code"]) == (403, "UNAUTHORIZED")


def test_an_admin_makes_moves_and_ends_shards(server: PylonServer) -> None:
    made = "/api/shards/made%3A1"
    status, body, _ = server.request(
        "POST", "/api/shards", {"id": "made:1", "params": {"map": "north"}}, token=ADMIN_TOKEN
    )
    assert (status, body["running"]) == (200, True)
    player = Player(server, "made:1", token=ADMIN_TOKEN, sid="a")
    assert player.frame()[1]["map"] == "north"
    player.say({"by": 6})
    assert player.until(lambda body: body["sum"] == 6)
    target = "2" if worker_of(server, "made:1") == "1" else "1"
    status, body, _ = server.request(
        "POST", f"{made}/move", {"worker": target}, token=ADMIN_TOKEN
    )
    assert (status, body) == (200, {"released": True})
    assert player.closed() == (1012, "moved")
    again = Player(server, "made:1", token=ADMIN_TOKEN, sid="a")
    assert again.frame()[1] == {"sum": 6, "here": ["a"], "map": "north"}
    assert worker_of(server, "made:1") == target
    status, body, _ = server.request("DELETE", made, token=ADMIN_TOKEN)
    assert (status, body) == (200, {"ended": "made:1"})
    assert again.closed() == (1000, "ended by an admin")
    assert Player(server, "made:1", token=ADMIN_TOKEN, sid="a").closed()[0] == 4404
    for method, path, sent in (
        ("GET", "/api/shards", None), ("POST", "/api/shards", {"id": "made:2"}),
        ("DELETE", made, None), ("POST", f"{made}/move", {"worker": "1"}),
    ):
        status, body, _ = server.request(method, path, sent, token=user(server, "ada"))
        assert (status, body["error"]["code"]) == (403, "FORBIDDEN")


def test_a_move_to_what_is_no_worker_is_refused(server: PylonServer) -> None:
    for worker in (False, 1, 1.5, [], {}, "9", "", "nowhere/1", "/"):
        status, body, _ = server.request(
            "POST", "/api/shards/made%3A2/move", {"worker": worker}, token=ADMIN_TOKEN
        )
        assert (status, body["error"]["code"]) == (400, "INVALID_DATA"), worker


def first_frame(server: PylonServer, shard_id: str) -> tuple[int, Any]:
    """The first snapshot of a shard, once the server runs it: after a start on PostgreSQL it has
    to know the nodes, and says 1013 until then."""
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            return Player(server, shard_id, token=ADMIN_TOKEN, sid="a").frame()
        except AssertionError as ex:
            if "1013" not in str(ex) or time.monotonic() > until_s:
                raise
            time.sleep(0.1)


def test_a_drain_saves_and_a_start_goes_on(own_server: PylonServer) -> None:
    server = own_server
    for number, shard_id in enumerate(BOTH):
        player = Player(server, shard_id, token=ADMIN_TOKEN, sid="a")
        player.frame()
        player.say({"by": number + 1})
        player.until(lambda body, wanted=number + 1: body["sum"] == wanted)
    last = Player(server, BOTH[-1], token=ADMIN_TOKEN, sid="b")
    last.frame()
    assert server.terminate() == 0
    code = 1012 if stores.current().name == stores.POSTGRES else 1001  # another node may go on
    assert last.closed() == (code, "server is going away")
    server.start()
    for number, shard_id in enumerate(BOTH):
        tick, body = first_frame(server, shard_id)
        assert tick > 1
        assert body["sum"] == number + 1


def test_a_killed_process_brings_its_shards_back_from_what_was_saved(
    own_server: PylonServer,
) -> None:
    server = own_server
    names = [f"steady:{number}" for number in range(4)]
    for name in names:
        server.request("POST", "/api/shards", {"id": name}, token=ADMIN_TOKEN)
    wait_until("all have been saved", lambda: all(s["tick"] > 20 for s in shards(server).values()))
    before = {name: shard["tick"] for name, shard in shards(server).items()}
    for pid in server.pids("shards"):
        os.kill(pid, signal.SIGKILL)

    def are_back() -> bool:
        try:
            found = shards(server)
        except AssertionError:
            return False
        return all(name in found and found[name]["tick"] > before[name] for name in names)

    wait_until("they go on by themselves", are_back)
    player = Player(server, names[0], token=ADMIN_TOKEN, sid="a")
    tick, body = player.frame()
    assert body["sum"] == tick


def test_a_recording_is_replayed_to_the_same_state(own_server: PylonServer) -> None:
    server = own_server
    player = Player(server, "recorded:1", token=ADMIN_TOKEN, sid="a")
    player.frame()
    for _ in range(5):
        player.say({"by": 3})
    player.until(lambda body: body["sum"] == 15)
    assert server.terminate() == 0
    (path,) = (server.db_path.parent / "recordings").iterdir()
    done = server.ctl("replay", str(path), "--json")
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["ended"], outcome["differs_at"]) == (0, "end", None)
    assert (outcome["inputs"], outcome["snapshot"]["sum"]) == (5, 15)
    assert "5 inputs" in server.ctl("replay", str(path)).stdout
    other = server.folder / "other.py"
    other.write_text(Path(APP).read_text().replace("self.sum += input.by", "self.sum -= input.by"))
    done = server.ctl("replay", str(path), "--app", str(other))
    assert done.returncode == 1
    assert "another state" in done.stdout
    other.write_text("")
    done = server.ctl("replay", str(path), "--app", str(other))
    assert (done.returncode, "has no shards" in done.stderr) == (1, True)


def test_pylonctl_lists_makes_moves_and_stops_shards(server: PylonServer) -> None:
    done = server.ctl("shards", "make", "made:cli", "--params", '{"map": "south"}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("made:cli: running, worker ")
    assert "made:cli: running" in server.ctl("shards", "list").stdout
    assert server.ctl("shards", "move", "made:cli", "--to", "2").returncode == 0
    status, _, _ = server.request("POST", "/api/shards", {"id": "made:cli"}, token=ADMIN_TOKEN)
    assert (status, worker_of(server, "made:cli")) == (200, "2")
    assert server.ctl("shards", "move", "made:cli", "--to", "9").returncode == 1
    assert server.ctl("shards", "stop", "made:cli").stdout == "made:cli is stopped\n"
    done = server.ctl("shards", "stop", "made:cli")
    assert (done.returncode, 'no such shard "made:cli"' in done.stderr) == (1, True)
    done = server.ctl("shards", "make", "made:x", "--params", "{")
    assert (done.returncode, "--params is not valid JSON" in done.stderr) == (1, True)


def test_two_who_wait_are_matched_and_meet(server: PylonServer) -> None:
    ada, bob = user(server, "ada"), user(server, "bob")
    criteria = {"criteria": {"mode": "duel"}}

    def call(method: str, token: str | None, body: Any = None, path: str = "") -> Any:
        status, answer, _ = server.request(method, f"/api/matchmaking{path}", body, token=token)
        return answer if status == 200 else (status, answer["error"]["code"])

    assert call("GET", ada) == {"status": "idle"}
    assert call("POST", ada, criteria)["status"] == "queued"
    assert call("POST", ada, {"criteria": {"mode": "x"}}) == (400, "INVALID_DATA")
    assert call("GET", None) == (401, "AUTH_REQUIRED")
    assert call("POST", bob, criteria)["status"] == "queued"
    match = wait_until(
        "a match", lambda: (s := call("GET", ada))["status"] == "matched" and s
    )
    assert match["shard_id"].startswith("counter:match_")
    assert call("POST", bob, {}, "/ack") == {"shard_id": match["shard_id"]}
    assert call("POST", bob, {}, "/ack") == {"shard_id": None}
    stranger = [
        Player(server, match["shard_id"], token=ADMIN_TOKEN, sid=f"s{n}") for n in range(2)
    ]
    assert stranger[0].frame()[1]["players"] == ["ada", "bob"]
    assert stranger[1].closed() == (1013, "shard is at max subscribers")
    for name, token in (("ada", ada), ("bob", bob)):
        player = Player(server, match["shard_id"], token=token, sid=name)
        assert player.until(lambda body, name=name: name in body["here"])
    # Asked again before it was taken (the answer was lost, say), it is answered with the match.
    assert call("POST", ada, criteria) == match
    assert call("POST", ada, {}, "/ack") == {"shard_id": match["shard_id"]}
    assert call("POST", ada, criteria)["status"] == "queued"
    assert call("DELETE", ada) == {"dequeued": True}
    assert call("GET", ada) == {"status": "idle"}


def test_a_match_is_told_to_sockets_that_wait(server: PylonServer) -> None:
    def socket_of(name: str) -> Any:
        return websocket.create_connection(
            f"ws://127.0.0.1:{server.port + 1}/?changes=0", timeout=WAIT_S,
            header=[f"Authorization: Bearer {user(server, name)}"],
        )

    def told(socket: Any) -> Any:
        return json.loads(socket.recv())

    first, second, third = socket_of("m1"), socket_of("m2"), socket_of("m3")
    first.send(json.dumps({"type": "match-enqueue", "criteria": {"mode": "duel"}}))
    assert told(first)["status"] == "queued"
    third.send(json.dumps({"type": "match-enqueue", "criteria": {"mode": "none"}}))
    error = told(third)
    assert (error["type"], error["code"]) == ("error", "INVALID_DATA")
    first.close()  # who leaves waits no more: the next two are matched with each other
    wait_until(
        "the one who left is out of the queue",
        lambda: server.request("GET", "/api/matchmaking?player=m1", token=ADMIN_TOKEN)[1]
        == {"status": "idle"},
    )
    for socket in (second, third):
        socket.send(json.dumps({"type": "match-enqueue", "criteria": {"mode": "duel"}}))
        assert told(socket)["status"] == "queued"
    matches = [told(socket) for socket in (second, third)]
    assert matches[0] == matches[1]
    assert (matches[0]["type"], matches[0]["status"]) == ("match", "matched")
    second.send(json.dumps({"type": "match-enqueue", "criteria": {"mode": "duel"}}))
    assert told(second)["status"] == "queued"
    second.send(json.dumps({"type": "match-dequeue"}))
    assert told(second) == {"type": "match", "status": "idle"}

@pytest.mark.parametrize(
    "message",
    [
        b"\x81\xa5input\x81\xa1v\xa2\xff\xfe",  # a text of the input
        b"\x81\xa5input\x81\xa2\xff\xfe\x01",  # a key of the input
        b"\x82\xa5input\x80\xa2\xff\xfe\x01",  # a key beside it
    ],
    ids=lambda message: message.hex(),
)
def test_an_input_that_is_not_utf8_harms_nobody_but_its_sender(
    server: PylonServer, message: bytes
) -> None:
    ada = Player(server, "counter:utf8", token=user(server, "ada"), sid="ada", format="msgpack")
    bob = Player(server, "counter:utf8", token=user(server, "bob"), sid="bob")
    assert (ada.text()["type"], bob.text()["type"]) == ("seat", "seat")
    ada.socket.send_binary(message)
    assert ada.text()["type"] == "input-rejected"
    before = bob.frame()[1]["sum"]
    bob.say({"by": 1})
    assert bob.until(lambda body: body["sum"] == before + 1)


def test_the_list_names_a_worker_that_does_not_answer(server: PylonServer) -> None:
    homes = {}
    for number in range(6):
        name = f"steady:listed-{number}"
        server.request("POST", "/api/shards", {"id": name}, token=ADMIN_TOKEN)
        homes[name] = worker_of(server, name)
    assert set(homes.values()) == {"1", "2"}
    frozen = server.pids("shards")[0]
    os.kill(frozen, signal.SIGSTOP)
    try:
        status, listed, headers = server.request("GET", "/api/shards", token=ADMIN_TOKEN)
        missing = headers["x-pylon-missing-workers"]
        done = server.ctl("shards", "list")
    finally:
        os.kill(frozen, signal.SIGCONT)
    number = missing.rpartition("/")[2]
    assert (status, number in ("1", "2")) == (200, True)
    ids = {shard["id"] for shard in listed}
    assert {name for name in homes if name in ids} == {
        name for name, worker in homes.items() if worker != number
    }
    assert done.returncode == 1
    assert f"worker {missing} does not answer" in done.stdout
    wait_until("all answer again", lambda: "x-pylon-missing-workers" not in server.request(
        "GET", "/api/shards", token=ADMIN_TOKEN
    )[2])
