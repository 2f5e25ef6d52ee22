"""The reader's deadline, and its memory of slow statements, on a manual clock."""

from __future__ import annotations

import pytest

from pylon import limits
from pylon.clock import ManualClock
from pylon.storage.sqlite.deadline import Deadline
from pylon.storage.sqlite.slow_statements import SlowStatements


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def deadline(clock: ManualClock) -> Deadline:
    return Deadline(clock, 10.0)


def test_a_statement_has_its_time_from_the_first_check(
    clock: ManualClock, deadline: Deadline
) -> None:
    deadline.start_statement()
    clock.advance(60)
    assert not deadline.is_over()
    clock.advance(10)
    assert not deadline.is_over()
    clock.advance(0.001)
    assert deadline.is_over()


def test_each_statement_has_a_limit_of_its_own(clock: ManualClock, deadline: Deadline) -> None:
    for _ in range(3):
        deadline.start_statement()
        assert not deadline.is_over()
        clock.advance(9)
        assert not deadline.is_over()


def test_statements_of_a_group_share_one_limit(clock: ManualClock, deadline: Deadline) -> None:
    deadline.begin_group(0.001)
    deadline.start_statement()
    clock.advance(5)  # not checked yet: the time of the group has not begun
    assert not deadline.is_over()
    clock.advance(0.0009)
    assert not deadline.is_over()
    deadline.start_statement()
    clock.advance(0.0002)
    assert deadline.is_over()
    deadline.start_statement()
    assert deadline.is_over()


def test_an_exempt_statement_has_no_limit(clock: ManualClock, deadline: Deadline) -> None:
    deadline.begin_group(0.001)
    deadline.start_statement()
    assert not deadline.is_over()
    clock.advance(5)
    deadline.exempt_statement()
    assert not deadline.is_over()
    deadline.start_statement()
    assert deadline.is_over()


def test_a_statement_after_a_group_has_the_usual_limit(
    clock: ManualClock, deadline: Deadline
) -> None:
    deadline.begin_group(0.001)
    deadline.start_statement()
    assert deadline.in_group
    assert not deadline.is_over()
    clock.advance(1)
    assert deadline.is_over()
    deadline.end_group()
    assert not deadline.in_group
    deadline.start_statement()
    assert not deadline.is_over()
    clock.advance(9)
    assert not deadline.is_over()
    clock.advance(2)
    assert deadline.is_over()


def test_a_second_group_has_its_own_time(clock: ManualClock, deadline: Deadline) -> None:
    for _ in range(2):
        deadline.begin_group(0.001)
        deadline.start_statement()
        assert not deadline.is_over()
        clock.advance(0.002)
        assert deadline.is_over()
        deadline.end_group()


def test_a_group_without_time_ends_at_its_second_check(
    clock: ManualClock, deadline: Deadline
) -> None:
    deadline.begin_group(0.0)
    deadline.start_statement()
    assert not deadline.is_over()
    assert not deadline.is_over()
    clock.advance(0.0001)
    assert deadline.is_over()


def test_the_wall_clock_may_jump(clock: ManualClock, deadline: Deadline) -> None:
    deadline.start_statement()
    assert not deadline.is_over()
    clock.jump(3_600)
    assert not deadline.is_over()


def test_a_slow_statement_is_skipped_63_times_and_tried_again() -> None:
    slow = SlowStatements()
    assert not slow.should_skip("a")
    slow.add("a")
    assert [slow.should_skip("a") for _ in range(64)] == [True] * 63 + [False]
    assert not slow.should_skip("a")
    assert not slow.should_skip("b")


def test_slow_statements_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SLOW_STATEMENTS", 2)
    slow = SlowStatements()
    for key in ("a", "b", "c"):
        slow.add(key)
    assert [slow.should_skip(key) for key in ("a", "b", "c")] == [False, False, True]
