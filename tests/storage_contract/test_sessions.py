"""Sessions and states of shards, which live beside the rows and in the same commits."""

from __future__ import annotations

import pytest

from pylon.storage.ops import DropSession, DropShard, MoveShard, PutSession, PutShard
from tests.storage_contract.backends import StoreStage

pytestmark = pytest.mark.stores

DAY_S = 86_400


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
    assert stage.reader.session_ends(ids) == {ids[0]: 7, ids[1]: 0}


def test_expired_and_unused_sessions_are_pruned_in_steps(stage: StoreStage) -> None:
    now_s = stage.clock.wall_ns() // 1_000_000_000
    stage.apply(
        *(session(n, ends_s=now_s - 1) for n in range(1, 6)),
        session(6, made_s=now_s - 2 * DAY_S), session(7, made_s=now_s),
        session(8, guest=False, made_s=now_s - 2 * DAY_S), session(9, made_s=now_s - 2 * DAY_S),
    )
    maintenance = stage.writer.maintenance
    assert maintenance.mark_sessions_used([f"{6:064x}"]) == 1
    assert [maintenance.prune_sessions(2, 0) for _ in range(4)] == [2, 2, 1, 0], "expired"
    assert [maintenance.prune_sessions(2, now_s - DAY_S) for _ in range(2)] == [1, 0], "unused"
    assert [n for n in range(1, 10) if stage.reader.session(f"{n:064x}")] == [6, 7, 8]
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
