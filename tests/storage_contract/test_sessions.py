"""Sessions and states of shards, which live beside the rows and in the same commits."""

from __future__ import annotations

import orjson
import pytest

from pylon.storage.auth_ops import Condition, EndSessions, SetRecords
from pylon.storage.ops import DropSession, DropShard, MoveShard, PutSession, PutShard
from pylon.storage.records import SessionNote
from tests.storage_contract.backends import StoreStage

pytestmark = pytest.mark.stores

DAY_S = 86_400
NO_NOTE = SessionNote(0, -1, 0, 0)  # leaves every session as it is


def session(number: int, *, guest: bool = True, made_s: int = 0, ends_s: int = 0) -> PutSession:
    return PutSession(f"{number:064x}", f"u{number}", guest, made_s, ends_s, "curl", "acme")


def test_session_is_stored_and_dropped(stage: StoreStage) -> None:
    stored = stage.commit(session(1, made_s=5, ends_s=10))
    assert stored.batch is None and stored.replies[0].count == 1
    found = stage.reader.session(f"{1:064x}")
    assert found is not None
    assert (found.user_id, found.is_guest, found.created_at_s, found.expires_at_s) == (
        "u1", True, 5, 10,
    )
    assert (found.device, found.tenant_id, found.is_unused) == ("curl", "acme", True)
    assert stage.reader.session("other") is None
    dropped = stage.apply(DropSession(f"{1:064x}"), DropSession(f"{1:064x}"))
    assert [reply.count for reply in dropped] == [1, 0]
    assert stage.reader.session(f"{1:064x}") is None
    assert stage.reader.head_seq() == 0, "a session is no change of a row"


def test_ends_of_many_sessions_are_read_at_once(stage: StoreStage) -> None:
    stage.apply(session(1, ends_s=7), session(2))
    ids = [f"{n:064x}" for n in (1, 2, 3)]
    assert stage.reader.family_ends(ids) == {ids[0]: 7, ids[1]: 0}


def test_a_session_without_a_family_is_one_of_its_own(stage: StoreStage) -> None:
    stage.apply(session(1, made_s=5))
    found = stage.reader.session(f"{1:064x}")
    assert found is not None
    assert (found.family, found.rotated_at_s, found.auth_time_s, found.last_seen_at_s) == (
        f"{1:064x}", 0, 5, 5,
    )


def member(number: int, family: int, ends_s: int, *, guest: bool = False) -> PutSession:
    return PutSession(
        f"{number:064x}", "ada", guest, 5, ends_s, "", family=f"{family:064x}", auth_time_s=7,
        methods="password totp", token_hint="pylon_ab", last_seen_at_s=9,
    )


def replace(number: int, at_s: int) -> SetRecords:
    """Mark a session's token as replaced."""
    return SetRecords(
        "sessions", [Condition("session_id", "=", f"{number:064x}")], {"rotated_at": at_s}, 1
    )


def test_a_family_lives_as_long_as_its_longest_session_that_was_not_replaced(
    stage: StoreStage
) -> None:
    first, endless, gone = (f"{n:064x}" for n in (1, 4, 6))
    stage.apply(
        member(1, 1, 900), member(2, 1, 20), member(3, 1, 30), replace(1, 8),
        member(4, 4, 10), member(5, 4, 0), member(6, 6, 10), replace(6, 8),
    )
    assert stage.reader.family_ends([first, endless, gone, "none"]) == {first: 30, endless: 0}
    second = stage.reader.session(f"{2:064x}")
    assert second is not None
    assert (second.family, second.auth_time_s, second.methods, second.token_hint) == (
        first, 7, "password totp", "pylon_ab",
    )
    assert second.last_seen_at_s == 9
    replaced = stage.reader.session(first)
    assert replaced is not None and replaced.rotated_at_s == 8
    (reply,) = stage.apply(EndSessions([Condition("user_id", "=", "ada")]))
    assert reply.count == 6
    assert sorted(orjson.loads(reply.row_id)) == [first, endless, gone]
    assert stage.reader.family_ends([first, endless, gone]) == {}


def test_a_guest_that_has_a_new_token_is_not_unused(stage: StoreStage) -> None:
    stage.apply(member(1, 1, 0, guest=True), member(2, 1, 0, guest=True))
    unused = {n: stage.reader.session(f"{n:064x}") for n in (1, 2)}
    assert [row is not None and row.is_unused for row in unused.values()] == [True, False]


