"""pylon.realtime.matchmaker: groups, time-outs, backfill, and nobody in two places."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pylon import limits
from pylon.errors import InvalidData, MatchQueueFull, StartRefused
from pylon.realtime.matchmaker import Match, Matchmaker, Mode, OpenShard, check_mode
from tests.support.examples import count_examples


def maker(*modes: Mode) -> Matchmaker:
    numbers = itertools.count(1)
    return Matchmaker({mode.name: mode for mode in modes}, lambda: f"match_{next(numbers)}")


DUEL = Mode("default", "arena", 2)


def test_two_who_wait_are_a_match_and_told_when_it_is_there() -> None:
    matchmaker = maker(DUEL)
    matchmaker.enqueue("ada", {}, 0.0)
    assert matchmaker.step(1.0) == []
    matchmaker.enqueue("bob", {}, 1.5)
    (match,) = matchmaker.step(2.0)
    assert (match.shard_id, match.players, match.is_new) == ("arena:match_1", ["ada", "bob"], True)
    assert match.params["players"] == ["ada", "bob"]
    assert matchmaker.status("ada", 2.0)["status"] == "queued"
    assert matchmaker.confirm_match(match, 2.0) == ["ada", "bob"]
    assert matchmaker.status("ada", 3.0) == {"status": "matched", "shard_id": "arena:match_1"}
    assert matchmaker.acknowledge("ada") == "arena:match_1"
    assert matchmaker.acknowledge("ada") is None
    assert matchmaker.status("ada", 3.0) == {"status": "idle"}
    assert matchmaker.status("bob", 32.1) == {"status": "idle"}


def test_a_status_has_the_place_and_the_time() -> None:
    matchmaker = maker(Mode("default", "arena", 5))
    for number, player in enumerate(["ada", "bob", "cyd"]):
        matchmaker.enqueue(player, {}, float(number))
    matchmaker.dequeue("ada")
    matchmaker.step(4.0)
    assert matchmaker.status("bob", 5.9) == {
        "status": "queued", "position": 1, "waiting_secs": 4
    }


def test_who_waits_too_long_is_dropped() -> None:
    matchmaker = maker(DUEL)
    matchmaker.enqueue("ada", {}, 0.0)
    matchmaker.step(60.0)
    assert len(matchmaker) == 1
    matchmaker.step(60.1)
    assert matchmaker.status("ada", 60.1) == {"status": "idle"}


def test_only_the_like_are_matched() -> None:
    matchmaker = maker(Mode("default", "arena", 2, match_on=("region",)))
    for player, region in [("a", "eu"), ("b", "us"), ("c", 1), ("d", "eu")]:
        matchmaker.enqueue(player, {"region": region}, 0.0)
    assert [match.players for match in matchmaker.step(1.0)] == [["a", "d"]]


def test_after_some_patience_fewer_will_do() -> None:
    matchmaker = maker(Mode("default", "arena", 4, min_size=2, relax_after_s=10))
    for player in ("a", "b", "c"):
        matchmaker.enqueue(player, {}, 0.0)
    assert matchmaker.step(9.9) == []
    assert [match.players for match in matchmaker.step(10.0)] == [["a", "b", "c"]]


def test_empty_seats_are_filled_first() -> None:
    matchmaker = maker(Mode("default", "arena", 2, backfill=True))
    for player in ("a", "b", "c"):
        matchmaker.enqueue(player, {}, 0.0)
    fill, new = matchmaker.step(1.0, [
        OpenShard("arena:old", "default", (), 1), OpenShard("arena:other", "ranked", (), 5),
    ])
    assert (fill.shard_id, fill.players, fill.is_new) == ("arena:old", ["a"], False)
    assert (new.players, new.is_new) == (["b", "c"], True)


def test_who_could_not_be_placed_waits_where_they_stood() -> None:
    matchmaker = maker(DUEL)
    for player in ("a", "b", "c"):
        matchmaker.enqueue(player, {}, 0.0)
    (match,) = matchmaker.step(1.0)
    matchmaker.dequeue("b")
    matchmaker.requeue_match(match)
    (match,) = matchmaker.step(2.0)
    assert match.players == ["a", "c"]


def test_an_app_may_form_its_own_groups() -> None:
    def by_rating(waiting: Any, now_s: float) -> Any:
        ranked = sorted(waiting, key=lambda ticket: ticket.criteria["rating"])
        return [ranked[:2]] if len(ranked) > 1 else []

    matchmaker = maker(Mode("default", "arena", 2, grouping=by_rating))
    for player, rating in [("a", 900), ("b", 100), ("c", 110)]:
        matchmaker.enqueue(player, {"rating": rating}, 0.0)
    assert [match.players for match in matchmaker.step(1.0)] == [["b", "c"]]


@pytest.mark.parametrize(
    ("criteria", "said"),
    [
        ({"mode": "x"}, "The modes are: default"), ({"mode": 1}, "The modes are"),
        ({}, "criteria.region is None"), ({"region": []}, "criteria.region"),
        ({"region": True}, "criteria.region"),
    ],
)
def test_criteria_are_checked(criteria: dict[str, Any], said: str) -> None:
    matchmaker = maker(Mode("default", "arena", 2, match_on=("region",)))
    with pytest.raises(InvalidData) as caught:
        matchmaker.enqueue("ada", criteria, 0.0)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MATCH_TICKETS", 1)
    matchmaker = maker(DUEL)
    matchmaker.enqueue("ada", {}, 0.0)
    matchmaker.enqueue("ada", {}, 1.0)
    with pytest.raises(MatchQueueFull):
        matchmaker.enqueue("bob", {}, 0.0)


@pytest.mark.parametrize(
    "mode",
    [
        Mode("", "arena", 2), Mode("a", "arena", 0), Mode("a", "arena", 1_001),
        Mode("a", "arena", 2, min_size=3), Mode("a", "arena", 2, timeout_s=-1),
        Mode("a", "arena", 2, seat_s=float("nan")),
    ],
)
def test_a_mode_is_checked(mode: Mode) -> None:
    with pytest.raises(StartRefused, match="matchmaking mode"):
        check_mode(mode)


_player = st.sampled_from([f"p{number}" for number in range(8)])


def test_a_request_that_is_sent_again_keeps_the_match_of_the_first() -> None:
    matchmaker = maker(DUEL)
    matchmaker.enqueue("ada", {}, 0.0)
    matchmaker.enqueue("bob", {}, 0.0)
    (match,) = matchmaker.step(1.0)
    matchmaker.enqueue("ada", {}, 1.5)  # while its shard is being made
    assert matchmaker.confirm_match(match, 2.0) == ["ada", "bob"]
    matchmaker.enqueue("ada", {}, 2.5)
    assert matchmaker.status("ada", 2.5) == {"status": "matched", "shard_id": match.shard_id}
    assert matchmaker.step(3.0) == []
    assert not matchmaker.dequeue("ada")
    matchmaker.enqueue("ada", {}, 3.5)
    assert matchmaker.status("ada", 3.5)["status"] == "queued"


def test_a_match_that_is_no_longer_kept_is_waited_for_anew() -> None:
    matchmaker = maker(Mode("default", "arena", 1, seat_s=30.0))
    matchmaker.enqueue("ada", {}, 0.0)
    (match,) = matchmaker.step(1.0)
    matchmaker.confirm_match(match, 1.0)
    matchmaker.enqueue("ada", {}, 31.5)
    assert matchmaker.status("ada", 31.5)["status"] == "queued"


class QueueMachine(RuleBasedStateMachine):
    """Nobody waits twice, nobody waits and plays, nobody is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.matchmaker = maker(
            Mode("default", "arena", 3, min_size=2, relax_after_s=5, timeout_s=30, match_on=("r",)),
        )
        self.now_s = 0.0
        self.open: list[Match] = []
        self.expected: dict[str, str] = {}  # player: queued or matching
        self.matched: dict[str, str] = {}  # player: shard, as long as it is kept

    @rule(player=_player, region=st.sampled_from("ab"))
    def enqueue(self, player: str, region: str) -> None:
        self.matchmaker.enqueue(player, {"r": region}, self.now_s)
        status = self.matchmaker.status(player, self.now_s)
        if player in self.matched:
            assert status == {"status": "matched", "shard_id": self.matched[player]}
        else:
            assert status["status"] == "queued"
            self.expected.setdefault(player, "queued")

    @rule(player=_player)
    def dequeue(self, player: str) -> None:
        was = self.expected.pop(player, None)
        self.matched.pop(player, None)
        assert self.matchmaker.dequeue(player) is (was == "queued")

    @rule(after_s=st.floats(0, 12))
    def step(self, after_s: float) -> None:
        self.now_s += after_s
        for player in list(self.matched):
            if self.matchmaker.status(player, self.now_s)["status"] != "matched":
                del self.matched[player]
        for match in self.matchmaker.step(self.now_s):
            assert 2 <= len(match.players) <= 3
            assert len({ticket.criteria["r"] for ticket in match.tickets}) == 1
            for player in match.players:
                assert self.expected[player] == "queued"
                self.expected[player] = "matching"
            self.open.append(match)
        for player, state in list(self.expected.items()):
            if state == "queued" and player not in self.matchmaker._key_by_player:
                del self.expected[player]  # its time was over

    @rule(good=st.booleans())
    def settle(self, good: bool) -> None:
        if not self.open:
            return
        match = self.open.pop(0)
        if good:
            for player in self.matchmaker.confirm_match(match, self.now_s):
                assert self.expected.pop(player) == "matching"
                status = self.matchmaker.status(player, self.now_s)
                assert status == {"status": "matched", "shard_id": match.shard_id}
                self.matched[player] = match.shard_id
        else:
            self.matchmaker.requeue_match(match)
            for player in match.players:
                in_queue = player in self.matchmaker._key_by_player
                if self.expected.get(player) == "matching" and in_queue:
                    self.expected[player] = "queued"

    @invariant()
    def one_place_each(self) -> None:
        queued = [p for queue in self.matchmaker._queues.values() for p in queue]
        assert sorted(queued) == sorted(p for p, s in self.expected.items() if s == "queued")
        assert sorted(self.matchmaker._matching) == sorted(
            p for p, s in self.expected.items() if s == "matching"
        )
        for queue in self.matchmaker._queues.values():
            numbers = [ticket.number for ticket in queue.values()]
            assert numbers == sorted(numbers)
            assert numbers


TestQueues = QueueMachine.TestCase
TestQueues.settings = settings(max_examples=count_examples(60), stateful_step_count=40)
