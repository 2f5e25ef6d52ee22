"""From a token to a caller."""

from __future__ import annotations

from pylon import config as settings
from pylon.auth.issue import NewSession, SessionIssuer
from pylon.auth.session_life import ROTATION_GRACE_S, SessionLife
from pylon.auth.sessions import resolve
from pylon.auth_context import ADMIN, ANONYMOUS
from pylon.clock import ManualClock, SeededRandom
from pylon.storage.records import SessionRow

NONE: dict[str, SessionRow] = {}
CONFIG = settings.load({"PYLON_ADMIN_TOKEN": "a" * 40}).config


def made(clock: ManualClock, expires_in_s: int = 60, max_age_s: int = 0) -> NewSession:
    issuer = SessionIssuer(
        SessionLife(expires_in_s, max_age_s, is_sliding=True), clock, SeededRandom(3)
    )
    return issuer.issue("u1", is_guest=True, device="", tenant_id="t1", methods=("password",))


def stored_row(session: NewSession, rotated_at_s: int = 0) -> SessionRow:
    put = session.put
    return SessionRow(
        put.session_id, put.user_id, put.is_guest, put.created_at_s, put.expires_at_s, put.device,
        put.tenant_id, False, put.family, rotated_at_s, put.auth_time_s, put.methods,
        put.created_at_s, put.token_hint,
    )


def stored(session: NewSession) -> dict[str, SessionRow]:
    return {session.put.session_id: stored_row(session)}


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


def test_a_caller_has_the_family_of_its_session_and_the_time_of_its_sign_in() -> None:
    clock = ManualClock()
    session = made(clock)
    caller = resolve(session.token, CONFIG, stored(session).get, clock)
    assert caller.family == session.put.session_id
    assert caller.auth_time_s == clock.wall_ns() // 10**9


def test_a_replaced_token_counts_for_the_grace_and_no_longer() -> None:
    clock = ManualClock()
    session = made(clock)
    row = stored_row(session, rotated_at_s=clock.wall_ns() // 10**9)
    clock.advance(ROTATION_GRACE_S - 1)
    assert resolve(session.token, CONFIG, {row.session_id: row}.get, clock).auth.user_id == "u1"
    clock.advance(1)
    assert resolve(session.token, CONFIG, {row.session_id: row}.get, clock).auth == ANONYMOUS


def test_a_rotation_keeps_the_sign_in_and_ends_at_its_greatest_age() -> None:
    clock = ManualClock()
    first = made(clock, expires_in_s=60, max_age_s=100)
    clock.advance(50)
    issuer = SessionIssuer(SessionLife(60, 100, is_sliding=True), clock, SeededRandom(4))
    second = issuer.rotate(stored_row(first))
    assert second.token != first.token and second.token not in repr(second)
    put = second.put
    assert (put.family, put.user_id, put.is_guest, put.tenant_id, put.methods) == (
        first.put.session_id, "u1", True, "t1", "password"
    )
    assert (put.created_at_s, put.auth_time_s) == (first.put.created_at_s, first.put.auth_time_s)
    assert put.expires_at_s == first.put.created_at_s + 100, "not 50 + 60"


def test_use_is_noted_once_in_a_tenth_of_the_life() -> None:
    clock = ManualClock()
    life = SessionLife(1_000, 0, is_sliding=True)
    row = stored_row(made(clock, expires_in_s=1_000))
    now_s = row.created_at_s
    assert not life.needs_note(row, now_s + 99)
    assert life.needs_note(row, now_s + 100) and life.can_prolong(row, now_s + 100)
    assert life.note(now_s + 100) == (now_s + 100, now_s, now_s + 1_100, 0)
    fixed = SessionLife(1_000, 0, is_sliding=False)
    assert fixed.needs_note(row, now_s + 100) and not fixed.can_prolong(row, now_s + 100)
    assert fixed.note(now_s + 100).prolong_to_s == 0
    replaced = stored_row(made(clock), rotated_at_s=now_s)
    assert not life.needs_note(replaced, now_s + 500)
