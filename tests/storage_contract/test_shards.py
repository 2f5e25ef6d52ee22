"""Claims of shards: each raises the generation, and what an older one wants to store is refused.

The leases of nodes decide whose claims hold, and only a shared store has them: see
`test_postgres_leases.py`.
"""

from __future__ import annotations

import pytest

from pylon.storage.ops import ClaimShard, DropShard, MoveShard, PutShard, ReleaseShard
from tests.storage_contract.backends import StoreStage

pytestmark = pytest.mark.stores

LOST = "SHARD_LEASE_LOST"


def claim(stage: StoreStage, shard_id: str = "a:1") -> int:
    reply, = stage.apply(ClaimShard(shard_id, "n/1", "n.1", "eu"))
    assert reply.error is None and reply.count == 1
    assert reply.seq > 0
    return reply.seq


def state(stage: StoreStage, shard_id: str = "a:1") -> bytes | None:
    found = stage.reader.shard(shard_id)
    return None if found is None else found.data


def test_each_claim_has_a_higher_generation_and_keeps_the_state(stage: StoreStage) -> None:
    first = claim(stage)
    stored = stage.codes(PutShard("a:1", 7, b"one", first), MoveShard("a:1", "2", first))
    assert stored == [None, None]
    second = claim(stage)
    assert second > first
    found = stage.reader.shard("a:1")
    assert found is not None and (found.tick, found.data, found.home) == (7, b"one", "2")
    place = stage.reader.shard_place("a:1")
    assert place is not None and (place.home, place.generation) == ("2", second)
    assert stage.reader.shard_place("a:2") is None


def test_writes_of_an_older_generation_are_refused_and_change_nothing(stage: StoreStage) -> None:
    old = claim(stage)
    new = claim(stage)
    assert stage.codes(PutShard("a:1", 3, b"new", new)) == [None]
    for op in (
        PutShard("a:1", 9, b"old", old), MoveShard("a:1", "3", old), DropShard("a:1", old),
    ):
        assert stage.codes(op) == [LOST], op
    found = stage.reader.shard("a:1")
    assert found is not None and (found.tick, found.data, found.home) == (3, b"new", None)


def test_a_refused_state_leaves_the_rest_of_its_batch(stage: StoreStage) -> None:
    old = claim(stage)
    new = claim(stage)
    other = claim(stage, "a:2")
    codes = stage.codes(
        PutShard("a:2", 1, b"x", other), PutShard("a:1", 9, b"old", old),
        PutShard("a:1", 4, b"new", new), MoveShard("a:3", "2"),
    )
    assert codes == [None, LOST, None, None]
    assert (state(stage, "a:2"), state(stage)) == (b"x", b"new")
    assert stage.reader.shard("a:3") is not None


def test_a_shard_that_was_dropped_never_gets_an_earlier_generation(stage: StoreStage) -> None:
    first = claim(stage)
    assert stage.codes(PutShard("a:1", 1, b"x", first), DropShard("a:1", first)) == [None] * 2
    assert stage.codes(PutShard("a:1", 2, b"ghost", first)) == [LOST]
    assert state(stage) is None
    assert claim(stage) > first
    assert stage.codes(PutShard("a:1", 2, b"ghost", first)) == [LOST]
    assert state(stage) is None


def test_drop_of_an_absent_shard_removes_nothing(stage: StoreStage) -> None:
    reply, = stage.apply(DropShard("a:1", 5))
    assert (reply.error, reply.count) == (None, 0)


def test_release_forgets_a_shard_without_a_state_and_keeps_others(stage: StoreStage) -> None:
    empty, saved, moved = claim(stage, "a:1"), claim(stage, "a:2"), claim(stage, "a:3")
    stage.apply(PutShard("a:2", 1, b"x", saved), MoveShard("a:3", "2", moved))
    released = stage.codes(
        ReleaseShard("a:1", empty), ReleaseShard("a:2", saved), ReleaseShard("a:3", moved)
    )
    assert released == [None] * 3
    assert [shard.id for shard in stage.reader.shards(10)] == ["a:2", "a:3"]
    assert state(stage, "a:2") == b"x"
    again = claim(stage, "a:1")
    assert stage.codes(ReleaseShard("a:1", empty)) == [None]
    assert stage.codes(PutShard("a:1", 1, b"mine", again)) == [None], "an old release has no effect"


def test_writes_without_a_generation_do_not_look_at_claims(stage: StoreStage) -> None:
    claim(stage)
    assert stage.codes(PutShard("a:1", 5, b"plain"), MoveShard("a:1", "2")) == [None, None]
    assert state(stage) == b"plain"
    reply, = stage.apply(DropShard("a:1"))
    assert reply.count == 1
