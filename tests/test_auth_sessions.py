"""From a token to a caller."""

from __future__ import annotations

from pylon import config as settings
from pylon.auth.sessions import NewSession, new_session, resolve
from pylon.auth_context import ADMIN, ANONYMOUS
from pylon.clock import ManualClock, SeededRandom
from pylon.storage.records import SessionRow

NONE: dict[str, SessionRow] = {}
CONFIG = settings.load({"PYLON_ADMIN_TOKEN": "a" * 40}).config


def made(clock: ManualClock, expires_in_s: int = 60) -> NewSession:
    return new_session(
        "u1", is_guest=True, device="curl", tenant_id="t1",
        expires_in_s=expires_in_s, clock=clock, random=SeededRandom(3),
    )


def stored(session: NewSession) -> dict[str, SessionRow]:
    put = session.put
    row = SessionRow(put.session_id, put.user_id, put.is_guest, put.created_at_s,
                     put.expires_at_s, put.device, put.tenant_id)
    return {put.session_id: row}


def test_a_session_gives_its_context_and_its_id() -> None:
    clock = ManualClock()
    session = made(clock)
    caller = resolve(session.token, CONFIG, stored(session).get, clock)
    assert caller.session_id == session.put.session_id
    assert caller.auth.user_id == "u1"
    assert caller.auth.is_guest
    assert caller.auth.tenant_id == "t1"
    assert caller.auth.roles == ()
    assert not caller.auth.is_admin


def test_a_session_ends_at_its_time_and_not_before() -> None:
    clock = ManualClock()
    session = made(clock, expires_in_s=60)
    rows = stored(session)
    clock.advance(59)
    assert resolve(session.token, CONFIG, rows.get, clock).session_id is not None
    clock.advance(1)
    assert resolve(session.token, CONFIG, rows.get, clock).auth == ANONYMOUS


def test_a_lifetime_of_zero_never_ends() -> None:
    clock = ManualClock()
    session = made(clock, expires_in_s=0)
    assert session.put.expires_at_s == 0
    clock.advance(1e9)
    assert resolve(session.token, CONFIG, stored(session).get, clock).auth.user_id == "u1"


def test_the_admin_token_needs_no_session() -> None:
    asked: list[str] = []

    def look_up(session_id: str) -> SessionRow | None:
        asked.append(session_id)
        return None

    caller = resolve("a" * 40, CONFIG, look_up)
    assert caller.auth == ADMIN
    assert caller.session_id is None
    assert asked == []


def test_unknown_malformed_and_absent_tokens_are_anonymous() -> None:
    for token in (None, "", "pylon_nonsense", "pylon_" + "0" * 64, "a" * 39):
        caller = resolve(token, CONFIG, NONE.get)
        assert caller.auth == ANONYMOUS
        assert caller.session_id is None


def test_without_an_admin_token_nobody_is_admin() -> None:
    assert not resolve("a" * 40, settings.load({}).config, NONE.get).auth.is_admin