def test_the_note_of_a_use_prolongs_a_session_once_and_within_its_age(stage: StoreStage) -> None:
    stage.apply(
        member(1, 1, 50), member(2, 2, 0), member(3, 3, 50), replace(3, 10), session(4, ends_s=500),
    )
    ids = [f"{n:064x}" for n in (1, 2, 3, 4)]

    def ends(note: SessionNote) -> tuple[int, list[int], list[int]]:
        changed = stage.writer.maintenance.note_sessions_used([*ids, "none"], note)
        rows = [row for row in map(stage.reader.session, ids) if row is not None]
        return changed, [row.expires_at_s for row in rows], [row.last_seen_at_s for row in rows]

    # Seen before 9: the guest has no note of its use, and counts as used now.
    assert ends(SessionNote(20, 8, 70, 0)) == (1 + 1, [50, 0, 50, 500], [9, 9, 9, 20])
    assert ends(SessionNote(20, 9, 70, 0)) == (2, [70, 0, 50, 500], [20, 20, 9, 20])
    assert ends(SessionNote(21, 9, 71, 0))[0] == 0, "noted a moment ago"
    assert ends(SessionNote(30, 20, 0, 0))[1] == [70, 0, 50, 500], "not sliding"
    assert ends(SessionNote(40, 30, 90, 80))[1] == [85, 0, 50, 500], "made at 5, 80 old at most"
    assert ends(SessionNote(50, 40, 60, 0))[1] == [85, 0, 50, 500], "never earlier"


def test_expired_and_unused_sessions_are_pruned_in_steps(stage: StoreStage) -> None:
    now_s = stage.clock.wall_ns() // 1_000_000_000
    stage.apply(
        *(session(n, ends_s=now_s - 1) for n in range(1, 6)),
        session(6, made_s=now_s - 2 * DAY_S), session(7, made_s=now_s),
        session(8, guest=False, made_s=now_s - 2 * DAY_S), session(9, made_s=now_s - 2 * DAY_S),
    )
    maintenance = stage.writer.maintenance
    assert maintenance.note_sessions_used([f"{6:064x}"], NO_NOTE) == 1
    assert [maintenance.prune_sessions(2, 0) for _ in range(4)] == [2, 2, 1, 0], "expired"
    assert [maintenance.prune_sessions(2, now_s - DAY_S) for _ in range(2)] == [1, 0], "unused"
    assert [n for n in range(1, 10) if stage.reader.session(f"{n:064x}")] == [6, 7, 8]
    assert maintenance.count_sessions() == {"guest": 2, "user": 1}


def test_idle_guests_are_pruned_in_parts_of_the_table(stage: StoreStage) -> None:
    now_s = stage.clock.wall_ns() // 1_000_000_000
    old_s = now_s - 40 * DAY_S
    stage.apply(
        session(1, made_s=old_s), session(2, made_s=now_s), session(3, guest=False, made_s=old_s),
        session(4, made_s=old_s), session(5, made_s=old_s),
    )
    maintenance = stage.writer.maintenance
    maintenance.note_sessions_used([f"{4:064x}"], SessionNote(now_s, now_s - 1, 0, 0))
    steps, after_id = [], ""
    for _ in range(3):
        step = maintenance.prune_guests(after_id, 2, now_s - 30 * DAY_S)
        steps.append((step.dropped, step.last_id))
        after_id = step.last_id
    assert steps == [(1, f"{2:064x}"), (0, f"{4:064x}"), (1, "")]
    assert [n for n in range(1, 6) if stage.reader.session(f"{n:064x}")] == [2, 3, 4]
    assert maintenance.count_sessions() == {"guest": 2, "user": 1}


def test_shard_states_replace_each_other_and_remember_their_worker(stage: StoreStage) -> None:
    stage.apply(PutShard("a:1", 5, b"old"), PutShard("a:1", 6, b"new"), MoveShard("a:2", "3"))
    found = stage.reader.shard("a:1")
    assert found is not None and (found.tick, found.data, found.home) == (6, b"new", None)
    moved = stage.reader.shard("a:2")
    assert moved is not None and (moved.data, moved.home) == (None, "3")
    assert [shard.id for shard in stage.reader.shards(10)] == ["a:1", "a:2"]
    stage.apply(DropShard("a:1"), MoveShard("a:2", None))
    assert stage.reader.shard("a:1") is None
