"""B4: a seat token serves nobody but its owner, once, and dies with the owner's session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket

from pylon.auth_context import AuthContext, Caller
from pylon.clock import SeededRandom
from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.shard_client import Player, user
from tests.support.wait import WAIT_S
from workers.shards.reconnect_tokens import ReconnectClaim, ReconnectTokens

ENVIRON = {
    "PYLON_APP": str(Path(__file__).parent.parent / "support" / "shards_app.py"),
    "PYLON_SHARD_WORKERS": "1", "PYLON_HTTP_WORKERS": "1", "PYLON_WS_WORKERS": "0",
    "PYLON_SSE_WORKERS": "0",
}
REFUSED, SESSION_ENDED, TAKEN_OVER = 1008, 4401, 4409


@pytest.fixture(scope="module")
def server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    made = PylonServer(tmp_path_factory.mktemp("seats"), notes_app(), ENVIRON).start()
    yield made
    made.close()


def read_token(player: Player) -> str:
    """The token in the first text frame."""
    told = player.text()
    assert told["type"] == "seat"
    token: str = told["token"]
    return token


def test_a_seat_dies_with_its_session(server: PylonServer) -> None:
    session = user(server, "ada")
    ada = Player(server, "counter:revoked", token=session, sid="ada")
    seat = read_token(ada)
    assert server.request("DELETE", "/api/auth/session", token=session)[0] == 200
    assert ada.closed()[0] == SESSION_ENDED
    for token in (None, session):
        assert Player(server, "counter:revoked", token=token, seat=seat).closed()[0] == REFUSED
    # Not even a new session of the same user has the old one's seat: it joins by its own right.
    watcher = Player(server, "counter:revoked", token=ADMIN_TOKEN, sid="admin")
    assert watcher.frame()[1]["sum"] == 0


def test_a_seat_serves_no_other_user_while_its_owner_is_connected(server: PylonServer) -> None:
    ada = Player(server, "counter:stolen", token=user(server, "ada"), sid="ada")
    seat = read_token(ada)
    for token in (None, user(server, "eve")):
        thief = Player(server, "counter:stolen", token=token, sid="ada", seat=seat)
        assert thief.closed()[0] == REFUSED
    ada.say({"by": 5})
    assert ada.until(lambda body: body["sum"] == 5)["here"] == ["ada"]


def test_a_seat_token_works_once_and_ends_the_connection_before(server: PylonServer) -> None:
    session = user(server, "ada")
    first = Player(server, "counter:twice", token=session, sid="ada")
    seat = read_token(first)
    second = Player(server, "counter:twice", token=session, seat=seat)
    assert first.closed()[0] == TAKEN_OVER
    assert read_token(second) != seat
    # A used token is worth nothing: without a sid of its own this one is nobody.
    assert Player(server, "counter:twice", token=session, seat=seat).closed()[0] == REFUSED
    second.say({"by": 7})
    assert second.until(lambda body: body["sum"] == 7)["here"] == ["ada"]


def test_a_connection_that_lost_its_seat_steers_no_more(server: PylonServer) -> None:
    session = user(server, "ada")
    first = Player(server, "counter:half-open", token=session, sid="ada")
    second = Player(server, "counter:half-open", token=session, seat=read_token(first))
    first.say({"by": 1000})
    second.say({"by": 1})
    assert second.until(lambda body: body["sum"] != 0)["sum"] == 1


def test_a_seat_token_in_the_url_is_refused_with_the_remedy(server: PylonServer) -> None:
    session = user(server, "ada")
    ada = Player(server, "counter:url", token=session, sid="ada")
    seat = read_token(ada)
    with_url = websocket.create_connection(
        f"ws://127.0.0.1:{server.port + 3}/?shard=counter:url&sid=ada&seat={seat}", timeout=WAIT_S,
        header=[f"Authorization: Bearer {session}"],
    )
    frame = with_url.recv_frame()
    assert int.from_bytes(frame.data[:2], "big") == REFUSED
    assert b"seat.<token>" in frame.data


class Line:
    """In place of a connection, which the registry only keeps."""


def claim_of(caller: Caller, shard_id: str = "sim:1") -> ReconnectClaim:
    return ReconnectClaim(shard_id, "ada", caller, Line())  # type: ignore[arg-type]


ADA = Caller(AuthContext(user_id="ada"), "session-1")


def test_a_token_that_a_stranger_tried_stays_good_for_its_owner() -> None:
    tokens = ReconnectTokens(SeededRandom(1))
    token = tokens.issue(claim_of(ADA))
    for stranger in (
        Caller(AuthContext()), Caller(AuthContext(user_id="ada"), "session-2"),
        Caller(AuthContext(user_id="eve"), "session-1"),
    ):
        assert tokens.claim(token, "sim:1", stranger, 0.0) is None
    assert tokens.claim(token, "sim:2", ADA, 0.0) is None
    assert tokens.claim(token, "sim:1", ADA, 0.0) is not None
    assert tokens.claim(token, "sim:1", ADA, 0.0) is None


def test_a_token_ends_some_time_after_its_connection_and_its_memory_with_it() -> None:
    tokens = ReconnectTokens(SeededRandom(1), max_tokens=3)
    lost, kept = tokens.issue(claim_of(ADA)), tokens.issue(claim_of(ADA))
    tokens.start_expiry(lost, until_s=30.0)
    assert tokens.claim(lost, "sim:1", ADA, 30.0) is None
    assert len(tokens) == 1
    for _ in range(3):
        tokens.issue(claim_of(ADA))
    assert len(tokens) == 3
    assert tokens.claim(kept, "sim:1", ADA, 0.0) is None, "the oldest gives way"
